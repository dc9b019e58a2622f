"""Cells that together use every option, for tests of the GPU kernels."""

from __future__ import annotations

from lstm_cli.cells import GRU, LSTM, RNN, Activation

CELLS = {
    "lstm": LSTM(hidden_size=7),
    "peepholes": LSTM(hidden_size=6, peepholes=True, clip=0.7),
    "projection": LSTM(hidden_size=9, projection_size=4),
    "peephole-projection": LSTM(hidden_size=5, projection_size=3, peepholes=True),
    "coupled": LSTM(hidden_size=5, coupled_input_forget=True),
    "no-forget": LSTM(hidden_size=5, use_forget_gate=False),
    "activations": LSTM(
        hidden_size=5,
        recurrent_activation=Activation("hard_sigmoid"),
        activation=Activation("softsign"),
        cell_activation=Activation("softplus"),
    ),
    "gru": GRU(hidden_size=7),
    "gru-before": GRU(hidden_size=6, reset_after=False),
    "rnn": RNN(hidden_size=8),
    "rnn-elu": RNN(hidden_size=3, activation=Activation("elu")),
}

LARGE = [
    ("lstm-128", LSTM(hidden_size=128), (1, 16)),
    ("lstm-512", LSTM(hidden_size=512), (1, 16, 64)),
    ("gru-256", GRU(hidden_size=256), (16,)),
    ("rnn-256", RNN(hidden_size=256), (16,)),
]
"""Large cells with batch sizes, compiled again for persistent kernels only."""
