"""Runs recurrences with weights that stay on the chip, where a plan for that can be made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda import persistent, persistent_backward
from lstm_cli.engines.cuda.arguments import (
    alike,
    backward_rows,
    backward_values,
    forward_rows,
    forward_values,
)
from lstm_cli.engines.cuda.costs import best, seconds
from lstm_cli.engines.cuda.device import Argument, Device, DeviceArray, Kernel, Launch
from lstm_cli.engines.cuda.handover import meets
from lstm_cli.engines.cuda.plan import BLOCK, GRID, Facts, Plan, Work, work_of
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.recurrence import BackwardRun, DirectionTensors, ForwardRun, Way
from lstm_cli.engines.schedule import CellSchedule
from lstm_cli.errors import DeviceError

Choose = Callable[[Work, Facts, int, int], Plan | None]
"""A plan for some work on a device, for so many sequences and directions; see `best`."""

COUNTERS = 1 << 16
"""Words of counters; launches take new ones until they are used up, then all are set to 0."""
MOST_ROWS = 2**31 - 1
"""Rows of a batch that kernels count in 32 bits."""
CANNOT = "cannot run this way"


@dataclass(frozen=True, eq=False)
class _Made:
    """A compiled plan."""

    plan: Plan
    kernel: Kernel


class PersistentWay:
    """See `lstm_cli.engines.cuda.recurrence.Way`.

    Parameters
    ----------
    otherwise
        What runs that for which there is no plan; None: that is an error.
    choose
        Makes plans.
    """

    def __init__(
        self,
        device: Device,
        precision: Precision,
        otherwise: Way | None = None,
        choose: Choose = best,
    ) -> None:
        self.device, self.precision, self.otherwise = device, precision, otherwise
        self.choose, self.facts = choose, Facts.of(device)
        self._made: dict[tuple[Any, ...], _Made | str] = {}
        self._kernels: dict[tuple[Any, ...], Kernel] = {}
        self._exchange = device.empty((0,), "uint8")
        self._counters: DeviceArray | None = None
        self._taken = 0

    def forward(self, runs: Sequence[ForwardRun]) -> None:
        """All directions of a layer, side by side where their equations are the same."""
        if runs[0].batch.longest == 0:
            return
        for group in alike(runs, lambda run: run):
            made = self._plan(group[0], len(group), backward=False)
            if isinstance(made, str):
                self._other(made).forward(group)
            else:
                self._forward(made, group)

    def backward(self, runs: Sequence[BackwardRun]) -> None:
        """All directions of a layer, side by side where their equations are the same."""
        if runs[0].forward.batch.longest == 0:
            return
        for group in alike(runs, lambda run: run.forward):
            made = self._plan(group[0].forward, len(group), backward=True)
            if isinstance(made, str):
                self._other(made).backward(group)
            else:
                self._backward(made, group)

    @property
    def multiprocessors(self) -> int:
        """For which it plans."""
        return self.facts.multiprocessors

    def modelled(self, cell: Cell, N: int, *, backward: bool = False) -> tuple[float, str]:
        """Of a step; see `lstm_cli.engines.cuda.recurrence.Way`."""
        plan = self.plan(cell, N, 1, backward=backward)
        if isinstance(plan, str):
            return self._other(plan).modelled(cell, N, backward=backward)
        return seconds(plan, self.facts, N, 1), plan.kind

    def hand_over(self, run: ForwardRun, *, backward: bool = False) -> str:
        """Of the plan, if it can run; see `lstm_cli.engines.cuda.recurrence.Way`."""
        made = self._plan(run, 1, backward=backward)
        if isinstance(made, str):
            return self._other(made).hand_over(run, backward=backward)
        return made.plan.kind

    def beside(self, multiprocessors: int) -> PersistentWay:
        """The same for a lane of its own; see `lstm_cli.engines.cuda.recurrence.Way`."""
        otherwise = None if self.otherwise is None else self.otherwise.beside(multiprocessors)
        made = PersistentWay(self.device, self.precision, otherwise, self.choose)
        made.facts = replace(self.facts, multiprocessors=multiprocessors)
        made._kernels = self._kernels
        return made

    def plan(self, cell: Cell, N: int, directions: int, *, backward: bool) -> Plan | str:
        """How a pass is run, or why it is not."""
        work = work_of(cell, self.precision, backward)
        if isinstance(work, str):
            return work
        found = self.choose(work, self.facts, N, directions)
        return found or "the recurrent weights do not fit the chip's registers and shared memory"

    def _other(self, why: str) -> Way:
        if self.otherwise is None:
            raise DeviceError(f"the layer {CANNOT}: {why}")
        return self.otherwise

    def _plan(self, run: ForwardRun, directions: int, *, backward: bool) -> _Made | str:
        """The compiled plan for a run, made once."""
        if run.batch.Q > MOST_ROWS:
            return "the batch has more steps than the kernels can count"
        cell, N = run.tensors.cell, run.batch.N
        key = (run.schedule, N, directions, backward)
        found = self._made.get(key)
        if found is None:
            plan = self.plan(cell, N, directions, backward=backward)
            found = plan if isinstance(plan, str) else self._make(run, plan, directions, backward)
            self._made[key] = found
        return found

    def _make(self, run: ForwardRun, plan: Plan, directions: int, backward: bool) -> _Made | str:
        """Compile a plan, and see whether its blocks can run as they have to."""
        kernel = self._kernel(run.tensors.cell, run.schedule, plan, backward)
        needed = plan.blocks * directions if plan.kind == GRID else plan.blocks
        if plan.kind == GRID and needed > self.facts.multiprocessors:
            return f"{needed} blocks that wait for one another are too many"
        launch = Launch((needed, 1, 1), plan.threads, plan.shared_bytes, plan.cluster)
        if plan.kind != BLOCK and kernel.resident(launch) < needed:
            return f"{needed} blocks of its kernel are not resident at the same time"
        return _Made(plan, kernel)

    def _kernel(self, cell: Cell, schedule: CellSchedule, plan: Plan, backward: bool) -> Kernel:
        key = (schedule, plan, backward)
        found = self._kernels.get(key)
        if found is None:
            used = self.precision.backward if backward else self.precision
            module = persistent_backward if backward else persistent
            source = module.source(cell, schedule, used, plan)
            found = self._kernels[key] = self.device.compile(source, [module.NAME])[module.NAME]
        return found

    def _forward(self, made: _Made, runs: Sequence[ForwardRun]) -> None:
        run = runs[0]
        own = [self._forward_values(one) for one in runs]
        self._start(made, run, forward_rows(run), own, persistent.PARAMETERS.values)

    def _backward(self, made: _Made, runs: Sequence[BackwardRun]) -> None:
        run = runs[0]
        own = [self._backward_values(one) for one in runs]
        values = persistent_backward.PARAMETERS.values
        self._start(made, run.forward, backward_rows(run), own, values)

    def _forward_values(self, run: ForwardRun) -> dict[str, Argument]:
        """A direction's own arguments."""
        return forward_values(run) | {
            "w": _matrix(run.tensors, self.precision),
            "reads": run.reads[0] if run.reads else None,
        }

    def _backward_values(self, run: BackwardRun) -> dict[str, Argument]:
        """A direction's own arguments."""
        return backward_values(run) | {
            "w": _matrix(run.forward.tensors, self.precision.backward),
            "du": None if run.du is run.dz else run.du,
        }

    def _start(
        self,
        made: _Made,
        run: ForwardRun,
        rows: Mapping[str, Argument],
        own: Sequence[Mapping[str, Argument]],
        values: Callable[..., list[Argument]],
    ) -> None:
        """Launch all groups, or as many at a time as can be resident, longest sequences first."""
        plan, batch, directions = made.plan, run.batch, len(own)
        most = plan.groups(batch.N)
        if plan.kind == GRID:
            most = max(1, min(most, self.facts.multiprocessors // (plan.blocks * directions)))
        for first in range(0, plan.groups(batch.N), most):
            row = first * plan.sequences
            if batch.sorted_steps[row] == 0:
                break  # nor has any sequence behind it a step
            groups = min(most, plan.groups(batch.N) - first)
            shared = dict(rows) | {
                "order": batch.order,
                "starts": batch.starts,
                "steps": batch.steps,
                "N": batch.N,
                "first_row": row,
            }
            shared |= self._meeting(plan, groups, directions)
            grid = (groups * plan.blocks, directions, 1)
            together = plan.kind == GRID
            launch = Launch(grid, plan.threads, plan.shared_bytes, plan.cluster, together)
            made.kernel(launch, *values(shared, own))

    def _meeting(self, plan: Plan, groups: int, directions: int) -> dict[str, Argument]:
        """Where blocks hand over through global memory: buffers, and counters that are 0."""
        words = meets(plan, groups, directions)
        if not words:
            return {"exchanged": None, "counters": None}
        needed = plan.exchange_bytes * groups * directions
        if self._exchange.size < needed:
            self._exchange = self.device.empty((needed,), "uint8")
        if self._counters is None:
            self._counters = self.device.zeros((COUNTERS,), "uint32")
        if self._taken + words > COUNTERS:
            self.device.fill_zero(self._counters)
            self._taken = 0
        counters = self._counters[self._taken : self._taken + words]
        self._taken += words
        return {"exchanged": self._exchange, "counters": counters}


def _matrix(tensors: DirectionTensors, precision: Precision) -> DeviceArray:
    """The recurrent matrix in the type that a precision multiplies."""
    return (tensors.element if precision.narrow else tensors.real)["weight_hh"]
