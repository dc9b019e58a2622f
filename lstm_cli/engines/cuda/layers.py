"""Whole recurrent layers on the device: both directions forwards and backwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.cells.expression import Expression, symbol
from lstm_cli.cells.gradient import gradient
from lstm_cli.engines import schedule as schedules
from lstm_cli.engines.cuda.batch import DeviceBatch, PackedSequences
from lstm_cli.engines.cuda.codegen.cell import emit
from lstm_cli.engines.cuda.codegen.elementwise import evaluate
from lstm_cli.engines.cuda.codegen.general_backward import shares_derivatives
from lstm_cli.engines.cuda.codegen.layout import (
    C_TYPES,
    dense_rows,
    multiply_by_mask,
    operand_of,
    pad_steps,
    round_operands,
    seen_rows,
    unpad_steps,
)
from lstm_cli.engines.cuda.codegen.primitives import GRID_STRIDE_LOOP, PRELUDE
from lstm_cli.engines.cuda.codegen.rows import column_sums, softmax, softmax_backward
from lstm_cli.engines.cuda.gradients import input_gradient, tensor_gradients
from lstm_cli.engines.cuda.kernels import RecurrenceKernels
from lstm_cli.engines.cuda.passes import (
    BackwardPass,
    BackwardRun,
    DeviceState,
    DirectionWeights,
    ForwardPass,
    ForwardRun,
    RecurrentTape,
    training_buffers,
)
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import (
    LOOP_THREADS,
    Device,
    DeviceArray,
    EventTimer,
    cached_kernels,
    dtype_name,
    grid_stride_launch,
)
from lstm_cli.engines.cuda.time_chunks import TimeChunk, multiply_chunk_rows
from lstm_cli.engines.cuda.weights import direction_weights
from lstm_cli.engines.schedule import Schedule
from lstm_cli.engines.types import (
    DIRECTIONS,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    LayerGradients,
    LayerResult,
    RecurrentSpec,
    TrainingPass,
)


class PreparedRecurrent:
    """A recurrent layer.

    Parameters
    ----------
    weights
        Stored tensors by name, of `precision.real`, on the device.
    way
        What runs the recurrence; it is asked in every pass.
    """

    def __init__(
        self,
        spec: RecurrentSpec,
        weights: Mapping[str, DeviceArray],
        device: Device,
        precision: Precision,
        way: RecurrenceKernels,
    ) -> None:
        self.spec, self.device, self.precision, self.way = spec, device, precision, way
        self.tensors: list[DirectionWeights] = []
        for d, cell in enumerate(spec.cells):
            own = {name: weights[spec.prefix(d) + name] for name in cell.tensor_names}
            made = direction_weights(device, cell, spec.input_size, precision, own)
            self.tensors.append(made)

    def forward(
        self,
        x: PackedSequences,
        state: DeviceState | None,
        *,
        keep: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult:
        """Every direction over the batch; see `lstm_cli.engines.types.Engine`.

        The output and what is kept are `PackedSequences`, states arrays on the device, seconds read when
        they are asked for. A pass for training keeps its tape instead of gates.
        """
        spans = EventTimer(self.device)
        spans.begin("input projection")
        made = self.begun(x, state, keep=keep, training=training)
        self.project(made)
        spans.begin("recurrence")
        self.way.forward(made.runs)
        spans.end()
        return self.ended(made, spans)

    def begun(
        self,
        x: PackedSequences,
        state: DeviceState | None,
        *,
        keep: bool = False,
        training: TrainingPass | None = None,
    ) -> ForwardPass:
        """All arrays of a pass, of which nothing is computed yet but what its input is rounded to.

        `x` may be the output of a pass that has only begun, unless the layer has dropout.
        """
        dropped = None
        if training is not None and self.spec.dropout:
            dropped = input_mask(self.device, self.precision, self.spec, x.batch, training)
            x = PackedSequences(
                x.batch, multiply_by_mask(self.device, self.precision, x.real, dropped)
            )
        self._operand(x)
        first = self._first(x.batch.N, state)
        final = self._copied(first)
        y, y_element = self._outputs(x.batch, keep=keep or training is not None)
        runs = []
        for d, tensors in enumerate(self.tensors):
            purpose = self._purpose(d, keep=keep, training=training)
            mask = state_mask(self.device, self.precision, self.spec, d, x.batch.N, training)
            h, c = (None if part is None else part[:, d] for part in final)
            z = self.device.empty(
                (x.batch.Q, tensors.element["weight_ih"].shape[0]), self.precision.real
            )
            column = d * self.spec.cells[0].output_size
            runs.append(
                ForwardRun(
                    tensors, purpose, x.batch, d == 1, z, h, c,
                    y=y, column=column, y_element=y_element, mask=mask,
                    **training_buffers(self.device, tensors, purpose, x.batch),
                )
            )  # fmt: skip
        return ForwardPass(x, tuple(runs), first, final, y, y_element, dropped, keep, training)

    def project(self, made: ForwardPass) -> None:
        """W_ih x of all steps."""
        for run in made.runs:
            if made.x.batch.Q:
                weight, how = run.tensors.element["weight_ih"], self.precision.name
                self.device.multiply(self._operand(made.x), weight, run.z, how, transpose_b=True)

    def project_window(self, made: ForwardPass, window: TimeChunk) -> None:
        """The same of a window of steps."""
        x = self._operand(made.x)
        for run in made.runs:
            weight = run.tensors.element["weight_ih"]
            given = (x, weight, run.z, self.precision)
            multiply_chunk_rows(self.device, window, *given, transpose_b=True)

    def output(self, made: ForwardPass) -> PackedSequences:
        """What a pass over sequences gives, once it is computed."""
        return PackedSequences(made.x.batch, made.y, element=made.y_element)

    def ended(self, made: ForwardPass, seconds: Mapping[str, float]) -> LayerResult:
        """What a pass gave whose runs were started."""
        batch, y, final = made.x.batch, made.y, made.final
        result = LayerResult(self._output(made), final, seconds=seconds)
        if made.training is not None:
            result.tape = RecurrentTape(made.x, made.runs, made.first, y, made.dropped)
        elif made.keep:
            result.kept = {
                DIRECTIONS[d]: self._kept(d, batch, y, run.record)
                for d, run in enumerate(made.runs)
            }
        return result

    def backward(self, tape: RecurrentTape, d_output: PackedSequences) -> LayerGradients:
        """Derivatives for the input (`PackedSequences`), every tensor by stored name, and the states."""
        made = self.returning(tape, d_output)
        self.way.backward(made.runs)
        for d, run in enumerate(made.runs):
            input_gradient(self.device, self.precision, run, made.dx, add=d > 0)
        return self.returned(made)

    def returning(self, tape: RecurrentTape, d_output: PackedSequences) -> BackwardPass:
        """All arrays of a way back, of which nothing is computed yet.

        `d_output` may be what another way back gives that has only begun, if it has every step.
        """
        batch, P = tape.x.batch, self.spec.cells[0].output_size
        dh, dc = self._first(batch.N, None)
        d_y = d_output.real
        if not self.spec.return_sequences:
            dh = seen_rows(self.device, self.precision, d_y, batch)
            dh, d_y = dh.reshape(batch.N, self.spec.directions, P), None
        runs = [self._backward_run(d, tape, d_y, (dh, dc)) for d in range(len(tape.runs))]
        dx = self.device.empty((batch.Q, self.spec.input_size), self.precision.real)
        return BackwardPass(tape, tuple(runs), (dh, dc), dx)

    def returned(self, made: BackwardPass) -> LayerGradients:
        """What a way back gave whose runs and input derivatives were started."""
        found, dx = dict[str, Any](), made.dx
        for d, run in enumerate(made.runs):
            gradients = tensor_gradients(self.device, self.precision, run, made.tape.x)
            found |= {self.spec.prefix(d) + name: value for name, value in gradients.items()}
        if made.tape.dropped is not None:
            dx = multiply_by_mask(self.device, self.precision, dx, made.tape.dropped)
        return LayerGradients(PackedSequences(made.tape.x.batch, dx), found, made.carried)

    def _backward_run(
        self, d: int, tape: RecurrentTape, d_y: DeviceArray | None, carried: DeviceState
    ) -> BackwardRun:
        """One direction's derivatives, and where they go."""
        device, run, real = self.device, tape.runs[d], self.precision.real
        cell, Q, N = run.tensors.cell, tape.x.batch.Q, tape.x.batch.N
        H, P, peepholes = cell.hidden_size, cell.output_size, len(cell.peephole_gates)
        dz = device.empty((Q, len(cell.letters) * H), real)
        shared = shares_derivatives(run.schedule)
        states = [None if s is None else s[:, d] for s in (*tape.first, *carried)]
        h_first, c_first, dh, dc = states
        return BackwardRun(
            run,
            h_first,
            c_first,
            tape.y,
            d_y,
            dh,
            dc,
            dz,
            dz if shared else device.empty(dz.shape, real),
            device.empty((Q, P), real) if cell.projects else None,
            device.zeros((N, peepholes, H), real) if peepholes else None,
        )

    def _operand(self, x: PackedSequences) -> DeviceArray:
        """The values as products take them; they stay with their sequences."""
        if not self.precision.narrow:
            return x.real
        if x.element is None:
            x.element = round_operands(self.device, self.precision, x.real)
        return x.element

    def _first(self, N: int, state: DeviceState | None) -> DeviceState:
        """The initial states, zeros where none are given."""
        if state is not None:
            return state
        directions, cell = self.spec.directions, self.spec.cells[0]
        parts = [
            self.device.zeros((N, directions, size), self.precision.real)
            for size in cell.state_sizes
        ]
        return parts[0], parts[1] if len(parts) > 1 else None

    def _copied(self, state: DeviceState) -> DeviceState:
        made = []
        for part in state:
            copied = None
            if part is not None:
                copied = self.device.empty(part.shape, self.precision.real)
                if part.size:
                    self.device.copy(part, copied)
            made.append(copied)
        return made[0], made[1]

    def _outputs(
        self, batch: DeviceBatch, *, keep: bool
    ) -> tuple[DeviceArray | None, DeviceArray | None]:
        """Where h of every step goes, as it is and as the next layer's products take it."""
        sequences = self.spec.return_sequences
        shape = (batch.Q, self.spec.output_size)
        y = self.device.empty(shape, self.precision.real) if sequences or keep else None
        narrow = sequences and self.precision.narrow
        return y, self.device.empty(shape, self.precision.element) if narrow else None

    def _output(self, made: ForwardPass) -> PackedSequences:
        """What the layer gives: every step, or each sequence's last one."""
        if self.spec.return_sequences:
            return self.output(made)
        batch = made.x.batch
        last = made.final[0].reshape(batch.N, self.spec.output_size)
        return PackedSequences(
            batch, seen_rows(self.device, self.precision, last, batch), per_step=False
        )

    def _purpose(self, d: int, *, keep: bool, training: TrainingPass | None) -> Schedule:
        cell = self.spec.cells[d]
        if training is not None:
            return schedules.training(cell, self.spec.recurrent_dropout > 0)
        return schedules.inspection(cell) if keep else schedules.inference(cell)

    def _kept(
        self, d: int, batch: DeviceBatch, y: DeviceArray, record: DeviceArray
    ) -> dict[str, PackedSequences]:
        """Gates and states of every step, by name."""
        cell = self.spec.cells[d]
        P = cell.output_size
        parts = {"h": y[:, d * P : (d + 1) * P]}
        parts |= {name: record[:, k] for k, name in enumerate(schedules.inspected(cell))}
        return {
            name: PackedSequences(batch, dense_rows(self.device, self.precision, part))
            for name, part in parts.items()
        }


