"""TMVA's weights files: XML with one element for each layer and one for each matrix.

Start at `reader` and `writer`. `document` is the XML tree, and `slots` finds each gate's matrices.
"""

from lstm_cli.formats.tmva.reader import read
from lstm_cli.formats.tmva.writer import write

__all__ = ["read", "write"]
