"""Sizes of persistent kernels: what fits a GPU, and what a model of the machine prefers."""
