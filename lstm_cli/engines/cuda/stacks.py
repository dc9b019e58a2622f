"""Recurrent layers on top of each other, side by side: each in a lane of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from lstm_cli.engines.cuda.batch import Batch, Sequences
from lstm_cli.engines.cuda.clocks import Stretch
from lstm_cli.engines.cuda.device import Device, Mark
from lstm_cli.engines.cuda.layers import RecurrentLayer
from lstm_cli.engines.cuda.passing import DeviceState, Passing
from lstm_cli.engines.cuda.pipelining import MOST_LAYERS, Pipeline, Pipelining, pipeline
from lstm_cli.engines.cuda.recurrence import Way
from lstm_cli.engines.cuda.windows import over, windows
from lstm_cli.engines.types import (
    DropoutSpec,
    LayerResult,
    LayerSpec,
    RecurrentSpec,
    TrainingPass,
)
from lstm_cli.errors import DeviceMemoryError


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

    def plan(
        self, specs: Sequence[RecurrentSpec], N: int, T: int, *, ragged: bool = False
    ) -> Pipeline | str:
        """How a stack runs over N sequences of T steps side by side, or why it does not."""
        if ragged:
            return "sequences are not of one length"
        return pipeline(self.way, [spec.cells[0] for spec in specs], N, T, self.allowed)

    def forward(
        self,
        layers: Sequence[RecurrentLayer],
        x: Sequences,
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
        chosen = self.plan(specs, batch.N, batch.T, ragged=batch.ragged)
        if isinstance(chosen, str):
            return None
        passes: list[Passing] = []
        try:
            for layer, state in zip(layers, states, strict=True):
                passes.append(layer.begun(x, state, keep=keep, training=training))
                x = layer.output(passes[-1])
        except DeviceMemoryError:
            return None
        run = _Run(self.device, layers, passes, self._beside(chosen), chosen.steps)
        seconds = run.forward()
        return [
            layer.ended(made, one) for layer, made, one in zip(layers, passes, seconds, strict=True)
        ]

    def _beside(self, chosen: Pipeline) -> list[Way]:
        """A way for each lane, with scratch memory of its own."""
        found = self._ways.setdefault(chosen.share, [])
        while len(found) < chosen.layers:
            found.append(self.way.beside(chosen.share))
        return found[: chosen.layers]


@dataclass(eq=False)
class _Run:
    """Passes of a stack, window by window.

    Attributes
    ----------
    ways
        Of each layer, in its lane.
    left
        By layer, a mark behind every window that is done.
    """

    device: Device
    layers: Sequence[RecurrentLayer]
    passes: Sequence[Passing]
    ways: Sequence[Way]
    steps: int
    left: list[list[Mark]] = field(default_factory=list)

    def forward(self) -> list[Stretch]:
        """Start it all; each layer's time is that by which it ends after the one below."""
        count = len(self.layers)
        cut = windows(self.device, self.passes[0].x.batch, self.steps)
        self.left = [[] for _ in range(count)]
        with self._lanes() as (begun, ends):
            for turn in range(len(cut) + count - 1):
                for k in range(max(0, turn - len(cut) + 1), min(count, turn + 1)):
                    self._forward(k, turn - k, cut[turn - k])
        edges = [begun, *ends]
        return [Stretch("pipelined", edges[k], edges[k + 1]) for k in range(count)]

    @contextmanager
    def _lanes(self) -> Iterator[tuple[Mark, list[Mark]]]:
        """Lanes begin behind the main one, which goes on behind them, whatever happens inside.

        Gives the marks where they begin and, later, where each ends.
        """
        begun, ends = self.device.mark(), list[Mark]()
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

    def _forward(self, k: int, number: int, window: Batch) -> None:
        """A window of a layer, behind the same one of the layer below."""
        layer, made = self.layers[k], self.passes[k]
        with self.device.lane(k + 1):
            if k:
                self.device.after(self.left[k - 1][number])
            layer.project_window(made, number * self.steps, window.T)
            self.ways[k].forward([over(run, window) for run in made.runs])
            self.left[k].append(self.device.mark())
