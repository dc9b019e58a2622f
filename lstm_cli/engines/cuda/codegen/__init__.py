"""CUDA C++ of the kernels; start with `cell`, where a gate is computed."""
