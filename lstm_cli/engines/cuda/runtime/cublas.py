"""Products of matrices by cuBLAS, which wants them column by column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.cuda.runtime.device import DeviceArray
from lstm_cli.errors import DeviceError

NO_TRANSPOSE, TRANSPOSE = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
R_32F, R_64F, R_16F, R_16BF = 0, 1, 2, 14  # of cudaDataType
COMPUTE_32F, COMPUTE_32F_PEDANTIC, COMPUTE_32F_FAST_TF32, COMPUTE_64F = 68, 69, 77, 70
GEMM_DEFAULT = -1

OPERAND_TYPES = {
    "float32": R_32F,
    "tf32": R_32F,
    "float16": R_16F,
    "bfloat16": R_16BF,
    "float64": R_64F,
}

COMPUTE_TYPES = {
    # Pedantic: no environment variable turns it into TF32 or an emulation.
    "float32": COMPUTE_32F_PEDANTIC,
    "tf32": COMPUTE_32F_FAST_TF32,
    "float16": COMPUTE_32F,
    "bfloat16": COMPUTE_32F,
    "float64": COMPUTE_64F,
}


@dataclass(frozen=True)
class GemmArguments:
    """Arguments of cublasGemmEx for a product of row-major matrices.

    A row-major matrix is a column-major one, turned. So instead of C = A B it is C' = B' A' that
    is computed: the operands change places, and m is the columns of C. Of a stack of `count`
    matrices A, ``step_*`` says how far apart two are, in numbers; B is the same for all.
    """

    turn_first: int
    turn_second: int
    m: int
    n: int
    k: int
    first: int
    ld_first: int
    second: int
    ld_second: int
    out: int
    ld_out: int
    count: int = 1
    step_second: int = 0
    step_out: int = 0


def gemm_arguments(
    a: DeviceArray, b: DeviceArray, out: DeviceArray, *, transpose_a: bool, transpose_b: bool
) -> GemmArguments:
    """What cuBLAS is told of out = a b; see `lstm_cli.engines.cuda.runtime.device.Device.multiply`.

    Raises
    ------
    ValueError
        Shapes that do not fit, or rows with gaps: a mistake in the caller.
    """
    stack = tuple(a.shape[:-2])
    M, K = a.shape[-2:][::-1] if transpose_a else a.shape[-2:]
    inner, N = b.shape[::-1] if transpose_b else b.shape
    if inner != K or tuple(out.shape) != (*stack, M, N) or (stack and transpose_a):
        raise ValueError(f"no product of {a.shape} and {b.shape} is {out.shape}")
    return GemmArguments(
        TRANSPOSE if transpose_b else NO_TRANSPOSE,
        TRANSPOSE if transpose_a else NO_TRANSPOSE,
        int(N),
        int(M),
        int(K),
        b.data.ptr,
        _leading_dimension(b),
        a.data.ptr,
        _leading_dimension(a),
        out.data.ptr,
        _leading_dimension(out),
        *((stack[0], _matrix_stride(a), _matrix_stride(out)) if stack else ()),
    )


def _matrix_stride(array: DeviceArray) -> int:
    """Elements from a matrix of a stack to the next."""
    return int(array.strides[0]) // int(array.dtype.itemsize)


def _leading_dimension(array: DeviceArray) -> int:
    """Elements from a row to the next, at least those of a row."""
    rows, columns = array.shape[-2:]
    size = array.dtype.itemsize
    if columns > 1 and array.strides[-1] != size:
        raise ValueError(f"rows with gaps: strides {array.strides}")
    if rows <= 1:
        return max(1, int(columns))
    stride, rest = divmod(array.strides[-2], size)
    if rest or stride < max(1, columns):
        raise ValueError(f"rows that overlap: strides {array.strides}")
    return int(stride)


class Blas:
    """cuBLAS on one device, with a handle of its own, so that nobody else's settings apply.

    A stream has a handle of its own: with one for several, cuBLAS does not promise the same bits.
    The device must be the current one whenever this is used, and the stream too.
    """

    def __init__(self) -> None:
        from cupy_backends.cuda.libs import cublas

        self._library: Any = cublas
        self._handle = cublas.create()
        # One and zero, in the host's memory as the handle's pointer mode has it.
        self._factors = {t: np.array([0, 1], t) for t in ("float32", "float64")}

    def multiply(self, given: GemmArguments, precision: str, *, add: bool) -> None:
        """Start it."""
        real = PRECISIONS[precision].real
        factors = self._factors[real]
        zero, one = factors.ctypes.data, factors.ctypes.data + factors.itemsize
        kind = OPERAND_TYPES[precision]
        first = (given.first, kind, given.ld_first)
        second = (given.second, kind, given.ld_second)
        result = (given.out, R_64F if real == "float64" else R_32F, given.ld_out)
        sizes = (given.turn_first, given.turn_second, given.m, given.n, given.k, one)
        factor, how = one if add else zero, (COMPUTE_TYPES[precision], GEMM_DEFAULT)
        try:
            if given.count == 1:
                self._library.gemmEx(self._handle, *sizes, *first, *second, factor, *result, *how)
                return
            stacked = (*first, 0, *second, given.step_second, factor, *result, given.step_out)
            self._library.gemmStridedBatchedEx(self._handle, *sizes, *stacked, given.count, *how)
        except self._library.CUBLASError as error:
            raise DeviceError("a product failed", found=str(error)) from error
