"""Safe access to HDF5 files: bounded reads, and whole files written under a temporary name."""
