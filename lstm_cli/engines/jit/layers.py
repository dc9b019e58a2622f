"""Layers of kernels for this machine: recurrent layers in all directions, and dense layers.

Start at `Recurrent.forward`; `batch.thread_sharing` decides how threads share the work. Dropout
and flatten layers are those of the reference engine.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import assert_never

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.cells.expression import symbol
from lstm_cli.engines import schedule
from lstm_cli.engines.jit.backward import BackwardPass, backward_kernel
from lstm_cli.engines.jit.batch import RowGroups, group_rows, step_work, thread_sharing
from lstm_cli.engines.jit.codegen.ir import VectorType
from lstm_cli.engines.jit.codegen.matmul import (
    Matmul,
    MatmulKernel,
    MemoryRows,
    matmul_kernel,
    pack_matrix,
    run_matmul,
)
from lstm_cli.engines.jit.codegen.packing import PackedMatrix
from lstm_cli.engines.jit.codegen.rows import softmax
from lstm_cli.engines.jit.codegen.weight_gradient import (
    WeightGradient,
    run_weight_gradient,
    weight_gradient_kernel,
)
from lstm_cli.engines.jit.forward import (
    ForwardBuffers,
    ForwardInputs,
    final_states,
    forward_kernel,
    run_forward,
)
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import ArrayPool, Workspace, Workspaces
from lstm_cli.engines.jit.weights import (
    PackingPlan,
    RecurrentWeights,
    packing_plan,
    recurrent_weights,
)
from lstm_cli.engines.protocols import Layer
from lstm_cli.engines.reference.layers import (
    DenseTape,
    Dropout,
    Flatten,
    through_activation,
)
from lstm_cli.engines.setup_time import total_setup_seconds
from lstm_cli.engines.types import (
    DIRECTIONS,
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    LayerGradients,
    LayerResult,
    LayerSpec,
    LayerTape,
    RecurrentSpec,
    State,
    TrainingPass,
    own_tape,
)
from lstm_cli.errors import DeviceError


@dataclass
class RecurrentTape(LayerTape):
    """Forward values for a recurrent layer's backward pass, one list item per direction.

    Attributes
    ----------
    inputs, buffers, workspaces
        Inputs, filled buffers, and the workspace of the buffers, which is released with the tape.
    lengths
        (N,) steps of the sequences; None: all have T.
    dropout_mask
        (N, T, D) scaled mask of the inputs; None without dropout.
    """

    inputs: list[ForwardInputs]
    buffers: list[ForwardBuffers]
    workspaces: list[Workspace]
    lengths: Array | None
    dropout_mask: Array | None


@dataclass(frozen=True, eq=False)
class Resources:
    """Machine, dtype and memory that the layers of one engine share.

    Attributes
    ----------
    vector
        Full vector of the machine in the engine's dtype.
    threads
        Largest number of threads to use.
    bf16
        True: recurrent layers multiply in bfloat16.
    workspaces, array_pool
        Sources of workspaces, and of the memory for panels and gradients.
    """

    machine: Machine
    vector: VectorType
    threads: int
    bf16: bool
    workspaces: Workspaces = field(default_factory=Workspaces)
    array_pool: ArrayPool = field(default_factory=ArrayPool)

    def packing_plan(self, cell: Cell, input_size: int) -> PackingPlan:
        """Packing of the matrices of a cell that reads D = `input_size` features."""
        return packing_plan(cell, input_size, self.vector, self.machine, self.threads, self.bf16)


class Recurrent:
    """A recurrent layer with its packed weights.

    Parameters
    ----------
    tensors
        Tensors by stored name, contiguous.
    """

    def __init__(
        self, spec: RecurrentSpec, tensors: Mapping[str, Array], resources: Resources
    ) -> None:
        self.spec, self.machine = spec, resources.machine
        self.workspaces, self.threads = resources.workspaces, resources.threads
        self.weights: list[RecurrentWeights] = []
        for d, cell in enumerate(spec.cells):
            stored = {name: tensors[spec.prefix(d) + name] for name in cell.tensor_names}
            plan = resources.packing_plan(cell, spec.input_size)
            self.weights.append(recurrent_weights(plan, stored, resources.array_pool))
        self._work, recurrent = step_work(spec, resources.vector.bits // 8)
        self._fits = recurrent <= self.machine.cache // 2
        self._inference = [schedule.inference(cell) for cell in spec.cells]
        self._purposes = [(spec.prefix(d), False) for d in range(spec.directions)]

    def forward(
        self,
        x: Array,
        lengths: Array | None,
        state: State[Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[Array, Array]:
        """Run every direction over the batch; see `lstm_cli.engines.protocols.Layer`."""
        if training is not None:
            return self._forward_training(x, lengths, state, training)
        spec, x = self.spec, _contiguous_steps(x)
        threads, rows = self.share_rows(x, lengths)
        y = self._output(x, lengths)
        gates: dict[str, dict[str, Array]] = {}
        finals, input_seconds, seconds = [], 0.0, 0.0
        for d, cell in enumerate(spec.cells):
            plan = schedule.inspection(cell) if return_gates else self._inference[d]
            states = _direction_states(state, d)
            inputs = ForwardInputs(x, rows, d == 1, states, None, return_gates, threads)
            workspace = self.workspaces.acquire(self._purposes[d])
            kernel = forward_kernel(self.weights[d], plan)
            columns = None if y is None else (y, d * cell.output_size)
            buffers, spent = run_forward(self.weights[d], kernel, inputs, columns, workspace)
            finals.append(final_states(self.weights[d], rows, buffers))
            if return_gates:
                gates[DIRECTIONS[d]] = _gates_and_states(cell, inputs, buffers)
            self.workspaces.release(self._purposes[d], workspace)
            input_seconds, seconds = input_seconds + spent[0], seconds + spent[1]
        output = _last_output(finals, x.shape[1], lengths) if y is None else y
        timing = {"input projection": input_seconds, "recurrence": seconds}
        return LayerResult(output, _stack_states(finals), gates, seconds=timing)

    def _forward_training(
        self, x: Array, lengths: Array | None, state: State[Array] | None, training: TrainingPass
    ) -> LayerResult[Array, Array]:
        """Run with dropout, and record a tape for `backward`."""
        if self.weights[0].bf16:
            raise DeviceError(
                "the jit engine does not train in bfloat16, which is for inference only",
                hint="--dtype float32",
            )
        spec, dropout_mask = self.spec, None
        if spec.dropout:
            dropout_mask = training.mask(spec, 0, x.shape, spec.dropout).astype(x.dtype)
            x = x * dropout_mask
        x = _contiguous_steps(x)
        threads, rows = self.share_rows(x, lengths)
        y = self._output(x, lengths)
        tape = RecurrentTape([], [], [], lengths, dropout_mask)
        finals, timing = [], {"input projection": 0.0, "recurrence": 0.0}
        for d, cell in enumerate(spec.cells):
            mask = self._recurrent_mask(training, d, cell, len(x))
            plan = schedule.training(cell, mask is not None)
            inputs = ForwardInputs(
                x, rows, d == 1, _direction_states(state, d), mask, True, threads
            )
            purpose = (spec.prefix(d), True)
            workspace = self.workspaces.acquire(purpose)
            weakref.finalize(tape, self.workspaces.release, purpose, workspace).atexit = False
            kernel = forward_kernel(self.weights[d], plan)
            columns = None if y is None else (y, d * cell.output_size)
            buffers, spent = run_forward(self.weights[d], kernel, inputs, columns, workspace)
            finals.append(final_states(self.weights[d], rows, buffers))
            tape.inputs.append(inputs)
            tape.buffers.append(buffers)
            tape.workspaces.append(workspace)
            for part, more in zip(timing, spent, strict=True):
                timing[part] += more
        output = _last_output(finals, x.shape[1], lengths) if y is None else y
        return LayerResult(output, _stack_states(finals), seconds=timing, tape=tape)

    def _output(self, x: Array, lengths: Array | None) -> Array | None:
        """Memory for the output of every step, 0 in the padding."""
        if not self.spec.return_sequences:
            return None
        shape = (*x.shape[:2], self.spec.output_size)
        return np.empty(shape, x.dtype) if lengths is None else np.zeros(shape, x.dtype)

    def share_rows(self, x: Array, lengths: Array | None) -> tuple[int, RowGroups]:
        """Number of threads for a batch, and the order in which they compute its rows."""
        N, T, _ = x.shape
        threads, groups = thread_sharing(N, T, self._work, self.threads, fits=self._fits)
        return threads, group_rows(N, T, lengths, groups)

    def _recurrent_mask(self, training: TrainingPass, d: int, cell: Cell, N: int) -> Array | None:
        rate = self.spec.recurrent_dropout
        return training.mask(self.spec, 1 + d, (N, cell.output_size), rate) if rate else None

    def backward(
        self, tape: LayerTape, d_output: Array, *, d_logits: bool = False
    ) -> LayerGradients[Array, Array]:
        """Derivatives for the input, every tensor, and the initial states."""
        with np.errstate(all="ignore"):
            return self._backward(own_tape(tape, RecurrentTape), d_output)

    def _backward(self, tape: RecurrentTape, d_output: Array) -> LayerGradients[Array, Array]:
        spec, P = self.spec, self.spec.cells[0].output_size
        x = tape.inputs[0].x
        full = tape.lengths is None or bool((tape.lengths == x.shape[1]).all())
        dx = self.weights[0].array_pool.shaped(x.shape, x.dtype)
        if not full:
            dx.fill(0)
        d = np.ascontiguousarray(d_output, x.dtype)
        if not spec.return_sequences and tape.lengths is not None:
            d = np.where((tape.lengths > 0)[:, None], d, np.zeros((), d.dtype))
        tensors: dict[str, Array] = {}
        states = []
        for k, (weights, inputs) in enumerate(zip(self.weights, tape.inputs, strict=True)):
            plan = schedule.training(weights.cell, inputs.mask is not None)
            kernel = backward_kernel(weights, plan)
            backward = BackwardPass(
                weights, kernel, inputs, tape.buffers[k], tape.workspaces[k], self.machine
            )
            gradients = backward.run(d, k * P, dx, add=k > 0)
            tensors |= {spec.prefix(k) + name: value for name, value in gradients.tensors.items()}
            states.append(gradients.states)
        if tape.dropout_mask is not None:
            dx *= tape.dropout_mask
        return LayerGradients(dx, tensors, _stack_states(states))


def _contiguous_steps(x: Array) -> Array:
    """Inputs with contiguous steps and strides of whole numbers, as kernels read them."""
    item = x.itemsize
    if x.strides[2] == item and not (x.strides[0] % item or x.strides[1] % item):
        return x
    return np.array(x, order="C")


def _direction_states(state: State[Array] | None, d: int) -> tuple[Array | None, ...]:
    if state is None:
        return None, None
    return tuple(None if part is None else part[:, d] for part in state)


def _gates_and_states(
    cell: Cell, inputs: ForwardInputs, buffers: ForwardBuffers
) -> dict[str, Array]:
    """Gates and states of every step, (N, T, H) or (N, T, P), 0 past a sequence's end."""
    rows = inputs.rows
    row, n, t = rows.steps(reverse=inputs.reverse)
    lengths = rows.T if rows.lengths is None else rows.lengths[row]
    after = lengths - t if inputs.reverse else t + 1
    graph = schedule.inspection(cell)
    names = schedule.inspection_names(cell)
    N, T = inputs.x.shape[:2]
    record = buffers.record

    def padded(values: Array) -> Array:
        array = np.zeros((N, T, values.shape[-1]), values.dtype)
        array[n, t] = values
        return array

    arrays = {"h": padded(buffers.h[after, row, : cell.output_size])}
    if record is not None and graph.slots:
        arrays |= {name: padded(record[:, k, : cell.hidden_size]) for k, name in enumerate(names)}
    return arrays


