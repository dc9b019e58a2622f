"""Lanes of a GPU: CuPy's streams, each with a cuBLAS handle; and moments in their order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lstm_cli.engines.cuda.cublas import Blas

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.gpu import Gpu


class GpuMark:
    """A moment in the order of a stream."""

    def __init__(self, gpu: Gpu, stream: Any) -> None:
        self._gpu = gpu
        with gpu.failures("the GPU's clock"):
            gpu.make_current()
            self.event = gpu.cupy.cuda.Event()
            self.event.record(stream)

    def seconds_since(self, earlier: Any) -> float:
        """Between two marks, of the same lane or of two; waits for both."""
        with self._gpu.failures("the GPU's clock"):
            earlier.event.synchronize()
            self.event.synchronize()
            milliseconds = self._gpu.cupy.cuda.get_elapsed_time(earlier.event, self.event)
        return float(milliseconds) / 1e3

    def wait(self) -> None:
        """Until everything before it is done."""
        with self._gpu.failures("the GPU failed in what it computed"):
            self.event.synchronize()


class Lanes:
    """The streams that work runs on, made when they are first used; each thread chooses its own.

    The main one waits for the legacy default stream and is waited for by it. The others do not:
    they are beside it by marks alone. CuPy's pool of memory keeps what a stream gives back for
    that stream.

    Parameters
    ----------
    cupy
        The package; its current device is the GPU.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._streams: dict[int, Any] = {0: cupy.cuda.Stream(non_blocking=False)}
        self._handles: dict[int, Blas] = {}
        self._choice = threading.local()

    @property
    def _number(self) -> int:
        number: int = getattr(self._choice, "number", 0)
        return number

    @property
    def main(self) -> Any:
        """The main lane's stream."""
        return self._streams[0]

    @property
    def stream(self) -> Any:
        """The stream of the lane that is chosen."""
        return self._streams[self._number]

    @property
    def blas(self) -> Blas:
        """Products of the lane that is chosen."""
        if self._number not in self._handles:
            self._handles[self._number] = Blas()
        return self._handles[self._number]

    @contextmanager
    def chosen(self, number: int) -> Iterator[None]:
        """Choose a lane; its stream is made on the current device."""
        if number not in self._streams:
            self._streams[number] = self._cupy.cuda.Stream(non_blocking=True)
        before, self._choice.number = self._number, number
        try:
            yield
        finally:
            self._choice.number = before

    def synchronize(self) -> None:
        """Wait for all of them."""
        for stream in self._streams.values():
            stream.synchronize()
