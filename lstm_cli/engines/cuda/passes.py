"""Records of a recurrent layer's pass: arrays of each direction, and the kernels' arguments.

`ForwardRun` and `BackwardRun` describe one direction. General and persistent kernels take the same
records, so a layer need not know which of them runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lstm_cli.engines.cuda.batch import DeviceBatch, PackedSequences
from lstm_cli.engines.cuda.runtime.device import Argument, Device, DeviceArray
from lstm_cli.engines.cuda.weights import DirectionWeights
from lstm_cli.engines.schedule import CellSchedule
from lstm_cli.engines.types import LayerTape, TrainingPass


@dataclass(frozen=True, eq=False)
class ForwardRun:
    """Forward pass of one direction over all steps of a batch, or over a chunk of steps.

    There are G gates, and h has P features. Step t of a sequence is row ``starts + t``, or row
    ``starts + steps - 1 - t`` in reverse. "Real" means the accumulator type.

    Attributes
    ----------
    z
        (Q, G*H) real: input projections without bias.
    h, c
        (N, P) and (N, H) real, in the caller's order: initial states, overwritten by the final
        ones. A sequence without further steps keeps its states. `c` is None if the cell has none.
    y, column
        (Q, F) real; columns ``column : column + P`` receive h of every step. None: not stored.
    y_operand
        Copy of `y` in the operand type; None: not stored.
    c_steps
        (Q, H) real: c after every step; None: not stored.
    record
        (Q, slots, H) real: the schedule's slots of every step; None: not stored.
    reads
        Inputs of each product in every step, in the operand type, for training; else empty. The
        first is (Q, P), h before the step times the mask; the others are (Q, H).
    mask
        (N, P) real: mask of recurrent dropout, in the caller's order; None without dropout.
    """

    weights: DirectionWeights
    schedule: CellSchedule
    batch: DeviceBatch
    reverse: bool
    z: DeviceArray
    h: DeviceArray
    c: DeviceArray | None
    y: DeviceArray | None = None
    column: int = 0
    y_operand: DeviceArray | None = None
    c_steps: DeviceArray | None = None
    record: DeviceArray | None = None
    reads: tuple[DeviceArray, ...] = ()
    mask: DeviceArray | None = None


@dataclass(frozen=True, eq=False)
class BackwardRun:
    """Backward pass of one direction over all steps or a chunk, after a forward pass.

    Attributes
    ----------
    forward
        The forward pass with its stored `c_steps`, `record` and `reads`. Its `h` and `c` are now
        the final states.
    h_initial, c_initial
        (N, P) and (N, H) real: initial states of the forward pass.
    y
        (Q, F) real: h of every step in columns ``column : column + P``.
    d_y
        (Q, F) real: derivative for h of every step in those columns; None: zero.
    dh, dc
        (N, P) and (N, H) real, in the caller's order: derivatives for the final states, overwritten
        by those for the initial states.
    dz
        (Q, G*H) real: receives the derivatives for the input parts.
    du
        (Q, G*H) real: receives the derivatives for the recurrent parts. It is `dz` itself if both
        parts have the same derivatives.
    d_projected
        (Q, P) real: receives the derivative for W_hr's product; None if the cell does not project.
    dp
        (N, peepholes, H) real: adds up each sequence's derivatives over steps; None without
        peepholes.
    """

    forward: ForwardRun
    h_initial: DeviceArray
    c_initial: DeviceArray | None
    y: DeviceArray
    d_y: DeviceArray | None
    dh: DeviceArray
    dc: DeviceArray | None
    dz: DeviceArray
    du: DeviceArray
    d_projected: DeviceArray | None = None
    dp: DeviceArray | None = None


DeviceState = tuple[DeviceArray, DeviceArray | None]
"""States h (N, directions, P) and c (N, directions, H) on the device."""


@dataclass(frozen=True, eq=False)
class RecurrentTape(LayerTape):
    """Values of a layer's forward pass that its backward pass needs.

    Attributes
    ----------
    x
        Input of the layer, after dropout.
    runs
        Forward run of each direction.
    initial_state
        States before the first step.
    y
        (Q, F): h of every step.
    input_mask
        (Q, D): dropout mask of the input; None without dropout.
    """

    x: PackedSequences
    runs: tuple[ForwardRun, ...]
    initial_state: DeviceState
    y: DeviceArray
    input_mask: DeviceArray | None


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """All arrays of a layer's forward pass, computed or only allocated.

    Attributes
    ----------
    x
        Input of the layer, after dropout.
    runs
        Forward run of each direction.
    initial_state, final_state
        States before the first step and after the last one.
    y, y_operand
        (Q, F): h of every step, and its copy in the operand type; None: not stored.
    input_mask
        (Q, D): dropout mask of the input; None without dropout.
    return_gates, training
        Purpose of the pass; see `lstm_cli.engines.protocols.Engine`.
    """

    x: PackedSequences
    runs: tuple[ForwardRun, ...]
    initial_state: DeviceState
    final_state: DeviceState
    y: DeviceArray | None
    y_operand: DeviceArray | None
    input_mask: DeviceArray | None
    return_gates: bool
    training: TrainingPass | None


@dataclass(frozen=True, eq=False)
class BackwardPass:
    """All arrays of a layer's backward pass, computed or only allocated.

    Attributes
    ----------
    tape
        Tape of the forward pass.
    runs
        Backward run of each direction.
    d_state
        Derivatives for the final states, overwritten by those for the initial states.
    dx
        (Q, D): receives the derivative for the input after dropout.
    """

    tape: RecurrentTape
    runs: tuple[BackwardRun, ...]
    d_state: DeviceState
    dx: DeviceArray


def step_buffers(
    device: Device, weights: DirectionWeights, schedule: CellSchedule, batch: DeviceBatch
) -> dict[str, Any]:
    """Allocate the `ForwardRun` fields, other than `y`, that store values of every step."""
    if schedule.purpose == "inference":
        return {}
    precision, cell, Q = weights.precision, weights.cell, batch.Q
    real, H = precision.accumulator, cell.hidden_size
    buffers: dict[str, Any] = {"record": device.empty((Q, len(schedule.slots), H), real)}
    if schedule.purpose == "training":
        widths = [H if k else cell.output_size for k in range(len(schedule.phases))]
        buffers["reads"] = tuple(device.empty((Q, width), precision.operand) for width in widths)
        if len(cell.states) > 1:
            buffers["c_steps"] = device.empty((Q, H), real)
    return buffers


Run = TypeVar("Run", ForwardRun, BackwardRun)


def launch_groups(runs: Sequence[Run], forward_of: Callable[[Run], ForwardRun]) -> list[list[Run]]:
    """Group the runs that one launch can compute: runs with the same schedule, so the same cell."""
    first = forward_of(runs[0])
    if all(forward_of(run).schedule is first.schedule for run in runs):
        return [list(runs)]
    return [[run] for run in runs]


def forward_strides(run: ForwardRun) -> dict[str, Argument]:
    """Row strides of a run's arrays, in elements; all directions share them."""
    y = run.y if run.y is not None else run.y_operand
    return {"h_row": _row_stride(run.h), "c_row": _row_stride(run.c), "y_row": _row_stride(y)}


