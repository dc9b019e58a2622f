"""Random layers, weights, lengths and states for tests, with distinct numbers and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_cli.cells import GRU, LSTM, RNN, Activation, Cell
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import LayerSpec, RecurrentSpec
from lstm_cli.network.network import Network
from lstm_cli.network.results import Result

Array = NDArray[Any]

KINDS: dict[str, type[Cell]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
TOLERANCES = {"float32": 2e-5, "float64": 1e-12}

PARAMETERS = {
    "affine": {"alpha": 0.7, "beta": 0.1},
    "elu": {"alpha": 0.6},
    "hard_sigmoid": {"alpha": 0.3, "beta": 0.45},
    "leaky_relu": {"alpha": 0.2},
    "scaled_tanh": {"alpha": 0.8, "beta": 1.3},
    "thresholded_relu": {"alpha": 0.15},
}
"""Parameters of the activations that have any. None is the default."""


def recurrent(
    kind: str, hidden: int, features: int, *, index: int = 0, directions: int = 1, **options: Any
) -> RecurrentSpec:
    """A recurrent layer. `options` are those of the layer or of its cells."""
    layer_options = {"return_sequences", "stateful", "dropout", "recurrent_dropout", "forget_bias"}
    layer = {key: options.pop(key) for key in layer_options & options.keys()}
    cell = KINDS[kind](hidden_size=hidden, **options)
    return RecurrentSpec(index, features, (cell,) * directions, **layer)


def parametrized(name: str) -> Activation:
    """The activation, with parameters other than the defaults if it has any."""
    return Activation(name, **PARAMETERS.get(name, {}))


def random_weights(specs: Sequence[LayerSpec], seed: int = 0) -> dict[str, Array]:
    """Distinct float64 weights. Values stay in the range where activations are not linear."""
    rng = np.random.default_rng(seed)
    weights = {}
    for spec in specs:
        for name, parameter in spec.parameters().items():
            fan = parameter.shape[-1] if len(parameter.shape) == 2 else 3
            weights[name] = rng.standard_normal(parameter.shape) / np.sqrt(fan)
    return weights


def random_lengths(N: int, T: int, seed: int = 0) -> NDArray[np.int64]:
    """(N,) unsorted lengths. They include T, 0 and 1 if N and T allow."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, T + 1, N)
    edges = [T, 0, min(1, T)][:N]
    lengths[rng.permutation(N)[: len(edges)]] = edges
    return lengths


def random_inputs(N: int, T: int, D: int, seed: int = 0) -> Array:
    """Inputs (N, T, D) in float64."""
    return np.random.default_rng(seed + 1000).standard_normal((N, T, D))


def random_states(specs: Sequence[LayerSpec], N: int, seed: int = 0) -> list[Any]:
    """Non-zero initial (h, c) of every recurrent layer."""
    rng = np.random.default_rng(seed + 2000)
    states = []
    for spec in specs:
        if isinstance(spec, RecurrentSpec):
            sizes = spec.cells[0].state_sizes
            parts = [0.7 * rng.standard_normal((N, spec.directions, size)) for size in sizes]
            states.append((parts[0], parts[1] if len(parts) > 1 else None))
    return states


def assert_close(actual: Array, expected: Array, dtype: str, what: str = "") -> None:
    """Equal shapes, and values that agree within the rounding of the dtype."""
    assert actual.shape == expected.shape, what
    assert actual.dtype == dtype, what
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=TOLERANCES[dtype], equal_nan=False, err_msg=what
    )


def assert_states_close(actual: Sequence[Any], expected: Sequence[Any], dtype: str) -> None:
    """`assert_close` for the final states of two runs."""
    assert len(actual) == len(expected)
    for k, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert_close(one[0], other[0], dtype, f"h of recurrent layer {k}")
        assert (one[1] is None) == (other[1] is None)
        if one[1] is not None:
            assert_close(one[1], other[1], dtype, f"c of recurrent layer {k}")


def assert_same(actual: Result, expected: Result, engine: Engine) -> None:
    """Equal results of one engine: the same bits on ``jit``, within rounding on others."""
    pairs = [(actual.outputs, expected.outputs)]
    for one, other in zip(actual.state, expected.state, strict=True):
        pairs += [(a, b) for a, b in zip(one, other, strict=True) if a is not None]
    for a, b in pairs:
        if engine.name == "jit":
            np.testing.assert_array_equal(a, b)
        else:
            assert_close(a, b, engine.dtype)


def rows(state: Sequence[Any], which: Any) -> list[Any]:
    """States of some sequences of a batch."""
    return [(h[which], None if c is None else c[which]) for h, c in state]


def network(specs: Sequence[LayerSpec], engine: Engine, seed: int = 0) -> Network:
    """A network with `random_weights`."""
    return Network(specs, random_weights(specs, seed), engine)


CELL_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("lstm", {}),
    "lstm peepholes": ("lstm", {"peepholes": True}),
    "lstm narrow projection": ("lstm", {"projection_size": 3}),
    "lstm wide projection": ("lstm", {"projection_size": 9}),
    "lstm square projection": ("lstm", {"projection_size": 7}),
    "lstm coupled": ("lstm", {"coupled_input_forget": True}),
    "lstm no forget gate": ("lstm", {"use_forget_gate": False}),
    "lstm clip": ("lstm", {"clip": 0.3}),
    "lstm clip peepholes": ("lstm", {"clip": 0.4, "peepholes": True}),
    "lstm clip coupled": ("lstm", {"clip": 0.5, "coupled_input_forget": True}),
    "lstm peepholes coupled": ("lstm", {"peepholes": True, "coupled_input_forget": True}),
    "lstm peepholes no forget gate": ("lstm", {"peepholes": True, "use_forget_gate": False}),
    "lstm peepholes projection": ("lstm", {"peepholes": True, "projection_size": 5}),
    "lstm three activations": (
        "lstm",
        {
            "recurrent_activation": parametrized("hard_sigmoid"),
            "activation": Activation("softsign"),
            "cell_activation": parametrized("elu"),
        },
    ),
    "gru reset after": ("gru", {"reset_after": True}),
    "gru reset before": ("gru", {"reset_after": False}),
    "gru reset after clip": ("gru", {"reset_after": True, "clip": 0.3}),
    "gru reset before clip": ("gru", {"reset_after": False, "clip": 0.3}),
    "gru two activations": (
        "gru",
        {
            "recurrent_activation": parametrized("hard_sigmoid"),
            "activation": parametrized("leaky_relu"),
        },
    ),
    "rnn": ("rnn", {}),
    "rnn clip": ("rnn", {"clip": 0.3}),
}
"""Cell and options by name. The square projection is square for 7 units."""