def _last_output(finals: list[tuple[Array, ...]], T: int, lengths: Array | None) -> Array:
    """Output of the last step (N, F), 0 for a sequence without steps."""
    parts = [final[0] for final in finals]
    y = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    if lengths is None and T > 0:
        return y
    has_steps = np.full(len(y), T > 0) if lengths is None else lengths > 0
    return np.where(has_steps[:, None], y, np.zeros((), y.dtype))


def _stack_states(finals: Sequence[tuple[Array, ...]]) -> State[Array]:
    """Stack each direction's states (N, size) to (N, directions, size)."""
    if len(finals) == 1:
        stacked = [part[:, None] for part in finals[0]]
    else:
        stacked = [np.stack(part, axis=1) for part in zip(*finals, strict=True)]
    return stacked[0], stacked[1] if len(stacked) > 1 else None


class Dense:
    """A dense layer with its packed weights.

    Parameters
    ----------
    tensors
        Weight (units, D) and bias (units,) by stored name, contiguous.
    """

    def __init__(self, spec: DenseSpec, tensors: Mapping[str, Array], resources: Resources) -> None:
        self.spec, self.machine, self.threads = spec, resources.machine, resources.threads
        self.workspaces, self.array_pool = resources.workspaces, resources.array_pool
        self._names = tuple(spec.parameters())
        self.weight, self.bias = (tensors[name] for name in self._names)
        self._packed: dict[str, PackedMatrix] = {}

    def forward(
        self,
        x: Array,
        lengths: Array | None,
        state: State[Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[Array, Array]:
        """Apply the layer to every step (N, T, D) or (N, D); past a sequence's end 0."""
        with np.errstate(all="ignore"):
            return self._forward(x, lengths)

    def _forward(self, x: Array, lengths: Array | None) -> LayerResult[Array, Array]:
        start, setup_before = perf_counter(), total_setup_seconds()
        spec, M = self.spec, x.size // self.spec.input_size
        flat = np.ascontiguousarray(x).reshape(M, spec.input_size)
        logits = np.empty((M, spec.units), x.dtype)
        y = logits if spec.activation is None else np.empty_like(logits)
        run_matmul(*self.product(flat, logits, y), self.threads)
        if spec.activation is None:
            y = softmax(logits, self.machine, self.threads)
        shape = (*x.shape[:-1], spec.units)
        logits, y = logits.reshape(shape), y.reshape(shape)
        if lengths is not None and y.ndim == 3:
            past_end = np.arange(x.shape[1]) >= lengths[:, None]
            y = np.where(past_end[:, :, None], np.zeros((), y.dtype), y)
        seconds = {"product": perf_counter() - start - (total_setup_seconds() - setup_before)}
        return LayerResult(y, logits=logits, seconds=seconds, tape=DenseTape(x, logits, y))

    def product(self, x: Array, logits: Array, y: Array) -> tuple[MatmulKernel, Matmul]:
        """The product for rows x (M, D) with logits and activations (M, units).

        A softmax layer has no activation here: `y` is not written.
        """
        weights, activation = self._pack("forward", self.weight, self.bias), self.spec.activation
        root = None if activation is None else activation(symbol("a"))
        kernel = matmul_kernel(weights.columns.split, root, self.machine)
        sums, out = (None, logits) if root is None else (MemoryRows.of(logits), y)
        return kernel, Matmul(len(x), MemoryRows.of(x), weights, MemoryRows.of(out), sums)

    def backward(
        self, tape: LayerTape, d_output: Array, *, d_logits: bool = False
    ) -> LayerGradients[Array, Array]:
        """Derivatives for input, weight and bias; `d_output` is 0 past a sequence's end."""
        recorded = own_tape(tape, DenseTape)
        with np.errstate(all="ignore"):
            d = d_output if d_logits else through_activation(self.spec, recorded, d_output)
            return self._backward(recorded, d)

    def _backward(self, tape: DenseTape, d: Array) -> LayerGradients[Array, Array]:
        """Derivatives from those for the values before the activation."""
        spec = self.spec
        flat = np.ascontiguousarray(d, tape.x.dtype).reshape(-1, spec.units)
        x = np.ascontiguousarray(tape.x).reshape(-1, spec.input_size)
        dx = self.array_pool.shaped(x.shape, x.dtype)
        packed = self._pack("backward", self.weight.T, None)
        kernel = matmul_kernel(packed.columns.split, machine=self.machine)
        product = Matmul(len(x), MemoryRows.of(flat), packed, MemoryRows.of(dx))
        run_matmul(kernel, product, self.threads)
        gradient = WeightGradient(
            steps=len(x),
            dz=MemoryRows.of(flat),
            gates=np.zeros(1, np.int64),
            units=spec.units,
            a=MemoryRows.of(x),
            out=self.array_pool.like(self.weight),
            bias=self.array_pool.like(self.bias),
        )
        element = "float" if x.itemsize == 4 else "double"
        gradient_kernel = weight_gradient_kernel(spec.input_size, element, self.machine)
        workspace = self.workspaces.acquire("dense")
        run_weight_gradient(gradient_kernel, gradient, workspace, self.threads)
        self.workspaces.release("dense", workspace)
        weight, bias = self._names
        tensors = {weight: gradient.out, bias: np.asarray(gradient.bias)}
        return LayerGradients(dx.reshape(tape.x.shape), tensors)

    def _pack(self, name: str, matrix: Array, init: Array | None) -> PackedMatrix:
        if name not in self._packed:
            self._packed[name] = pack_matrix(
                matrix, init, self.machine, self.threads, self.array_pool
            )
        return self._packed[name]


def make_layer(
    spec: LayerSpec, tensors: Mapping[str, Array], resources: Resources
) -> Layer[Array, Array]:
    """The layer of a specification, with its tensors by stored name."""
    match spec:
        case RecurrentSpec():
            return Recurrent(spec, tensors, resources)
        case DenseSpec():
            return Dense(spec, tensors, resources)
        case DropoutSpec():
            return Dropout(spec)
        case FlattenSpec():
            return Flatten(spec)
        case _:
            assert_never(spec)
