"""What belongs to one pass of a recurrent layer over a batch, and what its way back needs."""

from __future__ import annotations

from dataclasses import dataclass

from lstm_cli.engines.cuda.batch import Sequences
from lstm_cli.engines.cuda.device import DeviceArray
from lstm_cli.engines.cuda.recurrence import ForwardRun
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
    keep: bool
    training: TrainingPass | None
