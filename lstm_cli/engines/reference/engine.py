"""The reference engine: NumPy, one step after another, with the equations of the cells.

This engine is the oracle for the others, and supports every layer option in float32 and float64.
One product projects the inputs of many steps. The recurrence takes a product per step.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np

from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.protocols import Layer
from lstm_cli.engines.reference.arrays import NumpyElementwise
from lstm_cli.engines.reference.layers import make_layer
from lstm_cli.engines.threads import allowed_threads
from lstm_cli.engines.types import SUPPORTED_DTYPES, Array, Layers, LayerSpec, with_biases
from lstm_cli.errors import DeviceError

_BLAS_BUFFER = 64 << 20
"""Bytes of free memory required at the start. OpenBLAS's buffer has 32 MB."""

THREADED_PRODUCT = 2e7
"""Smallest product, in multiply-adds, that several threads compute.

Waking other threads for a smaller product costs more time than it saves, above all on shared cores.
"""


class ReferenceEngine(NumpyElementwise):
    """NumPy on the CPU.

    Parameters
    ----------
    dtype
        ``float32`` or ``float64``.
    threads
        Number of threads that BLAS may use, at most that of processors. None: BLAS's own setting.
    by_gate
        True: compute and time the products of each gate separately. This is slower, and results
        agree within rounding. `LayerResult.seconds` then has an entry per gate and part.

    Raises
    ------
    DeviceError
        The engine does not compute in `dtype`.
    """

    name = "reference"
    device = "cpu"
    bits_ignore_threads = False
    ignores_padding = False
    kernels_title = f"NumPy {np.__version__}"
    workspace_bytes = None

    def __init__(
        self, dtype: str = "float32", threads: int | None = None, *, by_gate: bool = False
    ) -> None:
        if dtype not in SUPPORTED_DTYPES:
            raise DeviceError(
                f"the reference engine does not compute in {dtype}",
                expected=" or ".join(SUPPORTED_DTYPES),
                hint="--dtype float32",
            )
        self.dtype = dtype
        self.threads = threads
        self.by_gate = by_gate
        _claim_buffer()
        self._blas: Any = None
        if threads is not None:
            from threadpoolctl import ThreadpoolController

            self._blas = ThreadpoolController()
            self._blas_limit = min(threads, allowed_threads())

    def layer(self, spec: LayerSpec, weights: Mapping[str, Array]) -> Layer[Array, Array]:
        """The layer with contiguous weights in this engine's dtype."""
        spec, weights = with_biases(spec, weights)
        tensors = {
            name: np.ascontiguousarray(weights[name], self.dtype) for name in spec.parameters()
        }
        return make_layer(spec, tensors, self._blas_threads, by_gate=self.by_gate)

    def program(self, layers: Sequence[Layer[Array, Array]], N: int, T: int) -> None:
        """Always None, since NumPy runs layer by layer."""

    def stepper(self, layers: Sequence[Layer[Array, Array]], N: int) -> None:
        """Always None, since NumPy runs layer by layer."""

    def explain(
        self, layers: Layers, N: int, T: int, *, training: bool = False
    ) -> Mapping[int, Explanation]:
        """Nothing: there is only one way to compute a layer."""
        return {}

    def measure_peaks(self, sizes: Sequence[int] = ()) -> None:
        """Always None, since NumPy's peak rates are not measured."""

    def _blas_threads(self, multiply_adds: float) -> AbstractContextManager[object]:
        """Context in which BLAS uses this engine's threads, or one for a small product."""
        if self._blas is None:
            return nullcontext()
        threads = self._blas_limit if multiply_adds >= THREADED_PRODUCT else 1
        limited: AbstractContextManager[object] = self._blas.limit(limits=threads, user_api="blas")
        return limited


@lru_cache(maxsize=1)
def _claim_buffer() -> None:
    """Make BLAS allocate its packing buffer while memory is free.

    If no memory is left later, OpenBLAS ends the process.

    Raises
    ------
    MemoryError
        There is too little memory.
    """
    try:
        mmap.mmap(-1, _BLAS_BUFFER).close()
    except OSError as error:
        raise MemoryError("matrices cannot be multiplied") from error
    square = np.ones((128, 128), np.float32)  # smaller products need no buffer
    square @ square
