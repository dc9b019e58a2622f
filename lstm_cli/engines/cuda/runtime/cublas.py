"""Products of row-major matrices by cuBLAS, which expects column-major ones."""

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

    A row-major matrix is a transposed column-major one. So cuBLAS computes C' = B' A' instead of
    C = A B: the operands change places, and m is the number of columns of C. A may be a stack of
    `count` matrices; ``stride_*`` are the elements from one matrix to the next. All share B.
    """

    transpose_first: int
    transpose_second: int
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
    stride_second: int = 0
    stride_out: int = 0


def gemm_arguments(
    a: DeviceArray, b: DeviceArray, out: DeviceArray, *, transpose_a: bool, transpose_b: bool
) -> GemmArguments:
    """Arguments of cuBLAS for out = a b; see `Device.multiply`.

    Raises
    ------
    ValueError
        Shapes do not fit, or rows have gaps: a mistake in the caller.
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
    return int(array.strides[0]) // int(array.dtype.itemsize)


def _leading_dimension(array: DeviceArray) -> int:
    """Elements from one row to the next, at least the length of a row."""
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
    """cuBLAS for one stream of one device, with its own handle and settings.

    Each stream has its own handle: with a shared one, cuBLAS does not promise the same bits. The
    device and the stream must be current at every call.
    """

    def __init__(self) -> None:
        from cupy_backends.cuda.libs import cublas

        self._library: Any = cublas
        self._handle = cublas.create()
        # Zero and one in host memory, as the handle's pointer mode expects.
        self._factors = {t: np.array([0, 1], t) for t in ("float32", "float64")}

    def multiply(self, gemm: GemmArguments, precision: str, *, add: bool) -> None:
        """Start the product on the current stream."""
        accumulator = PRECISIONS[precision].accumulator
        factors = self._factors[accumulator]
        zero, one = factors.ctypes.data, factors.ctypes.data + factors.itemsize
        kind = OPERAND_TYPES[precision]
        first = (gemm.first, kind, gemm.ld_first)
        second = (gemm.second, kind, gemm.ld_second)
        result = (gemm.out, R_64F if accumulator == "float64" else R_32F, gemm.ld_out)
        sizes = (gemm.transpose_first, gemm.transpose_second, gemm.m, gemm.n, gemm.k, one)
        factor, mode = one if add else zero, (COMPUTE_TYPES[precision], GEMM_DEFAULT)
        try:
            if gemm.count == 1:
                self._library.gemmEx(self._handle, *sizes, *first, *second, factor, *result, *mode)
                return
            stacked = (*first, 0, *second, gemm.stride_second, factor, *result, gemm.stride_out)
            self._library.gemmStridedBatchedEx(self._handle, *sizes, *stacked, gemm.count, *mode)
        except self._library.CUBLASError as error:
            raise DeviceError("a product failed", found=str(error)) from error
