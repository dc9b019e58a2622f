"""The jit engine: this folder prepares layers and calls kernels; start at `engine.JitEngine`.

`codegen` writes the kernels as LLVM IR, and `runtime` compiles and runs them.
"""
