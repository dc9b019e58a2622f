"""Pipelined stacks of recurrent layers, each layer in its own stream; the benefit is unmeasured.

While a layer computes one chunk of steps, the layer below computes the next chunk. In the backward
pass, the layer above computes the chunk before. A pipeline may pay if one layer leaves most of the
device idle and there are many steps. Each chunk costs a launch, a product and host time.

Cooperative blocks must be resident at the same time, and two layers must not block each other. So
with L layers and S multiprocessors, each layer may start at most S / L cooperative blocks. Then
some multiprocessor is free while any of these blocks is not running, and every block fits on it.
Three kinds of work always end: blocks that do not wait for each other, clusters, whose blocks start
together, and products. But clusters need neighboring multiprocessors. Cooperative blocks may occupy
some of these while other cooperative blocks wait behind the cluster. So a stack with both kinds is
not pipelined.
"""

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
from lstm_cli.engines.cuda.passes import BackwardPass, DeviceState, ForwardPass, RecurrentTape
from lstm_cli.engines.cuda.planning.plan import CLUSTER, GRID
from lstm_cli.engines.cuda.planning.plan_search import CHUNK_SECONDS, pipeline_seconds
from lstm_cli.engines.cuda.recurrent import Recurrent
from lstm_cli.engines.cuda.runtime.device import Device, DeviceArray, EventInterval
from lstm_cli.engines.cuda.time_chunks import (
    TimeChunk,
    backward_chunk,
    forward_chunk,
    time_chunks,
)
from lstm_cli.engines.protocols import Event
from lstm_cli.engines.types import (
    DropoutSpec,
    LayerGradients,
    LayerResult,
    LayerSpec,
    RecurrentSpec,
    TrainingPass,
)
from lstm_cli.errors import DeviceMemoryError

MAX_PIPELINE_LAYERS = 6
"""Largest number of layers per pipeline, since a GPU runs about 8 streams at a time. A higher stack
becomes several pipelines."""

MAX_TIME_CHUNKS = 64
"""Largest number of chunks per pass that a plan considers."""

MIN_SPEEDUP = 1.1
"""Modeled speedup that a pipeline needs to be chosen, since the model is rough."""

MAX_CACHED_PLANS = 256
"""Largest number of cached pipeline plans, one per stack and batch size."""


@dataclass(frozen=True)
class PipelineOptions:
    """Rules for pipelines, in place of the cost model; for tests and measurements.

    Attributes
    ----------
    mode
        ``auto``: pipelines where the cost model expects a speedup; ``always``: pipelines for every
        possible stack; ``never``: none.
    chunk_steps
        Steps per chunk; None: the model chooses.
    """

    mode: str = "auto"
    chunk_steps: int | None = None


@dataclass(frozen=True)
class PipelinePlan:
    """Sizes of a pipeline.

    Attributes
    ----------
    layers, chunks
        Number of layers, and of chunks of steps.
    chunk_steps
        Steps per chunk.
    sm_limit
        Multiprocessors that each layer may use for cooperative blocks.
    seconds, sequential_seconds
        Modeled seconds of the pipeline, and of the layers one after the other.
    """

    layers: int
    chunks: int
    chunk_steps: int
    sm_limit: int
    seconds: float
    sequential_seconds: float


