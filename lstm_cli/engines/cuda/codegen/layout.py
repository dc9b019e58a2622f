"""Values from one layout to another: packed and padded batches, flattened steps, operands."""

from __future__ import annotations

import numpy as np

from lstm_cli.engines.cuda.batch import DeviceBatch, PackedSequences
from lstm_cli.engines.cuda.codegen.matmul import CONVERSIONS
from lstm_cli.engines.cuda.codegen.primitives import GRID_STRIDE_LOOP, PRELUDE
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import (
    Argument,
    Array,
    Device,
    DeviceArray,
    Kernel,
    cached_kernels,
    dtype_name,
    grid_stride_launch,
)

C_TYPES = {"float32": "float", "float64": "double"}
"""Real numbers in C++."""

_MOVED_C_TYPES = C_TYPES | {"uint16": "unsigned short"}
"""And 16-bit floats, which are only moved."""

_LAYOUT_KERNELS = ("pack", "unpack", "repack", "begun", "normalize", "take", "put")


def operand_of(device: Device, precision: Precision, values: PackedSequences) -> DeviceArray:
    """The values as the operand of a product, made once."""
    if not precision.narrow:
        return values.real
    if values.element is None:
        values.element = round_operands(device, precision, values.real)
    return values.element


_PACKING_CODE = """
extern "C" __global__ void __launch_bounds__(256) pack(
    const given* from, real* to, const long long* order, const long long* starts,
    const long long* steps, long long T, long long F, long long n_step, long long t_step,
    long long f_step, long long size) {
  GRID_STRIDE_LOOP {
    const long long f = k % F, t = k / F % T, i = k / F / T;
    if (t < steps[i])
      to[(starts[i] + t) * F + f] = real(from[order[i] * n_step + t * t_step + f * f_step]);
  }
}
extern "C" __global__ void __launch_bounds__(256) unpack(
    const real* from, real* to, const long long* order, const long long* starts,
    const long long* steps, long long stored, long long T, long long F, long long size) {
  GRID_STRIDE_LOOP {
    const long long f = k % F, t = k / F % T, i = k / F / T;
    const long long here = stored < T ? stored : T;
    to[(order[i] * T + t) * F + f] =
        t < steps[i] && t < here ? from[(starts[i] + t) * F + f] : real(0);
  }
}
extern "C" __global__ void __launch_bounds__(256) repack(
    const real* from, real* to, const long long* order, const long long* starts,
    const long long* steps, long long stored, long long T, long long F, long long size) {
  GRID_STRIDE_LOOP {
    const long long f = k % F, t = k / F % T, i = k / F / T;
    if (t < steps[i])
      to[(starts[i] + t) * F + f] = t < stored ? from[(order[i] * stored + t) * F + f] : real(0);
  }
}
extern "C" __global__ void __launch_bounds__(256) normalize(
    const given* from, real* to, const double* mean, const double* scale, long long T, long long F,
    long long n_step, long long t_step, long long f_step, long long size) {
  GRID_STRIDE_LOOP {
    const long long f = k % F, t = k / F % T, n = k / F / T;
    to[k] = real((double(from[n * n_step + t * t_step + f * f_step]) - mean[f]) / scale[f]);
  }
}
extern "C" __global__ void __launch_bounds__(256) begun(
    const real* from, real* to, const long long* order, const long long* steps, long long F,
    long long size) {
  GRID_STRIDE_LOOP {
    const long long f = k % F, i = k / F, n = order[i];
    to[n * F + f] = steps[i] ? from[n * F + f] : real(0);
  }
}
""".replace("GRID_STRIDE_LOOP", GRID_STRIDE_LOOP)
"""Between (Q, F), the steps that there are, and (N, T, F), as its caller has a batch."""


