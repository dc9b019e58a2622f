"""Training data for a GPU: the next batch is read, and sent, while this one is learned from."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

from lstm_cli.api.learning_data import DataPlaces, DatasetSource
from lstm_cli.engines.cuda.runtime.memory import Uploader
from lstm_cli.engines.types import Array
from lstm_cli.errors import DeviceMemoryError
from lstm_cli.training.interfaces import TrainingBatch


class ReadingAhead:
    """A source whose inputs are on the device already; see `Source`. A context manager.

    Leaving the context ends the thread that reads. No finalizer does: the garbage collector may
    run it in that very thread.

    Parameters
    ----------
    source
        What is read.
    device
        Where inputs go.
    """

    def __init__(self, source: DatasetSource, device: Any) -> None:
        self._source = source
        self._uploader = Uploader(device, source.dtype)
        self._reader = ThreadPoolExecutor(1)
        self._order: Sequence[Array] = ()
        self._next: tuple[int, Future[tuple[TrainingBatch, Any]]] | None = None

    @property
    def places(self) -> DataPlaces:
        """Names of places in the dataset."""
        return self._source.places

    def order(self, epoch: int) -> Sequence[Array]:
        """Every batch of an epoch."""
        self._forget()
        self._order = self._source.order(epoch)
        return self._order

    def read(self, numbers: Array) -> TrainingBatch:
        """One batch, its inputs on the device where there is room for them.

        Raises
        ------
        DataError
            There are no targets, or a file is damaged.
        """
        k = next(k for k, other in enumerate(self._order) if other is numbers)
        coming = self._next[1] if self._next is not None and self._next[0] == k else None
        batch, sent = (coming or self._reader.submit(self._sent, k)).result()
        self._next = None
        if k + 1 < len(self._order):
            self._next = k + 1, self._reader.submit(self._sent, k + 1)
        return batch if sent is None else replace(batch, x=self._uploader.wait_for(sent))

    def raw(self, values: Array) -> Array:
        """Outputs or targets in the units of the data."""
        return self._source.raw(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Where training ended early, a batch may still be on its way."""
        self._forget()
        self._reader.shutdown()

    def _forget(self) -> None:
        """Let a batch that nobody will learn from arrive, so that its memory can go back."""
        coming, self._next = self._next, None
        if coming is not None and coming[1].exception() is None:
            _, sent = coming[1].result()
            if sent is not None:
                sent.discard()

    def _sent(self, k: int) -> tuple[TrainingBatch, Any]:
        """A batch, and its inputs on their way; None where the device has no room for two."""
        batch = self._source.read(self._order[k])
        try:
            return batch, self._uploader.upload(batch.x)
        except DeviceMemoryError:
            return batch, None
