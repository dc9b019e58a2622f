"""Engines, which compute layers: `reference` in NumPy, `jit` with LLVM, `cuda` on a GPU.

`types` is their contract, and `selection` chooses one. `schedule` divides a cell's step into
phases for the kernels of `jit` and `cuda`. `threads` counts the processors.
"""
