"""GPU kernels run on the host: a fiber for each CUDA thread, and a device made of them."""
