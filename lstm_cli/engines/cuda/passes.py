"""One direction of a recurrent layer on the device: what kernels take, and what they leave.

Every way to run a recurrence (the general kernels, the persistent ones) is given the same records,
so that a layer need not know which one computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.batch import DeviceBatch, PackedSequences
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import Argument, Device, DeviceArray
from lstm_cli.engines.schedule import Schedule
from lstm_cli.engines.types import TrainingPass


@dataclass(frozen=True, eq=False)
class DirectionWeights:
    """One direction's tensors on the device, as stored (row-major).

    Attributes
    ----------
    real
        By name within the direction (``weight_ih``, ``weight_hh``, ``bias``, ``bias_ih``,
        ``bias_hh``, ``peephole``, ``weight_hr``), in the precision's `real`.
    element
        The matrices among them in the precision's `element`; the same arrays where that is `real`.
    made
        Whatever a way to run has packed from them, by a name of its own; made once.
    """

    cell: Cell
    input_size: int
    precision: Precision
    real: dict[str, DeviceArray]
    element: dict[str, DeviceArray]
    made: dict[str, DeviceArray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ForwardRun:
    """A forward pass of one direction, over all steps of a batch or a window of them.

    G gates, P features of h. Row q of a sequence's step t is ``starts + t``, or
    ``starts + steps - 1 - t`` in reverse.

    Attributes
    ----------
    z
        (Q, G*H) real, input projections without bias.
    h, c
        (N, P) and (N, H) real, in the caller's order: initial states, which become the final ones.
        A sequence that is over, or has no step, keeps its own. `c` None where the cell has none.
    y, column
        (Q, F) real, of which columns ``column : column + P`` get h of every step; None: nowhere.
    y_element
        The same in the operands' type; None: nowhere.
    c_steps
        (Q, H) real: c after every step; None: not kept.
    record
        (Q, slots, H) real: the schedule's slots of every step; None: not kept.
    reads
        In training, what each product read in every step, one array a product, of the precision's
        `element`: (Q, P) for the first (h before the step, times the mask), (Q, H) for others; else
        empty.
    mask
        (N, P) real, of recurrent dropout, in the caller's order; None: none.
    """

    tensors: DirectionWeights
    schedule: Schedule
    batch: DeviceBatch
    reverse: bool
    z: DeviceArray
    h: DeviceArray
    c: DeviceArray | None
    y: DeviceArray | None = None
    column: int = 0
    y_element: DeviceArray | None = None
    c_steps: DeviceArray | None = None
    record: DeviceArray | None = None
    reads: tuple[DeviceArray, ...] = ()
    mask: DeviceArray | None = None


@dataclass(frozen=True, eq=False)
class BackwardRun:
    """A backward pass of one direction over all steps or a window, after a forward one.

    Attributes
    ----------
    forward
        The forward pass, with `c_steps`, `record`, `reads` and what else its schedule kept. Its
        `h` and `c` hold final states by now.
    h_first, c_first
        (N, P) and (N, H) real: the states it began from.
    y
        (Q, F) real: h of every step stands in ``column : column + P``.
    d_y
        (Q, F) real: the derivative for h of every step in those columns; None: none.
    dh, dc
        (N, P) and (N, H) real, in the caller's order: derivatives for the final states, which
        become those for the initial ones.
    dz
        (Q, G*H) real: gets the derivatives for the input parts.
    du
        (Q, G*H) real: gets those for the recurrent parts; may be `dz` itself where the cell only
        ever adds the two.
    d_projected
        (Q, P) real: gets the derivative for W_hr's product; None where the cell does not project.
    dp
        (N, peepholes, H) real: each sequence's sum over steps is added; None without peepholes.
    """

    forward: ForwardRun
    h_first: DeviceArray
    c_first: DeviceArray | None
    y: DeviceArray
    d_y: DeviceArray | None
    dh: DeviceArray
    dc: DeviceArray | None
    dz: DeviceArray
    du: DeviceArray
    d_projected: DeviceArray | None = None
    dp: DeviceArray | None = None


# MERGED passing: """What belongs to one pass of a recurrent layer over a batch, and what its way back needs."""
DeviceState = tuple[DeviceArray, DeviceArray | None]
"""(N, directions, P) and (N, directions, H) on the device."""


@dataclass(frozen=True, eq=False)
class RecurrentTape:
    """What a layer's backward pass needs of its forward pass.

    Attributes
    ----------
    x
        What the layer read, after dropout.
    runs
        Of each direction.
    first
        The states that they began from.
    y
        (Q, F): h of every step.
    dropped
        (Q, D): what the input was multiplied by.
    """

    x: PackedSequences
    runs: tuple[ForwardRun, ...]
    first: DeviceState
    y: DeviceArray
    dropped: DeviceArray | None


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A forward pass: all its arrays, whether they are computed or not.

    Attributes
    ----------
    x
        What the layer reads, after dropout.
    runs
        Of each direction.
    first, final
        The states that they begin from, and those that they leave.
    y, y_element
        (Q, F): h of every step, and the same in the operands' type; None: nowhere.
    dropped
        (Q, D): what the input was multiplied by.
    keep, training
        What the pass is for; see `lstm_cli.engines.types.Engine`.
    """

    x: PackedSequences
    runs: tuple[ForwardRun, ...]
    first: DeviceState
    final: DeviceState
    y: DeviceArray | None
    y_element: DeviceArray | None
    dropped: DeviceArray | None
    keep: bool
    training: TrainingPass | None


