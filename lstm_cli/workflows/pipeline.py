"""Prefetch of batches and copy-back of results while a GPU computes; unmeasured benefit.

While the GPU computes one batch, the next one is uploaded, and earlier results are copied back.
Where GPU memory is short, batches are divided. `ForwardPipeline` serves forward passes,
`PrefetchingSource` training.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lstm_cli.data import Allocator, Batch
from lstm_cli.engines.setup_time import setup_seconds
from lstm_cli.engines.types import Array, State, array_dtype
from lstm_cli.errors import DeviceMemoryError, counted
from lstm_cli.network.results import Result, converted_gates
from lstm_cli.training.interfaces import TrainingBatch
from lstm_cli.workflows.model import Model
from lstm_cli.workflows.timing import COPY_BACK, OVERLAPPED_COPY_BACK, Stopwatch
from lstm_cli.workflows.train.training_data import DataPlaces, DatasetSource

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.runtime.memory import Upload, Uploader

MARGIN = 0.9
"""Share of the free memory that a proposed batch size may use."""


class ForwardPipeline:
    """Forward passes over batches, with prefetch and copy-back on a GPU.

    Parameters
    ----------
    model
        Model that runs.
    watch
        Stopwatch that gathers the times of reading and copying.
    halve
        Divide batches where GPU memory is too small.
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
        self._device: Any = getattr(model.network.engine, "hardware", None)
        self._uploader: Uploader | None = None
        if self._device is not None:
            from lstm_cli.engines.cuda.runtime.memory import Uploader

            self._uploader = Uploader(self._device, array_dtype(model.network.engine))

    def batches(
        self, read: Callable[[Allocator], Iterator[Batch]]
    ) -> Generator[tuple[Batch, Upload | None], None, None]:
        """Yield every batch, and its upload if one was started.

        For a GPU, the next batch is read and uploaded while this one is computed. Close the
        generator where a run ends early: that ends the thread that reads.

        Parameters
        ----------
        read
            Function that yields the batches; it stores their inputs in memory from the allocator
            that it gets.
        """
        if self._uploader is None:
            batches = read(np.empty)
            while (batch := self._timed(lambda: next(batches, None))) is not None:
                yield batch, None
            return
        batches = read(self._uploader.allocate_pinned)
        with ThreadPoolExecutor(1) as reader:
            # Two batches are read ahead: one can be uploaded before the previous batch computes.
            waiting = deque(reader.submit(next, batches, None) for _ in range(2))
            batch, upload, next_upload = self._timed(waiting.popleft().result), None, None
            try:
                while batch is not None:
                    waiting.append(reader.submit(next, batches, None))
                    ready = waiting[0].done() and waiting[0].exception() is None
                    next_upload = self._upload(waiting[0].result()) if ready else None
                    yield batch, upload
                    batch = self._timed(waiting.popleft().result)
                    upload, next_upload = next_upload, None
            finally:  # where a run ends early, uploads may still be running
                for unused in (upload, next_upload):
                    if unused is not None:
                        unused.discard()

    def _timed(self, read: Callable[[], Batch | None]) -> Batch | None:
        """Read a batch, or wait for the thread that reads it, and add the time to ``read``."""
        start = perf_counter()
        batch = read()
        if batch is not None:
            self._watch.add("read", perf_counter() - start, nbytes=batch.nbytes)
        return batch

    def _upload(self, batch: Batch | None) -> Upload | None:
        """Start the upload of a batch; None where GPU memory holds no second one."""
        if batch is None or self._uploader is None or self._row_limit is not None:
            return None
        try:
            return self._uploader.upload_pinned(batch.x)
        except DeviceMemoryError:
            return None

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
            if upload is not None and self._uploader is not None and stop - first < rows:
                self._uploader.wait_for(upload)  # the upload may not outlive the memory it reads
                upload = None
            part, state = _rows(batch, initial, first, stop)
            pending = self._start(part, upload, state, keep)
            if pending is None:
                continue
            if self._pending is not None:
                self._pending.overlapped = True
            yield from self.remaining()
            self._pending = pending
            if self._uploader is None or keep:  # all gates of two batches may be too much
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
        free = None if self._device is None else self._device.memory()[0]
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
        if self._uploader is None:
            start, before = perf_counter(), setup_seconds()
            result = self._model.run(batch.x, batch.lengths, initial, keep=keep)
            layers = sum(sum(parts.values()) for parts in result.seconds.values())
            self._watch.add_pass(perf_counter() - start, before, layers)
            return PendingResult(batch, result)
        row = "read/host to device beside"
        if upload is None:
            upload, row = self._uploader.upload_pinned(batch.x), "host to device"
        x = self._uploader.wait_for(upload)
        result = self._model.run(x, batch.lengths, initial, keep=keep)
        engine = self._model.network.engine
        return DeviceResult(batch, result, upload, row, engine, self._watch, self._logits)

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
    """A batch whose pass was started; on a CPU, its result is ready at once.

    Attributes
    ----------
    batch
        The batch.
    overlapped
        True if the next batch was started before the result was read.
    """

    def __init__(self, batch: Batch, result: Result) -> None:
        self.batch, self._result, self.overlapped = batch, result, False

    def result(self) -> Result:
        """Return the result in host memory."""
        return self._result

    def release(self) -> bool:
        """Release GPU memory; True if the result held any."""
        return False


