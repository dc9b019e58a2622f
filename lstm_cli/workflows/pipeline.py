"""Batches through an engine: read ahead, computed, and copied back while the next one is computed.

`ForwardPipeline` serves forward passes, `PrefetchingSource` training. The engine's `Feed` says
whether copies run beside computing. Where an accelerator's memory is short, batches are divided.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from time import perf_counter
from typing import Any, Self

from lstm_cli.data import Allocator, Batch
from lstm_cli.engines.feed import Feed, Upload
from lstm_cli.engines.setup_time import setup_seconds
from lstm_cli.engines.types import Array, EngineArray, State
from lstm_cli.errors import DeviceMemoryError, counted
from lstm_cli.network.results import Result, converted_gates
from lstm_cli.training.interfaces import TrainingBatch
from lstm_cli.workflows.model import Model
from lstm_cli.workflows.timing import COPY_BACK, OVERLAPPED_COPY_BACK, Stopwatch
from lstm_cli.workflows.train.training_data import DataPlaces, DatasetSource

MARGIN = 0.9
"""Share of the free memory that a proposed batch size may use."""


class ForwardPipeline:
    """Forward passes over batches.

    Parameters
    ----------
    model
        Model that runs.
    watch
        Stopwatch that gathers the times of reading and copying.
    halve
        Divide batches where the engine's memory is too small.
    logits
        Copy the results' logits back too.

    Attributes
    ----------
    notes
        Notes for the user.
    """

    def __init__(
        self, model: Model, watch: Stopwatch, *, halve: bool, logits: bool = False
    ) -> None:
        self.notes: list[str] = []
        self._model, self._watch, self._halve, self._logits = model, watch, halve, logits
        self._row_limit: int | None = None
        self._pending: PendingResult | None = None
        self._feed: Feed = model.network.engine.feed()

    def batches(
        self, read: Callable[[Allocator], Iterator[Batch]]
    ) -> Generator[tuple[Batch, Upload | None], None, None]:
        """Yield every batch, and its upload if one was started; see `Feed.read`.

        Parameters
        ----------
        read
            Function that yields the batches; it stores their inputs in memory from the allocator
            that it gets.
        """
        batches = read(self._feed.allocate)
        ahead = self._feed.read(repeat(partial(next, batches, None)), self._upload)
        try:
            while True:
                start = perf_counter()
                if (pair := next(ahead, None)) is None:
                    return
                self._watch.add("read", perf_counter() - start, nbytes=pair[0].nbytes)
                yield pair
        finally:
            ahead.close()

    def _upload(self, batch: Batch) -> Upload | None:
        """Start the upload of a batch; None while batches are divided."""
        return self._feed.upload_allocated(batch.x) if self._row_limit is None else None

    def results(
        self, batch: Batch, upload: Upload | None, initial: Sequence[Any] | None, *, keep: bool
    ) -> Iterator[tuple[Batch, Result]]:
        """Start a batch; yield results that are ready.

        On a GPU, the results belong to the previous batch. A divided batch yields its results in
        parts. `remaining` yields the last results.

        Raises
        ------
        DeviceMemoryError
            GPU memory is too small, and the batch may not be divided.
        """
        rows, first = len(batch.x), 0
        while first < rows:
            stop = rows if self._row_limit is None else min(rows, first + self._row_limit)
            if upload is not None and stop - first < rows:
                upload.ready()  # the upload may not outlive the memory it reads
                upload = None
            part, state = _rows(batch, initial, first, stop)
            pending = self._start(part, upload, state, keep)
            if pending is None:
                continue
            if self._pending is not None:
                self._pending.overlapped = True
            yield from self.remaining()
            self._pending = pending
            if not self._feed.reads_ahead or keep:  # all gates of two batches may be too much
                yield from self.remaining()
            first = stop

    def remaining(self) -> Iterator[tuple[Batch, Result]]:
        """Wait for the started batch, and yield its result."""
        pending, self._pending = self._pending, None
        if pending is not None:
            yield pending.batch, pending.result()

    def _start(
        self, batch: Batch, upload: Upload | None, initial: Sequence[Any] | None, keep: bool
    ) -> PendingResult | None:
        """Start a batch's pass; None: try again, with more free memory or fewer rows."""
        accelerator = self._model.network.engine.accelerator
        free = None if accelerator is None else accelerator.memory()[0]
        try:
            return self._run(batch, upload, initial, keep)
        except DeviceMemoryError as error:
            explained = self._explain(error, batch, free)
        # Outside of the handler, the failed pass no longer holds memory.
        if self._pending is not None and self._pending.release():
            return None
        if not self._halve or self._model.stateful or len(batch.x) == 1:
            raise explained
        self._row_limit = len(batch.x) // 2
        self.notes[:] = [
            "the device's memory was too small: computed at most "
            f"{counted(self._row_limit, 'sequence')} at a time"
        ]
        return None

    def _run(
        self, batch: Batch, upload: Upload | None, initial: Sequence[Any] | None, keep: bool
    ) -> PendingResult:
        row = "read/host to device beside"
        if upload is None:
            upload, row = self._feed.upload_allocated(batch.x), "host to device"
        x, start, before = upload.ready(), perf_counter(), setup_seconds()
        result = self._model.run(x, batch.lengths, initial, keep=keep)
        if not self._feed.reads_ahead:  # the pass is done
            layers = sum(sum(parts.values()) for parts in result.seconds.values())
            self._watch.add_pass(perf_counter() - start, before, layers)
        return PendingResult(
            batch,
            result,
            upload,
            row,
            feed=self._feed,
            to_host=self._model.network.engine.to_host,
            watch=self._watch,
            logits=self._logits,
        )

    def _explain(
        self, error: DeviceMemoryError, batch: Batch, free: int | None
    ) -> DeviceMemoryError:
        """Return an error with the memory that the batch needs, and a batch size that fits."""
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
    """Return some rows of a batch, and of its initial states."""
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


