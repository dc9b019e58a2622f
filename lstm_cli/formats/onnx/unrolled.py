"""Recurrences that an exporter wrote out step by step, put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.gates import NATIVE_GATES, index_text
from lstm_cli.formats.interchange import TensorSource
from lstm_cli.formats.onnx.arithmetic import timed
from lstm_cli.formats.onnx.frame import Frame
from lstm_cli.formats.onnx.matching import Step, same_gate
from lstm_cli.formats.onnx.steps import match, rnn_start
from lstm_cli.formats.onnx.values import (
    ALL,
    REVERSED,
    Activated,
    Linear,
    Recurrent,
    Softmaxed,
    Term,
    Value,
    Vector,
    Weight,
)
from lstm_cli.formats.onnx.vectors import at, counted, joined, pieces, same_array, whole

MOST_WORK = 50_000
"""Vectors that are compared beyond what a file's operators need."""
STEP, NODE = 40, 30
"""Vectors whose comparison takes as long as that of a step, and those allowed for an operator."""


def _cost(vector: Vector) -> int:
    """Long vectors take their time."""
    return 1 + vector.pick.size // 4096


@dataclass(frozen=True)
class Broken:
    """A loop that is written out step by step and is no layer.

    Attributes
    ----------
    kind, steps
        Of the cell, and how many steps are alike, counted from the last one.
    last, own, after
        Nodes that give the last state, that of the step which differs, and that of the next one.
    folded
        The step is no step of the cell at all.
    """

    kind: str
    steps: int
    last: str
    own: str
    after: str
    folded: bool

    def error(self, path: str) -> WeightsError:
        """The error, with what can be done where an exporter folded the first step."""
        found = f"other weights or activations at {self.own} than in the step after it"
        hint = None
        if self.folded:
            found = (
                f"{self.own}, before the step of {self.after}, is computed in another way: the "
                "exporter may have folded the first step's product with its initial state"
            )
            hint = (
                "export the model with an open batch size, so that nothing is folded: torch.onnx."
                "export(..., dynamo=True, dynamic_shapes=({0: torch.export.Dim('N')},))"
            )
        return WeightsError(
            f"the loop of {self.kind} steps that ends at {self.last} is not one layer",
            expected="steps that are all computed alike, by the same weights",
            found=found,
            where=path,
            hint=hint,
        )