def plan_pipeline(
    kernels: RecurrenceKernels,
    with_sm_limit: Callable[[int], RecurrenceKernels],
    cells: Sequence[Cell],
    N: int,
    T: int,
    options: PipelineOptions,
    *,
    backward: bool = False,
) -> PipelinePlan | str:
    """Plan a stack as a pipeline, or return the reason against it.

    Parameters
    ----------
    kernels, with_sm_limit
        Kernels for the whole device, and a function that limits them to some multiprocessors.
    cells
        Cell of each layer, from the lowest.
    N, T
        Number of sequences, and of steps of every sequence.
    """
    if options.mode == "never":
        return "no pipeline was allowed"
    if T < 2 or N < 1:
        return "one step cannot be cut in chunks"
    sm_limit = kernels.multiprocessors // len(cells)
    if sm_limit < 1:
        return "the device has fewer multiprocessors than there are layers"
    limited = with_sm_limit(sm_limit)
    steps = [limited.modeled_step(cell, N, backward=backward) for cell in cells]
    if mixes_clusters_and_grids(kind for _, kind in steps):
        return "clusters and cooperative blocks may block each other"
    slowest = max(seconds for seconds, _ in steps)
    unlimited = [kernels.modeled_step(cell, N, backward=backward) for cell in cells]
    sequential = sum(T * seconds + CHUNK_SECONDS for seconds, _ in unlimited)
    sizes = sorted({ceil(T / n) for n in _chunk_counts(T)})
    if options.chunk_steps:
        sizes = [options.chunk_steps]
    modeled = {size: pipeline_seconds(slowest, len(cells), T, size) for size in sizes}
    size = min(modeled, key=lambda size: modeled[size])
    plan = PipelinePlan(len(cells), ceil(T / size), size, sm_limit, modeled[size], sequential)
    if options.mode == "auto" and plan.seconds * MIN_SPEEDUP > sequential:
        return (
            f"one after the other is as fast: {sequential * 1e6:.0f} µs by the model, "
            f"{plan.seconds * 1e6:.0f} in {plan.chunks} chunks of {size} steps"
        )
    return plan


def mixes_clusters_and_grids(kinds: Iterable[str]) -> bool:
    """True if the kinds of exchange include both `CLUSTER` and `GRID`."""
    return {CLUSTER, GRID} <= set(kinds)


def _chunk_counts(T: int) -> range:
    return range(2, min(T, MAX_TIME_CHUNKS) + 1)


def stack_groups(layers: Sequence[LayerSpec], *, training: bool) -> Iterator[list[LayerSpec]]:
    """Group layers, in order: stacks that may be pipelined, and other layers one by one.

    A stack is a list of recurrent layers in one direction. Each reads all steps of the layer below
    unchanged. Dropout between two layers is the identity except in training.
    """
    group: list[LayerSpec] = []
    for spec in layers:
        if group and not _joins_stack(group, spec, training=training):
            yield from _split_stack(group)
            group = []
        group.append(spec)
    yield from _split_stack(group)


def _joins_stack(group: Sequence[LayerSpec], spec: LayerSpec, *, training: bool) -> bool:
    """True if a layer belongs to the stack below it."""
    below = next((one for one in reversed(group) if isinstance(one, RecurrentSpec)), None)
    if below is None or below.directions > 1 or not below.return_sequences:
        return False
    if isinstance(spec, DropoutSpec):
        return not training or spec.rate == 0
    return (
        isinstance(spec, RecurrentSpec) and spec.directions == 1 and not (training and spec.dropout)
    )


