"""Networks: layers, initial weights, and the forward pass through all of them."""
