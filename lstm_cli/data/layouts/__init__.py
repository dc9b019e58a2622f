"""Layouts: the forms in which a group of an HDF5 file holds sequences.

`detection` picks the layout of a group, `base` is the interface, and each other module is one
layout.
"""
