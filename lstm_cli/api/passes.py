"""Batches through a model: read, sent and brought back beside what a GPU computes.

While the GPU computes one batch, the next is on its way there and the one before on its way
back. Where its memory is short, batches go through it in halves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from lstm_cli.api.model import Model
from lstm_cli.api.returning import Coming, Returned
from lstm_cli.api.timing import Stopwatch
from lstm_cli.data import Allocator, Batch
from lstm_cli.engines.setup import setup_seconds
from lstm_cli.engines.types import array_dtype
from lstm_cli.errors import DeviceMemoryError, counted
from lstm_cli.network.results import Result

MARGIN = 0.9
"""Of the memory that is free, what a batch that is said to fit may need."""


class Passes:
    """Forward passes of a run.

    Parameters
    ----------
    model
        What runs.
    watch
        Gathers what reading and copies took.
    halve
        Go on with smaller batches where the device's memory is too small.
    logits
        The results' logits will be asked for.

    Attributes
    ----------
    notes
        What a user should know of it.
    """

    def __init__(
        self, model: Model, watch: Stopwatch, *, halve: bool, logits: bool = False
    ) -> None:
        self.notes: list[str] = []
        self._model, self._watch, self._halve, self._logits = model, watch, halve, logits
        self._most: int | None = None
        self._coming: Coming | None = None
        hardware = getattr(model.network.engine, "hardware", None)
        self._device: Any = hardware
        self._stager: Any = None
        if hardware is not None:
            from lstm_cli.engines.cuda.staging import Stager

            self._stager = Stager(hardware, array_dtype(model.network.engine))

    def ahead(
        self, read: Callable[[Allocator], Iterator[Batch]]
    ) -> Generator[tuple[Batch, Any], None, None]:
        """Every batch; for a GPU the next one is read, and sent, while this one is computed.

        Close it where a run ends early: that ends the thread that reads.

        Parameters
        ----------
        read
            Gives the batches, their inputs in the room that is handed to it.
        """
        if self._stager is None:
            batches = read(np.empty)
            while (batch := self._read(batches)) is not None:
                yield batch, None
            return
        batches = read(self._stager.room)
        with ThreadPoolExecutor(1) as reader:
            # Two are read ahead, so that one is there to be sent before the one in front computes.
            waiting = deque(reader.submit(next, batches, None) for _ in range(2))
            batch, sent, coming = self._waited(waiting.popleft()), None, None
            try:
                while batch is not None:
                    waiting.append(reader.submit(next, batches, None))
                    ready = waiting[0].done() and waiting[0].exception() is None
                    coming = self._sent(waiting[0].result()) if ready else None
                    yield batch, sent
                    batch, sent, coming = self._waited(waiting.popleft()), coming, None
            finally:  # where a run ends early, copies may still be on their way
                for left in (sent, coming):
                    if left is not None:
                        left.settle()

    def _read(self, batches: Iterator[Batch]) -> Batch | None:
        begun = perf_counter()
        batch = next(batches, None)
        if batch is not None:
            self._watch.add("read", perf_counter() - begun, nbytes=batch.nbytes)
        return batch

    def _waited(self, waiting: Future[Batch | None]) -> Batch | None:
        """A batch from the thread that reads; what counts is the time waited for it."""
        begun = perf_counter()
        batch = waiting.result()
        if batch is not None:
            self._watch.add("read", perf_counter() - begun, nbytes=batch.nbytes)
        return batch

    def _sent(self, batch: Batch | None) -> Any:
        """A batch on its way to the device; None where there is no room for two."""
        if batch is None or self._stager is None or self._most is not None:
            return None
        try:
            return self._stager.send_room(batch.x)
        except DeviceMemoryError:
            return None

    def results(
        self, batch: Batch, sent: Any, initial: Sequence[Any] | None, *, keep: bool
    ) -> Iterator[tuple[Batch, Result]]:
        """What is there once a batch is started: its results, or those of the one before.

        A batch that had to be divided gives its results in parts. `rest` gives what is left.

        Raises
        ------
        DeviceMemoryError
            The device's memory is too small, and the batch may not be divided.
        """
        rows, first = len(batch.x), 0
        while first < rows:
            stop = rows if self._most is None else min(rows, first + self._most)
            if sent is not None and stop - first < rows:  # its copy may not outlive its memory
                self._stager.arrived(sent)
                sent = None
            part, state = _rows(batch, initial, first, stop)
            started = self._started(part, sent, state, keep)
            if started is None:
                continue
            if self._coming is not None:
                self._coming.beside = True
            yield from self.rest()
            self._coming = started
            if self._stager is None or keep:  # all gates of two batches may be too much
                yield from self.rest()
            first = stop

    def rest(self) -> Iterator[tuple[Batch, Result]]:
        """The results that are still on their way."""
        coming, self._coming = self._coming, None
        if coming is not None:
            yield coming.batch, coming.result()

    def _started(
        self, batch: Batch, sent: Any, initial: Sequence[Any] | None, keep: bool
    ) -> Coming | None:
        """A batch whose pass was started; None: it must be tried again with less."""
        free = None if self._device is None else self._device.memory()[0]
        try:
            return self._run(batch, sent, initial, keep)
        except DeviceMemoryError as error:
            told = self._explained(error, batch, free)
        # From here on the failed pass holds no memory any more.
        if self._coming is not None and self._coming.settle():
            return None
        if not self._halve or self._model.stateful or len(batch.x) == 1:
            raise told
        self._most = len(batch.x) // 2
        self.notes[:] = [
            "the device's memory was too small: computed at most "
            f"{counted(self._most, 'sequence')} at a time"
        ]
        return None

    def _run(self, batch: Batch, sent: Any, initial: Sequence[Any] | None, keep: bool) -> Coming:
        if self._stager is None:
            begun, before = perf_counter(), setup_seconds()
            result = self._model.run(batch.x, batch.lengths, initial, keep=keep)
            layers = sum(sum(parts.values()) for parts in result.seconds.values())
            self._watch.passed(perf_counter() - begun, before, layers)
            return Coming(batch, result)
        name = "read/host to device beside"
        if sent is None:
            sent, name = self._stager.send_room(batch.x), "host to device"
        result = self._model.run(self._stager.arrived(sent), batch.lengths, initial, keep=keep)
        copied = name, sent
        return Returned(
            batch, result, copied, self._model.network.engine, self._watch, self._logits
        )

    def _explained(
        self, error: DeviceMemoryError, batch: Batch, free: int | None
    ) -> DeviceMemoryError:
        """The error, with what the whole batch needs and what batch would fit."""
        rows, steps = batch.x.shape[:2]
        before = error.free if free is None else max(free, error.free)
        needed = error.needed + before - error.free
        fits = max(1, min(rows // 2, int(MARGIN * rows * before / max(needed, 1))))
        hint = f"--batch-size {fits}, or --batch-size auto"
        if rows == 1:
            hint = "shorter sequences, a smaller network, or --device cpu"
        elif self._model.stateful:
            hint = f"--batch-size {fits}; batches of a stateful network are never divided"
        purpose = f"a batch of {counted(rows, 'sequence')} of up to {counted(steps, 'step')}"
        return DeviceMemoryError(needed, before, error.total, purpose=purpose, hint=hint)


def _rows(
    batch: Batch, initial: Sequence[Any] | None, first: int, stop: int
) -> tuple[Batch, Sequence[Any] | None]:
    """Some rows of a batch, and of its initial states."""
    if (first, stop) == (0, len(batch.x)):
        return batch, initial
    cut = slice(first, stop)
    part = replace(
        batch,
        x=batch.x[cut],
        lengths=None if batch.lengths is None else batch.lengths[cut],
        targets=None if batch.targets is None else batch.targets[cut],
        has_target=None if batch.has_target is None else batch.has_target[cut],
        first=batch.first + first,
        nbytes=0,
    )
    if initial is None:
        return part, None
    return part, [(h[cut], None if c is None else c[cut]) for h, c in initial]
