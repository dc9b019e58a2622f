"""A device that runs nothing and records every source it compiles."""

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
    """A kernel whose launch does nothing."""

    resident = HostKernel.resident

    def __init__(self, device: HostDevice):
        self.device = device

    def __call__(self, launch: Launch, *arguments: Any) -> None:
        """Do nothing."""


class Recorder(HostDevice):
    """A device whose arrays are zeros.

    Attributes
    ----------
    sources
        Names of the kernels of each source.
    """

    def __init__(self, **options: Any):
        super().__init__(memory=1 << 40, **options)
        self.sources: dict[str, tuple[str, ...]] = {}

    def empty(self, shape: Sequence[int], dtype: str) -> HostArray:
        """Zeros that take no memory before their first use."""
        return HostArray(WHOLE, np.zeros(tuple(shape), dtype))

    def upload(self, array: np.ndarray) -> HostArray:
        """Zeros of the array's shape."""
        return self.empty(array.shape, array.dtype.name)

    def multiply(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, RecordedKernel]:
        """Record the source."""
        self.sources[source] = tuple(names)
        return {name: RecordedKernel(self) for name in names}