class PendingResult:
    """A batch whose pass was started, and the copies of its results to NumPy's memory.

    Parameters
    ----------
    batch, result
        The batch, and the result of its pass in the engine's memory.
    upload, row
        Upload of the inputs, and the row of the table of timings that it counts in.
    feed, to_host
        Copies of arrays that start now, and of gates when they are read.
    watch
        Stopwatch that gathers the times of the copies.
    logits
        Copy the logits back too.

    Attributes
    ----------
    overlapped
        True if the next batch was started before the result was read.
    """

    def __init__(
        self,
        batch: Batch,
        result: Result,
        upload: Upload,
        row: str,
        *,
        feed: Feed,
        to_host: Callable[[EngineArray], Array],
        watch: Stopwatch,
        logits: bool,
    ) -> None:
        self.batch, self._result, self.overlapped = batch, result, False
        self._upload, self._row, self._to_host, self._watch = upload, row, to_host, watch
        self._has_logits = logits and result.logits is not None
        self._released = False
        arrays: list[EngineArray] = [result.outputs, *_arrays(result.state)]
        arrays += [result.logits] if self._has_logits else []
        self._copies = feed.download(arrays)

    def result(self) -> Result:
        """Wait for the copies; return the result in NumPy's memory."""
        self.release()
        return self._result

    def release(self) -> bool:
        """Wait for the copies and release the engine's memory; False if that was done before."""
        if self._released:
            return False
        self._released = True
        outputs, *others = self._copies.wait()
        self._watch.add(self._row, self._upload.seconds, nbytes=self.batch.x.nbytes)
        nbytes = sum(array.nbytes for array in (outputs, *others))
        row = OVERLAPPED_COPY_BACK if self.overlapped else COPY_BACK
        self._watch.add(row, self._copies.seconds, nbytes=nbytes)
        logits = others.pop() if self._has_logits else None
        computed = self._result
        self._result = Result(
            outputs,
            list(_states(computed.state, iter(others))),
            {index: converted_gates(kept, self._to_host) for index, kept in computed.kept.items()},
            computed.seconds,
            lambda: logits,
        )
        return True


def _arrays(states: list[State]) -> list[Any]:
    return [array for state in states for array in state if array is not None]


def _states(like: list[State], arrays: Iterator[Any]) -> Iterator[State]:
    for _, c in like:
        yield next(arrays), None if c is None else next(arrays)


class PrefetchingSource:
    """A source of training data that reads a batch ahead where that pays; see `Feed.read`.

    It is a context manager. Leaving the context ends the thread that reads. A finalizer cannot:
    the garbage collector may run it in that very thread.

    Parameters
    ----------
    source
        Source that is read.
    feed
        Feed of the engine that learns.
    """

    def __init__(self, source: DatasetSource, feed: Feed) -> None:
        self._source, self._feed = source, feed
        self._order: Sequence[Array] = ()
        self._next = 0
        self._batches: Generator[tuple[TrainingBatch, Upload | None], None, None] | None = None

    @property
    def places(self) -> DataPlaces:
        """Names of places in the dataset."""
        return self._source.places

    def order(self, epoch: int) -> Sequence[Array]:
        """Return every batch of an epoch, as numbers of sequences."""
        self._stop_reading()
        self._order, self._next = self._source.order(epoch), 0
        return self._order

    def read(self, numbers: Array) -> TrainingBatch:
        """Return one batch of the order, with its inputs in the engine's memory if they fit.

        Raises
        ------
        DataError
            There are no targets, or a file is damaged.
        """
        k = self._next
        if self._batches is None or self._order[k] is not numbers:
            k = next(k for k, other in enumerate(self._order) if other is numbers)
            self._stop_reading()
            reads = [partial(self._source.read, other) for other in self._order[k:]]
            self._batches = self._feed.read(reads, lambda batch: self._feed.upload(batch.x))
        batch, upload = next(self._batches)
        self._next = k + 1
        return batch if upload is None else replace(batch, x=upload.ready())

    def raw(self, values: Array) -> Array:
        """Return outputs or targets in the units of the data."""
        return self._source.raw(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Discard a batch that was read ahead, if training ended early, and end the thread."""
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._batches is not None:
            self._batches.close()
        self._batches = None
