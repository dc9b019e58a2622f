"""Kernels that run a recurrence: general, or persistent (whose speed on a GPU is unmeasured).

`select_kernels` chooses; `GeneralKernels` take any cell, size and precision; `PersistentKernels`
keep the weights on the chip where a plan for that exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lstm_cli.cells import Cell
from lstm_cli.cells.cell import Stage
from lstm_cli.engines.cuda.batch import DeviceBatch
from lstm_cli.engines.cuda.codegen import (
    general_backward,
    general_forward,
    persistent_backward,
    persistent_forward,
)
from lstm_cli.engines.cuda.codegen.exchange import counter_words
from lstm_cli.engines.cuda.codegen.matmul import (
    BARRIER_COUNTER_WORDS,
    MAX_THREADS,
    padded_size,
    shared_memory_bytes,
)
from lstm_cli.engines.cuda.passes import (
    BackwardRun,
    ForwardRun,
    backward_arguments,
    backward_strides,
    forward_arguments,
    forward_strides,
    launch_groups,
)
from lstm_cli.engines.cuda.planning.plan import (
    BLOCK,
    GRID,
    DeviceLimits,
    PersistentPlan,
    RecurrenceShape,
    recurrence_shape,
)
from lstm_cli.engines.cuda.planning.plan_search import (
    best_plan,
    general_step_seconds,
    step_seconds,
)
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import Argument, Device, DeviceArray, Kernel, Launch
from lstm_cli.engines.cuda.weights import DirectionWeights, operand_matrix, packed_weights
from lstm_cli.engines.schedule import CellSchedule
from lstm_cli.errors import DeviceError

KERNELS = ("auto", "general", "persistent")
"""Kinds of kernels. ``auto`` takes persistent kernels where a plan exists, general ones elsewhere;
``persistent`` fails without a plan."""

MIN_SUM_PER_WARP = 32
"""Count of numbers in a sum that justifies a further warp."""

MAX_BLOCKS = 1 << 16
"""Largest number of blocks per launch of a general kernel."""

PlanSearch = Callable[[RecurrenceShape, DeviceLimits, int, int], PersistentPlan | None]
"""Function that finds a plan for a recurrence on a device, from the numbers of sequences and of
directions; see `best_plan`."""

COUNTER_BUFFER_WORDS = 1 << 16
"""Number of 32-bit words for barrier counters. A launch takes unused words; if none are left, all
are set to 0 again."""

MAX_ROWS = 2**31 - 1
"""Largest number of stored steps that persistent kernels count in 32 bits."""

NO_PERSISTENT_KERNEL = "has no persistent kernel"


class RecurrenceKernels(Protocol):
    """Kernels that run one direction of a recurrent layer, or both."""

    @property
    def multiprocessors(self) -> int:
        """Number of multiprocessors that launches are planned for."""

    def modeled_step(self, cell: Cell, N: int, *, backward: bool = False) -> tuple[float, str]:
        """Modeled seconds per step of one direction, and the kind of exchange between blocks."""

    def forward(self, runs: Sequence[ForwardRun]) -> None:
        """Start the forward pass of all directions of a layer.

        Directions with the same equations share one launch.
        """

    def backward(self, runs: Sequence[BackwardRun]) -> None:
        """Start the backward pass of all directions of a layer."""

    def exchange_kind(self, run: ForwardRun, *, backward: bool = False) -> str:
        """Kind of exchange between blocks in the kernel that this run will launch."""

    def with_sm_limit(self, multiprocessors: int) -> RecurrenceKernels:
        """Kernels for a further stream, with their own scratch memory.

        Parameters
        ----------
        multiprocessors
            Largest number of cooperative blocks at a time.
        """


def select_kernels(kind: str, device: Device, precision: Precision) -> RecurrenceKernels:
    """Kernels for recurrent layers, by a name of `KERNELS`."""
    if kind == "persistent":
        return PersistentKernels(device, precision)
    general = GeneralKernels(device, precision)
    return general if kind == "general" else PersistentKernels(device, precision, general)


@dataclass(frozen=True)
class GeneralTuning:
    """Sizes of general kernels, for tests and measurements. None: the batch decides.

    Attributes
    ----------
    rows
        Sequences per tile, which share each weight that is read.
    warps
        Warps per block, among which each sum is divided.
    blocks
        Largest number of blocks per direction.
    """

    rows: int | None = None
    warps: int | None = None
    blocks: int | None = None


@dataclass(frozen=True, eq=False)
class _GeneralLaunch:
    """A general kernel and its launch for one batch size and number of directions.

    Attributes
    ----------
    scratch_bytes
        Bytes of scratch memory per direction.
    barriers
        Grid barriers per step.
    """

    kernel: Kernel
    launch: Launch
    scratch_bytes: int
    barriers: int


class GeneralKernels:
    """`RecurrenceKernels` for any sizes, with one launch per pass.

    Parameters
    ----------
    max_blocks
        Largest number of blocks per cooperative launch; None: all blocks that can be resident.
    """

    def __init__(
        self,
        device: Device,
        precision: Precision,
        tuning: GeneralTuning | None = None,
        max_blocks: int | None = None,
    ) -> None:
        self.device, self.precision = device, precision
        self.tuning, self.max_blocks = tuning or GeneralTuning(), max_blocks
        self._launches: dict[tuple[Any, ...], _GeneralLaunch] = {}
        self._kernels: dict[str, Kernel] = {}
        self._scratch = device.empty((0,), "uint8")
        self._barrier_counters = device.zeros((BARRIER_COUNTER_WORDS,), "uint32")
        self._barrier_counts = [0, 0]  # current value of each direction's counter

    def forward(self, runs: Sequence[ForwardRun]) -> None:
        """Start all directions of a layer, in one launch if they share their equations."""
        if runs[0].batch.longest == 0:
            return
        for group in launch_groups(runs, lambda run: run):
            run = group[0]
            launch = self._cached_launch("forward", run, len(group), self._forward_launch)
            shared = self._shared_arguments(run, launch, len(group)) | forward_strides(run)
            per_direction = self._with_barrier_counts(
                [self._forward_arguments(one) for one in group]
            )
            parameters = general_forward.parameters(len(run.schedule.phases))
            self._start(launch, run.batch, parameters.values(shared, per_direction))

    def backward(self, runs: Sequence[BackwardRun]) -> None:
        """Start the backward pass of all directions of a layer."""
        if runs[0].forward.batch.longest == 0:
            return
        for group in launch_groups(runs, lambda run: run.forward):
            run, forward = group[0], group[0].forward
            launch = self._cached_launch("backward", forward, len(group), self._backward_launch)
            shared = self._shared_arguments(forward, launch, len(group)) | backward_strides(run)
            per_direction = self._with_barrier_counts(
                [self._backward_arguments(one) for one in group]
            )
            parameters = general_backward.parameters(len(forward.schedule.backward))
            self._start(launch, forward.batch, parameters.values(shared, per_direction))

    @property
    def multiprocessors(self) -> int:
        """Number of multiprocessors that launches are planned for."""
        return self.max_blocks or self.device.multiprocessors

    def modeled_step(self, cell: Cell, N: int, *, backward: bool = False) -> tuple[float, str]:
        """Modeled seconds per step; see `RecurrenceKernels`."""
        tiles = -(-N // self._tile_rows(N, self.precision)) * _column_tiles(cell)
        blocks = min(tiles, self.multiprocessors)
        precision = self.precision.backward if backward else self.precision
        return general_step_seconds(cell, precision, tiles, blocks), GRID

    def exchange_kind(self, run: ForwardRun, *, backward: bool = False) -> str:
        """Always `GRID`; see `RecurrenceKernels`."""
        return GRID

    def with_sm_limit(self, multiprocessors: int) -> GeneralKernels:
        """Kernels for a further stream; see `RecurrenceKernels`."""
        kernels = GeneralKernels(self.device, self.precision, self.tuning, multiprocessors)
        kernels._kernels = self._kernels
        return kernels

    def _forward_arguments(self, run: ForwardRun) -> dict[str, Argument]:
        arguments = forward_arguments(run)
        for k, phase in enumerate(run.schedule.phases):
            arguments[f"reads_{k}"] = run.reads[k] if run.reads else None
            arguments[f"w_{k}"] = self._packed(
                run.weights, self.precision, phase.stage, transposed=True
            )
        return arguments

    def _backward_arguments(self, run: BackwardRun) -> dict[str, Argument]:
        forward, arguments = run.forward, backward_arguments(run)
        precision = self.precision.backward
        for k, stage in enumerate(general_backward.differentiated_stages(forward.schedule)):
            arguments[f"w_{k}"] = self._packed(forward.weights, precision, stage, transposed=False)
        return arguments

    def _packed(
        self, weights: DirectionWeights, precision: Precision, stage: Stage, *, transposed: bool
    ) -> DeviceArray:
        letters = weights.cell.letters
        blocks = [letters.index(gate) for gate in stage.gates] or [0]
        gates = range(blocks[0], blocks[-1] + 1)
        return packed_weights(
            self.device, weights, precision, stage.matrix, gates, transposed=transposed
        )

    def _shared_arguments(
        self, run: ForwardRun, launch: _GeneralLaunch, directions: int
    ) -> dict[str, Argument]:
        """Arguments of the batch, by the names in the kernels."""
        batch, cell = run.batch, run.weights.cell
        needed = launch.scratch_bytes * directions
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
            "scratch_bytes": launch.scratch_bytes,
            "barrier_counter": self._barrier_counters,
        }

    def _with_barrier_counts(
        self, per_direction: list[dict[str, Argument]]
    ) -> list[dict[str, Argument]]:
        return [
            arguments | {"arrivals_before": self._barrier_counts[d]}
            for d, arguments in enumerate(per_direction)
        ]

    def _start(self, launch: _GeneralLaunch, batch: DeviceBatch, arguments: list[Argument]) -> None:
        """Launch, and add the launch's arrivals to the counters."""
        launch.kernel(launch.launch, *arguments)
        blocks, directions, _ = launch.launch.grid
        if blocks > 1:
            arrivals = blocks * (1 + batch.longest * launch.barriers)
            for d in range(directions):
                self._barrier_counts[d] = (self._barrier_counts[d] + arrivals) % (1 << 32)

    def _cached_launch(
        self,
        name: str,
        run: ForwardRun,
        directions: int,
        make: Callable[[ForwardRun, int], _GeneralLaunch],
    ) -> _GeneralLaunch:
        key = (name, run.schedule, run.batch.N, directions)
        launch = self._launches.get(key)
        if launch is None:
            launch = self._launches[key] = make(run, directions)
        return launch

    def _forward_launch(self, run: ForwardRun, directions: int) -> _GeneralLaunch:
        cell, schedule, N = run.weights.cell, run.schedule, run.batch.N
        rows = self._tile_rows(N, self.precision)
        P8, H8 = padded_size(cell.output_size), padded_size(cell.hidden_size)
        source = general_forward.source(cell, schedule, self.precision, rows)
        kernel = self._kernel(source, general_forward.KERNEL_NAME)
        gates = max(max(1, len(phase.stage.gates)) for phase in schedule.phases)
        launch = self._launch(kernel, run, directions, rows, gates, max(P8, H8))
        scratch = general_forward.scratch_bytes(schedule, self.precision, N, P8, H8)
        return _GeneralLaunch(kernel, launch, scratch, len(schedule.phases))

    def _backward_launch(self, run: ForwardRun, directions: int) -> _GeneralLaunch:
        cell, schedule, N = run.weights.cell, run.schedule, run.batch.N
        precision = self.precision.backward
        rows = self._tile_rows(N, precision)
        P8, H8 = padded_size(cell.output_size), padded_size(cell.hidden_size)
        source = general_backward.source(cell, schedule, precision, rows)
        kernel = self._kernel(source, general_backward.KERNEL_NAME)
        stages = general_backward.differentiated_stages(schedule)
        longest_sum = max(len(stage.gates) * H8 or P8 for stage in stages)
        launch = self._launch(kernel, run, directions, rows, 1, longest_sum)
        scratch = general_backward.scratch_bytes(cell, precision, N, P8, H8)
        return _GeneralLaunch(kernel, launch, scratch, len(schedule.backward))

    def _kernel(self, source: str, name: str) -> Kernel:
        """Compile a kernel once for all streams."""
        if source not in self._kernels:
            self._kernels[source] = self.device.compile(source, [name])[name]
        return self._kernels[source]

    def _tile_rows(self, N: int, precision: Precision) -> int:
        """Number of sequences per tile, one of a few, since each number needs its own kernel."""
        largest = 4 if precision.accumulator == "float64" else 8  # limited by shared memory
        return self.tuning.rows or (1 if N == 1 else 4 if N <= 16 else largest)

    def _launch(
        self, kernel: Kernel, run: ForwardRun, directions: int, rows: int, gates: int, K: int
    ) -> Launch:
        """Launch with a block per tile, or as many blocks as can be resident."""
        cell = run.weights.cell
        warps = self.tuning.warps or max(1, min(MAX_THREADS // 32, K // MIN_SUM_PER_WARP))
        shared = shared_memory_bytes(self.precision, rows, gates, warps)
        tiles = -(-run.batch.N // rows) * _column_tiles(cell)
        single = Launch((1, directions, 1), warps * 32, shared, cooperative=True)
        resident = min(kernel.resident(single), self.max_blocks or MAX_BLOCKS) // directions
        blocks = max(1, min(tiles, resident, self.tuning.blocks or tiles))
        return Launch((blocks, directions, 1), warps * 32, shared, cooperative=blocks > 1)


def _column_tiles(cell: Cell) -> int:
    """Number of tiles of 32 units that cover all columns."""
    return -(-max(cell.hidden_size, cell.output_size) // 32)


@dataclass(frozen=True, eq=False)
class _CompiledPlan:
    plan: PersistentPlan
    kernel: Kernel


class PersistentKernels:
    """`RecurrenceKernels` that keep the recurrent weights on the chip over all steps.

    Parameters
    ----------
    fallback
        Kernels for passes without a plan. None: a pass without a plan is an error.
    search
        Function that finds plans.
    """

    def __init__(
        self,
        device: Device,
        precision: Precision,
        fallback: RecurrenceKernels | None = None,
        search: PlanSearch = best_plan,
    ) -> None:
        self.device, self.precision, self.fallback = device, precision, fallback
        self.search, self.limits = search, DeviceLimits.of(device)
        self._compiled: dict[tuple[Any, ...], _CompiledPlan | str] = {}
        self._kernels: dict[tuple[Any, ...], Kernel] = {}
        self._exchange_buffer = device.empty((0,), "uint8")
        self._counters: DeviceArray | None = None
        self._used_counters = 0

    def forward(self, runs: Sequence[ForwardRun]) -> None:
        """Start all directions of a layer, in one launch if they share their equations."""
        if runs[0].batch.longest == 0:
            return
        for group in launch_groups(runs, lambda run: run):
            compiled = self._compiled_plan(group[0], len(group), backward=False)
            if isinstance(compiled, str):
                self._fallback(compiled).forward(group)
            else:
                self._forward(compiled, group)

    def backward(self, runs: Sequence[BackwardRun]) -> None:
        """Start the backward pass of all directions of a layer."""
        if runs[0].forward.batch.longest == 0:
            return
        for group in launch_groups(runs, lambda run: run.forward):
            compiled = self._compiled_plan(group[0].forward, len(group), backward=True)
            if isinstance(compiled, str):
                self._fallback(compiled).backward(group)
            else:
                self._backward(compiled, group)

    @property
    def multiprocessors(self) -> int:
        """Number of multiprocessors that launches are planned for."""
        return self.limits.multiprocessors

    def modeled_step(self, cell: Cell, N: int, *, backward: bool = False) -> tuple[float, str]:
        """Modeled seconds per step; see `RecurrenceKernels`."""
        plan = self.plan(cell, N, 1, backward=backward)
        if isinstance(plan, str):
            return self._fallback(plan).modeled_step(cell, N, backward=backward)
        return step_seconds(plan, self.limits, N, 1), plan.kind

    def exchange_kind(self, run: ForwardRun, *, backward: bool = False) -> str:
        """Kind of the plan if it can run; see `RecurrenceKernels`."""
        compiled = self._compiled_plan(run, 1, backward=backward)
        if isinstance(compiled, str):
            return self._fallback(compiled).exchange_kind(run, backward=backward)
        return compiled.plan.kind

    def with_sm_limit(self, multiprocessors: int) -> PersistentKernels:
        """Kernels for a further stream; see `RecurrenceKernels`."""
        fallback = None if self.fallback is None else self.fallback.with_sm_limit(multiprocessors)
        kernels = PersistentKernels(self.device, self.precision, fallback, self.search)
        kernels.limits = replace(self.limits, multiprocessors=multiprocessors)
        kernels._kernels = self._kernels
        return kernels

    def plan(self, cell: Cell, N: int, directions: int, *, backward: bool) -> PersistentPlan | str:
        """Plan of a pass, or the reason why there is none."""
        shape = recurrence_shape(cell, self.precision, backward)
        if isinstance(shape, str):
            return shape
        plan = self.search(shape, self.limits, N, directions)
        return plan or "the recurrent weights do not fit the chip's registers and shared memory"

    def _fallback(self, reason: str) -> RecurrenceKernels:
        if self.fallback is None:
            raise DeviceError(f"the layer {NO_PERSISTENT_KERNEL}: {reason}")
        return self.fallback

    def _compiled_plan(
        self, run: ForwardRun, directions: int, *, backward: bool
    ) -> _CompiledPlan | str:
        """Compiled plan of a run, cached, or the reason why there is none."""
        if run.batch.Q > MAX_ROWS:
            return "the batch has more steps than the kernels can count"
        cell, N = run.weights.cell, run.batch.N
        key = (run.schedule, N, directions, backward)
        compiled = self._compiled.get(key)
        if compiled is None:
            plan = self.plan(cell, N, directions, backward=backward)
            compiled = (
                plan if isinstance(plan, str) else self._compile(run, plan, directions, backward)
            )
            self._compiled[key] = compiled
        return compiled

    def _compile(
        self, run: ForwardRun, plan: PersistentPlan, directions: int, backward: bool
    ) -> _CompiledPlan | str:
        """Compile a plan, and check that blocks which wait for each other can all be resident."""
        kernel = self._kernel(run.weights.cell, run.schedule, plan, backward)
        needed = plan.blocks * directions if plan.kind == GRID else plan.blocks
        if plan.kind == GRID and needed > self.limits.multiprocessors:
            return f"{needed} cooperative blocks are too many"
        launch = Launch((needed, 1, 1), plan.threads, plan.shared_bytes, plan.cluster)
        if plan.kind != BLOCK and kernel.resident(launch) < needed:
            return f"{needed} blocks of its kernel are not resident at the same time"
        return _CompiledPlan(plan, kernel)

    def _kernel(
        self, cell: Cell, schedule: CellSchedule, plan: PersistentPlan, backward: bool
    ) -> Kernel:
        key = (schedule, plan, backward)
        kernel = self._kernels.get(key)
        if kernel is None:
            precision = self.precision.backward if backward else self.precision
            module = persistent_backward if backward else persistent_forward
            source, name = module.source(cell, schedule, precision, plan), module.KERNEL_NAME
            kernel = self._kernels[key] = self.device.compile(source, [name])[name]
        return kernel

    def _forward(self, compiled: _CompiledPlan, runs: Sequence[ForwardRun]) -> None:
        run = runs[0]
        per_direction = [self._forward_arguments(one) for one in runs]
        values = persistent_forward.PARAMETERS.values
        self._start(compiled, run, forward_strides(run), per_direction, values)

    def _backward(self, compiled: _CompiledPlan, runs: Sequence[BackwardRun]) -> None:
        run = runs[0]
        per_direction = [self._backward_arguments(one) for one in runs]
        values = persistent_backward.PARAMETERS.values
        self._start(compiled, run.forward, backward_strides(run), per_direction, values)

    def _forward_arguments(self, run: ForwardRun) -> dict[str, Argument]:
        return forward_arguments(run) | {
            "w": operand_matrix(run.weights, self.precision, "weight_hh"),
            "reads": run.reads[0] if run.reads else None,
        }

    def _backward_arguments(self, run: BackwardRun) -> dict[str, Argument]:
        return backward_arguments(run) | {
            "w": operand_matrix(run.forward.weights, self.precision.backward, "weight_hh"),
            "du": None if run.du is run.dz else run.du,
        }

    def _start(
        self,
        compiled: _CompiledPlan,
        run: ForwardRun,
        strides: Mapping[str, Argument],
        per_direction: Sequence[Mapping[str, Argument]],
        values: Callable[..., list[Argument]],
    ) -> None:
        """Launch all groups, or as many at a time as can be resident, longest sequences first."""
        plan, batch, directions = compiled.plan, run.batch, len(per_direction)
        per_launch = plan.groups(batch.N)
        if plan.kind == GRID:
            resident = self.limits.multiprocessors // (plan.blocks * directions)
            per_launch = max(1, min(per_launch, resident))
        for first in range(0, plan.groups(batch.N), per_launch):
            row = first * plan.sequences
            if batch.sorted_steps[row] == 0:
                break  # this sequence and all later ones have no step
            groups = min(per_launch, plan.groups(batch.N) - first)
            shared = dict(strides) | {
                "order": batch.order,
                "starts": batch.starts,
                "steps": batch.steps,
                "N": batch.N,
                "first_row": row,
            }
            shared |= self._exchange_arguments(plan, groups, directions)
            grid = (groups * plan.blocks, directions, 1)
            cooperative = plan.kind == GRID
            launch = Launch(grid, plan.threads, plan.shared_bytes, plan.cluster, cooperative)
            compiled.kernel(launch, *values(shared, per_direction))

    def _exchange_arguments(
        self, plan: PersistentPlan, groups: int, directions: int
    ) -> dict[str, Argument]:
        """Global buffers of the exchange, and counters that are 0."""
        words = counter_words(plan, groups, directions)
        if not words:
            return {"exchange_buffer": None, "counters": None}
        needed = plan.exchange_bytes * groups * directions
        if self._exchange_buffer.size < needed:
            self._exchange_buffer = self.device.empty((needed,), "uint8")
        if self._counters is None:
            self._counters = self.device.zeros((COUNTER_BUFFER_WORDS,), "uint32")
        if self._used_counters + words > COUNTER_BUFFER_WORDS:
            self.device.fill_zero(self._counters)
            self._used_counters = 0
        counters = self._counters[self._used_counters : self._used_counters + words]
        self._used_counters += words
        return {"exchange_buffer": self._exchange_buffer, "counters": counters}
