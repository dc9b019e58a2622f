"""Kernels written as LLVM IR: `cell` computes gates, `tile` multiplies, `forward` runs steps."""
