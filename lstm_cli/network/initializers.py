"""Initial weights: schemes, each of which draws the matrix of one gate.

So the sizes of one gate's matrix set the limits, not the sizes of the stored stack of gates.
Sources: Glorot and Bengio 2010; He et al. 2015; Saxe et al. 2014 (orthogonal). The names `xavier`,
`xavier_uniform`, `gauss`, `uniform`, `zero` and `identity` are TMVA's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_cli.cells import Parameter
from lstm_cli.engines.types import Layers, RecurrentSpec

Matrix = NDArray[np.float64]
Scheme = Callable[[np.random.Generator, int, int], Matrix]


def _uniform(rng: np.random.Generator, rows: int, columns: int, limit: float) -> Matrix:
    return rng.uniform(-limit, limit, (rows, columns))


def _xavier(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    """A Gaussian of sigma sqrt(6 / (rows + columns)), truncated at 2 sigma."""
    values = rng.standard_normal((rows, columns))
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return np.asarray(values * np.sqrt(6 / (rows + columns)))


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    gaussian = rng.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(gaussian)
    q = q * np.sign(np.diag(r))
    return np.asarray(q if rows >= columns else q.T)


def _glorot_uniform(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    return _uniform(rng, rows, columns, np.sqrt(6 / (rows + columns)))


def _glorot_normal(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    return np.asarray(rng.standard_normal((rows, columns)) * np.sqrt(2 / (rows + columns)))


def _he_uniform(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    return _uniform(rng, rows, columns, np.sqrt(6 / columns))


def _gauss(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    return np.asarray(rng.standard_normal((rows, columns)) * np.sqrt(2 / columns))


def _uniform_by_columns(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    return _uniform(rng, rows, columns, np.sqrt(2 / columns))


def _zero(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    return np.zeros((rows, columns))


def _identity(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    return np.eye(rows, columns)


SCHEMES: Mapping[str, Scheme] = {
    "glorot_uniform": _glorot_uniform,
    "glorot_normal": _glorot_normal,
    "he_uniform": _he_uniform,
    "he_normal": _gauss,
    "orthogonal": _orthogonal,
    "uniform": _uniform_by_columns,
    "xavier": _xavier,
    "xavier_uniform": _glorot_uniform,
    "gauss": _gauss,
    "zero": _zero,
    "identity": _identity,
}
"""Schemes by the names of `model.init.scheme`. A scheme draws the matrix of one gate."""


def _tensor(parameter: Parameter, scheme: Scheme, rng: np.random.Generator) -> Matrix:
    """One stored tensor: a matrix block by block with `scheme`, or a vector of zeros."""
    if len(parameter.shape) == 1:
        return np.zeros(parameter.shape)
    blocks = max(len(parameter.blocks), 1)
    rows, columns = parameter.shape[0] // blocks, parameter.shape[1]
    return np.concatenate([scheme(rng, rows, columns) for _ in range(blocks)])


def initialize(
    layers: Layers, scheme: str = "glorot_uniform", seed: int = 0, dtype: str = "float32"
) -> dict[str, NDArray[Any]]:
    """Initial weights of every layer, by stored name.

    Each tensor has its own generator, seeded by `seed` and the tensor's name. So a change of one
    layer leaves the weights of the others unchanged. Values are drawn in float64, then rounded.
    Vectors are 0, but for the bias of an lstm's forget gate, which is the layer's `forget_bias`.

    Parameters
    ----------
    scheme
        A key of `SCHEMES`.
    dtype
        NumPy's name of the dtype of the weights.
    """
    weights: dict[str, NDArray[Any]] = {}
    for spec in layers:
        for name, parameter in spec.parameters().items():
            rng = np.random.default_rng([seed, *name.encode()])
            value = _tensor(parameter, SCHEMES[scheme], rng)
            if isinstance(spec, RecurrentSpec) and parameter.name == "bias" and spec.kind == "lstm":
                forget = parameter.blocks.index("f")
                value.reshape(len(parameter.blocks), -1)[forget] = spec.forget_bias
            weights[name] = value.astype(dtype)
    return weights
