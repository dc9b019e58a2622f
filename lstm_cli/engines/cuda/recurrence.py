"""One direction of a recurrent layer on the device: what kernels take, and what they leave.

Every way to run a recurrence (the general kernels, the persistent ones) is given the same records,
so that a layer need not know which one computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.batch import Batch
from lstm_cli.engines.cuda.device import DeviceArray
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.schedule import CellSchedule


@dataclass(frozen=True, eq=False)
class DirectionTensors:
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

    tensors: DirectionTensors
    schedule: CellSchedule
    batch: Batch
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


class Way(Protocol):
    """A way to run a recurrence."""

    @property
    def multiprocessors(self) -> int:
        """For which it plans."""

    def modelled(self, cell: Cell, N: int, *, backward: bool = False) -> tuple[float, str]:
        """Modelled seconds of a step of one direction, and how its blocks hand over."""

    def forward(self, runs: Sequence[ForwardRun]) -> None:
        """All directions of a layer, side by side where that can be."""

    def backward(self, runs: Sequence[BackwardRun]) -> None:
        """All directions of a layer."""

    def hand_over(self, run: ForwardRun, *, backward: bool = False) -> str:
        """How the blocks of a run hand over: what was planned, or what can run instead."""

    def beside(self, multiprocessors: int) -> Way:
        """The same way for a lane of its own: with other scratch memory, and blocks that have to
        run together for at most so many multiprocessors."""
