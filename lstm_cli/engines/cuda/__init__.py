"""The cuda engine, not yet run on any GPU: CUDA C++ emitted from the cells, compiled on first use.

Start with `engine`; `layers` and `kernels` run a pass, and `codegen` emits the kernels.
"""
