"""A device: memory, streams, kernels. `device` has the protocol; `gpu` implements it with CuPy."""
