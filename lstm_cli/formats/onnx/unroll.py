"""Loop rerolling: rebuild recurrent layers from loops that an exporter unrolled.

Keras and PyTorch's cells write every step as separate nodes. `LoopReroller` matches the steps of
one loop, checks that they share their weights, and replaces them by one recurrent direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.builder import NativeTensor, bias_names, index_text, stack_gates
from lstm_cli.formats.gates import NATIVE_GATES
from lstm_cli.formats.interchange import TensorSource
from lstm_cli.formats.onnx.node import GraphContext
from lstm_cli.formats.onnx.ops_math import reads_all_steps
from lstm_cli.formats.onnx.symbolic import (
    ALL_STEPS,
    REVERSED_STEPS,
    ActivationOutput,
    FeatureVector,
    LinearMap,
    RecurrentDirection,
    Signal,
    SoftmaxOutput,
    SymbolicTensor,
    Term,
    Weight,
    all_features,
    concatenate,
    parts_of,
    same_array,
    vector_at,
)
from lstm_cli.formats.onnx.unroll_match import CellStep, match_step, rnn_start, same_gate

MAX_COMPARISONS = 50_000
"""Largest number of comparisons of vectors, plus the allowance for the file's operators."""
COMPARISONS_PER_STEP, COMPARISONS_PER_NODE = 40, 30
"""Comparisons counted for matching one step, and comparisons allowed for each operator."""


def _cost(vector: FeatureVector) -> int:
    """Comparisons counted for a vector; long vectors take longer to compare."""
    return 1 + vector.indices.size // 4096


@dataclass(frozen=True)
class BrokenLoop:
    """An unrolled loop whose steps are not one layer.

    Attributes
    ----------
    kind, steps
        Cell, and number of equal steps, counted from the last step.
    last_node, node, next_node
        Nodes of the last state, of the step that differs, and of the step after it.
    is_folded
        The step that differs is not a step of the cell at all.
    """

    kind: str
    steps: int
    last_node: str
    node: str
    next_node: str
    is_folded: bool

    def error(self, path: str) -> WeightsError:
        """Error for the user, with a hint if the exporter may have folded the first step."""
        actual = f"other weights or activations at {self.node} than in the step after it"
        hint = None
        if self.is_folded:
            actual = (
                f"{self.node}, before the step of {self.next_node}, is computed in another way: "
                "the exporter may have folded the first step's product with its initial state"
            )
            hint = (
                "export the model with an open batch size, so that nothing is folded: torch.onnx."
                "export(..., dynamo=True, dynamic_shapes=({0: torch.export.Dim('N')},))"
            )
        return WeightsError(
            f"the loop of {self.kind} steps that ends at {self.last_node} is not one layer",
            expected="the same operators and weights in every step",
            found=actual,
            where=path,
            hint=hint,
        )


