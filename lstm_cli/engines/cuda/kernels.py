"""The general way to run a recurrence: one launch a pass, for any cell, size and precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lstm_cli.cells import Cell
from lstm_cli.cells.tracing import Stage
from lstm_cli.engines.cuda.batch import DeviceBatch
from lstm_cli.engines.cuda.codegen import general_backward as backward
from lstm_cli.engines.cuda.codegen import general_forward as forward
from lstm_cli.engines.cuda.codegen import persistent_backward
from lstm_cli.engines.cuda.codegen import persistent_forward as persistent
from lstm_cli.engines.cuda.codegen.exchange import counter_words
from lstm_cli.engines.cuda.codegen.matmul import (
    BARRIER_COUNTER_WORDS,
    MAX_THREADS,
    padded_size,
    shared_memory_bytes,
)
from lstm_cli.engines.cuda.passes import (
    BackwardRun,
    DirectionWeights,
    ForwardRun,
    backward_arguments,
    backward_strides,
    forward_arguments,
    forward_strides,
    launch_groups,
)
from lstm_cli.engines.cuda.planning import plan_search as costs
from lstm_cli.engines.cuda.planning.plan import (
    BLOCK,
    GRID,
    DeviceLimits,
    PersistentPlan,
    RecurrenceShape,
    recurrence_shape,
)
from lstm_cli.engines.cuda.planning.plan_search import best_plan, step_seconds
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import Argument, Device, DeviceArray, Kernel, Launch
from lstm_cli.engines.cuda.weights import packed_weights
from lstm_cli.engines.schedule import Schedule
from lstm_cli.errors import DeviceError


class RecurrenceKernels(Protocol):
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

    def beside(self, multiprocessors: int) -> RecurrenceKernels:
        """The same way for a lane of its own: with other scratch memory, and blocks that have to
        run together for at most so many multiprocessors."""


MIN_SUM_PER_WARP = 32
"""Numbers of a sum that are worth a warp of its own."""

MAX_BLOCKS = 1 << 16
"""Of a launch, at most."""


@dataclass(frozen=True)
class GeneralTuning:
    """What is otherwise chosen by size; for tests and measurements.

    Attributes
    ----------
    rows
        Of a tile: sequences that share each weight that is read.
    warps
        Of a block, which share out the sums.
    blocks
        Of a direction, at most.
    """

    rows: int | None = None
    warps: int | None = None
    blocks: int | None = None


@dataclass(frozen=True, eq=False)
class _GeneralLaunch:
    """A kernel, and how it is launched for a size and a number of directions.

    Attributes
    ----------
    scratch_bytes
        Of a direction.
    meetings
        Of all blocks, in a step.
    """

    kernel: Kernel
    launch: Launch
    scratch_bytes: int
    meetings: int


class GeneralKernels:
    """Runs recurrences of any size; see `lstm_cli.engines.cuda.passes.RecurrenceKernels`.

    Parameters
    ----------
    most
        Blocks of a launch, where it has more than one; None: all that can run together.
    """

    def __init__(
        self,
        device: Device,
        precision: Precision,
        tuning: GeneralTuning | None = None,
        most: int | None = None,
    ) -> None:
        self.device, self.precision = device, precision
        self.tuning, self.most = tuning or GeneralTuning(), most
        self._plans: dict[tuple[Any, ...], _GeneralLaunch] = {}
        self._kernels: dict[str, Kernel] = {}
        self._scratch = device.empty((0,), "uint8")
        self._meeting = device.zeros((BARRIER_COUNTER_WORDS,), "uint32")
        self._met = [0, 0]  # how far each direction's counter has come

    def forward(self, runs: Sequence[ForwardRun]) -> None:
        """All directions of a layer, side by side where their equations are the same."""
        if runs[0].batch.longest == 0:
            return
        for group in launch_groups(runs, lambda run: run):
            run = group[0]
            plan = self._plan("forward", run, len(group), self._forward_plan)
            shared = self._shared(run, plan, len(group)) | forward_strides(run)
            own = self._numbered([self._forward_values(one) for one in group])
            names = forward.parameters(len(run.schedule.phases))
            self._start(plan, run.batch, names.values(shared, own))

    def backward(self, runs: Sequence[BackwardRun]) -> None:
        """All directions of a layer, side by side where their equations are the same."""
        if runs[0].forward.batch.longest == 0:
            return
        for group in launch_groups(runs, lambda run: run.forward):
            run, first = group[0], group[0].forward
            plan = self._plan("backward", first, len(group), self._backward_plan)
            shared = self._shared(first, plan, len(group)) | backward_strides(run)
            own = self._numbered([self._backward_values(one) for one in group])
            names = backward.parameters(len(first.schedule.backward))
            self._start(plan, first.batch, names.values(shared, own))

    @property
    def multiprocessors(self) -> int:
        """For which it plans."""
        return self.most or self.device.multiprocessors

    def modelled(self, cell: Cell, N: int, *, backward: bool = False) -> tuple[float, str]:
        """Of a step; see `lstm_cli.engines.cuda.passes.RecurrenceKernels`."""
        tiles = -(-N // self._rows(N, self.precision)) * _column_tiles(cell)
        blocks = min(tiles, self.multiprocessors)
        used = self.precision.backward if backward else self.precision
        return costs.general_step_seconds(cell, used, tiles, blocks), GRID

    def hand_over(self, run: ForwardRun, *, backward: bool = False) -> str:
        """Always the same; see `lstm_cli.engines.cuda.passes.RecurrenceKernels`."""
        return GRID

    def beside(self, multiprocessors: int) -> GeneralKernels:
        """The same for a lane of its own; see `lstm_cli.engines.cuda.passes.RecurrenceKernels`."""
        made = GeneralKernels(self.device, self.precision, self.tuning, multiprocessors)
        made._kernels = self._kernels
        return made

    def _forward_values(self, run: ForwardRun) -> dict[str, Argument]:
        """A direction's own arguments."""
        tensors, values = run.tensors, forward_arguments(run)
        for k, phase in enumerate(run.schedule.phases):
            values[f"reads_{k}"] = run.reads[k] if run.reads else None
            values[f"w_{k}"] = self._weights(tensors, self.precision, phase.stage, transposed=True)
        return values

    def _backward_values(self, run: BackwardRun) -> dict[str, Argument]:
        """A direction's own arguments."""
        first, values = run.forward, backward_arguments(run)
        precision = self.precision.backward
        for k, stage in enumerate(backward.undone_stages(first.schedule)):
            values[f"w_{k}"] = self._weights(first.tensors, precision, stage, transposed=False)
        return values

    def _weights(
        self, tensors: DirectionWeights, precision: Precision, stage: Stage, *, transposed: bool
    ) -> DeviceArray:
        letters = tensors.cell.letters
        blocks = [letters.index(gate) for gate in stage.gates] or [0]
        gates = range(blocks[0], blocks[-1] + 1)
        how = (tensors, precision, stage.matrix, gates)
        return packed_weights(self.device, *how, transposed=transposed)

    def _shared(
        self, run: ForwardRun, plan: _GeneralLaunch, directions: int
    ) -> dict[str, Argument]:
        """Arguments of the batch."""
        batch, cell = run.batch, run.tensors.cell
        needed = plan.scratch_bytes * directions
        if self._scratch.size < needed:
            self._scratch = self.device.empty((needed,), "uint8")
        return {
            "order": batch.order,
            "starts": batch.starts,
            "steps": batch.steps,
            "counts": batch.counts,
            "N": batch.N,
            "longest": batch.longest,
            "H": cell.hidden_size,
            "P": cell.output_size,
            "scratch": self._scratch,
            "scratch_bytes": plan.scratch_bytes,
            "meeting": self._meeting,
        }

    def _numbered(self, own: list[dict[str, Argument]]) -> list[dict[str, Argument]]:
        """Each direction's arguments, with where its counter of meetings stands."""
        return [values | {"met_before": self._met[d]} for d, values in enumerate(own)]

    def _start(self, plan: _GeneralLaunch, batch: DeviceBatch, arguments: list[Argument]) -> None:
        """Launch; and count the meetings, from which the next launch goes on."""
        plan.kernel(plan.launch, *arguments)
        blocks, directions, _ = plan.launch.grid
        if blocks > 1:
            met = blocks * (1 + batch.longest * plan.meetings)
            for d in range(directions):
                self._met[d] = (self._met[d] + met) % (1 << 32)

    def _plan(
        self, name: str, run: ForwardRun, directions: int, make: Callable[..., _GeneralLaunch]
    ) -> _GeneralLaunch:
        """The plan for a size, made once."""
        key = (name, run.schedule, run.batch.N, directions)
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = make(run, directions)
        return found

    def _forward_plan(self, run: ForwardRun, directions: int) -> _GeneralLaunch:
        cell, schedule, N = run.tensors.cell, run.schedule, run.batch.N
        rows = self._rows(N, self.precision)
        P8, H8 = padded_size(cell.output_size), padded_size(cell.hidden_size)
        source = forward.source(cell, schedule, self.precision, rows)
        kernel = self._kernel(source, forward.KERNEL_NAME)
        gates = max(max(1, len(phase.stage.gates)) for phase in schedule.phases)
        launch = self._launch(kernel, run, directions, rows, gates, max(P8, H8))
        scratch = forward.scratch_bytes(schedule, self.precision, N, P8, H8)
        return _GeneralLaunch(kernel, launch, scratch, len(schedule.phases))

    def _backward_plan(self, run: ForwardRun, directions: int) -> _GeneralLaunch:
        cell, schedule, N = run.tensors.cell, run.schedule, run.batch.N
        precision = self.precision.backward
        rows = self._rows(N, precision)
        P8, H8 = padded_size(cell.output_size), padded_size(cell.hidden_size)
        source = backward.source(cell, schedule, precision, rows)
        kernel = self._kernel(source, backward.KERNEL_NAME)
        longest = max(len(stage.gates) * H8 or P8 for stage in backward.undone_stages(schedule))
        launch = self._launch(kernel, run, directions, rows, 1, longest)
        scratch = backward.scratch_bytes(cell, precision, N, P8, H8)
        return _GeneralLaunch(kernel, launch, scratch, len(schedule.backward))

    def _kernel(self, source: str, name: str) -> Kernel:
        """Compiled once for all lanes."""
        if source not in self._kernels:
            self._kernels[source] = self.device.compile(source, [name])[name]
        return self._kernels[source]

    def _rows(self, N: int, precision: Precision) -> int:
        """Of a tile; few kinds, for each is a kernel of its own."""
        most = 4 if precision.real == "float64" else 8  # what shared memory holds
        return self.tuning.rows or (1 if N == 1 else 4 if N <= 16 else most)

    def _launch(
        self, kernel: Kernel, run: ForwardRun, directions: int, rows: int, gates: int, K: int
    ) -> Launch:
        """As many blocks as there are tiles, or can be on the device together."""
        cell = run.tensors.cell
        warps = self.tuning.warps or max(1, min(MAX_THREADS // 32, K // MIN_SUM_PER_WARP))
        shared = shared_memory_bytes(self.precision, rows, gates, warps)
        tiles = -(-run.batch.N // rows) * _column_tiles(cell)
        one = Launch((1, directions, 1), warps * 32, shared, together=True)
        resident = min(kernel.resident(one), self.most or MAX_BLOCKS) // directions
        blocks = max(1, min(tiles, resident, self.tuning.blocks or tiles))
        return Launch((blocks, directions, 1), warps * 32, shared, together=blocks > 1)


def _column_tiles(cell: Cell) -> int:
    """Tiles of 32 units side by side."""
    return -(-max(cell.hidden_size, cell.output_size) // 32)


# MERGED persistent_way: """Runs recurrences with weights that stay on the chip, where a plan for that can be made."""
PlanSearch = Callable[[RecurrenceShape, DeviceLimits, int, int], PersistentPlan | None]
"""A plan for some work on a device, for so many sequences and directions; see `best_plan`."""

COUNTER_BUFFER_WORDS = 1 << 16
"""Words of counters; launches take new ones until they are used up, then all are set to 0."""
MAX_ROWS = 2**31 - 1
"""Rows of a batch that kernels count in 32 bits."""
NO_PERSISTENT_KERNEL = "cannot run this way"


@dataclass(frozen=True, eq=False)
class _CompiledPlan:
    """A compiled plan."""

    plan: PersistentPlan
    kernel: Kernel


class PersistentKernels:
    """See `lstm_cli.engines.cuda.passes.RecurrenceKernels`.

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
        otherwise: RecurrenceKernels | None = None,
        choose: PlanSearch = best_plan,
    ) -> None:
        self.device, self.precision, self.otherwise = device, precision, otherwise
        self.choose, self.facts = choose, DeviceLimits.of(device)
        self._made: dict[tuple[Any, ...], _CompiledPlan | str] = {}
        self._kernels: dict[tuple[Any, ...], Kernel] = {}
        self._exchange = device.empty((0,), "uint8")
        self._counters: DeviceArray | None = None
        self._taken = 0

    def forward(self, runs: Sequence[ForwardRun]) -> None:
        """All directions of a layer, side by side where their equations are the same."""
        if runs[0].batch.longest == 0:
            return
        for group in launch_groups(runs, lambda run: run):
            made = self._plan(group[0], len(group), backward=False)
            if isinstance(made, str):
                self._other(made).forward(group)
            else:
                self._forward(made, group)

    def backward(self, runs: Sequence[BackwardRun]) -> None:
        """All directions of a layer, side by side where their equations are the same."""
        if runs[0].forward.batch.longest == 0:
            return
        for group in launch_groups(runs, lambda run: run.forward):
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
        """Of a step; see `lstm_cli.engines.cuda.passes.RecurrenceKernels`."""
        plan = self.plan(cell, N, 1, backward=backward)
        if isinstance(plan, str):
            return self._other(plan).modelled(cell, N, backward=backward)
        return step_seconds(plan, self.facts, N, 1), plan.kind

    def hand_over(self, run: ForwardRun, *, backward: bool = False) -> str:
        """Of the plan, if it can run; see `lstm_cli.engines.cuda.passes.RecurrenceKernels`."""
        made = self._plan(run, 1, backward=backward)
        if isinstance(made, str):
            return self._other(made).hand_over(run, backward=backward)
        return made.plan.kind

    def beside(self, multiprocessors: int) -> PersistentKernels:
        """The same for a lane of its own; see `lstm_cli.engines.cuda.passes.RecurrenceKernels`."""
        otherwise = None if self.otherwise is None else self.otherwise.beside(multiprocessors)
        made = PersistentKernels(self.device, self.precision, otherwise, self.choose)
        made.facts = replace(self.facts, multiprocessors=multiprocessors)
        made._kernels = self._kernels
        return made

    def plan(self, cell: Cell, N: int, directions: int, *, backward: bool) -> PersistentPlan | str:
        """How a pass is run, or why it is not."""
        work = recurrence_shape(cell, self.precision, backward)
        if isinstance(work, str):
            return work
        found = self.choose(work, self.facts, N, directions)
        return found or "the recurrent weights do not fit the chip's registers and shared memory"

    def _other(self, why: str) -> RecurrenceKernels:
        if self.otherwise is None:
            raise DeviceError(f"the layer {NO_PERSISTENT_KERNEL}: {why}")
        return self.otherwise

    def _plan(self, run: ForwardRun, directions: int, *, backward: bool) -> _CompiledPlan | str:
        """The compiled plan for a run, made once."""
        if run.batch.Q > MAX_ROWS:
            return "the batch has more steps than the kernels can count"
        cell, N = run.tensors.cell, run.batch.N
        key = (run.schedule, N, directions, backward)
        found = self._made.get(key)
        if found is None:
            plan = self.plan(cell, N, directions, backward=backward)
            found = plan if isinstance(plan, str) else self._make(run, plan, directions, backward)
            self._made[key] = found
        return found

    def _make(
        self, run: ForwardRun, plan: PersistentPlan, directions: int, backward: bool
    ) -> _CompiledPlan | str:
        """Compile a plan, and see whether its blocks can run as they have to."""
        kernel = self._kernel(run.tensors.cell, run.schedule, plan, backward)
        needed = plan.blocks * directions if plan.kind == GRID else plan.blocks
        if plan.kind == GRID and needed > self.facts.multiprocessors:
            return f"{needed} blocks that wait for one another are too many"
        launch = Launch((needed, 1, 1), plan.threads, plan.shared_bytes, plan.cluster)
        if plan.kind != BLOCK and kernel.resident(launch) < needed:
            return f"{needed} blocks of its kernel are not resident at the same time"
        return _CompiledPlan(plan, kernel)

    def _kernel(
        self, cell: Cell, schedule: Schedule, plan: PersistentPlan, backward: bool
    ) -> Kernel:
        key = (schedule, plan, backward)
        found = self._kernels.get(key)
        if found is None:
            used = self.precision.backward if backward else self.precision
            module = persistent_backward if backward else persistent
            source = module.source(cell, schedule, used, plan)
            found = self._kernels[key] = self.device.compile(source, [module.KERNEL_NAME])[
                module.KERNEL_NAME
            ]
        return found

    def _forward(self, made: _CompiledPlan, runs: Sequence[ForwardRun]) -> None:
        run = runs[0]
        own = [self._forward_values(one) for one in runs]
        self._start(made, run, forward_strides(run), own, persistent.PARAMETERS.values)

    def _backward(self, made: _CompiledPlan, runs: Sequence[BackwardRun]) -> None:
        run = runs[0]
        own = [self._backward_values(one) for one in runs]
        values = persistent_backward.PARAMETERS.values
        self._start(made, run.forward, backward_strides(run), own, values)

    def _forward_values(self, run: ForwardRun) -> dict[str, Argument]:
        """A direction's own arguments."""
        return forward_arguments(run) | {
            "w": _matrix(run.tensors, self.precision),
            "reads": run.reads[0] if run.reads else None,
        }

    def _backward_values(self, run: BackwardRun) -> dict[str, Argument]:
        """A direction's own arguments."""
        return backward_arguments(run) | {
            "w": _matrix(run.forward.tensors, self.precision.backward),
            "du": None if run.du is run.dz else run.du,
        }

    def _start(
        self,
        made: _CompiledPlan,
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

    def _meeting(self, plan: PersistentPlan, groups: int, directions: int) -> dict[str, Argument]:
        """Where blocks hand over through global memory: buffers, and counters that are 0."""
        words = counter_words(plan, groups, directions)
        if not words:
            return {"exchanged": None, "counters": None}
        needed = plan.exchange_bytes * groups * directions
        if self._exchange.size < needed:
            self._exchange = self.device.empty((needed,), "uint8")
        if self._counters is None:
            self._counters = self.device.zeros((COUNTER_BUFFER_WORDS,), "uint32")
        if self._taken + words > COUNTER_BUFFER_WORDS:
            self.device.fill_zero(self._counters)
            self._taken = 0
        counters = self._counters[self._taken : self._taken + words]
        self._taken += words
        return {"exchanged": self._exchange, "counters": counters}


def _matrix(tensors: DirectionWeights, precision: Precision) -> DeviceArray:
    """The recurrent matrix in the type that a precision multiplies."""
    return (tensors.element if precision.narrow else tensors.real)["weight_hh"]