@dataclass(frozen=True, eq=False)
class BackwardPass:
    """A way back: all its arrays, whether they are computed or not.

    Attributes
    ----------
    tape
        Of the forward pass.
    runs
        Of each direction.
    carried
        Derivatives for the final states, which become those for the initial ones.
    dx
        (Q, D): gets the derivative for the input, after dropout.
    """

    tape: RecurrentTape
    runs: tuple[BackwardRun, ...]
    carried: DeviceState
    dx: DeviceArray


def training_buffers(
    device: Device, tensors: DirectionWeights, plan: Schedule, batch: DeviceBatch
) -> dict[str, Any]:
    """What a direction's pass keeps of every step, but for h."""
    if plan.purpose == "inference":
        return {}
    precision, cell, Q = tensors.precision, tensors.cell, batch.Q
    real, H = precision.real, cell.hidden_size
    kept: dict[str, Any] = {"record": device.empty((Q, len(plan.slots), H), real)}
    if plan.purpose == "training":
        widths = [H if k else cell.output_size for k in range(len(plan.phases))]
        kept["reads"] = tuple(device.empty((Q, width), precision.element) for width in widths)
        if len(cell.states) > 1:
            kept["c_steps"] = device.empty((Q, H), real)
    return kept


# MERGED arguments: """Runs of a recurrence as arguments of the kernels that compute them, whichever way."""
DirectionPass = TypeVar("DirectionPass", ForwardRun, BackwardRun)


def launch_groups(
    runs: Sequence[DirectionPass], forward_of: Callable[[DirectionPass], ForwardRun]
) -> list[list[DirectionPass]]:
    """Runs that one launch can do: of one schedule, and so of one cell."""
    first = forward_of(runs[0])
    if all(forward_of(run).schedule is first.schedule for run in runs):
        return [list(runs)]
    return [[run] for run in runs]


def forward_strides(run: ForwardRun) -> dict[str, Argument]:
    """How far apart the rows of its arrays are, which all directions have in common."""
    y = run.y if run.y is not None else run.y_element
    return {"h_row": _row_stride(run.h), "c_row": _row_stride(run.c), "y_row": _row_stride(y)}


def backward_strides(run: BackwardRun) -> dict[str, Argument]:
    """The same of a backward pass."""
    return {
        "h_row": _row_stride(run.dh),
        "c_row": _row_stride(run.dc),
        "h_first_row": _row_stride(run.h_first),
        "c_first_row": _row_stride(run.c_first),
        "y_row": _row_stride(run.y),
        "d_row": _row_stride(run.d_y),
    }


def _row_stride(array: DeviceArray | None) -> int:
    """How far apart an array's rows are, in numbers."""
    if array is None:
        return 0
    return int(array.strides[0]) // int(array.dtype.itemsize)


def forward_arguments(run: ForwardRun) -> dict[str, Argument]:
    """A direction's own arguments, but for its weights and what products read."""
    real = run.tensors.real
    return {
        "z": run.z,
        "bias": real["bias_ih" if run.tensors.cell.recurrent_bias else "bias"],
        "bias_hh": real.get("bias_hh"),
        "p": real.get("peephole"),
        "m": run.mask,
        "h": run.h,
        "c": run.c,
        "y": run.y,
        "y_element": run.y_element,
        "c_steps": run.c_steps,
        "record": run.record,
        "column": run.column,
        "reverse": int(run.reverse),
    }


def backward_arguments(run: BackwardRun) -> dict[str, Argument]:
    """A direction's own arguments, but for its weights."""
    first = run.forward
    return {
        "p": first.tensors.real.get("peephole"),
        "m": first.mask,
        "record": first.record,
        "c_steps": first.c_steps,
        "h_first": run.h_first,
        "c_first": run.c_first,
        "y": run.y,
        "d_y": run.d_y,
        "dh": run.dh,
        "dc": run.dc,
        "dz": run.dz,
        "du": run.du,
        "d_projected": run.d_projected,
        "dp": run.dp,
        "column": first.column,
        "reverse": int(first.reverse),
    }