class DeviceResult(PendingResult):
    """A batch that a GPU computes; its results are copied back while the next one is computed.

    Parameters
    ----------
    batch, result
        The batch, and the result of its pass in GPU memory.
    upload, row
        Upload of the inputs, and the row of the table of timings that it counts in.
    engine
        Engine that computes.
    watch
        Stopwatch that gathers the times of the copies.
    logits
        Copy the logits back too.
    """

    def __init__(
        self,
        batch: Batch,
        result: Result,
        upload: Upload,
        row: str,
        engine: Any,
        watch: Stopwatch,
        logits: bool,
    ) -> None:
        from lstm_cli.engines.cuda.runtime.memory import Download

        super().__init__(batch, result)
        self._upload, self._row, self._engine, self._watch = upload, row, engine, watch
        self._has_logits = logits and result.logits is not None
        self._released = False
        arrays: list[Any] = [result.outputs, *_arrays(result.state)]
        arrays += [result.logits] if self._has_logits else []
        self._copies = Download(engine.hardware, arrays)

    def result(self) -> Result:
        """Wait for the copies; return the result in host memory."""
        self.release()
        return self._result

    def release(self) -> bool:
        """Wait for the copies and release GPU memory; True if the result held any."""
        if self._released:
            return False
        self._released = True
        outputs, *others = self._copies.wait()
        self._watch.add(self._row, self._upload.seconds, nbytes=self.batch.x.nbytes)
        nbytes = sum(array.nbytes for array in (outputs, *others))
        row = OVERLAPPED_COPY_BACK if self.overlapped else COPY_BACK
        self._watch.add(row, self._copies.seconds, nbytes=nbytes)
        logits = others.pop() if self._has_logits else None
        to_host, on_device = self._engine.to_host, self._result
        self._result = Result(
            outputs,
            list(_states(on_device.state, iter(others))),
            {index: converted_gates(kept, to_host) for index, kept in on_device.kept.items()},
            on_device.seconds,
            lambda: logits,
        )
        return True


def _arrays(states: list[State]) -> list[Any]:
    return [array for state in states for array in state if array is not None]


def _states(like: list[State], arrays: Iterator[Any]) -> Iterator[State]:
    for _, c in like:
        yield next(arrays), None if c is None else next(arrays)


class PrefetchingSource:
    """A source of training data that uploads the next batch while the network learns from one.

    It is a context manager. Leaving the context ends the thread that reads. A finalizer cannot:
    the garbage collector may run it in that very thread.

    Parameters
    ----------
    source
        Source that is read.
    device
        GPU to which inputs are copied.
    """

    def __init__(self, source: DatasetSource, device: Any) -> None:
        from lstm_cli.engines.cuda.runtime.memory import Uploader

        self._source = source
        self._uploader = Uploader(device, source.dtype)
        self._reader = ThreadPoolExecutor(1)
        self._order: Sequence[Array] = ()
        self._next: tuple[int, Future[tuple[TrainingBatch, Upload | None]]] | None = None

    @property
    def places(self) -> DataPlaces:
        """Names of places in the dataset."""
        return self._source.places

    def order(self, epoch: int) -> Sequence[Array]:
        """Return every batch of an epoch, as numbers of sequences."""
        self._discard()
        self._order = self._source.order(epoch)
        return self._order

    def read(self, numbers: Array) -> TrainingBatch:
        """Return one batch, with its inputs on the GPU if GPU memory holds them.

        Raises
        ------
        DataError
            There are no targets, or a file is damaged.
        """
        k = next(k for k, other in enumerate(self._order) if other is numbers)
        prefetched = self._next[1] if self._next is not None and self._next[0] == k else None
        batch, upload = (prefetched or self._reader.submit(self._upload, k)).result()
        self._next = None
        if k + 1 < len(self._order):
            self._next = k + 1, self._reader.submit(self._upload, k + 1)
        return batch if upload is None else replace(batch, x=self._uploader.wait_for(upload))

    def raw(self, values: Array) -> Array:
        """Return outputs or targets in the units of the data."""
        return self._source.raw(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Discard a prefetched batch, if training ended early, and end the thread."""
        self._discard()
        self._reader.shutdown()

    def _discard(self) -> None:
        """Wait for an unused prefetched batch, so that its memory can be freed."""
        prefetched, self._next = self._next, None
        if prefetched is not None and prefetched[1].exception() is None:
            _, upload = prefetched[1].result()
            if upload is not None:
                upload.discard()

    def _upload(self, k: int) -> tuple[TrainingBatch, Upload | None]:
        batch = self._source.read(self._order[k])
        try:
            return batch, self._uploader.upload(batch.x)
        except DeviceMemoryError:  # GPU memory holds no second batch
            return batch, None
