"""A device: memory, streams, compiled kernels. `device` is the protocol; `gpu` drives CuPy."""
