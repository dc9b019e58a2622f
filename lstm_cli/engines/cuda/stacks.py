"""Recurrent layers on top of each other, side by side: each in a lane of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.batch import PackedSequences
from lstm_cli.engines.cuda.gradients import chunk_input_gradient, input_gradient
from lstm_cli.engines.cuda.kernels import RecurrenceKernels
from lstm_cli.engines.cuda.layers import PreparedRecurrent
from lstm_cli.engines.cuda.passes import (
    BackwardPass,
    DeviceState,
    ForwardPass,
    RecurrentTape,
)
from lstm_cli.engines.cuda.planning import plan_search as costs
from lstm_cli.engines.cuda.planning.plan import CLUSTER, GRID
from lstm_cli.engines.cuda.runtime.device import Device, DeviceArray, Event, EventInterval
from lstm_cli.engines.cuda.time_chunks import TimeChunk, backward_chunk, forward_chunk, time_chunks
from lstm_cli.engines.types import (
    DropoutSpec,
    LayerGradients,
    LayerResult,
    LayerSpec,
    RecurrentSpec,
    TrainingPass,
)
from lstm_cli.errors import DeviceMemoryError

MAX_CACHED_PLANS = 256
"""Sizes that are remembered."""


def stack_groups(layers: Sequence[LayerSpec], *, training: bool) -> Iterator[list[LayerSpec]]:
    """All layers in their order: stacks that may run side by side, and others one by one.

    A stack is of recurrent layers in one direction, each of which reads all steps of the one below
    it as they are. Dropout between two is the identity but in training.
    """
    part: list[LayerSpec] = []
    for spec in layers:
        if part and not _joins_stack(part, spec, training=training):
            yield from _split_stack(part)
            part = []
        part.append(spec)
    yield from _split_stack(part)


def _joins_stack(part: Sequence[LayerSpec], spec: LayerSpec, *, training: bool) -> bool:
    """Whether a layer belongs to the stack below it."""
    below = next((one for one in reversed(part) if isinstance(one, RecurrentSpec)), None)
    if below is None or below.directions > 1 or not below.return_sequences:
        return False
    if isinstance(spec, DropoutSpec):
        return not training or spec.rate == 0
    return (
        isinstance(spec, RecurrentSpec) and spec.directions == 1 and not (training and spec.dropout)
    )


def _split_stack(part: Sequence[LayerSpec]) -> Iterator[list[LayerSpec]]:
    """A stack without what stands behind its last recurrent layer, not higher than lanes reach."""
    whole = list(part)
    behind: list[list[LayerSpec]] = []
    while len(whole) > 1 and not isinstance(whole[-1], RecurrentSpec):
        behind.insert(0, [whole.pop()])
    recurrent = sum(isinstance(spec, RecurrentSpec) for spec in whole)
    pieces = -(-recurrent // MAX_PIPELINE_LAYERS)
    most, count, piece = -(-recurrent // max(1, pieces)), 0, list[LayerSpec]()
    for spec in whole:
        if count == most and isinstance(spec, RecurrentSpec):
            yield piece
            count, piece = 0, []
        piece.append(spec)
        count += isinstance(spec, RecurrentSpec)
    if piece:
        yield piece
    yield from behind


class PipelinedStacks:
    """Runs stacks of recurrent layers.

    Parameters
    ----------
    way
        How one layer runs on the whole device.
    allowed
        When layers run side by side.
    """

    def __init__(self, device: Device, way: RecurrenceKernels, allowed: PipelineOptions) -> None:
        self.device, self.way, self.allowed = device, way, allowed
        self._ways: dict[int, list[RecurrenceKernels]] = {}
        self._plans: dict[tuple[Any, ...], PipelinePlan | str] = {}

    def plan(
        self,
        specs: Sequence[RecurrentSpec],
        N: int,
        T: int,
        *,
        backward: bool = False,
    ) -> PipelinePlan | str:
        """How a stack runs over N sequences, the longest of T steps, side by side, or why not."""
        cells = tuple(spec.cells[0] for spec in specs)
        key = (cells, N, T, backward)
        if key not in self._plans:
            if len(self._plans) >= MAX_CACHED_PLANS:
                self._plans.clear()
            given = (cells, N, T, self.allowed)
            self._plans[key] = plan_pipeline(self.way, self._own, *given, backward=backward)
        return self._plans[key]

    def forward(
        self,
        layers: Sequence[PreparedRecurrent],
        x: PackedSequences,
        states: Sequence[DeviceState | None],
        *,
        keep: bool = False,
        training: TrainingPass | None = None,
    ) -> list[LayerResult] | None:
        """What each layer gives; None: they are to run one after the other.

        All layers' arrays are there at once. Where there is no room for that, there may be for one
        layer's.
        """
        batch, specs = x.batch, [layer.spec for layer in layers]
        chosen = self.plan(specs, batch.N, batch.longest)
        if isinstance(chosen, str):
            return None
        passes: list[ForwardPass] = []
        try:
            for layer, state in zip(layers, states, strict=True):
                passes.append(layer.begun(x, state, keep=keep, training=training))
                x = layer.output(passes[-1])
        except DeviceMemoryError:
            return None
        ways = self.beside(chosen)
        met = [way.hand_over(one.runs[0]) for way, one in zip(ways, passes, strict=True)]
        if mixes_clusters_and_grids(met):  # a plan that cannot run, and what runs instead
            return None
        seconds = _PipelineRun(self.device, layers, ways, chosen.steps).forward(passes)
        ended = zip(layers, passes, seconds, strict=True)
        return [layer.ended(made, one) for layer, made, one in ended]

    def backward(
        self,
        layers: Sequence[PreparedRecurrent],
        tapes: Sequence[RecurrentTape],
        d_output: PackedSequences,
    ) -> list[LayerGradients] | None:
        """Derivatives through each layer; None: they are to run one after the other."""
        batch, specs = tapes[0].x.batch, [layer.spec for layer in layers]
        chosen = self.plan(specs, batch.N, batch.longest, backward=True)
        if isinstance(chosen, str):
            return None
        ways = self.beside(chosen)
        met = [
            way.hand_over(tape.runs[0], backward=True)
            for way, tape in zip(ways, tapes, strict=True)
        ]
        if mixes_clusters_and_grids(met):
            return None
        made: list[BackwardPass] = []
        elements: list[DeviceArray | None] = []
        try:
            for layer, tape in zip(reversed(layers), reversed(tapes), strict=True):
                made.insert(0, layer.returning(tape, d_output))
                elements.insert(0, _operand_buffer(layer, made[0]))
                d_output = PackedSequences(batch, made[0].dx)
        except DeviceMemoryError:
            return None
        _PipelineRun(self.device, layers, ways, chosen.steps).backward(made, elements)
        lowest, first = layers[0], made[0]
        input_gradient(self.device, lowest.precision, first.runs[0], first.dx, add=False)
        return [layer.returned(one) for layer, one in zip(layers, made, strict=True)]

    def beside(self, chosen: PipelinePlan) -> list[RecurrenceKernels]:
        """A way for each lane, with scratch memory of its own."""
        self._own(chosen.share)
        found = self._ways[chosen.share]
        while len(found) < chosen.layers:
            found.append(self.way.beside(chosen.share))
        return found[: chosen.layers]

    def _own(self, share: int) -> RecurrenceKernels:
        """The first of the ways for a share, by which all are planned."""
        if share not in self._ways:
            self._ways[share] = [self.way.beside(share)]
        return self._ways[share][0]


def _operand_buffer(layer: PreparedRecurrent, made: BackwardPass) -> DeviceArray | None:
    """Where dz goes as products take it; None: they take it as it is, or rows of it."""
    back = layer.precision.backward
    if made.tape.x.batch.ragged:
        return None
    return layer.device.empty(made.runs[0].dz.shape, back.element) if back.narrow else None


@dataclass(eq=False)
class _PipelineRun:
    """A pass of a stack, or its way back, window by window.

    Attributes
    ----------
    ways
        Of each layer, in its lane.
    steps
        Of a window.
    left
        By layer, a mark behind every window that is done.
    """

    device: Device
    layers: Sequence[PreparedRecurrent]
    ways: Sequence[RecurrenceKernels]
    steps: int
    left: list[dict[int, Event]] = field(default_factory=list)

    def forward(self, passes: Sequence[ForwardPass]) -> list[EventInterval]:
        """Start it all; each layer's time is that by which it ends after the one below."""
        cut = time_chunks(self.device, passes[0].x.batch, self.steps)
        with self._lanes() as (begun, ends):
            for place, number in _launch_order(len(self.layers), len(cut)):
                self._forward(place, number, passes[place], cut[number])
        edges = [begun, *ends]
        return [EventInterval("pipelined", edges[k], edges[k + 1]) for k in range(len(ends))]

    def backward(
        self, made: Sequence[BackwardPass], elements: Sequence[DeviceArray | None]
    ) -> None:
        """Start it all, from the highest layer's last window to the lowest one's first."""
        cut, count = time_chunks(self.device, made[0].tape.x.batch, self.steps), len(self.layers)
        with self._lanes():
            for place, turn in _launch_order(count, len(cut)):
                k, number = count - 1 - place, len(cut) - 1 - turn
                self._backward(k, number, made[k], cut[number], elements[k])

    @contextmanager
    def _lanes(self) -> Iterator[tuple[Event, list[Event]]]:
        """Lanes begin behind the main one, which goes on behind them, whatever happens inside.

        Gives the marks where they begin and, later, where each ends.
        """
        begun, ends = self.device.mark(), list[Event]()
        self.left = [{} for _ in self.layers]
        lanes = range(1, len(self.layers) + 1)
        for lane in lanes:
            with self.device.lane(lane):
                self.device.after(begun)
        try:
            yield begun, ends
        finally:
            for lane in lanes:
                with self.device.lane(lane):
                    ends.append(self.device.mark())
                self.device.after(ends[-1])

    def _forward(self, k: int, number: int, made: ForwardPass, window: TimeChunk) -> None:
        """A window of a layer, behind the same one of the layer below."""
        layer = self.layers[k]
        with self.device.lane(k + 1):
            if k:
                self.device.after(self.left[k - 1][number])
            layer.project_window(made, window)
            self.ways[k].forward([forward_chunk(run, window) for run in made.runs])
            self.left[k][number] = self.device.mark()

    def _backward(
        self,
        k: int,
        number: int,
        made: BackwardPass,
        window: TimeChunk,
        element: DeviceArray | None,
    ) -> None:
        """A window of a layer's way back, behind the same one of the layer above."""
        (run,) = made.runs
        with self.device.lane(k + 1):
            if k + 1 < len(self.layers):
                self.device.after(self.left[k + 1][number])
            self.ways[k].backward([backward_chunk(self.device, run, window)])
            if k:  # nobody waits for the lowest one's, which are one product afterwards
                precision = self.layers[k].precision
                chunk_input_gradient(self.device, precision, run, made.dx, element, window)
            self.left[k][number] = self.device.mark()


