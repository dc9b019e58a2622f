"""Machine, compiler, memory and threads of the kernels; start at `compiler.load_kernels`.

`thread_pool` starts the threads, and `worker_ir` is the native code that hands them their work.
"""
