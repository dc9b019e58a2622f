"""GPU kernels run on the host: an operating-system thread for each CUDA thread."""
