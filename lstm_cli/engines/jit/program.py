"""A network's forward pass over batches of one shape, prepared once and run by one native call.

A small layer's kernel takes less time than the Python code around it. A `JitProgram` therefore
keeps the argument blocks and the values of all layers; a call copies inputs in and results out. It
serves batches without lengths whose layers each take one thread. Others run layer by layer. Start
at `make_program`. A `JitStepper` is a program of one step that keeps the states.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter

import numpy as np

from lstm_cli.engines import schedule
from lstm_cli.engines.jit.codegen.ir import Module
from lstm_cli.engines.jit.codegen.matmul import product_block
from lstm_cli.engines.jit.codegen.rows import ROWS, row_kernels
from lstm_cli.engines.jit.codegen.sequence import cycle_counter
from lstm_cli.engines.jit.forward import ForwardInputs, forward_kernel, prepared_buffers
from lstm_cli.engines.jit.layers import Dense, Recurrent, Resources
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Workspace, address
from lstm_cli.engines.protocols import Layer, NetworkProgram, ProgramResult, Stepper
from lstm_cli.engines.reference.layers import Dropout, Flatten
from lstm_cli.engines.types import Array, LayerSpec, State

MAX_NUMBERS = 1 << 16
"""Most numbers of any layer's values over a batch. The time of a call does not matter for larger
batches, and their programs would hold much memory."""

_WORDS = 6
"""Words of a kernel in the table that `run` reads: address, argument block, 1 if the block counts
cycles itself; then, written by `run`: cycles, and the first two words of the block."""


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A kernel with its argument block, and the layer that its time counts for."""

    address: int
    block: Array
    spec: LayerSpec
    counts_cycles: bool = False
    clears_state: bool = False


class _Builder:
    """Collects the kernels of a program, layer by layer.

    Attributes
    ----------
    x, y
        Values that the program reads, and those of the last layer so far.
    logits
        Values of the last dense layer before its activation. None: the last layer is another one.
    starts, states
        Views (N, 1, size) of the initial and of the final h and c of each layer and direction.
    """

    def __init__(self, x: Array, resources: Resources, *, keeps_states: bool) -> None:
        self.x = self.y = x
        self.logits: Array | None = None
        self.starts: list[list[tuple[Array, ...]]] = []
        self.states: list[list[tuple[Array, ...]]] = []
        self.kernels: list[_Kernel] = []
        self.kept: list[object] = []
        self._keeps_states = keeps_states
        element = "float" if x.itemsize == 4 else "double"
        self._rows = row_kernels(element, resources.machine)

    def add(self, layer: Layer[Array, Array]) -> bool:
        """Add the kernels of a layer. False: programs do not run this layer."""
        match layer:
            case Recurrent():
                return self._add_recurrent(layer)
            case Dense():
                self._add_dense(layer)
            case Dropout():
                pass
            case Flatten():
                if self._keeps_states or self.y.shape[1] != layer.spec.steps:
                    return False
                self.y, self.logits = self.y.reshape(len(self.y), -1), None
            case _:
                return False
        return True

    def _add_recurrent(self, layer: Recurrent) -> bool:
        spec, x, P = layer.spec, self.y, layer.spec.cells[0].output_size
        N, T = x.shape[:2]
        threads, rows = layer.share_rows(x, None)
        if threads > 1:
            return False
        shape = (N, T, spec.output_size) if spec.return_sequences else (N, spec.output_size)
        y = np.empty(shape, x.dtype)
        starts: list[tuple[Array, ...]] = []
        finals: list[tuple[Array, ...]] = []
        for d, weights in enumerate(layer.weights):
            kernel = forward_kernel(weights, schedule.inference(weights.cell))
            inputs = ForwardInputs(x, rows, d == 1, (None, None), None, False, 1)
            output = (y, d * P) if spec.return_sequences else None
            workspace = Workspace()
            buffers = prepared_buffers(weights, kernel, inputs, output, workspace)
            self.kept += [workspace, buffers, inputs]
            states = [buffers.h[T % 2, :, None, :P]]
            if len(weights.cell.states) > 1:
                states.append(buffers.c[0, :, None, : weights.cell.hidden_size])
            if not self._keeps_states:
                self._add_rows("zeros", spec, buffers.h[0], buffers.h[0], clears_state=True)
                self._add_rows("zeros", spec, buffers.c[0], buffers.c[0], clears_state=True)
            self.kernels.append(_Kernel(kernel.address, buffers.block, spec, counts_cycles=True))
            if not spec.return_sequences:
                self._add_rows("copy", spec, states[0][:, 0], y[:, d * P : (d + 1) * P])
            if self._keeps_states:  # the kernel reads h of the step before in the first half
                self._add_rows("copy", spec, buffers.h[1], buffers.h[0])
                states[0] = buffers.h[0, :, None, :P]
            starts.append((buffers.h[0, :, None, :P], *states[1:]))
            finals.append(tuple(states))
        self.starts.append(starts)
        self.states.append(finals)
        self.y, self.logits = y, None
        return True

    def _add_dense(self, layer: Dense) -> None:
        spec, x = layer.spec, self.y
        logits = np.empty((*x.shape[:-1], spec.units), x.dtype)
        y = np.empty_like(logits)
        rows, sums = x.reshape(-1, spec.input_size), logits.reshape(-1, spec.units)
        kernel, matmul = layer.product(rows, sums, y.reshape(sums.shape))
        block = product_block(kernel, matmul, 1)
        self.kernels.append(_Kernel(kernel.address, block, spec))
        self.kept.append(matmul)
        if spec.activation is None:
            self._add_rows("softmax", spec, sums, y.reshape(sums.shape))
        self.y, self.logits = y, logits

    def _add_rows(
        self,
        name: str,
        spec: LayerSpec,
        source: Array,
        target: Array,
        *,
        clears_state: bool = False,
    ) -> None:
        item = source.itemsize
        entries = {
            "rows": len(source),
            "size": source.shape[1],
            "from_step": source.strides[0] // item,
            "to_step": target.strides[0] // item,
            "from": address(source),
            "to": address(target),
        }
        self.kept += [source, target]
        block = ROWS.block(entries)
        self.kernels.append(_Kernel(self._rows[name], block, spec, clears_state=clears_state))


