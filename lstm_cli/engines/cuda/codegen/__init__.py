"""CUDA C++ of the kernels; start with `cell`, where a gate is computed.

`general_forward` and `persistent_forward` run all steps of a sequence, their `backward` twins
differentiate them. `data_movement` packs and pads sequences.
"""