class LoopReroller:
    """Finds recurrent directions among the vectors of single steps."""

    def __init__(self, context: GraphContext) -> None:
        self.free_axes, self.notes = context.free_axes, context.notes
        allowance = COMPARISONS_PER_NODE * context.budget.file_nodes
        self.comparisons_left = MAX_COMPARISONS + allowance
        self.broken_loop: BrokenLoop | None = None
        self._finals: dict[int, tuple[FeatureVector, FeatureVector | None]] = {}

    def final(self, vector: FeatureVector) -> FeatureVector | None:
        """Last step of a recurrent direction, if `vector` is the last state of an unrolled loop."""
        key = id(vector.signal)
        if key not in self._finals:
            # Keep the vector alive, so that no other signal gets the same id.
            self._finals[key] = (vector, self._final(vector.signal))
        last = self._finals[key][1]
        return None if last is None else FeatureVector(last.signal, last.step, vector.indices)

    def _final(self, signal: Signal) -> FeatureVector | None:
        chain = self._chain(all_features(signal), None)
        direction = None if chain is None else self._recurrent(chain)
        if direction is None:
            return None
        step = self.free_axes.step_index(0 if direction.reverse else -1)
        return vector_at(all_features(direction), step)

    def series(self, values: Sequence[SymbolicTensor], axis: int) -> SymbolicTensor | None:
        """Join single steps along `axis`, if they are all steps of one signal, else None."""
        if self.free_axes.time is None or any(value.axes[axis] for value in values):
            return None
        first = values[0]
        same_layout = all(
            value.axes == first.axes and np.array_equal(value.indices, first.indices)
            for value in values
        )
        vectors = [value.vector for value in values]
        series = self._series(vectors) if same_layout and not reads_all_steps(*vectors) else None
        if series is None:
            return None
        axes = (*first.axes[:axis], (self.free_axes.time,), *first.axes[axis + 1 :])
        indices = series.indices.reshape(first.indices.shape)
        return SymbolicTensor(series.signal, series.step, indices, axes)

    def _series(self, vectors: Sequence[FeatureVector]) -> FeatureVector | None:
        series = self.lift(vectors)
        if series is not None:
            return series
        for ordered, is_reversed in ((vectors, False), (vectors[::-1], True)):
            chain = self._chain(ordered[-1], len(vectors))
            if chain is None or len(chain) != len(vectors):
                continue
            if all(h.signal is v.signal for (h, _), v in zip(chain, ordered, strict=True)):
                direction = self._recurrent(chain)
                if direction is not None:
                    step = ALL_STEPS if is_reversed == direction.reverse else REVERSED_STEPS
                    return FeatureVector(direction, step, vectors[0].indices)
        return None

    def _chain(
        self, h: FeatureVector, count: int | None
    ) -> list[tuple[FeatureVector, CellStep]] | None:
        """States and steps of the loop that ends at `h`, from first to last; None for no loop.

        The chain has at most `count` steps; None: no limit.
        """
        steps: list[tuple[FeatureVector, CellStep]] = []
        state: FeatureVector | None = all_features(h.signal)
        while state is not None and self.comparisons_left > 0:
            self.comparisons_left -= COMPARISONS_PER_STEP * _cost(state)
            step = match_step(state) or (rnn_start(state, steps[-1][1]) if steps else None)
            if step is None or (steps and not _continues(step, steps[-1][1])):
                self._record_broken_loop(state, step, steps)
                return None
            steps.append((state, step))
            if step.is_first or len(steps) == count:
                break
            state = step.h_prev
        return steps[::-1] if steps and steps[-1][1].is_first else None

    def _record_broken_loop(
        self,
        state: FeatureVector,
        step: CellStep | None,
        later: Sequence[tuple[FeatureVector, CellStep]],
    ) -> None:
        """Remember the longest loop that is broken, for the error."""
        if later and (self.broken_loop is None or len(later) > self.broken_loop.steps):
            (last_state, _), (next_state, next_step) = later[0], later[-1]
            self.broken_loop = BrokenLoop(
                next_step.kind,
                len(later),
                last_state.signal.where,
                state.signal.where,
                next_state.signal.where,
                step is None,
            )

    def _recurrent(
        self, chain: Sequence[tuple[FeatureVector, CellStep]]
    ) -> RecurrentDirection | None:
        source = self.lift([step.source for _, step in chain])
        if source is None:
            return None
        h, step = chain[-1]
        return RecurrentDirection(
            h.signal.size,
            True,
            h.signal.where,
            step.kind,
            step.options,
            FeatureVector(source.signal, ALL_STEPS, source.indices),
            source.step == REVERSED_STEPS,
            _tensors(step),
        )

    def lift(self, vectors: Sequence[FeatureVector]) -> FeatureVector | None:
        """Signal whose steps are these vectors, in order or reversed; None if there is none."""
        columns = [list(parts_of(vector)) for vector in vectors]
        if len({len(column) for column in columns}) != 1:
            return None
        series = [self._lift_part(list(row)) for row in zip(*columns, strict=True)]
        parts = [vector for vector in series if vector is not None]
        if not parts or len(parts) != len(series):
            return None
        order = parts[0].step
        if any(vector.step != order for vector in parts):
            return None
        in_order = [FeatureVector(v.signal, ALL_STEPS, v.indices) for v in parts]
        joined = concatenate(in_order, parts[0].signal.where)
        return FeatureVector(joined.signal, order, joined.indices)

    def _lift_part(self, vectors: Sequence[FeatureVector]) -> FeatureVector | None:
        first = vectors[0]
        self.comparisons_left -= len(vectors) * _cost(first)
        if self.comparisons_left < 0 or any(
            not np.array_equal(vector.indices, first.indices) for vector in vectors[1:]
        ):
            return None
        if first.signal.per_step and all(vector.signal is first.signal for vector in vectors):
            return self._all_steps([vector.step for vector in vectors], first)
        if first.signal.per_step or any(type(v.signal) is not type(first.signal) for v in vectors):
            return None
        series = self._lift_signals([vector.signal for vector in vectors])
        return None if series is None else FeatureVector(series.signal, series.step, first.indices)

    def _all_steps(self, steps: Sequence[object], first: FeatureVector) -> FeatureVector | None:
        count = len(steps)
        if self.free_axes.steps not in (None, count):
            return None
        numbers = [
            step % count if isinstance(step, int) and self.free_axes.steps else step
            for step in steps
        ]
        if numbers == list(range(count)):
            order = ALL_STEPS
        elif numbers in (list(range(count))[::-1], [-1 - k for k in range(count)]):
            order = REVERSED_STEPS
        else:
            return None
        if self.free_axes.steps is None:
            self.notes[
                f"the file unrolls {counted(count, 'step')}, and declares an open number of "
                "steps: it is read as a layer over all steps"
            ] = None
        return FeatureVector(first.signal, order, first.indices)

    def _lift_signals(self, signals: Sequence[object]) -> FeatureVector | None:
        """Signal over all steps, if every step computes the same function of its own source."""
        first = signals[0]
        if isinstance(first, ActivationOutput | SoftmaxOutput):
            if isinstance(first, ActivationOutput) and any(
                signal.activation != first.activation  # type: ignore[attr-defined]
                for signal in signals
            ):
                return None
            source = self.lift([signal.source for signal in signals])  # type: ignore[attr-defined]
            if source is None:
                return None
            in_order = FeatureVector(source.signal, ALL_STEPS, source.indices)
            signal = replace(first, per_step=True, source=in_order)
            return FeatureVector(signal, source.step, np.arange(signal.size))
        if isinstance(first, LinearMap):
            return self._lift_linear_maps(signals)  # type: ignore[arg-type]
        return None

    def _lift_linear_maps(self, signals: Sequence[LinearMap]) -> FeatureVector | None:
        first = signals[0]
        if any(not _same_maps(signal, first) for signal in signals[1:]):
            return None
        sources = [
            self.lift([signal.terms[k].source for signal in signals])
            for k in range(len(first.terms))
        ]
        orders = {None if source is None else source.step for source in sources}
        if len(orders) != 1 or None in orders:
            return None
        terms = tuple(
            Term(FeatureVector(source.signal, ALL_STEPS, source.indices), term.weight)
            for source, term in zip(sources, first.terms, strict=True)
            if source is not None
        )
        signal = replace(first, per_step=True, terms=terms)
        return FeatureVector(signal, orders.pop(), np.arange(signal.size))


