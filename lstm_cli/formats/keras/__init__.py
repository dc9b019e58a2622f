"""Keras's files: reading ``.keras``, ``.weights.h5`` and ``.h5``, writing the first two.

Start at `reader` and `writer`. `recurrent` has the gate order, and divides a bias in its two parts.
"""
