"""Keras's files: ``.keras`` both ways, ``.weights.h5`` both ways, legacy ``.h5`` as input."""

from lstm_cli.formats.keras.reader import read
from lstm_cli.formats.keras.writer import write

__all__ = ["read", "write"]
