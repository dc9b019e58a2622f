"""One time step in NumPy: matrix products and gates of a cell's equations.

A cell's `cell_forward` computes its gates with a `NumpyStep`. `ProfiledStep` measures each gate
and `TrainingStep` stores the values that the backward step needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import numpy as np

from lstm_cli.cells.cell import PROJECTED
from lstm_cli.engines.reference.weights import DirectionWeights
from lstm_cli.engines.types import Array


class NumpyStep:
    """A step over a batch of N sequences.

    Parameters
    ----------
    z
        Input projection with its bias, (N, G*H).
    padding
        (N, 1), True for sequences that ended before this step. None if all lengths are T.
    history
        Receives the gates of every step by letter. None: gates are not stored.
    seconds
        Receives the seconds by part that a subclass measures.
    """

    def __init__(
        self,
        weights: DirectionWeights,
        z: Array,
        padding: Array | None,
        history: dict[str, list[Array]] | None,
        seconds: dict[str, float],
    ) -> None:
        self.weights = weights
        self.x: Mapping[str, Array] = {gate: z[:, b] for gate, b in weights.blocks.items()}
        self.p = weights.peepholes
        self.padding = padding
        self.history = history
        self.seconds = seconds

    def recurrent(self, vector: Array, gates: tuple[str, ...]) -> Mapping[str, Array]:
        """U `vector` for `gates`, as one product: each (N, H)."""
        w = self.weights
        rows = w.rows(gates)
        product = vector @ w.weight_hh[rows].T
        if w.bias_hh is not None:
            product += w.bias_hh[rows]
        H = product.shape[1] // len(gates)
        return {gate: product[:, k * H : (k + 1) * H] for k, gate in enumerate(gates)}

    def project(self, vector: Array) -> Array:
        """W_hr `vector`: (N, H) to (N, P)."""
        return np.asarray(vector @ self.weights.weight_hr.T)  # type: ignore[union-attr]

    def record(self, gate: str, value: Array) -> Array:
        """Store the gate if the caller asked for gates."""
        if self.history is not None:
            self.history.setdefault(gate, []).append(value)
        return value

    def select(self, new: tuple[Array, ...], old: tuple[Array, ...]) -> tuple[Array, ...]:
        """New states, or old ones in padding."""
        if self.padding is None:
            return new
        return tuple(np.where(self.padding, o, n) for n, o in zip(new, old, strict=True))


class ProfiledStep(NumpyStep):
    """A step that computes and times every gate separately.

    ``<gate> recurrent`` is the gate's product. ``<gate> function`` is its activation and the sums
    before it. ``states`` is the rest of the step.
    """

    def __init__(
        self,
        weights: DirectionWeights,
        z: Array,
        padding: Array | None,
        history: dict[str, list[Array]] | None,
        seconds: dict[str, float],
    ) -> None:
        super().__init__(weights, z, padding, history, seconds)
        self._last_time = perf_counter()

    def _add_time(self, part: str) -> None:
        now = perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last_time
        self._last_time = now

    def recurrent(self, vector: Array, gates: tuple[str, ...]) -> Mapping[str, Array]:
        """U `vector` for `gates`, with one product per gate."""
        self._add_time("states")
        parts: dict[str, Array] = {}
        for gate in gates:
            parts |= super().recurrent(vector, (gate,))
            self._add_time(f"{gate} recurrent")
        return parts

    def record(self, gate: str, value: Array) -> Array:
        """Store the gate, and count the time since the last measurement for it."""
        self._add_time(f"{gate} function")
        return super().record(gate, value)

    def select(self, new: tuple[Array, ...], old: tuple[Array, ...]) -> tuple[Array, ...]:
        """New states, or old ones in padding. The remaining time counts as ``states``."""
        states = super().select(new, old)
        self._add_time("states")
        return states


class TrainingStep(NumpyStep):
    """A step that stores the values of its backward step, and applies recurrent dropout.

    Attributes
    ----------
    mask
        (N, P) dropout mask of the vectors that recurrent products read, the same in all steps
        (Gal and Ghahramani 2016). None: no dropout.
    reads
        Vectors that the products read, in order.
    """

    def __init__(
        self,
        weights: DirectionWeights,
        z: Array,
        padding: Array | None,
        history: dict[str, list[Array]] | None,
        seconds: dict[str, float],
        *,
        mask: Array | None = None,
    ) -> None:
        super().__init__(weights, z, padding, history, seconds)
        self.mask = mask
        self.reads: list[Array] = []
        self._parts: dict[str, Array] = {}

    def recurrent(self, vector: Array, gates: tuple[str, ...]) -> Mapping[str, Array]:
        """U `vector` for `gates`, after dropout."""
        if self.mask is not None:
            vector = vector * self.mask
        self.reads.append(vector)
        parts = super().recurrent(vector, gates)
        self._parts |= {f"h_{gate}": part for gate, part in parts.items()}
        return parts

    def project(self, vector: Array) -> Array:
        """W_hr `vector`."""
        self.reads.append(vector)
        projected = super().project(vector)
        self._parts[PROJECTED] = projected
        return projected

    def symbols(self, states: Mapping[str, Array]) -> dict[str, Array]:
        """Values of all symbols of the cell's graph, from the states before this step."""
        values = {f"x_{gate}": part for gate, part in self.x.items()} | self._parts
        values |= {f"p_{gate}": vector for gate, vector in self.p.items()}
        return values | {f"{name}_prev": value for name, value in states.items()}
