"""Keras's files: reading ``.keras``, ``.weights.h5`` and ``.h5``, writing the first two.

Start at `reader` and `writer`. `recurrent` has the gate order, and divides a bias in its two parts.
"""

from lstm_cli.formats.keras.reader import read
from lstm_cli.formats.keras.writer import write

__all__ = ["read", "write"]
