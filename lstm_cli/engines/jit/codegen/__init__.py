"""Emitters of LLVM IR: `cell` computes gates, `tile` multiplies, `forward` runs the steps.

`backward` and `weight_gradient` differentiate, `packing` orders weights for `tile`, and `ir` writes
the instructions.
"""
