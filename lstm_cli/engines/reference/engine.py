"""The reference engine: NumPy, one step after another, with the equations of the cells.

This engine is the oracle for the others, and supports every layer option in float32 and float64.
One product projects the inputs of many steps. The recurrence takes a product per step.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np

from lstm_cli.engines.reference.arrays import NumpyElementwise
from lstm_cli.engines.reference.layers import (
    PreparedDense,
    dense_backward,
    dense_forward,
    dropout_forward,
    flatten_backward,
    flatten_forward,
)
from lstm_cli.engines.reference.recurrent import (
    RecurrentBatch,
    recurrent_backward,
    recurrent_forward,
)
from lstm_cli.engines.reference.step import DirectionWeights
from lstm_cli.engines.threads import allowed_threads
from lstm_cli.engines.types import (
    SUPPORTED_DTYPES,
    Array,
    DenseSpec,
    DropoutSpec,
    LayerGradients,
    LayerResult,
    LayerSpec,
    RecurrentSpec,
    State,
    TrainingPass,
    with_biases,
)
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
    kernels_title = f"NumPy {np.__version__}"

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

    def prepare(self, spec: LayerSpec, weights: Mapping[str, Array]) -> Any:
        """Contiguous weights in this engine's dtype, for a recurrent layer a list by direction."""
        spec, weights = with_biases(spec, weights)
        tensors = {
            name: np.ascontiguousarray(weights[name], self.dtype) for name in spec.parameters()
        }
        if isinstance(spec, DenseSpec):
            prefix = f"layers.{spec.index}."
            return PreparedDense(tensors[prefix + "weight"], tensors[prefix + "bias"])
        if isinstance(spec, RecurrentSpec):
            return [
                DirectionWeights.from_tensors(
                    cell, {k: tensors[spec.prefix(d) + k] for k in cell.tensor_names}
                )
                for d, cell in enumerate(spec.cells)
            ]
        return None

    def forward(
        self,
        spec: LayerSpec,
        prepared: Any,
        x: Array,
        lengths: Array | None,
        state: State | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult:
        """Forward pass of one layer; see `lstm_cli.engines.types.Engine`."""
        with self._blas_threads(_product_size(spec, x)), np.errstate(all="ignore"):
            if isinstance(spec, RecurrentSpec):
                batch = RecurrentBatch(x, lengths, state, return_gates, self.by_gate, training)
                return recurrent_forward(spec, prepared, batch)
            if isinstance(spec, DenseSpec):
                return dense_forward(spec, prepared, x, lengths)
            if isinstance(spec, DropoutSpec):
                return dropout_forward(spec, x, training)
            return flatten_forward(spec, x, lengths)

    def backward(
        self,
        spec: LayerSpec,
        prepared: Any,
        tape: Any,
        d_output: Array,
        *,
        d_logits: bool = False,
    ) -> LayerGradients:
        """Derivatives through one layer; see `lstm_cli.engines.types.Engine`."""
        with self._blas_threads(_product_size(spec, d_output)), np.errstate(all="ignore"):
            if isinstance(spec, RecurrentSpec):
                return recurrent_backward(spec, prepared, tape, d_output)
            if isinstance(spec, DenseSpec):
                return dense_backward(spec, prepared, tape, d_output, d_logits=d_logits)
            if isinstance(spec, DropoutSpec):
                return LayerGradients(d_output if tape is None else d_output * tape)
            return flatten_backward(tape, d_output)

    def _blas_threads(self, size: float) -> Any:
        """Context in which BLAS uses this engine's threads, or one for a small product."""
        if self._blas is None:
            return nullcontext()
        threads = self._blas_limit if size >= THREADED_PRODUCT else 1
        return self._blas.limit(limits=threads, user_api="blas")


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


def _product_size(spec: LayerSpec, x: Array) -> float:
    """Multiply-adds of the product that a layer computes most often."""
    if isinstance(spec, RecurrentSpec):
        cell = spec.cells[0]
        return float(len(x) * len(cell.gates) * cell.hidden_size * cell.output_size)
    return float(x.size * spec.output_size) if isinstance(spec, DenseSpec) else 0.0