# MERGED masks: """A recurrent layer's masks of dropout, drawn on the host and sent to the device."""
def state_mask(
    device: Device,
    precision: Precision,
    spec: RecurrentSpec,
    d: int,
    N: int,
    training: TrainingPass | None,
) -> DeviceArray | None:
    """Of recurrent dropout in direction d: (N, P); None: there is none."""
    rate = spec.recurrent_dropout
    if training is None or not rate:
        return None
    shape = (N, spec.cells[d].output_size)
    mask = training.mask(spec, 1 + d, shape, rate)
    return device.upload(mask.astype(precision.real))


def input_mask(
    device: Device,
    precision: Precision,
    spec: RecurrentSpec,
    batch: DeviceBatch,
    training: TrainingPass,
) -> DeviceArray:
    """Of dropout, for the steps that there are: (Q, D)."""
    shape = (batch.N, batch.T, spec.input_size)
    mask = training.mask(spec, 0, shape, spec.dropout)
    if batch.lengths is None:
        mask = mask.reshape(batch.Q, shape[2])
    else:
        mask = mask[np.arange(batch.T) < batch.lengths[:, None]]
    return device.upload(mask.astype(precision.real))


# MERGED dense: """A dense layer on the device: a product, then bias and activation in one kernel."""
@dataclass(frozen=True)
class DenseTape:
    """What the backward pass needs."""

    x: PackedSequences
    logits: DeviceArray
    output: DeviceArray