def pack_steps(device: Device, batch: DeviceBatch, array: DeviceArray, real: str) -> DeviceArray:
    """An array (N, T, F), float32 or float64 and with any gaps, as (Q, F)."""
    F = array.shape[2]
    if not batch.ragged and _is_contiguous(array) and dtype_name(array.dtype) == real:
        return array.reshape(batch.Q, F)
    out = device.empty((batch.Q, F), real)
    size = batch.N * batch.T * F
    if out.size:
        kernel = _layout_kernel(device, "pack", real, dtype_name(array.dtype))
        steps = [stride // array.dtype.itemsize for stride in array.strides]
        places = (batch.order, batch.starts, batch.steps)
        kernel(grid_stride_launch(device, size), array, out, *places, batch.T, F, *steps, size)
    return out


def normalize(
    device: Device, array: DeviceArray, mean: Array, scale: Array, real: str
) -> DeviceArray:
    """(x - mean) / scale of an array (N, T, F), float32 or float64 and with any gaps."""
    out = device.empty(tuple(array.shape), real)
    if out.size:
        kernel = _layout_kernel(device, "normalize", real, dtype_name(array.dtype))
        steps = [stride // array.dtype.itemsize for stride in array.strides]
        own = device.upload(np.ascontiguousarray(mean)), device.upload(np.ascontiguousarray(scale))
        kernel(
            grid_stride_launch(device, out.size),
            array,
            out,
            *own,
            *array.shape[1:],
            *steps,
            out.size,
        )
    return out


def unpack_steps(device: Device, values: PackedSequences) -> DeviceArray:
    """Values as (N, T, F), 0 in the padding; or (N, F), 0 for a sequence of length 0."""
    batch, real, dtype = values.batch, values.real, dtype_name(values.real.dtype)
    F = real.shape[1]
    if values.per_step:
        if not batch.ragged:
            return real.reshape(batch.N, batch.T, F)
        return pad_steps(device, values, batch.T).reshape(batch.N, batch.T, F)
    if not batch.ragged and batch.T:
        return real
    out = device.empty(real.shape, dtype)
    if out.size:
        kernel = _layout_kernel(device, "begun", dtype)
        kernel(
            grid_stride_launch(device, real.size), real, out, batch.order, batch.steps, F, real.size
        )
    return out


def pad_steps(device: Device, values: PackedSequences, T: int) -> DeviceArray:
    """Values over steps as (N, T * F), for any number T of steps; 0 behind each sequence's end."""
    batch, F, dtype = values.batch, values.real.shape[1], dtype_name(values.real.dtype)
    out = device.empty((batch.N, T * F), dtype)
    if out.size:
        kernel = _layout_kernel(device, "unpack", dtype)
        places = (batch.order, batch.starts, batch.steps)
        kernel(
            grid_stride_launch(device, out.size), values.real, out, *places, batch.T, T, F, out.size
        )
    return out


def unpad_steps(device: Device, batch: DeviceBatch, array: DeviceArray, T: int) -> DeviceArray:
    """The inverse of `pad_steps`: (Q, F) of (N, T * F); steps behind T are 0."""
    dtype = dtype_name(array.dtype)
    F = array.shape[1] // T if T else 0
    out = device.empty((batch.Q, F), dtype)
    size = batch.N * batch.T * F
    if out.size:
        kernel = _layout_kernel(device, "repack", dtype)
        places = (batch.order, batch.starts, batch.steps)
        kernel(grid_stride_launch(device, size), array, out, *places, T, batch.T, F, size)
    return out


_GATHER_CODE = """
extern "C" __global__ void __launch_bounds__(256) take(
    const real* from, real* to, const long long* rows, long long F, long long size) {
  GRID_STRIDE_LOOP to[k] = from[rows[k / F] * F + k % F];
}
extern "C" __global__ void __launch_bounds__(256) put(
    const real* from, real* to, const long long* rows, long long F, long long size) {
  GRID_STRIDE_LOOP to[rows[k / F] * F + k % F] = from[k];
}
""".replace("GRID_STRIDE_LOOP", GRID_STRIDE_LOOP)


def gather_rows(device: Device, array: DeviceArray, rows: DeviceArray) -> DeviceArray:
    """Some rows of a matrix, by number."""
    out = device.empty((rows.shape[0], array.shape[1]), dtype_name(array.dtype))
    if out.size:
        kernel = _layout_kernel(device, "take", dtype_name(array.dtype))
        kernel(grid_stride_launch(device, out.size), array, out, rows, array.shape[1], out.size)
    return out


def scatter_rows(device: Device, array: DeviceArray, rows: DeviceArray, count: int) -> DeviceArray:
    """A matrix of `count` rows that has an array's rows at these numbers, and else 0."""
    out = device.zeros((count, array.shape[1]), dtype_name(array.dtype))
    if array.size:
        kernel = _layout_kernel(device, "put", dtype_name(array.dtype))
        kernel(grid_stride_launch(device, array.size), array, out, rows, array.shape[1], array.size)
    return out


def scatter_rows_into(
    device: Device, array: DeviceArray, rows: DeviceArray, out: DeviceArray
) -> None:
    """An array's rows to these of a matrix that is there."""
    if array.size:
        kernel = _layout_kernel(device, "put", str(array.dtype))
        kernel(grid_stride_launch(device, array.size), array, out, rows, array.shape[1], array.size)


def _is_contiguous(array: DeviceArray) -> bool:
    """Whether an array is in C order without gaps."""
    expected = array.dtype.itemsize
    for size, stride in zip(array.shape[::-1], array.strides[::-1], strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _layout_kernel(device: Device, name: str, real: str, given: str | None = None) -> Kernel:
    given = given or real
    key = ("copies", real, given)
    return cached_kernels(device, key, _LAYOUT_KERNELS, lambda: _layout_source(real, given))[name]


def _layout_source(real: str, given: str) -> str:
    return f"""{PRELUDE}
typedef {_MOVED_C_TYPES[real]} real;
typedef {_MOVED_C_TYPES[given]} given;
{_PACKING_CODE}{_GATHER_CODE}"""


# MERGED rows: """Rows of a batch on the device: copies without gaps, and rows of sequences that have a step."""
_ROW_COPY_KERNELS = ("dense_rows", "seen_rows")

_ROW_COPY_CODE = """
#define EACH(i) \\
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < rows * columns; \\
       i += (long long)gridDim.x * blockDim.x)
extern "C" __global__ void __launch_bounds__(256) dense_rows(
    const real* from, real* to, long long rows, long long columns, long long row_step) {
  EACH(i) to[i] = from[i / columns * row_step + i % columns];
}
extern "C" __global__ void __launch_bounds__(256) seen_rows(
    const real* from, real* to, long long rows, long long columns, const long long* order,
    const long long* steps) {
  EACH(i) {
    const long long r = i / columns, at = order[r] * columns + i % columns;
    to[at] = steps[r] > 0 ? from[at] : real(0);
  }
}
"""


def _row_copy_source(precision: Precision) -> str:
    """CUDA C++ of `_ROW_COPY_KERNELS`."""
    return f"{PRELUDE}\ntypedef {precision.c_real} real;\n{_ROW_COPY_CODE}"


def dense_rows(device: Device, precision: Precision, rows: DeviceArray) -> DeviceArray:
    """A copy of rows (Q, F) that may be apart, without gaps."""
    Q, F = rows.shape
    out = device.empty((Q, F), precision.real)
    step = rows.strides[0] // rows.dtype.itemsize
    _copy_rows(device, precision, "dense_rows", out, rows, out, Q, F, step)
    return out


def seen_rows(
    device: Device, precision: Precision, rows: DeviceArray, batch: DeviceBatch
) -> DeviceArray:
    """A copy of rows (N, F) without gaps, 0 where a sequence has no step."""
    N, F = rows.shape
    out = device.empty((N, F), precision.real)
    if N and batch.sorted_steps[-1] > 0:
        device.copy(rows, out)
    else:
        _copy_rows(device, precision, "seen_rows", out, rows, out, N, F, batch.order, batch.steps)
    return out


def _copy_rows(
    device: Device, precision: Precision, name: str, out: DeviceArray, *arguments: Argument
) -> None:
    if out.size:
        key = ("rows", precision.real)
        kernel = cached_kernels(
            device, key, _ROW_COPY_KERNELS, lambda: _row_copy_source(precision)
        )[name]
        kernel(grid_stride_launch(device, out.size), *arguments)


# MERGED rounding: """Numbers on the device in the operands' type and back, and their products with masks."""
_ROUNDING_KERNELS = ("rounded", "rounded_rows", "widened", "multiplied")

_ROUNDING_CODE = """
#define EACH(i) \\
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; \\
       i += (long long)gridDim.x * blockDim.x)
extern "C" __global__ void __launch_bounds__(256) rounded(
    const real* from, element* to, long long size) {
  EACH(i) to[i] = narrow(from[i]);
}
extern "C" __global__ void __launch_bounds__(256) rounded_rows(
    const real* from, element* to, long long row, long long step, long long size) {
  EACH(i) to[i / row * step + i % row] = narrow(from[i / row * step + i % row]);
}
extern "C" __global__ void __launch_bounds__(256) widened(
    const element* from, real* to, long long size) {
  EACH(i) to[i] = widen(from[i]);
}
extern "C" __global__ void __launch_bounds__(256) multiplied(
    const real* x, const real* mask, real* to, long long size) {
  EACH(i) to[i] = x[i] * mask[i];
}
"""


def _rounding_source(precision: Precision) -> str:
    """CUDA C++ of `_ROUNDING_KERNELS`."""
    element, widen, narrow = CONVERSIONS[precision.name]
    return f"""{PRELUDE}
typedef {precision.c_real} real;
typedef {element} element;
__device__ __forceinline__ real widen(element x) {{ return {widen}; }}
__device__ __forceinline__ element narrow(real x) {{ return {narrow}; }}
{_ROUNDING_CODE}"""


def round_operands(device: Device, precision: Precision, real: DeviceArray) -> DeviceArray:
    """An array without gaps in the operands' type."""
    return _convert(device, precision, "rounded", [real], precision.element)


def round_rows_into(
    device: Device, precision: Precision, real: DeviceArray, element: DeviceArray
) -> None:
    """The same of a stack of matrices, or of one, that is part of an array; to the same part."""
    if real.size:
        stacked = real.ndim == 3
        row = real.size // real.shape[0] if stacked else real.size
        step = real.strides[0] // real.dtype.itemsize if stacked else 0
        given = (real, element, row, step, real.size)
        _rounding_kernel(device, precision, "rounded_rows")(
            grid_stride_launch(device, real.size), *given
        )


def widen_operands(device: Device, precision: Precision, element: DeviceArray) -> DeviceArray:
    """Operands as the numbers that they are."""
    return _convert(device, precision, "widened", [element], precision.real)


def multiply_by_mask(
    device: Device, precision: Precision, x: DeviceArray, mask: DeviceArray
) -> DeviceArray:
    """The product of two arrays, number by number."""
    return _convert(device, precision, "multiplied", [x, mask], precision.real)


def _convert(
    device: Device, precision: Precision, name: str, given: list[DeviceArray], dtype: str
) -> DeviceArray:
    out = device.empty(given[0].shape, dtype)
    if out.size:
        _rounding_kernel(device, precision, name)(
            grid_stride_launch(device, out.size), *given, out, out.size
        )
    return out


def _rounding_kernel(device: Device, precision: Precision, name: str) -> Kernel:
    key = ("rounding", precision.name)
    return cached_kernels(device, key, _ROUNDING_KERNELS, lambda: _rounding_source(precision))[name]