class JitProgram:
    """A prepared forward pass, for one caller at a time; see `make_program`."""

    def __init__(self, built: _Builder, machine: Machine) -> None:
        self._x, self._y, self._logits = built.x, built.y, built.logits
        self._starts, self._states, self._kept = built.starts, built.states, built.kept
        self._table = _Table(built.kernels, machine)
        continuing = [kernel for kernel in built.kernels if not kernel.clears_state]
        self._continuing_table = _Table(continuing, machine)

    def run(
        self, x: Array, states: Sequence[State[Array] | None] | None = None
    ) -> ProgramResult[Array]:
        """Forward pass over inputs (N, T, D) of the program's shape."""
        np.copyto(self._x, x)
        table = self._table
        if states is not None:
            table = self._continuing_table
            for starts, state in zip(self._starts, states, strict=True):
                _start(starts, state)
        start = perf_counter()
        table.run()
        seconds = perf_counter() - start
        logits = None if self._logits is None else self._logits.copy()
        final_states = [_joined(finals) for finals in self._states]
        timing = _Timing(table.kernels, table.words.copy(), seconds)
        return ProgramResult(self._y.copy(), final_states, logits, timing)


class JitStepper:
    """A prepared pass of one step, with states; see `lstm_cli.engines.protocols.Stepper`."""

    def __init__(self, built: _Builder, machine: Machine) -> None:
        self._x = built.x[:, 0]
        self._y = built.y[:, 0] if built.y.ndim == 3 else built.y
        self._states = [states for (states,) in built.states]
        self._table = _Table(built.kernels, machine)
        self._kept = built.kept
        self.reset()

    def step(self, x: Array, out: Array) -> None:
        """Read one step (N, D), and write its outputs (N, F)."""
        self._x[...] = x
        self._table.run()
        out[...] = self._y

    def reset(self) -> None:
        """Set all states to 0."""
        for state in self._states:
            for part in state:
                part[...] = 0

    @property
    def states(self) -> list[State[Array]]:
        """Copies of the states of each recurrent layer."""
        return [_joined([state]) for state in self._states]

    def set_states(self, states: Sequence[State[Array]]) -> None:
        """Replace the states by others of their shapes."""
        for state, new in zip(self._states, states, strict=True):
            for part, value in zip(state, new, strict=False):
                part[...] = value


class _Table:
    """Kernels in the form that the native function `run` reads."""

    def __init__(self, kernels: Sequence[_Kernel], machine: Machine) -> None:
        self.kernels = kernels
        self.words = np.zeros((len(kernels), _WORDS), np.int64)
        for row, kernel in zip(self.words, kernels, strict=True):
            row[:3] = kernel.address, address(kernel.block), kernel.counts_cycles
        self._run, self._place, self._count = _runner(machine), address(self.words), len(kernels)

    def run(self) -> None:
        """Run the kernels in their order."""
        self._run(self._place, self._count)


