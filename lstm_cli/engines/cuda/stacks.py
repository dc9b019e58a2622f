"""Recurrent layers on top of each other, side by side: each in a lane of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lstm_cli.engines.cuda.batch import Sequences
from lstm_cli.engines.cuda.clocks import Stretch
from lstm_cli.engines.cuda.device import Device, DeviceArray, Mark
from lstm_cli.engines.cuda.gradients import input_gradient, window_gradient
from lstm_cli.engines.cuda.layers import RecurrentLayer
from lstm_cli.engines.cuda.passing import DeviceState, Passing, Returning, Tape
from lstm_cli.engines.cuda.pipelining import MOST_LAYERS, Pipeline, Pipelining, mixed, pipeline
from lstm_cli.engines.cuda.recurrence import Way
from lstm_cli.engines.cuda.windows import Window, back_over, over, windows
from lstm_cli.engines.types import (
    DropoutSpec,
    LayerGradients,
    LayerResult,
    LayerSpec,
    RecurrentSpec,
    TrainingPass,
)
from lstm_cli.errors import DeviceMemoryError

PLANS = 256
"""Sizes that are remembered."""


def parts(layers: Sequence[LayerSpec], *, training: bool) -> Iterator[list[LayerSpec]]:
    """All layers in their order: stacks that may run side by side, and others one by one.

    A stack is of recurrent layers in one direction, each of which reads all steps of the one below
    it as they are. Dropout between two is the identity but in training.
    """
    part: list[LayerSpec] = []
    for spec in layers:
        if part and not _goes_on(part, spec, training=training):
            yield from _cut(part)
            part = []
        part.append(spec)
    yield from _cut(part)


def _goes_on(part: Sequence[LayerSpec], spec: LayerSpec, *, training: bool) -> bool:
    """Whether a layer belongs to the stack below it."""
    below = next((one for one in reversed(part) if isinstance(one, RecurrentSpec)), None)
    if below is None or below.directions > 1 or not below.return_sequences:
        return False
    if isinstance(spec, DropoutSpec):
        return not training or spec.rate == 0
    return (
        isinstance(spec, RecurrentSpec) and spec.directions == 1 and not (training and spec.dropout)
    )


def _cut(part: Sequence[LayerSpec]) -> Iterator[list[LayerSpec]]:
    """A stack without what stands behind its last recurrent layer, not higher than lanes reach."""
    whole = list(part)
    behind: list[list[LayerSpec]] = []
    while len(whole) > 1 and not isinstance(whole[-1], RecurrentSpec):
        behind.insert(0, [whole.pop()])
    recurrent = sum(isinstance(spec, RecurrentSpec) for spec in whole)
    pieces = -(-recurrent // MOST_LAYERS)
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


class Stacks:
    """Runs stacks of recurrent layers.

    Parameters
    ----------
    way
        How one layer runs on the whole device.
    allowed
        When layers run side by side.
    """

    def __init__(self, device: Device, way: Way, allowed: Pipelining) -> None:
        self.device, self.way, self.allowed = device, way, allowed
        self._ways: dict[int, list[Way]] = {}
        self._plans: dict[tuple[Any, ...], Pipeline | str] = {}

    def plan(
        self,
        specs: Sequence[RecurrentSpec],
        N: int,
        T: int,
        *,
        backward: bool = False,
    ) -> Pipeline | str:
        """How a stack runs over N sequences, the longest of T steps, side by side, or why not."""
        cells = tuple(spec.cells[0] for spec in specs)
        key = (cells, N, T, backward)
        if key not in self._plans:
            if len(self._plans) >= PLANS:
                self._plans.clear()
            given = (cells, N, T, self.allowed)
            self._plans[key] = pipeline(self.way, self._own, *given, backward=backward)
        return self._plans[key]

    def forward(
        self,
        layers: Sequence[RecurrentLayer],
        x: Sequences,
        states: Sequence[DeviceState | None],
        *,
        return_gates: bool = False,
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
        passes: list[Passing] = []
        try:
            for layer, state in zip(layers, states, strict=True):
                passes.append(layer.begun(x, state, return_gates=return_gates, training=training))
                x = layer.output(passes[-1])
        except DeviceMemoryError:
            return None
        ways = self.beside(chosen)
        met = [way.hand_over(one.runs[0]) for way, one in zip(ways, passes, strict=True)]
        if mixed(met):  # a plan that cannot run, and what runs instead
            return None
        seconds = _Run(self.device, layers, ways, chosen.steps).forward(passes)
        ended = zip(layers, passes, seconds, strict=True)
        return [layer.ended(made, one) for layer, made, one in ended]

    def backward(
        self, layers: Sequence[RecurrentLayer], tapes: Sequence[Tape], d_output: Sequences
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
        if mixed(met):
            return None
        made: list[Returning] = []
        elements: list[DeviceArray | None] = []
        try:
            for layer, tape in zip(reversed(layers), reversed(tapes), strict=True):
                made.insert(0, layer.returning(tape, d_output))
                elements.insert(0, _element(layer, made[0]))
                d_output = Sequences(batch, made[0].dx)
        except DeviceMemoryError:
            return None
        _Run(self.device, layers, ways, chosen.steps).backward(made, elements)
        lowest, first = layers[0], made[0]
        input_gradient(self.device, lowest.precision, first.runs[0], first.dx, add=False)
        return [layer.returned(one) for layer, one in zip(layers, made, strict=True)]

    def beside(self, chosen: Pipeline) -> list[Way]:
        """A way for each lane, with scratch memory of its own."""
        self._own(chosen.share)
        found = self._ways[chosen.share]
        while len(found) < chosen.layers:
            found.append(self.way.beside(chosen.share))
        return found[: chosen.layers]

    def _own(self, share: int) -> Way:
        """The first of the ways for a share, by which all are planned."""
        if share not in self._ways:
            self._ways[share] = [self.way.beside(share)]
        return self._ways[share][0]


def _element(layer: RecurrentLayer, made: Returning) -> DeviceArray | None:
    """Where dz goes as products take it; None: they take it as it is, or rows of it."""
    back = layer.precision.backward
    if made.tape.x.batch.ragged:
        return None
    return layer.device.empty(made.runs[0].dz.shape, back.element) if back.narrow else None


@dataclass(eq=False)
class _Run:
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
    layers: Sequence[RecurrentLayer]
    ways: Sequence[Way]
    steps: int
    left: list[dict[int, Mark]] = field(default_factory=list)

    def forward(self, passes: Sequence[Passing]) -> list[Stretch]:
        """Start it all; each layer's time is that by which it ends after the one below."""
        cut = windows(self.device, passes[0].x.batch, self.steps)
        with self._lanes() as (begun, ends):
            for place, number in _turns(len(self.layers), len(cut)):
                self._forward(place, number, passes[place], cut[number])
        edges = [begun, *ends]
        return [Stretch("pipelined", edges[k], edges[k + 1]) for k in range(len(ends))]

    def backward(self, made: Sequence[Returning], elements: Sequence[DeviceArray | None]) -> None:
        """Start it all, from the highest layer's last window to the lowest one's first."""
        cut, count = windows(self.device, made[0].tape.x.batch, self.steps), len(self.layers)
        with self._lanes():
            for place, turn in _turns(count, len(cut)):
                k, number = count - 1 - place, len(cut) - 1 - turn
                self._backward(k, number, made[k], cut[number], elements[k])

    @contextmanager
    def _lanes(self) -> Iterator[tuple[Mark, list[Mark]]]:
        """Lanes begin behind the main one, which goes on behind them, whatever happens inside.

        Gives the marks where they begin and, later, where each ends.
        """
        begun, ends = self.device.mark(), list[Mark]()
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

    def _forward(self, k: int, number: int, made: Passing, window: Window) -> None:
        """A window of a layer, behind the same one of the layer below."""
        layer = self.layers[k]
        with self.device.lane(k + 1):
            if k:
                self.device.after(self.left[k - 1][number])
            layer.project_window(made, window)
            self.ways[k].forward([over(run, window) for run in made.runs])
            self.left[k][number] = self.device.mark()

    def _backward(
        self,
        k: int,
        number: int,
        made: Returning,
        window: Window,
        element: DeviceArray | None,
    ) -> None:
        """A window of a layer's way back, behind the same one of the layer above."""
        (run,) = made.runs
        with self.device.lane(k + 1):
            if k + 1 < len(self.layers):
                self.device.after(self.left[k + 1][number])
            self.ways[k].backward([back_over(self.device, run, window)])
            if k:  # nobody waits for the lowest one's, which are one product afterwards
                precision = self.layers[k].precision
                window_gradient(self.device, precision, run, made.dx, element, window)
            self.left[k][number] = self.device.mark()


def _turns(layers: int, windows: int) -> Iterator[tuple[int, int]]:
    """Layers and their windows as they are started: what can run at the same time together."""
    for turn in range(windows + layers - 1):
        for place in range(max(0, turn - windows + 1), min(layers, turn + 1)):
            yield place, turn - place
