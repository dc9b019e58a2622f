"""One time step in NumPy: what the reference engine hands to a cell's equations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.cells.tracing import PROJECTED
from lstm_cli.engines.types import Array


@dataclass(frozen=True)
class DirectionWeights:
    """One direction's tensors, and where each gate's rows stand in them."""

    weight_ih: Array  # (G*H, D)
    weight_hh: Array  # (G*H, P)
    bias: Array  # (G*H,)
    bias_hh: Array | None  # (G*H,)
    weight_hr: Array | None  # (P, H)
    peepholes: Mapping[str, Array]  # each (H,)
    blocks: Mapping[str, slice]

    @classmethod
    def of(cls, cell: Cell, tensors: Mapping[str, Array]) -> DirectionWeights:
        """From tensors by name within the direction."""
        H = cell.hidden_size
        blocks = {gate: slice(k * H, (k + 1) * H) for k, gate in enumerate(cell.letters)}
        peepholes = {
            gate: tensors["peephole"][k * H : (k + 1) * H]
            for k, gate in enumerate(cell.peephole_gates)
        }
        return cls(
            tensors["weight_ih"],
            tensors["weight_hh"],
            tensors["bias_ih" if cell.recurrent_bias else "bias"],
            tensors.get("bias_hh"),
            tensors.get("weight_hr"),
            peepholes,
            blocks,
        )

    def rows(self, gates: tuple[str, ...]) -> slice:
        """The rows of neighbouring gates."""
        return slice(self.blocks[gates[0]].start, self.blocks[gates[-1]].stop)


class NumpyStep:
    """A step over a batch of N sequences.

    Parameters
    ----------
    z
        Input projection with its bias, (N, G*H).
    ended
        (N, 1) True where a sequence is over; None if all lengths are T.
    history
        Where gates are kept, by letter; None keeps nothing.
    seconds
        Where a subclass notes what it timed.
    """

    def __init__(
        self,
        weights: DirectionWeights,
        z: Array,
        ended: Array | None,
        history: dict[str, list[Array]] | None,
        seconds: dict[str, float],
    ) -> None:
        self.weights = weights
        self.x: Mapping[str, Array] = {gate: z[:, b] for gate, b in weights.blocks.items()}
        self.p = weights.peepholes
        self.ended = ended
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
        """Keep the gate if gates are kept."""
        if self.history is not None:
            self.history.setdefault(gate, []).append(value)
        return value

    def select(self, new: tuple[Array, ...], old: tuple[Array, ...]) -> tuple[Array, ...]:
        """New states, or old ones where a sequence is over."""
        if self.ended is None:
            return new
        return tuple(np.where(self.ended, o, n) for n, o in zip(new, old, strict=True))


class ProfiledStep(NumpyStep):
    """A step that computes and times every gate apart.

    ``<gate> recurrent`` is the gate's product, ``<gate> function`` its activation with what is
    added on the way to it, ``states`` the rest of the step.
    """

    def __init__(
        self,
        weights: DirectionWeights,
        z: Array,
        ended: Array | None,
        history: dict[str, list[Array]] | None,
        seconds: dict[str, float],
    ) -> None:
        super().__init__(weights, z, ended, history, seconds)
        self._mark = perf_counter()

    def _spent(self, what: str) -> None:
        now = perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self._mark
        self._mark = now

    def recurrent(self, vector: Array, gates: tuple[str, ...]) -> Mapping[str, Array]:
        """U `vector` for `gates`, a product each."""
        self._spent("states")
        parts: dict[str, Array] = {}
        for gate in gates:
            parts |= super().recurrent(vector, (gate,))
            self._spent(f"{gate} recurrent")
        return parts

    def record(self, gate: str, value: Array) -> Array:
        """Note the time since the last mark as this gate's own."""
        self._spent(f"{gate} function")
        return super().record(gate, value)

    def select(self, new: tuple[Array, ...], old: tuple[Array, ...]) -> tuple[Array, ...]:
        """The end of the step."""
        chosen = super().select(new, old)
        self._spent("states")
        return chosen


class TrainingStep(NumpyStep):
    """A step that keeps what its backward step needs, and applies recurrent dropout.

    Attributes
    ----------
    mask
        (N, P) what the vector of each recurrent product is multiplied by, the same in all
        steps (Gal and Ghahramani 2016); None without dropout.
    reads
        The vector that each product read, in order.
    """

    def __init__(
        self,
        weights: DirectionWeights,
        z: Array,
        ended: Array | None,
        history: dict[str, list[Array]] | None,
        seconds: dict[str, float],
        *,
        mask: Array | None = None,
    ) -> None:
        super().__init__(weights, z, ended, history, seconds)
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
        """The value of every symbol of the cell's graph, from the states before this step."""
        known = {f"x_{gate}": part for gate, part in self.x.items()} | self._parts
        known |= {f"p_{gate}": vector for gate, vector in self.p.items()}
        return known | {f"{name}_prev": value for name, value in states.items()}
