"""A device: memory, streams, kernels. `device` has the protocol; `gpu` implements it with CuPy.

`kernel` compiles and launches, `memory` copies, and `status` says which GPUs are usable.
"""
