"""Layouts: the forms in which a group of an HDF5 file holds sequences."""