def backward_strides(run: BackwardRun) -> dict[str, Argument]:
    """Row strides of a backward run's arrays, in elements; all directions share them."""
    return {
        "h_row": _row_stride(run.dh),
        "c_row": _row_stride(run.dc),
        "h_first_row": _row_stride(run.h_initial),
        "c_first_row": _row_stride(run.c_initial),
        "y_row": _row_stride(run.y),
        "d_row": _row_stride(run.d_y),
    }


def _row_stride(array: DeviceArray | None) -> int:
    if array is None:
        return 0
    return int(array.strides[0]) // int(array.dtype.itemsize)


def forward_arguments(run: ForwardRun) -> dict[str, Argument]:
    """Arguments of one direction, by the names in the kernels, without weights and `reads`."""
    stored = run.weights.stored
    return {
        "z": run.z,
        "bias": stored["bias_ih" if run.weights.cell.recurrent_bias else "bias"],
        "bias_hh": stored.get("bias_hh"),
        "p": stored.get("peephole"),
        "m": run.mask,
        "h": run.h,
        "c": run.c,
        "y": run.y,
        "y_element": run.y_operand,
        "c_steps": run.c_steps,
        "record": run.record,
        "column": run.column,
        "reverse": int(run.reverse),
    }


def backward_arguments(run: BackwardRun) -> dict[str, Argument]:
    """Arguments of one direction, by the names in the kernels, without weights."""
    forward = run.forward
    return {
        "p": forward.weights.stored.get("peephole"),
        "m": forward.mask,
        "record": forward.record,
        "c_steps": forward.c_steps,
        "h_first": run.h_initial,
        "c_first": run.c_initial,
        "y": run.y,
        "d_y": run.d_y,
        "dh": run.dh,
        "dc": run.dc,
        "dz": run.dz,
        "du": run.du,
        "d_projected": run.d_projected,
        "dp": run.dp,
        "column": forward.column,
        "reverse": int(forward.reverse),
    }
