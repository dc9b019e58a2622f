"""Emitters of LLVM IR: `cell` computes gates, `tile` multiplies, `forward` runs the steps."""
