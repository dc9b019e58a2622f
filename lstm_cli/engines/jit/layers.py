"""Whole recurrent layers: every direction forwards and backwards, and how threads share them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.cells.expression import symbol
from lstm_cli.engines import schedule
from lstm_cli.engines.jit.backward import BackwardPass, backward_kernel
from lstm_cli.engines.jit.batch import Rows, batch, shared, work_of
from lstm_cli.engines.jit.codegen.matmul import Lines, Product, packed, product_kernel, run_product
from lstm_cli.engines.jit.codegen.packing import Packed
from lstm_cli.engines.jit.codegen.weight_gradient import (
    WeightGradient,
    gradient_kernel,
    run_gradient,
)
from lstm_cli.engines.jit.forward import (
    Buffers,
    Sequences,
    final_states,
    forward_kernel,
    run_forward,
)
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Stock, Workspace, Workspaces
from lstm_cli.engines.jit.weights import RecurrentWeights
from lstm_cli.engines.pointwise import DenseTape, softmax, through_activation
from lstm_cli.engines.schedule import Schedule
from lstm_cli.engines.setup import setup_total
from lstm_cli.engines.types import (
    DIRECTIONS,
    Array,
    DenseSpec,
    LayerGradients,
    LayerResult,
    RecurrentSpec,
    State,
    TrainingPass,
)


@dataclass
class _Tape:
    """What a layer's backward pass needs."""

    given: list[Sequences]
    left: list[Buffers]
    spaces: list[Workspace]
    lengths: Array | None
    dropped: Array | None


