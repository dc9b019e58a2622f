"""Recurrent layers with their weights on the device, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstm_cli.engines import schedule as schedules
from lstm_cli.engines.cuda.arrays import DeviceArrays
from lstm_cli.engines.cuda.batch import DeviceBatch, PackedSequences
from lstm_cli.engines.cuda.codegen.data_movement import (
    contiguous_rows,
    multiply_by_mask,
    operand_of,
    zero_empty_rows,
)
from lstm_cli.engines.cuda.codegen.general_backward import shares_derivatives
from lstm_cli.engines.cuda.gradients import input_gradient, tensor_gradients
from lstm_cli.engines.cuda.kernels import RecurrenceKernels
from lstm_cli.engines.cuda.passes import (
    BackwardPass,
    BackwardRun,
    DeviceState,
    ForwardPass,
    ForwardRun,
    RecurrentTape,
    step_buffers,
)
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import (
    Device,
    DeviceArray,
    EventTimer,
)
from lstm_cli.engines.cuda.time_chunks import TimeChunk, multiply_chunk_rows
from lstm_cli.engines.cuda.weights import DirectionWeights, direction_weights
from lstm_cli.engines.schedule import CellSchedule
from lstm_cli.engines.types import (
    DIRECTIONS,
    Array,
    LayerGradients,
    LayerResult,
    LayerTape,
    RecurrentSpec,
    State,
    TrainingPass,
    own_tape,
)


class Recurrent:
    """A recurrent layer, one direction or both, with its weights on the device.

    Parameters
    ----------
    weights
        Stored tensors by name, in the accumulator type, on the device.
    arrays
        Operations on the device's arrays.
    kernels
        Kernels that run the recurrence.
    """

    def __init__(
        self,
        spec: RecurrentSpec,
        weights: Mapping[str, DeviceArray],
        arrays: DeviceArrays,
        kernels: RecurrenceKernels,
    ) -> None:
        self.spec, self.arrays, self.kernels = spec, arrays, kernels
        self.device, self.precision = device, precision = arrays.hardware, arrays.precision
        self.weights: list[DirectionWeights] = []
        for d, cell in enumerate(spec.cells):
            stored = {name: weights[spec.prefix(d) + name] for name in cell.tensor_names}
            self.weights.append(direction_weights(device, cell, spec.input_size, precision, stored))

    def forward(
        self,
        x: PackedSequences,
        lengths: Array | None = None,
        state: State[DeviceArray | Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[DeviceArray, PackedSequences]:
        """Run every direction over the batch; see `lstm_cli.engines.protocols.Layer`.

        The output and the gates are `PackedSequences`; states are arrays on the device. Reading
        the seconds waits for the device. A pass for training returns a tape, and no gates.
        """
        timer = EventTimer(self.device)
        timer.start("input projection")
        initial = self.arrays.state_to_device(state)
        layer_pass = self.allocate_forward(x, initial, return_gates=return_gates, training=training)
        self.project(layer_pass)
        timer.start("recurrence")
        self.kernels.forward(layer_pass.runs)
        timer.stop()
        return self.finish_forward(layer_pass, timer)

    def allocate_forward(
        self,
        x: PackedSequences,
        state: DeviceState | None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> ForwardPass:
        """Allocate all arrays of a forward pass. Nothing is computed but the rounded input.

        `x` may be the output of a pass that is only allocated, unless the layer has dropout.
        """
        mask = None
        if training is not None and self.spec.dropout:
            mask = _input_mask(self.device, self.precision, self.spec, x.batch, training)
            x = PackedSequences(
                x.batch, multiply_by_mask(self.device, self.precision, x.values, mask)
            )
        operand_of(self.device, self.precision, x)
        initial = self._initial_state(x.batch.N, state)
        final = self._copy_state(initial)
        y, y_operand = self._allocate_outputs(
            x.batch, store_steps=return_gates or training is not None
        )
        runs = [
            self._forward_run(
                d, x.batch, final, (y, y_operand), return_gates=return_gates, training=training
            )
            for d in range(len(self.weights))
        ]
        return ForwardPass(
            x, tuple(runs), initial, final, y, y_operand, mask, return_gates, training
        )

    def _forward_run(
        self,
        d: int,
        batch: DeviceBatch,
        state: DeviceState,
        outputs: tuple[DeviceArray | None, DeviceArray | None],
        *,
        return_gates: bool,
        training: TrainingPass | None,
    ) -> ForwardRun:
        weights, schedule = (
            self.weights[d],
            self._schedule(d, return_gates=return_gates, training=training),
        )
        h, c = (None if part is None else part[:, d] for part in state)
        rows = weights.operands["weight_ih"].shape[0]
        y, y_operand = outputs
        return ForwardRun(
            weights,
            schedule,
            batch,
            d == 1,
            self.device.empty((batch.Q, rows), self.precision.accumulator),
            h,
            c,
            y=y,
            column=d * self.spec.cells[0].output_size,
            y_operand=y_operand,
            mask=_state_mask(self.device, self.precision, self.spec, d, batch.N, training),
            **step_buffers(self.device, weights, schedule, batch),
        )

    def project(self, layer_pass: ForwardPass) -> None:
        """Compute the input projections W_ih x of all steps."""
        x = layer_pass.x
        for run in layer_pass.runs:
            if x.batch.Q:
                operand = operand_of(self.device, self.precision, x)
                weight = run.weights.operands["weight_ih"]
                self.device.multiply(operand, weight, run.z, self.precision.name, transpose_b=True)

    def project_chunk(self, layer_pass: ForwardPass, chunk: TimeChunk) -> None:
        """Compute the input projections of a chunk of steps."""
        x = operand_of(self.device, self.precision, layer_pass.x)
        for run in layer_pass.runs:
            weight = run.weights.operands["weight_ih"]
            multiply_chunk_rows(
                self.device, chunk, x, weight, run.z, self.precision, transpose_b=True
            )

    def step_output(self, layer_pass: ForwardPass) -> PackedSequences:
        """Output of every step. The pass may not have computed its arrays yet."""
        return PackedSequences(layer_pass.x.batch, layer_pass.y, operand=layer_pass.y_operand)

    def finish_forward(
        self, layer_pass: ForwardPass, seconds: Mapping[str, float]
    ) -> LayerResult[DeviceArray, PackedSequences]:
        """Result of a launched forward pass."""
        batch, y = layer_pass.x.batch, layer_pass.y
        result: LayerResult[DeviceArray, PackedSequences] = LayerResult(
            self._layer_output(layer_pass), layer_pass.final_state, seconds=seconds
        )
        if layer_pass.training is not None:
            result.tape = RecurrentTape(
                layer_pass.x, layer_pass.runs, layer_pass.initial_state, y, layer_pass.input_mask
            )
        elif layer_pass.return_gates:
            result.gates = {
                DIRECTIONS[d]: self._step_values(d, batch, y, run.record)
                for d, run in enumerate(layer_pass.runs)
            }
        return result

    def backward(
        self, tape: LayerTape, d_output: PackedSequences | Array, *, d_logits: bool = False
    ) -> LayerGradients[DeviceArray, PackedSequences]:
        """Derivatives for the input (`PackedSequences`), every stored tensor, and the states."""
        recorded = own_tape(tape, RecurrentTape)
        packed = self.arrays.pack_like(recorded.x, d_output, per_step=self.spec.return_sequences)
        layer_pass = self.allocate_backward(recorded, packed)
        self.kernels.backward(layer_pass.runs)
        for d, run in enumerate(layer_pass.runs):
            input_gradient(self.device, self.precision, run, layer_pass.dx, add=d > 0)
        return self.finish_backward(layer_pass)

    def allocate_backward(self, tape: RecurrentTape, d_output: PackedSequences) -> BackwardPass:
        """Allocate all arrays of a backward pass.

        `d_output` may be the result of a backward pass that is only allocated, if it has every
        step.
        """
        batch, P = tape.x.batch, self.spec.cells[0].output_size
        dh, dc = self._initial_state(batch.N, None)
        d_y = d_output.values
        if not self.spec.return_sequences:
            dh = zero_empty_rows(self.device, self.precision, d_y, batch)
            dh, d_y = dh.reshape(batch.N, self.spec.directions, P), None
        runs = [self._backward_run(d, tape, d_y, (dh, dc)) for d in range(len(tape.runs))]
        dx = self.device.empty((batch.Q, self.spec.input_size), self.precision.accumulator)
        return BackwardPass(tape, tuple(runs), (dh, dc), dx)

    def finish_backward(
        self, layer_pass: BackwardPass
    ) -> LayerGradients[DeviceArray, PackedSequences]:
        """Gradients of a backward pass, after its kernels and its input derivatives are started."""
        gradients, dx, tape = dict[str, Any](), layer_pass.dx, layer_pass.tape
        for d, run in enumerate(layer_pass.runs):
            tensors = tensor_gradients(self.device, self.precision, run, tape.x)
            gradients |= {self.spec.prefix(d) + name: value for name, value in tensors.items()}
        if tape.input_mask is not None:
            dx = multiply_by_mask(self.device, self.precision, dx, tape.input_mask)
        d_input = PackedSequences(tape.x.batch, dx)
        return LayerGradients(d_input, gradients, layer_pass.d_state)

    def _backward_run(
        self, d: int, tape: RecurrentTape, d_y: DeviceArray | None, d_state: DeviceState
    ) -> BackwardRun:
        device, run, real = self.device, tape.runs[d], self.precision.accumulator
        cell, Q, N = run.weights.cell, tape.x.batch.Q, tape.x.batch.N
        H, P, peepholes = cell.hidden_size, cell.output_size, len(cell.peephole_gates)
        dz = device.empty((Q, len(cell.letters) * H), real)
        h_initial, c_initial, dh, dc = (
            None if part is None else part[:, d] for part in (*tape.initial_state, *d_state)
        )
        return BackwardRun(
            run,
            h_initial,
            c_initial,
            tape.y,
            d_y,
            dh,
            dc,
            dz,
            dz if shares_derivatives(run.schedule) else device.empty(dz.shape, real),
            device.empty((Q, P), real) if cell.projects else None,
            device.zeros((N, peepholes, H), real) if peepholes else None,
        )

    def _initial_state(self, N: int, state: DeviceState | None) -> DeviceState:
        """The given initial states, else zeros."""
        if state is not None:
            return state
        directions, cell = self.spec.directions, self.spec.cells[0]
        parts = [
            self.device.zeros((N, directions, size), self.precision.accumulator)
            for size in cell.state_sizes
        ]
        return parts[0], parts[1] if len(parts) > 1 else None

    def _copy_state(self, state: DeviceState) -> DeviceState:
        h, c = state
        return self._copy(h), None if c is None else self._copy(c)

    def _copy(self, array: DeviceArray) -> DeviceArray:
        out = self.device.empty(array.shape, self.precision.accumulator)
        if array.size:
            self.device.copy(array, out)
        return out

    def _allocate_outputs(
        self, batch: DeviceBatch, *, store_steps: bool
    ) -> tuple[DeviceArray | None, DeviceArray | None]:
        """Allocate h of every step in the accumulator type, and in the next layer's operand type.

        None: the pass does not store h of every step in that type.
        """
        sequences = self.spec.return_sequences
        shape = (batch.Q, self.spec.output_size)
        y = (
            self.device.empty(shape, self.precision.accumulator)
            if sequences or store_steps
            else None
        )
        narrow = sequences and self.precision.narrow
        return y, self.device.empty(shape, self.precision.operand) if narrow else None

    def _layer_output(self, layer_pass: ForwardPass) -> PackedSequences:
        """Output of every step, or of each sequence's last step."""
        if self.spec.return_sequences:
            return self.step_output(layer_pass)
        batch = layer_pass.x.batch
        last = layer_pass.final_state[0].reshape(batch.N, self.spec.output_size)
        rows = zero_empty_rows(self.device, self.precision, last, batch)
        return PackedSequences(batch, rows, per_step=False)

    def _schedule(
        self, d: int, *, return_gates: bool, training: TrainingPass | None
    ) -> CellSchedule:
        cell = self.spec.cells[d]
        if training is not None:
            return schedules.training(cell, self.spec.recurrent_dropout > 0)
        return schedules.inspection(cell) if return_gates else schedules.inference(cell)

    def _step_values(
        self, d: int, batch: DeviceBatch, y: DeviceArray, record: DeviceArray
    ) -> dict[str, PackedSequences]:
        """Gates and states of every step of one direction, by name."""
        cell = self.spec.cells[d]
        P = cell.output_size
        parts = {"h": y[:, d * P : (d + 1) * P]}
        parts |= {name: record[:, k] for k, name in enumerate(schedules.inspection_names(cell))}
        return {
            name: PackedSequences(batch, contiguous_rows(self.device, self.precision, part))
            for name, part in parts.items()
        }


def _state_mask(
    device: Device,
    precision: Precision,
    spec: RecurrentSpec,
    d: int,
    N: int,
    training: TrainingPass | None,
) -> DeviceArray | None:
    """Mask (N, P) of recurrent dropout in direction d; None without dropout."""
    rate = spec.recurrent_dropout
    if training is None or not rate:
        return None
    shape = (N, spec.cells[d].output_size)
    mask = training.mask(spec, 1 + d, shape, rate)
    return device.upload(mask.astype(precision.accumulator))


def _input_mask(
    device: Device,
    precision: Precision,
    spec: RecurrentSpec,
    batch: DeviceBatch,
    training: TrainingPass,
) -> DeviceArray:
    """Dropout mask (Q, D) of the input, for the valid steps."""
    shape = (batch.N, batch.T, spec.input_size)
    mask = training.mask(spec, 0, shape, spec.dropout)
    if batch.lengths is None:
        mask = mask.reshape(batch.Q, shape[2])
    else:
        mask = mask[np.arange(batch.T) < batch.lengths[:, None]]
    return device.upload(mask.astype(precision.accumulator))
