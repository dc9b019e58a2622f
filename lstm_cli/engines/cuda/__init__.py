"""The cuda engine: CUDA C++ emitted from the cells, compiled when it is first needed."""