def _launch_order(layers: int, time_chunks: int) -> Iterator[tuple[int, int]]:
    """Layers and their windows as they are started: what can run at the same time together."""
    for turn in range(time_chunks + layers - 1):
        for place in range(max(0, turn - time_chunks + 1), min(layers, turn + 1)):
            yield place, turn - place


# MERGED pipelining: """Whether recurrent layers on top of each other run side by side, and in which windows of steps.  While a layer computes a window, the one below it computes the next; on the way back, the one above it does. That pays where a layer leaves most of the device idle and there are many steps; each window costs a launch, a product of its own, and time of the host.  Blocks that wait for one another across the grid have to be on the device together, and those of two layers must not keep each other off it. So each of L layers gets a share, an L-th of all multiprocessors, and starts no more of such blocks than that. Then some multiprocessor is empty as long as one of them is not running, for blocks that run are fewer than multiprocessors, and every block fits an empty one: it starts, whatever else runs. Blocks that wait for nobody, or within a cluster, which starts as a whole, end by themselves, and so do products. Clusters need neighbouring multiprocessors, though, which waiting blocks may hold in part while they wait for their turn behind the cluster: a stack that has both is not pipelined. """
MAX_PIPELINE_LAYERS = 6
"""Of a pipeline; higher stacks are several. A GPU runs work of about 8 streams at a time."""
MAX_TIME_CHUNKS = 64
MIN_SPEEDUP = 1.1
"""How much faster a pipeline has to be by the model, which is rough, to be chosen."""

