"""Layers that every peer of the benchmarks computes, in a forward pass and in training."""

from __future__ import annotations

from typing import Any

import pytest

from lstm_cli.cells import GRU, LSTM, RNN, Activation
from lstm_cli.engines.types import RecurrentSpec
from lstm_cli.workflows.bench import GridSize, peer

SIZE = GridSize(hidden=7, batch=3, steps=5, features=4)
D, H = SIZE.features, SIZE.hidden


def recurrent(*cells: Any, features: int = D, **options: Any) -> tuple[RecurrentSpec]:
    """A network of one recurrent layer, with a cell for each direction."""
    return (RecurrentSpec(0, features, cells, **options),)


RECURRENT_LAYERS = {
    "lstm": recurrent(LSTM(hidden_size=H)),
    "lstm, both directions": recurrent(*[LSTM(hidden_size=H)] * 2),
    "lstm, both directions, last step": recurrent(
        *[LSTM(hidden_size=H)] * 2, return_sequences=False
    ),
    "gru": recurrent(GRU(hidden_size=H)),
    "gru, both directions, last step": recurrent(*[GRU(hidden_size=H)] * 2, return_sequences=False),
    "rnn": recurrent(RNN(hidden_size=H)),
    "rnn relu, both directions": recurrent(
        *[RNN(hidden_size=H, activation=Activation("relu"))] * 2
    ),
}


def installed_peer(name: str) -> Any:
    """The peer of this name; skips the test where its package is not installed."""
    pytest.importorskip(name)
    return peer(name)