class Rerolling:
    """Finds recurrences among single steps.

    Parameters
    ----------
    frame
        Free axes.
    notes
        To be added to.
    nodes
        Operators in the file.
    """

    def __init__(self, frame: Frame, notes: dict[str, None], nodes: int = 0) -> None:
        self.frame, self.notes = frame, notes
        self.left = MOST_WORK + NODE * nodes
        self.broken: Broken | None = None
        self._known: dict[int, tuple[Vector, Vector | None]] = {}

    def final(self, vector: Vector) -> Vector | None:
        """A state that a chain of steps ends in, as the last step of a recurrent direction."""
        key = id(vector.atom)
        if key not in self._known:
            # The vector is kept, so that its atom's identity is not given to another one.
            self._known[key] = (vector, self._final(vector.atom))
        found = self._known[key][1]
        return None if found is None else Vector(found.atom, found.step, vector.pick)

    def _final(self, atom: object) -> Vector | None:
        own = whole(atom)  # type: ignore[arg-type]
        chain = self._chain(own, None)
        made = None if chain is None else self._recurrent(chain)
        if made is None:
            return None
        return at(whole(made), self.frame.index(0 if made.reverse else -1))

    def series(self, values: Sequence[Value], axis: int) -> Value | None:
        """Single steps side by side along `axis` as all steps of something, or None."""
        if self.frame.time is None or any(value.axes[axis] for value in values):
            return None
        first = values[0]
        same = all(
            value.axes == first.axes and np.array_equal(value.pick, first.pick) for value in values
        )
        vectors = [value.vector for value in values]
        found = self._series(vectors) if same and not timed(*vectors) else None
        if found is None:
            return None
        axes = (*first.axes[:axis], (self.frame.time,), *first.axes[axis + 1 :])
        return Value(found.atom, found.step, found.pick.reshape(first.pick.shape), axes)

    def _series(self, vectors: Sequence[Vector]) -> Vector | None:
        lifted = self.lifted(vectors)
        if lifted is not None:
            return lifted
        for ordered, backwards in ((vectors, False), (vectors[::-1], True)):
            chain = self._chain(ordered[-1], len(vectors))
            if chain is None or len(chain) != len(vectors):
                continue
            if all(h.atom is v.atom for (h, _), v in zip(chain, ordered, strict=True)):
                made = self._recurrent(chain)
                if made is not None:
                    step = ALL if backwards == made.reverse else REVERSED
                    return Vector(made, step, vectors[0].pick)
        return None

    def _chain(self, h: Vector, count: int | None) -> list[tuple[Vector, Step]] | None:
        """States and their steps, first to last; None: it is no chain of one cell's steps."""
        found: list[tuple[Vector, Step]] = []
        own: Vector | None = whole(h.atom)
        while own is not None and self.left > 0:
            self.left -= STEP * _cost(own)
            step = match(own) or (rnn_start(own, found[-1][1]) if found else None)
            if step is None or (found and not _continues(step, found[-1][1])):
                self._note_broken(own, step, found)
                return None
            found.append((own, step))
            if step.first or len(found) == count:
                break
            own = step.h_prev
        return found[::-1] if found and found[-1][1].first else None

    def _note_broken(
        self, own: Vector, step: Step | None, later: Sequence[tuple[Vector, Step]]
    ) -> None:
        """Keep why the longest chain of steps is none."""
        if later and (self.broken is None or len(later) > self.broken.steps):
            last, after = later[0][0].atom.where, later[-1]
            self.broken = Broken(
                after[1].kind, len(later), last, own.atom.where, after[0].atom.where, step is None
            )

    def _recurrent(self, chain: Sequence[tuple[Vector, Step]]) -> Recurrent | None:
        source = self.lifted([step.source for _, step in chain])
        if source is None:
            return None
        h, last = chain[-1]
        return Recurrent(
            h.atom.size,
            True,
            h.atom.where,
            last.kind,
            last.options,
            Vector(source.atom, ALL, source.pick),
            source.step == REVERSED,
            _tensors(last),
            tuple(_stored(last)),
        )

    def lifted(self, vectors: Sequence[Vector]) -> Vector | None:
        """What has these vectors as its steps, in order or from the last to the first."""
        columns = [list(pieces(vector)) for vector in vectors]
        if len({len(column) for column in columns}) != 1:
            return None
        found = [self._lifted(list(row)) for row in zip(*columns, strict=True)]
        parts = [vector for vector in found if vector is not None]
        if not parts or len(parts) != len(found):
            return None
        order = parts[0].step
        if any(vector.step != order for vector in parts):
            return None
        together = joined([Vector(v.atom, ALL, v.pick) for v in parts], parts[0].atom.where)
        return Vector(together.atom, order, together.pick)

    def _lifted(self, vectors: Sequence[Vector]) -> Vector | None:
        first = vectors[0]
        self.left -= len(vectors) * _cost(first)
        if self.left < 0 or any(
            not np.array_equal(vector.pick, first.pick) for vector in vectors[1:]
        ):
            return None
        if all(vector.atom is first.atom for vector in vectors) and first.atom.timed:
            return self._all_steps([vector.step for vector in vectors], first)
        if first.atom.timed or any(type(v.atom) is not type(first.atom) for v in vectors):
            return None
        made = self._lifted_atom([vector.atom for vector in vectors])
        return None if made is None else Vector(made.atom, made.step, first.pick)

    def _all_steps(self, steps: Sequence[object], first: Vector) -> Vector | None:
        count = len(steps)
        if self.frame.steps not in (None, count):
            return None
        known = [
            step % count if isinstance(step, int) and self.frame.steps else step for step in steps
        ]
        if known == list(range(count)):
            order = ALL
        elif known in (list(range(count))[::-1], [-1 - k for k in range(count)]):
            order = REVERSED
        else:
            return None
        if self.frame.steps is None:
            self.notes[
                f"the file computes {count} step{'s' if count > 1 else ''}, written out one by "
                "one, and declares any number: taken as a layer over all steps"
            ] = None
        return Vector(first.atom, order, first.pick)

    def _lifted_atom(self, atoms: Sequence[object]) -> Vector | None:
        """One atom for all steps, where each step's is made alike of that step's source."""
        first = atoms[0]
        if isinstance(first, Activated | Softmaxed):
            if isinstance(first, Activated) and any(
                atom.activation != first.activation  # type: ignore[attr-defined]
                for atom in atoms
            ):
                return None
            source = self.lifted([atom.source for atom in atoms])  # type: ignore[attr-defined]
            if source is None:
                return None
            inner = Vector(source.atom, ALL, source.pick)
            made = replace(first, timed=True, source=inner)
            return Vector(made, source.step, counted(made.size))
        if isinstance(first, Linear):
            return self._lifted_linear(atoms)  # type: ignore[arg-type]
        return None

    def _lifted_linear(self, atoms: Sequence[Linear]) -> Vector | None:
        first = atoms[0]
        if any(not _alike(atom, first) for atom in atoms[1:]):
            return None
        sources = [
            self.lifted([atom.terms[k].source for atom in atoms]) for k in range(len(first.terms))
        ]
        orders = {None if source is None else source.step for source in sources}
        if len(orders) != 1 or None in orders:
            return None
        own = tuple(
            Term(Vector(source.atom, ALL, source.pick), term.weight)
            for source, term in zip(sources, first.terms, strict=True)
            if source is not None
        )
        made = replace(first, timed=True, terms=own)
        return Vector(made, orders.pop(), counted(made.size))