PIPELINES = ("auto", "always", "never")


@dataclass(frozen=True)
class PipelineOptions:
    """What is otherwise chosen by a model; for tests and measurements.

    Attributes
    ----------
    when
        A name of `PIPELINES`: where the model says that it is faster, wherever it is possible, or
        nowhere.
    steps
        Of a window.
    """

    when: str = "auto"
    steps: int | None = None


@dataclass(frozen=True)
class PipelinePlan:
    """How layers run side by side.

    Attributes
    ----------
    layers, windows
        How many.
    steps
        Of a window.
    share
        Multiprocessors of a layer whose blocks wait for one another.
    seconds, apart
        Modelled: of the pipeline, and of the layers one after the other.
    """

    layers: int
    windows: int
    steps: int
    share: int
    seconds: float
    apart: float


def plan_pipeline(
    way: RecurrenceKernels,
    beside: Callable[[int], RecurrenceKernels],
    cells: Sequence[Cell],
    N: int,
    T: int,
    allowed: PipelineOptions,
    *,
    backward: bool = False,
) -> PipelinePlan | str:
    """How a stack of layers runs side by side, or why it does not.

    Parameters
    ----------
    way, beside
        What runs a layer on the whole device, and what runs it on so many multiprocessors.
    cells
        Of each layer, from the lowest.
    N, T
        Sequences, all of so many steps.
    """
    if allowed.when == "never":
        return "no pipeline was allowed"
    if T < 2 or N < 1:
        return "there are no windows of a step"
    share = way.multiprocessors // len(cells)
    if share < 1:
        return "the device has fewer multiprocessors than there are layers"
    own = beside(share)
    steps = [own.modelled(cell, N, backward=backward) for cell in cells]
    if mixes_clusters_and_grids(kind for _, kind in steps):
        return "clusters may keep blocks that wait across the grid off the device"
    slowest = max(seconds for seconds, _ in steps)
    whole = [way.modelled(cell, N, backward=backward) for cell in cells]
    apart = sum(T * seconds + costs.CHUNK_SECONDS for seconds, _ in whole)
    windows = [allowed.steps] if allowed.steps else sorted({ceil(T / n) for n in _chunk_counts(T)})
    modelled = {size: costs.pipeline_seconds(slowest, len(cells), T, size) for size in windows}
    size = min(modelled, key=lambda size: modelled[size])
    found = PipelinePlan(len(cells), ceil(T / size), size, share, modelled[size], apart)
    if allowed.when == "auto" and found.seconds * MIN_SPEEDUP > apart:
        return (
            f"one after the other is as fast: {apart * 1e6:.0f} µs by the model, "
            f"{found.seconds * 1e6:.0f} in {found.windows} windows of {size} steps"
        )
    return found


def mixes_clusters_and_grids(kinds: Iterable[str]) -> bool:
    """Whether clusters would run beside blocks that wait for one another across the grid."""
    return {CLUSTER, GRID} <= set(kinds)


def _chunk_counts(T: int) -> range:
    """Of windows that are worth a thought."""
    return range(2, min(T, MAX_TIME_CHUNKS) + 1)
