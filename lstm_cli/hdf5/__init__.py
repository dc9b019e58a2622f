"""Safe access to HDF5 files: bounded reads, and whole files written under a temporary name.

Start at `file`, which opens a file for reading. `group` and `dataset` read it, `limits` and
`heap_check` refuse what is damaged or too large, and `writer` writes.
"""
