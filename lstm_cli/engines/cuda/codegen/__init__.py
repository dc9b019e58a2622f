"""CUDA C++ of the kernels. Start with `cell`: the place where a gate is computed."""
