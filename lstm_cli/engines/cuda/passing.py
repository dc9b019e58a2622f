"""What belongs to one pass of a recurrent layer over a batch, and what its way back needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lstm_cli.engines.cuda.batch import Batch, Sequences
from lstm_cli.engines.cuda.device import Device, DeviceArray
from lstm_cli.engines.cuda.recurrence import BackwardRun, DirectionTensors, ForwardRun
from lstm_cli.engines.schedule import CellSchedule
from lstm_cli.engines.types import TrainingPass

DeviceState = tuple[DeviceArray, DeviceArray | None]
"""(N, directions, P) and (N, directions, H) on the device."""


@dataclass(frozen=True, eq=False)
class Tape:
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

    x: Sequences
    runs: tuple[ForwardRun, ...]
    first: DeviceState
    y: DeviceArray
    dropped: DeviceArray | None


@dataclass(frozen=True, eq=False)
class Passing:
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

    x: Sequences
    runs: tuple[ForwardRun, ...]
    first: DeviceState
    final: DeviceState
    y: DeviceArray | None
    y_element: DeviceArray | None
    dropped: DeviceArray | None
    return_gates: bool
    training: TrainingPass | None


@dataclass(frozen=True, eq=False)
class Returning:
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

    tape: Tape
    runs: tuple[BackwardRun, ...]
    carried: DeviceState
    dx: DeviceArray


def buffers(
    device: Device, tensors: DirectionTensors, plan: CellSchedule, batch: Batch
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