def _continues(step: CellStep, later: CellStep) -> bool:
    if step.kind != later.kind or step.options != later.options:
        return False
    if later.c_prev is not None and step.c_prev is None:
        return False
    return all(same_gate(gate, later.gates[letter]) for letter, gate in step.gates.items())


def _same_maps(one: LinearMap, other: LinearMap) -> bool:
    if len(one.terms) != len(other.terms) or (one.bias is None) != (other.bias is None):
        return False
    biases = (one.bias, other.bias)
    if None not in biases and not same_array(*(bias.array for bias in biases if bias)):
        return False
    return all(
        same_array(a.weight.array, b.weight.array)
        for a, b in zip(one.terms, other.terms, strict=True)
    )


def _tensors(step: CellStep) -> dict[str, NativeTensor]:
    """Native tensors of a cell, from the gates of one step."""
    gates = step.gates
    W: Any = next(iter(gates.values())).x
    size, dtype = int(W.array.shape[1]), W.array.dtype

    def stack(slot: str, columns: int | None = None) -> NativeTensor:
        shape = (size,) if columns is None else (size, columns)
        blocks = {
            letter: NativeTensor(np.zeros(shape, dtype)) for letter in NATIVE_GATES[step.kind]
        }
        for letter, gate in gates.items():
            weight = getattr(gate, slot)
            if weight is not None:
                blocks[letter] = NativeTensor(weight.array.T, weight_sources(weight))
        return stack_gates(step.kind, blocks)

    tensors = {"weight_ih": stack("x", step.source.indices.size), "weight_hh": stack("h", size)}
    if any(gate.bias is not None or gate.h_bias is not None for gate in gates.values()):
        for name, slot in zip(bias_names(step.kind), ("bias", "h_bias"), strict=False):
            tensors[name] = stack(slot)
    return tensors


def weight_sources(weight: Weight | None) -> tuple[TensorSource, ...]:
    """Sources of a weight (in, out), transposed in its native form, or of a bias (n,)."""
    if weight is None:
        return ()
    change = weight.change
    if weight.array.ndim == 2:
        change = {"": "transposed", "transposed": ""}.get(change, change)
    sources = []
    for origin in weight.origins:
        where = ""
        if weight.columns and weight.change in ("", "transposed", "added") and origin.shape:
            is_first_axis = weight.change == "transposed" or len(origin.shape) == 1
            where = index_text(*weight.columns, axis=0 if is_first_axis else len(origin.shape) - 1)
        source = TensorSource(origin.name, origin.shape, origin.dtype, where, "", "", change)
        sources.append(source)
    return tuple(sources)