def _split_stack(group: Sequence[LayerSpec]) -> Iterator[list[LayerSpec]]:
    """Split off the layers after the last recurrent one, and split a stack that is too high."""
    stack = list(group)
    layers_after: list[list[LayerSpec]] = []
    while len(stack) > 1 and not isinstance(stack[-1], RecurrentSpec):
        layers_after.insert(0, [stack.pop()])
    recurrent = sum(isinstance(spec, RecurrentSpec) for spec in stack)
    pipelines = -(-recurrent // MAX_PIPELINE_LAYERS)
    per_pipeline, count, part = -(-recurrent // max(1, pipelines)), 0, list[LayerSpec]()
    for spec in stack:
        if count == per_pipeline and isinstance(spec, RecurrentSpec):
            yield part
            count, part = 0, []
        part.append(spec)
        count += isinstance(spec, RecurrentSpec)
    if part:
        yield part
    yield from layers_after


class PipelinedStacks:
    """Plans and runs pipelines of recurrent layers.

    Parameters
    ----------
    kernels
        Kernels of one layer on the whole device.
    options
        Rules for pipelines.
    """

    def __init__(
        self, device: Device, kernels: RecurrenceKernels, options: PipelineOptions
    ) -> None:
        self.device, self.kernels, self.options = device, kernels, options
        self._limited_kernels: dict[int, list[RecurrenceKernels]] = {}
        self._plans: dict[tuple[Any, ...], PipelinePlan | str] = {}

    def plan(
        self,
        specs: Sequence[RecurrentSpec],
        N: int,
        T: int,
        *,
        backward: bool = False,
    ) -> PipelinePlan | str:
        """Plan a stack over N sequences of at most T steps, or return the reason against it."""
        cells = tuple(spec.cells[0] for spec in specs)
        key = (cells, N, T, backward)
        if key not in self._plans:
            if len(self._plans) >= MAX_CACHED_PLANS:
                self._plans.clear()
            self._plans[key] = plan_pipeline(
                self.kernels, self._limited, cells, N, T, self.options, backward=backward
            )
        return self._plans[key]

    def forward(
        self,
        layers: Sequence[Recurrent],
        x: PackedSequences,
        states: Sequence[DeviceState | None],
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> list[LayerResult[DeviceArray, PackedSequences]] | None:
        """Result of each layer; None if the layers must run one after the other.

        A pipeline allocates the arrays of all layers at once. If memory is too small for that, it
        may still suffice for one layer at a time.
        """
        batch, specs = x.batch, [layer.spec for layer in layers]
        plan = self.plan(specs, batch.N, batch.longest)
        if isinstance(plan, str):
            return None
        passes: list[ForwardPass] = []
        try:
            for layer, state in zip(layers, states, strict=True):
                passes.append(
                    layer.allocate_forward(x, state, return_gates=return_gates, training=training)
                )
                x = layer.step_output(passes[-1])
        except DeviceMemoryError:
            return None
        kernels = self.stream_kernels(plan)
        kinds = [one.exchange_kind(p.runs[0]) for one, p in zip(kernels, passes, strict=True)]
        if mixes_clusters_and_grids(kinds):  # a fallback kernel replaces a plan that cannot run
            return None
        timings = _PipelineRun(self.device, layers, kernels, plan.chunk_steps).forward(passes)
        return [
            layer.finish_forward(layer_pass, timing)
            for layer, layer_pass, timing in zip(layers, passes, timings, strict=True)
        ]

    def backward(
        self,
        layers: Sequence[Recurrent],
        tapes: Sequence[RecurrentTape],
        d_output: PackedSequences,
    ) -> list[LayerGradients[DeviceArray, PackedSequences]] | None:
        """Derivatives through each layer; None if the layers must run one after the other."""
        batch, specs = tapes[0].x.batch, [layer.spec for layer in layers]
        plan = self.plan(specs, batch.N, batch.longest, backward=True)
        if isinstance(plan, str):
            return None
        kernels = self.stream_kernels(plan)
        kinds = [
            one.exchange_kind(tape.runs[0], backward=True)
            for one, tape in zip(kernels, tapes, strict=True)
        ]
        if mixes_clusters_and_grids(kinds):
            return None
        passes: list[BackwardPass] = []
        dz_operands: list[DeviceArray | None] = []
        try:
            for layer, tape in zip(reversed(layers), reversed(tapes), strict=True):
                passes.insert(0, layer.allocate_backward(tape, d_output))
                dz_operands.insert(0, _operand_buffer(layer, passes[0]))
                d_output = PackedSequences(batch, passes[0].dx)
        except DeviceMemoryError:
            return None
        run = _PipelineRun(self.device, layers, kernels, plan.chunk_steps)
        run.backward(passes, dz_operands)
        lowest = passes[0]
        input_gradient(self.device, layers[0].precision, lowest.runs[0], lowest.dx, add=False)
        return [layer.finish_backward(one) for layer, one in zip(layers, passes, strict=True)]

    def stream_kernels(self, plan: PipelinePlan) -> list[RecurrenceKernels]:
        """Kernels for the stream of each layer; each stream has its own scratch memory."""
        self._limited(plan.sm_limit)
        kernels = self._limited_kernels[plan.sm_limit]
        while len(kernels) < plan.layers:
            kernels.append(self.kernels.with_sm_limit(plan.sm_limit))
        return kernels[: plan.layers]

    def _limited(self, sm_limit: int) -> RecurrenceKernels:
        """Kernels limited to `sm_limit` multiprocessors, used for planning."""
        if sm_limit not in self._limited_kernels:
            self._limited_kernels[sm_limit] = [self.kernels.with_sm_limit(sm_limit)]
        return self._limited_kernels[sm_limit][0]


def _operand_buffer(layer: Recurrent, layer_pass: BackwardPass) -> DeviceArray | None:
    """Buffer for dz in the operand type; None if products take dz itself, or gathered rows."""
    backward_precision = layer.precision.backward
    if layer_pass.tape.x.batch.ragged:
        return None
    return (
        layer.device.empty(layer_pass.runs[0].dz.shape, backward_precision.operand)
        if backward_precision.narrow
        else None
    )


@dataclass(eq=False)
class _PipelineRun:
    """A forward or backward pass of a stack, chunk by chunk.

    Attributes
    ----------
    kernels
        Kernels of each layer, for its stream.
    chunk_steps
        Steps per chunk.
    chunk_events
        By layer and chunk, an event after the chunk's work.
    """

    device: Device
    layers: Sequence[Recurrent]
    kernels: Sequence[RecurrenceKernels]
    chunk_steps: int
    chunk_events: list[dict[int, Event]] = field(default_factory=list)

    def forward(self, passes: Sequence[ForwardPass]) -> list[EventInterval]:
        """Start all chunks; a layer's time is what it adds to the time of the layers below."""
        chunks = time_chunks(self.device, passes[0].x.batch, self.chunk_steps)
        with self._streams() as (start, ends):
            for k, number in _launch_order(len(self.layers), len(chunks)):
                self._forward(k, number, passes[k], chunks[number])
        edges = [start, *ends]
        return [EventInterval("pipelined", edges[k], edges[k + 1]) for k in range(len(ends))]

    def backward(
        self, passes: Sequence[BackwardPass], dz_operands: Sequence[DeviceArray | None]
    ) -> None:
        """Start all chunks, from the highest layer's last chunk to the lowest layer's first."""
        chunks = time_chunks(self.device, passes[0].tape.x.batch, self.chunk_steps)
        count = len(self.layers)
        with self._streams():
            for from_top, from_end in _launch_order(count, len(chunks)):
                k, number = count - 1 - from_top, len(chunks) - 1 - from_end
                self._backward(k, number, passes[k], chunks[number], dz_operands[k])

    @contextmanager
    def _streams(self) -> Iterator[tuple[Event, list[Event]]]:
        """Context of the streams. The main stream waits for them at its end, even after an error.

        Yields the event at the start, and a list to which the end appends each stream's last event.
        """
        start, ends = self.device.record_event(), list[Event]()
        self.chunk_events = [{} for _ in self.layers]
        streams = range(1, len(self.layers) + 1)
        for stream in streams:
            with self.device.use_stream(stream):
                self.device.wait_event(start)
        try:
            yield start, ends
        finally:
            for stream in streams:
                with self.device.use_stream(stream):
                    ends.append(self.device.record_event())
                self.device.wait_event(ends[-1])

    def _forward(self, k: int, number: int, layer_pass: ForwardPass, chunk: TimeChunk) -> None:
        """Start a chunk of layer k after the same chunk of the layer below."""
        layer = self.layers[k]
        with self.device.use_stream(k + 1):
            if k:
                self.device.wait_event(self.chunk_events[k - 1][number])
            layer.project_chunk(layer_pass, chunk)
            self.kernels[k].forward([forward_chunk(run, chunk) for run in layer_pass.runs])
            self.chunk_events[k][number] = self.device.record_event()

    def _backward(
        self,
        k: int,
        number: int,
        layer_pass: BackwardPass,
        chunk: TimeChunk,
        dz_operand: DeviceArray | None,
    ) -> None:
        """Start a backward chunk of layer k after the same chunk of the layer above."""
        (run,) = layer_pass.runs
        with self.device.use_stream(k + 1):
            if k + 1 < len(self.layers):
                self.device.wait_event(self.chunk_events[k + 1][number])
            self.kernels[k].backward([backward_chunk(self.device, run, chunk)])
            if k:  # the lowest layer's input gradient is one product afterwards
                precision = self.layers[k].precision
                chunk_input_gradient(self.device, precision, run, layer_pass.dx, dz_operand, chunk)
            self.chunk_events[k][number] = self.device.record_event()


def _launch_order(layers: int, chunks: int) -> Iterator[tuple[int, int]]:
    """Pairs of layer and chunk in launch order; pairs that can run concurrently are adjacent."""
    for diagonal in range(chunks + layers - 1):
        for k in range(max(0, diagonal - chunks + 1), min(layers, diagonal + 1)):
            yield k, diagonal - k