def _continues(step: Step, later: Step) -> bool:
    """Whether `later` can be the step after `step`, of the same cell."""
    if step.kind != later.kind or step.options != later.options:
        return False
    if later.c_prev is not None and step.c_prev is None:
        return False
    return all(same_gate(gate, later.gates[letter]) for letter, gate in step.gates.items())


def _alike(one: Linear, other: Linear) -> bool:
    if len(one.terms) != len(other.terms) or (one.bias is None) != (other.bias is None):
        return False
    biases = (one.bias, other.bias)
    if None not in biases and not same_array(*(bias.array for bias in biases if bias)):
        return False
    return all(
        same_array(a.weight.array, b.weight.array)
        for a, b in zip(one.terms, other.terms, strict=True)
    )


def _tensors(step: Step) -> dict[str, Array]:
    """A cell's native tensors from one step."""
    letters, gates = NATIVE_GATES[step.kind], step.gates
    some = next(iter(gates.values()))
    size, dtype = _outputs(some), _dtype(some)
    features = step.source.pick.size

    def matrix(letter: str, name: str, rows: int) -> Array:
        weight = getattr(gates[letter], name) if letter in gates else None
        return np.zeros((size, rows), dtype) if weight is None else weight.array.T

    def bias(name: str) -> Array:
        own = [getattr(gates[x], name) if x in gates else None for x in letters]
        return np.concatenate([np.zeros(size, dtype) if w is None else w.array for w in own])

    found = {
        "weight_ih": np.concatenate([matrix(x, "x", features) for x in letters]),
        "weight_hh": np.concatenate([matrix(x, "h", size) for x in letters]),
    }
    if all(gate.bias is None and gate.h_bias is None for gate in gates.values()):
        return found
    if step.kind == "gru":
        return found | {"bias_ih": bias("bias"), "bias_hh": bias("h_bias")}
    return found | {"bias": bias("bias")}


def _outputs(gate: object) -> int:
    return int(gate.x.array.shape[1])  # type: ignore[attr-defined]


def _dtype(gate: object) -> Any:
    return gate.x.array.dtype  # type: ignore[attr-defined]


def _stored(step: Step) -> list[TensorSource]:
    names = {"x": "weight_ih", "h": "weight_hh", "bias": "bias", "h_bias": "bias_hh"}
    if step.kind == "gru":
        names["bias"] = "bias_ih"
    return [
        entry
        for letter in NATIVE_GATES[step.kind]
        if letter in step.gates
        for slot, native in names.items()
        for entry in stored_weight(getattr(step.gates[letter], slot), native, letter)
    ]


def stored_weight(weight: Weight | None, native: str, block: str = "") -> list[TensorSource]:
    """Where a weight (in, out), or a bias (n,), stood."""
    if weight is None:
        return []
    turned = {"": "transposed", "transposed": ""}.get(weight.change, weight.change)
    change = turned if weight.array.ndim == 2 else weight.change
    found = []
    for origin in weight.origins:
        where = ""
        if weight.columns and weight.change in ("", "transposed", "added") and origin.shape:
            first = weight.change == "transposed" or len(origin.shape) == 1
            where = index_text(*weight.columns, axis=0 if first else len(origin.shape) - 1)
        found.append(
            TensorSource(origin.name, origin.shape, origin.dtype, where, native, block, change)
        )
    return found
