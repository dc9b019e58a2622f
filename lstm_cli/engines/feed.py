"""Batches on their way to an engine and results on their way back, beside its computing.

Every engine has a `Feed` (`lstm_cli.engines.protocols.Engine.feed`), so code above the engines need
not know where an engine's memory is. `HostFeed` is that of engines in NumPy's memory: it copies
nothing and reads nothing ahead. The benefit of reading ahead for a GPU is unmeasured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike
from typing_extensions import TypeVar

from lstm_cli.engines.types import A, Array
from lstm_cli.errors import DeviceMemoryError

Batch = TypeVar("Batch")
"""Data that are read in one piece."""


class Upload(ABC, Generic[A]):
    """Inputs whose copy to an engine's memory has started."""

    @abstractmethod
    def ready(self) -> A:
        """The array in the engine's memory. Work that starts later waits for the copy."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """Seconds of the copy, for which this waits."""

    @abstractmethod
    def discard(self) -> None:
        """Wait for the copy of an array that no work will read, so that its memory can be freed."""


class Download(Protocol):
    """Copies of results to NumPy's memory that have started."""

    @property
    def seconds(self) -> float:
        """Seconds of the copies, for which this waits."""

    def wait(self) -> list[Array]:
        """The arrays in NumPy's memory, once all are copied."""


class Feed(ABC, Generic[A]):
    """Copies between NumPy's memory and an engine's.

    Attributes
    ----------
    reads_ahead
        Whether copies run while the engine computes, so that reading ahead pays.
    """

    reads_ahead: bool

    @abstractmethod
    def place(self, array: Array) -> A:
        """The array in the engine's memory, in its own dtype; copied only if that is elsewhere."""

    @abstractmethod
    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Memory to read inputs into, for `upload_allocated`."""

    @abstractmethod
    def upload_allocated(self, array: Array) -> Upload[A]:
        """Start the copy of an array of `allocate`, or of some of its rows.

        Raises
        ------
        DeviceMemoryError
            The engine has too little free memory.
        """

    @abstractmethod
    def upload(self, array: Array) -> Upload[A]:
        """Start the copy of any array, which may change as soon as this returns.

        Raises
        ------
        DeviceMemoryError
            The engine has too little free memory.
        """

    @abstractmethod
    def download(self, arrays: Sequence[A]) -> Download:
        """Start the copies of the engine's arrays."""

    def read(
        self,
        reads: Iterable[Callable[[], Batch | None]],
        start: Callable[[Batch], Upload[A] | None],
    ) -> Generator[tuple[Batch, Upload[A] | None], None, None]:
        """Yield each batch that is read, and its upload if one was started.

        With `reads_ahead` a thread reads the next batch and starts its upload while the caller
        uses one. Close the generator where a run ends early: that ends the thread.

        Parameters
        ----------
        reads
            Functions that each read one batch. None ends the batches.
        start
            Function that starts the upload of a batch's inputs.
        """
        if not self.reads_ahead:
            for read in reads:
                if (batch := read()) is None:
                    return
                yield batch, None
            return

        pending, pair = iter(reads), None
        with ThreadPoolExecutor(1) as reader:
            waiting = reader.submit(_read_and_upload, next(pending, _no_batch), start)
            try:
                while (pair := waiting.result()) is not None:
                    waiting = reader.submit(_read_and_upload, next(pending, _no_batch), start)
                    yield pair
            finally:  # where a run ends early, uploads may still be running
                rest = None if waiting.exception() is not None else waiting.result()
                for unused in (pair, rest):
                    if unused is not None and unused[1] is not None:
                        unused[1].discard()


_Pair: TypeAlias = tuple[Batch, Upload[A] | None]


def _no_batch() -> None:
    """The read after the last one."""


def _read_and_upload(
    read: Callable[[], Batch | None], start: Callable[[Batch], Upload[A] | None]
) -> _Pair[Batch, A] | None:
    if (batch := read()) is None:
        return None
    try:
        return batch, start(batch)
    except DeviceMemoryError:  # the memory holds no second batch
        return batch, None


@dataclass(frozen=True, eq=False)
class HostUpload(Upload[Array]):
    """An array that is where its engine computes."""

    array: Array
    seconds = 0.0

    def ready(self) -> Array:
        """The array."""
        return self.array

    def discard(self) -> None:
        """Nothing: there is no copy."""


@dataclass(frozen=True, eq=False)
class HostDownload:
    """Arrays that are in NumPy's memory."""

    arrays: Sequence[Array]
    seconds: float = 0.0

    def wait(self) -> list[Array]:
        """The arrays."""
        return list(self.arrays)


class HostFeed(Feed[Array]):
    """Feed of an engine that computes in NumPy's memory."""

    reads_ahead = False

    def place(self, array: Array) -> Array:
        """The array itself."""
        return array

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array of NumPy."""
        return np.empty(shape, dtype)

    def upload_allocated(self, array: Array) -> HostUpload:
        """The array itself."""
        return HostUpload(array)

    def upload(self, array: Array) -> HostUpload:
        """The array itself."""
        return HostUpload(array)

    def download(self, arrays: Sequence[Array]) -> HostDownload:
        """The arrays themselves."""
        return HostDownload(arrays)
