"""The general way to run a recurrence: one launch a pass, for any cell, size and precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lstm_cli.cells import Cell
from lstm_cli.cells.cell import Stage
from lstm_cli.engines.cuda import backward, costs, forward
from lstm_cli.engines.cuda.arguments import (
    alike,
    backward_rows,
    backward_values,
    forward_rows,
    forward_values,
)
from lstm_cli.engines.cuda.batch import Batch
from lstm_cli.engines.cuda.device import Argument, Device, DeviceArray, Kernel, Launch
from lstm_cli.engines.cuda.plan import GRID
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.products import MEETING_WORDS, THREADS, memory_bytes, padded
from lstm_cli.engines.cuda.recurrence import BackwardRun, DirectionTensors, ForwardRun
from lstm_cli.engines.cuda.weights import packed

SHARE = 32
"""Numbers of a sum that are worth a warp of its own."""

BLOCKS = 1 << 16
"""Of a launch, at most."""


@dataclass(frozen=True)
class Tuning:
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
class _Plan:
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


class GeneralWay:
    """Runs recurrences of any size; see `lstm_cli.engines.cuda.recurrence.Way`.

    Parameters
    ----------
    most
        Blocks of a launch, where it has more than one; None: all that can run together.
    """

    def __init__(
        self,
        device: Device,
        precision: Precision,
        tuning: Tuning | None = None,
        most: int | None = None,
    ) -> None:
        self.device, self.precision = device, precision
        self.tuning, self.most = tuning or Tuning(), most
        self._plans: dict[tuple[Any, ...], _Plan] = {}
        self._kernels: dict[str, Kernel] = {}
        self._scratch = device.empty((0,), "uint8")
        self._meeting = device.zeros((MEETING_WORDS,), "uint32")
        self._met = [0, 0]  # how far each direction's counter has come

    def forward(self, runs: Sequence[ForwardRun]) -> None:
        """All directions of a layer, side by side where their equations are the same."""
        if runs[0].batch.longest == 0:
            return
        for group in alike(runs, lambda run: run):
            run = group[0]
            plan = self._plan("forward", run, len(group), self._forward_plan)
            shared = self._shared(run, plan, len(group)) | forward_rows(run)
            own = self._numbered([self._forward_values(one) for one in group])
            names = forward.parameters(len(run.schedule.phases))
            self._start(plan, run.batch, names.values(shared, own))

    def backward(self, runs: Sequence[BackwardRun]) -> None:
        """All directions of a layer, side by side where their equations are the same."""
        if runs[0].forward.batch.longest == 0:
            return
        for group in alike(runs, lambda run: run.forward):
            run, first = group[0], group[0].forward
            plan = self._plan("backward", first, len(group), self._backward_plan)
            shared = self._shared(first, plan, len(group)) | backward_rows(run)
            own = self._numbered([self._backward_values(one) for one in group])
            names = backward.parameters(len(first.schedule.backward))
            self._start(plan, first.batch, names.values(shared, own))

    @property
    def multiprocessors(self) -> int:
        """For which it plans."""
        return self.most or self.device.multiprocessors

    def modelled(self, cell: Cell, N: int, *, backward: bool = False) -> tuple[float, str]:
        """Of a step; see `lstm_cli.engines.cuda.recurrence.Way`."""
        tiles = -(-N // self._rows(N, self.precision)) * _columns(cell)
        blocks = min(tiles, self.multiprocessors)
        used = self.precision.backward if backward else self.precision
        return costs.general(cell, used, tiles, blocks), GRID

    def hand_over(self, run: ForwardRun, *, backward: bool = False) -> str:
        """Always the same; see `lstm_cli.engines.cuda.recurrence.Way`."""
        return GRID

    def beside(self, multiprocessors: int) -> GeneralWay:
        """The same for a lane of its own; see `lstm_cli.engines.cuda.recurrence.Way`."""
        made = GeneralWay(self.device, self.precision, self.tuning, multiprocessors)
        made._kernels = self._kernels
        return made

    def _forward_values(self, run: ForwardRun) -> dict[str, Argument]:
        """A direction's own arguments."""
        tensors, values = run.tensors, forward_values(run)
        for k, phase in enumerate(run.schedule.phases):
            values[f"reads_{k}"] = run.reads[k] if run.reads else None
            values[f"w_{k}"] = self._weights(tensors, self.precision, phase.stage, transposed=True)
        return values

    def _backward_values(self, run: BackwardRun) -> dict[str, Argument]:
        """A direction's own arguments."""
        first, values = run.forward, backward_values(run)
        precision = self.precision.backward
        for k, stage in enumerate(backward.undone(first.schedule)):
            values[f"w_{k}"] = self._weights(first.tensors, precision, stage, transposed=False)
        return values

    def _weights(
        self, tensors: DirectionTensors, precision: Precision, stage: Stage, *, transposed: bool
    ) -> DeviceArray:
        letters = tensors.cell.letters
        blocks = [letters.index(gate) for gate in stage.gates] or [0]
        gates = range(blocks[0], blocks[-1] + 1)
        how = (tensors, precision, stage.matrix, gates)
        return packed(self.device, *how, transposed=transposed)

    def _shared(self, run: ForwardRun, plan: _Plan, directions: int) -> dict[str, Argument]:
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

    def _start(self, plan: _Plan, batch: Batch, arguments: list[Argument]) -> None:
        """Launch; and count the meetings, from which the next launch goes on."""
        plan.kernel(plan.launch, *arguments)
        blocks, directions, _ = plan.launch.grid
        if blocks > 1:
            met = blocks * (1 + batch.longest * plan.meetings)
            for d in range(directions):
                self._met[d] = (self._met[d] + met) % (1 << 32)

    def _plan(
        self, name: str, run: ForwardRun, directions: int, make: Callable[..., _Plan]
    ) -> _Plan:
        """The plan for a size, made once."""
        key = (name, run.schedule, run.batch.N, directions)
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = make(run, directions)
        return found

    def _forward_plan(self, run: ForwardRun, directions: int) -> _Plan:
        cell, schedule, N = run.tensors.cell, run.schedule, run.batch.N
        rows = self._rows(N, self.precision)
        P8, H8 = padded(cell.output_size), padded(cell.hidden_size)
        source = forward.source(cell, schedule, self.precision, rows)
        kernel = self._kernel(source, forward.NAME)
        gates = max(max(1, len(phase.stage.gates)) for phase in schedule.phases)
        launch = self._launch(kernel, run, directions, rows, gates, max(P8, H8))
        scratch = forward.scratch_bytes(schedule, self.precision, N, P8, H8)
        return _Plan(kernel, launch, scratch, len(schedule.phases))

    def _backward_plan(self, run: ForwardRun, directions: int) -> _Plan:
        cell, schedule, N = run.tensors.cell, run.schedule, run.batch.N
        precision = self.precision.backward
        rows = self._rows(N, precision)
        P8, H8 = padded(cell.output_size), padded(cell.hidden_size)
        source = backward.source(cell, schedule, precision, rows)
        kernel = self._kernel(source, backward.NAME)
        longest = max(len(stage.gates) * H8 or P8 for stage in backward.undone(schedule))
        launch = self._launch(kernel, run, directions, rows, 1, longest)
        scratch = backward.scratch_bytes(cell, precision, N, P8, H8)
        return _Plan(kernel, launch, scratch, len(schedule.backward))

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
        warps = self.tuning.warps or max(1, min(THREADS // 32, K // SHARE))
        shared = memory_bytes(self.precision, rows, gates, warps)
        tiles = -(-run.batch.N // rows) * _columns(cell)
        one = Launch((1, directions, 1), warps * 32, shared, together=True)
        resident = min(kernel.resident(one), self.most or BLOCKS) // directions
        blocks = max(1, min(tiles, resident, self.tuning.blocks or tiles))
        return Launch((blocks, directions, 1), warps * 32, shared, together=blocks > 1)


def _columns(cell: Cell) -> int:
    """Tiles of 32 units side by side."""
    return -(-max(cell.hidden_size, cell.output_size) // 32)