class PreparedDense:
    """A dense layer with its weights on the device.

    Parameters
    ----------
    weight, bias
        (units, D) and (units,), of the precision's `real`.
    """

    def __init__(
        self,
        spec: DenseSpec,
        weight: DeviceArray,
        bias: DeviceArray,
        device: Device,
        precision: Precision,
    ) -> None:
        self.spec, self.weight, self.bias = spec, weight, bias
        self.device, self.precision = device, precision

    def forward(self, x: PackedSequences, *, training: bool) -> LayerResult:
        """act(W x + b) for every row that there is."""
        device, precision = self.device, self.precision
        spans = EventTimer(device)
        spans.begin("product")
        a = device.empty((x.real.shape[0], self.spec.units), precision.real)
        if a.size:
            weight = self._operand(self.weight, precision)
            x_element = operand_of(device, precision, x)
            device.multiply(x_element, weight, a, precision.name, transpose_b=True)
        y = self._activated(a)
        spans.end()
        tape = DenseTape(x, a, y) if training else None
        logits = PackedSequences(x.batch, a, x.per_step)
        return LayerResult(
            PackedSequences(x.batch, y, x.per_step), logits=logits, seconds=spans, tape=tape
        )

    def backward(self, tape: DenseTape, d_output: DeviceArray, *, d_logits: bool) -> LayerGradients:
        """Derivatives for input, weight and bias from those of the rows that there are."""
        device, spec, precision = self.device, self.spec, self.precision.backward
        d = d_output if d_logits else self._through(tape, d_output)
        dx = device.empty(tape.x.real.shape, precision.real)
        dw = device.zeros(self.weight.shape, precision.real)
        db = column_sums(device, precision, d)
        if dx.size:
            narrow = self._operand(d, precision)
            device.multiply(narrow, self._operand(self.weight, precision), dx, precision.name)
            x = operand_of(device, precision, tape.x)
            device.multiply(narrow, x, dw, precision.name, transpose_a=True)
        prefix = f"layers.{spec.index}."
        found = {prefix + "weight": dw, prefix + "bias": db}
        return LayerGradients(PackedSequences(tape.x.batch, dx, tape.x.per_step), found)

    def _operand(self, values: DeviceArray, precision: Precision) -> DeviceArray:
        return round_operands(self.device, precision, values) if precision.narrow else values

    def _activated(self, a: DeviceArray) -> DeviceArray:
        """The activation of logits, to which the bias is added in place."""
        activation = self.spec.activation
        if activation is None:
            return softmax(self.device, a, self.bias)
        plain = str(activation) == "identity"
        y = a if plain else self.device.empty(a.shape, self.precision.real)
        if a.size:
            key = ("dense", activation, self.precision.real)
            kernel = cached_kernels(self.device, key, ["finish"], lambda: self._source(activation))
            kernel["finish"](
                grid_stride_launch(self.device, a.size), a, self.bias, y, self.spec.units, a.size
            )
        return y

    def _source(self, activation: Activation) -> str:
        """CUDA C++ of the kernel ``finish``."""
        lines, names = emit({"y": activation(symbol("a"))}, {"a": "a"})
        body = "\n    ".join(lines)
        return f"""{PRELUDE}
typedef {C_TYPES[self.precision.real]} real;
extern "C" __global__ void __launch_bounds__({LOOP_THREADS}) finish(
    real* logits, const real* bias, real* y, long long F, long long size) {{
  {GRID_STRIDE_LOOP} {{
    const real a = logits[k] + bias[k % F];
    {body}
    logits[k] = a;
    y[k] = {names["y"]};
  }}
}}
"""

    def _through(self, tape: DenseTape, d: DeviceArray) -> DeviceArray:
        """The derivative for the logits from the one for the activations."""
        activation = self.spec.activation
        if activation is None:
            return softmax_backward(self.device, tape.output, d)
        if str(activation) == "identity":
            return d
        out = self.device.empty(d.shape, self.precision.real)
        root = _derivative(activation)
        evaluate(self.device, {"a": root}, {"a": tape.logits, "d": d}, {"a": out})
        return out