class RecurrentLayer:
    """A recurrent layer on this machine.

    Parameters
    ----------
    weights
        Of each direction.
    spaces
        Where workspaces come from.
    """

    def __init__(
        self,
        spec: RecurrentSpec,
        weights: Sequence[RecurrentWeights],
        machine: Machine,
        spaces: Workspaces,
        threads: int,
    ) -> None:
        self.spec, self.weights, self.machine = spec, weights, machine
        self.spaces, self.threads = spaces, threads
        self._work, recurrent = work_of(spec, weights[0].lanes.bits // 8)
        self._fits = recurrent <= machine.cache // 2
        self._inference = [schedule.inference(cell) for cell in spec.cells]
        self._purposes = [(spec.prefix(d), False) for d in range(spec.directions)]

    def forward(
        self, x: Array, lengths: Array | None, state: State | None, *, keep: bool
    ) -> LayerResult:
        """Every direction over the batch; see `lstm_cli.engines.types.Engine`."""
        spec, x = self.spec, _readable(x)
        threads, rows = self._rows(x, lengths)
        y = self._output(x, lengths)
        kept: dict[str, dict[str, Array]] = {}
        finals, input_seconds, seconds = [], 0.0, 0.0
        for d, cell in enumerate(spec.cells):
            plan = schedule.inspection(cell) if keep else self._inference[d]
            given = Sequences(x, rows, d == 1, _initial(state, d), None, keep, threads)
            space = self.spaces.take(self._purposes[d])
            left, spent = self._run(d, plan, given, y, space)
            finals.append(final_states(self.weights[d], rows, left))
            if keep:
                kept[DIRECTIONS[d]] = _kept(cell, given, left)
            self.spaces.give(self._purposes[d], space)
            input_seconds, seconds = input_seconds + spent[0], seconds + spent[1]
        output = _last(finals, x.shape[1], lengths) if y is None else y
        timing = {"input projection": input_seconds, "recurrence": seconds}
        return LayerResult(output, _stacked(finals), kept, seconds=timing)

    def forward_training(
        self, x: Array, lengths: Array | None, state: State | None, training: TrainingPass
    ) -> LayerResult:
        """As `forward`, with dropout, and a tape for `backward`."""
        spec, dropped = self.spec, None
        if spec.dropout:
            dropped = training.mask(spec, 0, x.shape, spec.dropout).astype(x.dtype)
            x = x * dropped
        x = _readable(x)
        threads, rows = self._rows(x, lengths)
        y = self._output(x, lengths)
        tape = _Tape([], [], [], lengths, dropped)
        finals, timing = [], {"input projection": 0.0, "recurrence": 0.0}
        for d, cell in enumerate(spec.cells):
            mask = self._mask(training, d, cell, len(x))
            plan = schedule.training(cell, mask is not None)
            given = Sequences(x, rows, d == 1, _initial(state, d), mask, True, threads)
            purpose = (spec.prefix(d), True)
            space = self.spaces.take(purpose)
            weakref.finalize(tape, self.spaces.give, purpose, space).atexit = False
            left, spent = self._run(d, plan, given, y, space)
            finals.append(final_states(self.weights[d], rows, left))
            tape.given.append(given)
            tape.left.append(left)
            tape.spaces.append(space)
            for part, more in zip(timing, spent, strict=True):
                timing[part] += more
        output = _last(finals, x.shape[1], lengths) if y is None else y
        return LayerResult(output, _stacked(finals), seconds=timing, tape=tape)

    def _run(
        self, d: int, plan: Schedule, given: Sequences, y: Array | None, space: Workspace
    ) -> tuple[Buffers, tuple[float, float]]:
        """One direction's kernel."""
        kernel = forward_kernel(self.weights[d], plan)
        into = None if y is None else (y, d * self.spec.cells[0].output_size)
        return run_forward(self.weights[d], kernel, given, into, space)

    def _output(self, x: Array, lengths: Array | None) -> Array | None:
        """Where the output of every step goes."""
        if not self.spec.return_sequences:
            return None
        shape = (*x.shape[:2], self.spec.output_size)
        return np.empty(shape, x.dtype) if lengths is None else np.zeros(shape, x.dtype)

    def _rows(self, x: Array, lengths: Array | None) -> tuple[int, Rows]:
        """How many threads there are, and how they share the batch."""
        N, T, _ = x.shape
        threads, groups = shared(N, T, self._work, self.threads, fits=self._fits)
        return threads, batch(N, T, lengths, groups)

    def _mask(self, training: TrainingPass, d: int, cell: Cell, N: int) -> Array | None:
        rate = self.spec.recurrent_dropout
        return training.mask(self.spec, 1 + d, (N, cell.output_size), rate) if rate else None

    def backward(self, tape: _Tape, d_output: Array) -> LayerGradients:
        """Derivatives for the input, every tensor, and the initial states."""
        spec, P = self.spec, self.spec.cells[0].output_size
        x = tape.given[0].x
        whole = tape.lengths is None or bool((tape.lengths == x.shape[1]).all())
        dx = self.weights[0].stock.shaped(x.shape, x.dtype)
        if not whole:
            dx.fill(0)
        d = np.ascontiguousarray(d_output, x.dtype)
        if not spec.return_sequences and tape.lengths is not None:
            d = np.where((tape.lengths > 0)[:, None], d, np.zeros((), d.dtype))
        found: dict[str, Array] = {}
        states = []
        for k, (weights, given) in enumerate(zip(self.weights, tape.given, strict=True)):
            plan = schedule.training(weights.cell, given.mask is not None)
            kernel = backward_kernel(weights, plan)
            way = BackwardPass(weights, kernel, given, tape.left[k], tape.spaces[k], self.machine)
            gradients = way.run(d, k * P, dx, add=k > 0)
            found |= {spec.prefix(k) + name: value for name, value in gradients.tensors.items()}
            states.append(gradients.states)
        if tape.dropped is not None:
            dx *= tape.dropped
        return LayerGradients(dx, found, _stacked(states))


def _readable(x: Array) -> Array:
    """The inputs as kernels read them: numbers of a step side by side, whole strides."""
    item = x.itemsize
    if x.strides[2] == item and not (x.strides[0] % item or x.strides[1] % item):
        return x
    return np.array(x, order="C")


def _initial(state: State | None, d: int) -> tuple[Array | None, ...]:
    """A direction's initial states."""
    if state is None:
        return None, None
    return tuple(None if part is None else part[:, d] for part in state)


def _kept(cell: Cell, given: Sequences, left: Buffers) -> dict[str, Array]:
    """Gates and states of every step (N, T, H) or (N, T, P), 0 past the ends."""
    rows = given.rows
    row, n, t = rows.steps(reverse=given.reverse)
    lengths = rows.T if rows.lengths is None else rows.lengths[row]
    after = lengths - t if given.reverse else t + 1
    graph = schedule.inspection(cell)
    names = schedule.inspected(cell)
    N, T = given.x.shape[:2]
    record = left.record

    def spread(values: Array) -> Array:
        found = np.zeros((N, T, values.shape[-1]), values.dtype)
        found[n, t] = values
        return found

    kept = {"h": spread(left.h[after, row, : cell.output_size])}
    if record is not None and graph.slots:
        kept |= {name: spread(record[:, k, : cell.hidden_size]) for k, name in enumerate(names)}
    return kept


def _last(finals: list[tuple[Array, ...]], T: int, lengths: Array | None) -> Array:
    """The last step's output (N, F), 0 for a sequence that has none."""
    parts = [final[0] for final in finals]
    y = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    if lengths is None and T > 0:
        return y
    seen = np.full(len(y), T > 0) if lengths is None else lengths > 0
    return np.where(seen[:, None], y, np.zeros((), y.dtype))


def _stacked(finals: Sequence[tuple[Array, ...]]) -> State:
    """Each direction's states (N, size) as (N, directions, size)."""
    if len(finals) == 1:
        stacked = [part[:, None] for part in finals[0]]
    else:
        stacked = [np.stack(part, axis=1) for part in zip(*finals, strict=True)]
    return stacked[0], stacked[1] if len(stacked) > 1 else None


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """A dense layer's weights, packed for this machine.

    Attributes
    ----------
    weight, bias
        (units, D) and (units,), as stored, without gaps.
    stock
        Where the memory of panels and of gradients comes from.
    """

    spec: DenseSpec
    weight: Array
    bias: Array
    machine: Machine
    stock: Stock
    _packed: dict[str, Packed] = field(default_factory=dict)

    def forward(self, x: Array, lengths: Array | None, threads: int) -> LayerResult:
        """Every step of every sequence; past its end 0."""
        begun, prepared = perf_counter(), setup_total()
        spec, M = self.spec, x.size // self.spec.input_size
        flat = np.ascontiguousarray(x).reshape(M, spec.input_size)
        logits = np.empty((M, spec.units), x.dtype)
        y = logits if spec.activation is None else np.empty_like(logits)
        weights = self._of("forward", self.weight, self.bias, threads)
        root = None if spec.activation is None else spec.activation(symbol("a"))
        kernel = product_kernel(weights.columns.split, root, self.machine)
        before = None if root is None else Lines.of(logits)
        run_product(kernel, Product(M, Lines.of(flat), weights, Lines.of(y), before), threads)
        if spec.activation is None:
            y = softmax(logits)
        shape = (*x.shape[:-1], spec.units)
        logits, y = logits.reshape(shape), y.reshape(shape)
        if lengths is not None and y.ndim == 3:
            ended = np.arange(x.shape[1]) >= lengths[:, None]
            y = np.where(ended[:, :, None], np.zeros((), y.dtype), y)
        seconds = {"product": perf_counter() - begun - (setup_total() - prepared)}
        return LayerResult(y, logits=logits, seconds=seconds, tape=DenseTape(x, logits, y))

    def backward(
        self, tape: DenseTape, d_output: Array, spaces: Workspaces, threads: int, *, d_logits: bool
    ) -> LayerGradients:
        """Derivatives for input, weight and bias; `d_output` is 0 past a sequence's end."""
        spec = self.spec
        d = d_output if d_logits else through_activation(spec, tape, d_output)
        flat = np.ascontiguousarray(d, tape.x.dtype).reshape(-1, spec.units)
        x = np.ascontiguousarray(tape.x).reshape(-1, spec.input_size)
        dx = self.stock.shaped(x.shape, x.dtype)
        weights = self._of("backward", self.weight.T, None, threads)
        kernel = product_kernel(weights.columns.split, machine=self.machine)
        run_product(kernel, Product(len(x), Lines.of(flat), weights, Lines.of(dx)), threads)
        weight, bias = self.stock.like(self.weight), self.stock.like(self.bias)
        element = "float" if x.itemsize == 4 else "double"
        made = gradient_kernel(spec.input_size, element, self.machine)
        start = np.zeros(1, np.int64)
        given = WeightGradient(len(x), Lines.of(flat), start, spec.units, Lines.of(x), weight, bias)
        space = spaces.take("dense")
        run_gradient(made, given, space, threads)
        spaces.give("dense", space)
        prefix = f"layers.{spec.index}."
        found: dict[str, Any] = {prefix + "weight": weight, prefix + "bias": bias}
        return LayerGradients(dx.reshape(tape.x.shape), found)

    def _of(self, which: str, matrix: Array, init: Array | None, threads: int) -> Packed:
        if which not in self._packed:
            self._packed[which] = packed(matrix, init, self.machine, threads, self.stock)
        return self._packed[which]
