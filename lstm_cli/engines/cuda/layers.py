"""Whole recurrent layers on the device: both directions forwards and backwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lstm_cli.engines import schedule as schedules
from lstm_cli.engines.cuda.backward import shares_derivatives
from lstm_cli.engines.cuda.batch import Batch, Sequences
from lstm_cli.engines.cuda.clocks import Spans
from lstm_cli.engines.cuda.device import Device, DeviceArray
from lstm_cli.engines.cuda.gradients import input_gradient, tensor_gradients
from lstm_cli.engines.cuda.masks import input_mask, state_mask
from lstm_cli.engines.cuda.passing import DeviceState, Passing, Returning, Tape, buffers
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.recurrence import BackwardRun, DirectionTensors, ForwardRun, Way
from lstm_cli.engines.cuda.rounding import multiplied, rounded
from lstm_cli.engines.cuda.rows import dense_rows, seen_rows
from lstm_cli.engines.cuda.weights import direction_tensors
from lstm_cli.engines.cuda.windows import Window, multiply_rows
from lstm_cli.engines.schedule import CellSchedule
from lstm_cli.engines.types import (
    DIRECTIONS,
    LayerGradients,
    LayerResult,
    RecurrentSpec,
    TrainingPass,
)


class RecurrentLayer:
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
        way: Way,
    ) -> None:
        self.spec, self.device, self.precision, self.way = spec, device, precision, way
        self.tensors: list[DirectionTensors] = []
        for d, cell in enumerate(spec.cells):
            own = {name: weights[spec.prefix(d) + name] for name in cell.tensor_names}
            made = direction_tensors(device, cell, spec.input_size, precision, own)
            self.tensors.append(made)

    def forward(
        self,
        x: Sequences,
        state: DeviceState | None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult:
        """Every direction over the batch; see `lstm_cli.engines.types.Engine`.

        The output and what is kept are `Sequences`, states arrays on the device, seconds read when
        they are asked for. A pass for training keeps its tape instead of gates.
        """
        spans = Spans(self.device)
        spans.begin("input projection")
        made = self.begun(x, state, return_gates=return_gates, training=training)
        self.project(made)
        spans.begin("recurrence")
        self.way.forward(made.runs)
        spans.end()
        return self.ended(made, spans)

    def begun(
        self,
        x: Sequences,
        state: DeviceState | None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> Passing:
        """All arrays of a pass, of which nothing is computed yet but what its input is rounded to.

        `x` may be the output of a pass that has only begun, unless the layer has dropout.
        """
        dropped = None
        if training is not None and self.spec.dropout:
            dropped = input_mask(self.device, self.precision, self.spec, x.batch, training)
            x = Sequences(x.batch, multiplied(self.device, self.precision, x.real, dropped))
        self._operand(x)
        first = self._first(x.batch.N, state)
        final = self._copied(first)
        y, y_element = self._outputs(x.batch, return_gates=return_gates or training is not None)
        runs = []
        for d, tensors in enumerate(self.tensors):
            purpose = self._purpose(d, return_gates=return_gates, training=training)
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
                    **buffers(self.device, tensors, purpose, x.batch),
                )
            )  # fmt: skip
        return Passing(x, tuple(runs), first, final, y, y_element, dropped, return_gates, training)

    def project(self, made: Passing) -> None:
        """W_ih x of all steps."""
        for run in made.runs:
            if made.x.batch.Q:
                weight, how = run.tensors.element["weight_ih"], self.precision.name
                self.device.multiply(self._operand(made.x), weight, run.z, how, transpose_b=True)

    def project_window(self, made: Passing, window: Window) -> None:
        """The same of a window of steps."""
        x = self._operand(made.x)
        for run in made.runs:
            weight = run.tensors.element["weight_ih"]
            given = (x, weight, run.z, self.precision)
            multiply_rows(self.device, window, *given, transpose_b=True)

    def output(self, made: Passing) -> Sequences:
        """What a pass over sequences gives, once it is computed."""
        return Sequences(made.x.batch, made.y, element=made.y_element)

    def ended(self, made: Passing, seconds: Mapping[str, float]) -> LayerResult:
        """What a pass gave whose runs were started."""
        batch, y, final = made.x.batch, made.y, made.final
        result = LayerResult(self._output(made), final, seconds=seconds)
        if made.training is not None:
            result.tape = Tape(made.x, made.runs, made.first, y, made.dropped)
        elif made.return_gates:
            result.gates = {
                DIRECTIONS[d]: self._kept(d, batch, y, run.record)
                for d, run in enumerate(made.runs)
            }
        return result

    def backward(self, tape: Tape, d_output: Sequences) -> LayerGradients:
        """Derivatives for the input (`Sequences`), every tensor by stored name, and the states."""
        made = self.returning(tape, d_output)
        self.way.backward(made.runs)
        for d, run in enumerate(made.runs):
            input_gradient(self.device, self.precision, run, made.dx, add=d > 0)
        return self.returned(made)

    def returning(self, tape: Tape, d_output: Sequences) -> Returning:
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
        return Returning(tape, tuple(runs), (dh, dc), dx)

    def returned(self, made: Returning) -> LayerGradients:
        """What a way back gave whose runs and input derivatives were started."""
        found, dx = dict[str, Any](), made.dx
        for d, run in enumerate(made.runs):
            gradients = tensor_gradients(self.device, self.precision, run, made.tape.x)
            found |= {self.spec.prefix(d) + name: value for name, value in gradients.items()}
        if made.tape.dropped is not None:
            dx = multiplied(self.device, self.precision, dx, made.tape.dropped)
        return LayerGradients(Sequences(made.tape.x.batch, dx), found, made.carried)

    def _backward_run(
        self, d: int, tape: Tape, d_y: DeviceArray | None, carried: DeviceState
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

    def _operand(self, x: Sequences) -> DeviceArray:
        """The values as products take them; they stay with their sequences."""
        if not self.precision.narrow:
            return x.real
        if x.element is None:
            x.element = rounded(self.device, self.precision, x.real)
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
        self, batch: Batch, *, return_gates: bool
    ) -> tuple[DeviceArray | None, DeviceArray | None]:
        """Where h of every step goes, as it is and as the next layer's products take it."""
        sequences = self.spec.return_sequences
        shape = (batch.Q, self.spec.output_size)
        y = self.device.empty(shape, self.precision.real) if sequences or return_gates else None
        narrow = sequences and self.precision.narrow
        return y, self.device.empty(shape, self.precision.element) if narrow else None

    def _output(self, made: Passing) -> Sequences:
        """What the layer gives: every step, or each sequence's last one."""
        if self.spec.return_sequences:
            return self.output(made)
        batch = made.x.batch
        last = made.final[0].reshape(batch.N, self.spec.output_size)
        return Sequences(batch, seen_rows(self.device, self.precision, last, batch), per_step=False)

    def _purpose(
        self, d: int, *, return_gates: bool, training: TrainingPass | None
    ) -> CellSchedule:
        cell = self.spec.cells[d]
        if training is not None:
            return schedules.training(cell, self.spec.recurrent_dropout > 0)
        return schedules.inspection(cell) if return_gates else schedules.inference(cell)

    def _kept(
        self, d: int, batch: Batch, y: DeviceArray, record: DeviceArray
    ) -> dict[str, Sequences]:
        """Gates and states of every step, by name."""
        cell = self.spec.cells[d]
        P = cell.output_size
        parts = {"h": y[:, d * P : (d + 1) * P]}
        parts |= {name: record[:, k] for k, name in enumerate(schedules.inspection_names(cell))}
        return {
            name: Sequences(batch, dense_rows(self.device, self.precision, part))
            for name, part in parts.items()
        }