@lru_cache(maxsize=64)
def _derivative(activation: Activation) -> Expression:
    return gradient({activation(symbol("a")): symbol("d")})["a"]


# MERGED reshaping: """Dropout and flatten on the device: forward beside backward."""
_MASK_PRODUCT = {"y": symbol("x") * symbol("m")}


@dataclass(frozen=True)
class MaskTape:
    """What a backward pass needs: the values that came in, and of dropout its mask, if any."""

    x: PackedSequences
    mask: DeviceArray | None = None


def dropout(
    device: Device, spec: DropoutSpec, x: PackedSequences, training: TrainingPass | None
) -> LayerResult:
    """Some values 0 and the rest larger, in training; else the identity."""
    if training is None:
        return LayerResult(x)
    if spec.rate == 0:
        return LayerResult(x, tape=MaskTape(x))
    batch = x.batch
    mask = training.mask(spec, 0, x.shape, spec.rate)
    if x.per_step:
        n = np.full(batch.N, batch.T) if batch.lengths is None else batch.lengths
        mask = mask[np.arange(batch.T) < n[:, None]]
    own = device.upload(np.ascontiguousarray(mask, dtype_name(x.real.dtype)))
    tape = MaskTape(x, own)
    return LayerResult(_apply_mask(device, x, own), tape=tape)


def dropout_backward(device: Device, tape: MaskTape, d: PackedSequences) -> LayerGradients:
    """The derivative for the values before dropout."""
    return LayerGradients(d if tape.mask is None else _apply_mask(device, d, tape.mask))


def _apply_mask(device: Device, x: PackedSequences, mask: DeviceArray) -> PackedSequences:
    out = device.empty(x.real.shape, dtype_name(x.real.dtype))
    evaluate(device, _MASK_PRODUCT, {"x": x.real, "m": mask}, {"y": out})
    return PackedSequences(x.batch, out, x.per_step)


def flatten(device: Device, spec: FlattenSpec, x: PackedSequences) -> LayerResult:
    """(N, T, F) to (N, steps * F), padded with zeros."""
    y = PackedSequences(x.batch, pad_steps(device, x, spec.steps), per_step=False)
    return LayerResult(y, tape=MaskTape(x))


def flatten_backward(
    device: Device, spec: FlattenSpec, tape: MaskTape, d: PackedSequences
) -> LayerGradients:
    """(N, steps * F) back to the steps that there are."""
    return LayerGradients(
        PackedSequences(tape.x.batch, unpad_steps(device, tape.x.batch, d.real, spec.steps))
    )
