"""Recurrent cells, each written once as its equations.

Start at `lstm`, or at `gru` for the two conventions of its reset gate. `cell` traces the equations
to a graph of `expression` nodes, and `gradient` differentiates the graph.
"""

from lstm_cli.cells.activations import FORMULAS, Activation
from lstm_cli.cells.cell import Cell, CellGraph, Gate, Parameter, Stage, Step, trace
from lstm_cli.cells.gru import GRU
from lstm_cli.cells.lstm import LSTM
from lstm_cli.cells.rnn import RNN

__all__ = [
    "CELLS",
    "FORMULAS",
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Cell",
    "CellGraph",
    "Gate",
    "Parameter",
    "Stage",
    "Step",
    "trace",
]

CELLS: dict[str, type[Cell]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
"""Cell classes by the ``type`` of a config's layer."""
