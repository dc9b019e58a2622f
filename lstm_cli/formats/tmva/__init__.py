"""TMVA's weights files: XML, one element a layer, one element a matrix."""

from lstm_cli.formats.tmva.reader import read
from lstm_cli.formats.tmva.writer import write

__all__ = ["read", "write"]
