"""Machine, compiler, memory and threads of the kernels; start at `compiler.load_kernels`."""
