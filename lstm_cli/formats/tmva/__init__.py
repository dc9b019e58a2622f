"""TMVA's weights files: XML with one element for each layer and one for each matrix."""

from lstm_cli.formats.tmva.reader import read
from lstm_cli.formats.tmva.writer import write

__all__ = ["read", "write"]
