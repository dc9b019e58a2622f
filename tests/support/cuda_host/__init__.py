"""GPU kernels run on the host: one fiber per CUDA thread, and a device that uses them."""
