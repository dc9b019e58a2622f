"""Networks: layers, initial weights, forward and backward passes."""
