"""A device: memory, streams, compiled kernels. `device` is the protocol; `gpu` drives CuPy.

`kernel` compiles and launches, `memory` copies, and `status` says which GPUs are usable.
"""
