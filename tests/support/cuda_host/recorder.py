"""A device that runs nothing and keeps every source it is asked to compile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from cuda_host.arrays import HostArray
from cuda_host.device import HostDevice
from cuda_host.kernel import HostKernel
from lstm_cli.engines.cuda.runtime.device import Launch

WHOLE = SimpleNamespace(intact=lambda: True)


class RecordedKernel:
    """A kernel that does nothing."""

    resident = HostKernel.resident

    def __init__(self, device: HostDevice):
        self.device = device

    def __call__(self, launch: Launch, *arguments: Any) -> None:
        """Nothing."""


class Recorder(HostDevice):
    """Its arrays hold zeros.

    Attributes
    ----------
    sources
        Each source, and the names of its kernels.
    """

    def __init__(self, **options: Any):
        super().__init__(memory=1 << 40, **options)
        self.sources: dict[str, tuple[str, ...]] = {}

    def empty(self, shape: Sequence[int], dtype: str) -> HostArray:
        """Zeros that take no memory before they are touched."""
        return HostArray(WHOLE, np.zeros(tuple(shape), dtype))

    def upload(self, array: np.ndarray) -> HostArray:
        """Zeros of its shape."""
        return self.empty(array.shape, array.dtype.name)

    def multiply(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, RecordedKernel]:
        """Kernels that do nothing."""
        self.sources[source] = tuple(names)
        return {name: RecordedKernel(self) for name in names}