def _start(starts: list[tuple[Array, ...]], state: State[Array] | None) -> None:
    """Write the initial states (N, directions, size) of a layer; None is 0."""
    for d, parts in enumerate(starts):
        for part, values in zip(parts, state or (None, None), strict=False):
            part[...] = 0 if values is None else values[:, d : d + 1]


def _joined(finals: list[tuple[Array, ...]]) -> State[Array]:
    """Copies of a layer's final states, (N, directions, size)."""
    if len(finals) == 1:
        states = finals[0]
        return states[0].copy(), states[1].copy() if len(states) > 1 else None
    h, *c = (np.concatenate(parts, axis=1) for parts in zip(*finals, strict=True))
    return h, c[0] if c else None


class _Timing(Mapping[int, Mapping[str, float]]):
    """Seconds by layer index and part, from the cycles of a run; computed at the first use."""

    def __init__(self, kernels: Sequence[_Kernel], table: Array, seconds: float) -> None:
        self._kernels, self._table, self._total = kernels, table, seconds
        self._seconds: dict[int, dict[str, float]] | None = None

    def _computed(self) -> dict[int, dict[str, float]]:
        if self._seconds is None:
            self._seconds = {}
            cycles = self._table[:, 3]
            scale = self._total / max(int(cycles.sum()), 1)
            for kernel, row in zip(self._kernels, self._table, strict=True):
                parts = self._seconds.setdefault(kernel.spec.index, {})
                spent, inputs, steps = float(row[3]) * scale, 0.0, "product"
                if kernel.spec.kind != "dense":
                    steps = "recurrence"
                    share = row[4] / max(row[4] + row[5], 1) if kernel.counts_cycles else 0.0
                    inputs = spent * float(share)
                    parts["input projection"] = parts.get("input projection", 0.0) + inputs
                parts[steps] = parts.get(steps, 0.0) + spent - inputs
        return self._seconds

    def __getitem__(self, index: int) -> Mapping[str, float]:
        return self._computed().get(index, {})

    def __iter__(self) -> Iterator[int]:
        return iter(self._computed())

    def __len__(self) -> int:
        return len(self._computed())


def make_program(
    layers: Sequence[Layer[Array, Array]], N: int, T: int, dtype: str, resources: Resources
) -> NetworkProgram[Array] | None:
    """The layers' forward pass for N sequences of T steps. None: it runs layer by layer."""
    if not N or not T:
        return None
    widths = [max(layer.spec.input_size, layer.spec.output_size) for layer in layers]
    if N * T * max(widths) > MAX_NUMBERS:
        return None
    builder = _Builder(
        np.zeros((N, T, layers[0].spec.input_size), dtype), resources, keeps_states=False
    )
    if not all(builder.add(layer) for layer in layers) or not builder.kernels:
        return None
    return JitProgram(builder, resources.machine)


def make_stepper(
    layers: Sequence[Layer[Array, Array]], N: int, dtype: str, resources: Resources
) -> Stepper[Array] | None:
    """The pass of one step for N sequences. None: it runs layer by layer."""
    x = np.zeros((N, 1, layers[0].spec.input_size), dtype)
    builder = _Builder(x, resources, keeps_states=True)
    if not all(builder.add(layer) for layer in layers) or not builder.kernels:
        return None
    return JitStepper(builder, resources.machine)


@lru_cache(maxsize=1)
def _runner(machine: Machine) -> Callable[[int, int], None]:
    """Native function that runs the kernels of a table: its address, and their number."""
    kernels = load_kernels("program", lambda: _emit_runner(machine), machine)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
    function: Callable[[int, int], None] = kind(kernels["program"])
    return function


def _emit_runner(machine: Machine) -> Module:
    module = Module()
    f = module.function("program", {"table": "ptr", "count": "i64"}, exported=True, noalias=False)
    with f.loop(0, f.args["count"]) as k:
        row = f.at(f.args["table"], f.mul(k, _WORDS), "i64")
        kernel, block = f.load("ptr", row), f.load("ptr", f.at(row, 1, "i64"))
        second = f.at(block, 1, "i64")
        with f.when(f.compare("ne", f.load("i64", f.at(row, 2, "i64")), 0)):
            f.store(0, block)
            f.store(0, second)
        before = cycle_counter(f, machine)
        f.line(f"call void {kernel.name}({block}, i64 0, i64 1)")
        f.store(f.sub(cycle_counter(f, machine), before), f.at(row, 3, "i64"))
        f.store(f.load("i64", block), f.at(row, 4, "i64"))
        f.store(f.load("i64", second), f.at(row, 5, "i64"))
    f.ret()
    return module
