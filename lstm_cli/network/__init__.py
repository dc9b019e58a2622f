"""Networks: layers, initial weights, forward and backward passes.

Start at `network.Network`. `backpropagation` differentiates it, `weights` compares stored tensors
with its layers, and `state` carries states between batches.
"""
