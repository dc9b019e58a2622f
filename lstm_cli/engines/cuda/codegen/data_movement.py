"""Kernels that move and convert values: packing and padding, gathering rows, rounding operands."""

from __future__ import annotations

import numpy as np

from lstm_cli.engines.cuda.batch import DeviceBatch, PackedSequences
from lstm_cli.engines.cuda.codegen.matmul import CONVERSIONS
from lstm_cli.engines.cuda.codegen.primitives import GRID_STRIDE_LOOP, PRELUDE
from lstm_cli.engines.cuda.precision import C_TYPES, Precision
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

_MOVED_C_TYPES = C_TYPES | {"uint16": "unsigned short"}
"""C++ names of the types that these kernels move: accumulators and 16-bit floats."""

_LAYOUT_KERNELS = ("pack", "unpack", "repack", "begun", "normalize", "take", "put")

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
"""Kernels between packed values (Q, F) and the caller's layout (N, T, F)."""


def pack_steps(
    device: Device, batch: DeviceBatch, array: DeviceArray, accumulator: str
) -> DeviceArray:
    """Pack an array (N, T, F) as (Q, F). It may be float32 or float64 and have any strides."""
    F = array.shape[2]
    if not batch.ragged and _is_contiguous(array) and dtype_name(array.dtype) == accumulator:
        return array.reshape(batch.Q, F)
    out = device.empty((batch.Q, F), accumulator)
    size = batch.N * batch.T * F
    if out.size:
        kernel = _layout_kernel(device, "pack", accumulator, dtype_name(array.dtype))
        n_step, t_step, f_step = _element_strides(array)
        kernel(
            grid_stride_launch(device, size),
            array,
            out,
            batch.order,
            batch.starts,
            batch.steps,
            batch.T,
            F,
            n_step,
            t_step,
            f_step,
            size,
        )
    return out


def normalize(
    device: Device, array: DeviceArray, mean: Array, scale: Array, accumulator: str
) -> DeviceArray:
    """Compute (x - mean) / scale of an array (N, T, F), float32 or float64, with any strides."""
    out = device.empty(tuple(array.shape), accumulator)
    if out.size:
        kernel = _layout_kernel(device, "normalize", accumulator, dtype_name(array.dtype))
        n_step, t_step, f_step = _element_strides(array)
        mean_there = device.upload(np.ascontiguousarray(mean))
        scale_there = device.upload(np.ascontiguousarray(scale))
        _, T, F = array.shape
        launch = grid_stride_launch(device, out.size)
        kernel(launch, array, out, mean_there, scale_there, T, F, n_step, t_step, f_step, out.size)
    return out


def _element_strides(array: DeviceArray) -> list[int]:
    return [stride // array.dtype.itemsize for stride in array.strides]


def unpack_steps(device: Device, packed: PackedSequences) -> DeviceArray:
    """Unpack values as (N, T, F), 0 in the padding; or (N, F), 0 for a sequence of length 0."""
    batch, values, dtype = packed.batch, packed.values, dtype_name(packed.values.dtype)
    F = values.shape[1]
    if packed.per_step:
        if not batch.ragged:
            return values.reshape(batch.N, batch.T, F)
        return pad_steps(device, packed, batch.T).reshape(batch.N, batch.T, F)
    if not batch.ragged and batch.T:
        return values
    out = device.empty(values.shape, dtype)
    if out.size:
        kernel = _layout_kernel(device, "begun", dtype)
        launch = grid_stride_launch(device, values.size)
        kernel(launch, values, out, batch.order, batch.steps, F, values.size)
    return out


def pad_steps(device: Device, packed: PackedSequences, T: int) -> DeviceArray:
    """Pad values over steps to (N, T * F), for any T; 0 after the end of each sequence."""
    batch, values, dtype = packed.batch, packed.values, dtype_name(packed.values.dtype)
    F = values.shape[1]
    out = device.empty((batch.N, T * F), dtype)
    if out.size:
        kernel = _layout_kernel(device, "unpack", dtype)
        launch = grid_stride_launch(device, out.size)
        order, starts, steps = batch.order, batch.starts, batch.steps
        kernel(launch, values, out, order, starts, steps, batch.T, T, F, out.size)
    return out


def unpad_steps(device: Device, batch: DeviceBatch, array: DeviceArray, T: int) -> DeviceArray:
    """Invert `pad_steps`: (Q, F) from (N, T * F); steps after T are 0."""
    dtype = dtype_name(array.dtype)
    F = array.shape[1] // T if T else 0
    out = device.empty((batch.Q, F), dtype)
    size = batch.N * batch.T * F
    if out.size:
        kernel = _layout_kernel(device, "repack", dtype)
        launch = grid_stride_launch(device, size)
        order, starts, steps = batch.order, batch.starts, batch.steps
        kernel(launch, array, out, order, starts, steps, T, batch.T, F, size)
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
    """Gather rows of a matrix by number."""
    out = device.empty((rows.shape[0], array.shape[1]), dtype_name(array.dtype))
    if out.size:
        kernel = _layout_kernel(device, "take", dtype_name(array.dtype))
        launch = grid_stride_launch(device, out.size)
        kernel(launch, array, out, rows, array.shape[1], out.size)
    return out


def scatter_rows(device: Device, array: DeviceArray, rows: DeviceArray, count: int) -> DeviceArray:
    """Scatter an array's rows, by number, to a new matrix of `count` rows that are 0 elsewhere."""
    out = device.zeros((count, array.shape[1]), dtype_name(array.dtype))
    scatter_rows_into(device, array, rows, out)
    return out


def scatter_rows_into(
    device: Device, array: DeviceArray, rows: DeviceArray, out: DeviceArray
) -> None:
    """Scatter an array's rows, by number, to a matrix."""
    if array.size:
        kernel = _layout_kernel(device, "put", dtype_name(array.dtype))
        launch = grid_stride_launch(device, array.size)
        kernel(launch, array, out, rows, array.shape[1], array.size)


def _is_contiguous(array: DeviceArray) -> bool:
    """True if an array is contiguous in C order."""
    expected = array.dtype.itemsize
    for size, stride in zip(array.shape[::-1], array.strides[::-1], strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _layout_kernel(
    device: Device, name: str, dtype: str, source_dtype: str | None = None
) -> Kernel:
    source_dtype = source_dtype or dtype
    key = ("copies", dtype, source_dtype)
    kernels = cached_kernels(
        device, key, _LAYOUT_KERNELS, lambda: _layout_source(dtype, source_dtype)
    )
    return kernels[name]


def _layout_source(dtype: str, source_dtype: str) -> str:
    return f"""{PRELUDE}
typedef {_MOVED_C_TYPES[dtype]} real;
typedef {_MOVED_C_TYPES[source_dtype]} given;
{_PACKING_CODE}{_GATHER_CODE}"""


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
    return f"{PRELUDE}\ntypedef {precision.c_accumulator} real;\n{_ROW_COPY_CODE}"


def contiguous_rows(device: Device, precision: Precision, rows: DeviceArray) -> DeviceArray:
    """Copy rows (Q, F) with any row stride to a contiguous array."""
    Q, F = rows.shape
    out = device.empty((Q, F), precision.accumulator)
    stride = rows.strides[0] // rows.dtype.itemsize
    _copy_rows(device, precision, "dense_rows", out, rows, out, Q, F, stride)
    return out


def zero_empty_rows(
    device: Device, precision: Precision, rows: DeviceArray, batch: DeviceBatch
) -> DeviceArray:
    """Copy contiguous rows (N, F), with 0 for sequences without steps."""
    N, F = rows.shape
    out = device.empty((N, F), precision.accumulator)
    if N and batch.sorted_steps[-1] > 0:
        device.copy(rows, out)
    else:
        _copy_rows(device, precision, "seen_rows", out, rows, out, N, F, batch.order, batch.steps)
    return out


def _copy_rows(
    device: Device, precision: Precision, name: str, out: DeviceArray, *arguments: Argument
) -> None:
    if out.size:
        key = ("rows", precision.accumulator)
        kernels = cached_kernels(
            device, key, _ROW_COPY_KERNELS, lambda: _row_copy_source(precision)
        )
        kernels[name](grid_stride_launch(device, out.size), *arguments)


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
    operand, widen, narrow = CONVERSIONS[precision.name]
    return f"""{PRELUDE}
typedef {precision.c_accumulator} real;
typedef {operand} element;
__device__ __forceinline__ real widen(element x) {{ return {widen}; }}
__device__ __forceinline__ element narrow(real x) {{ return {narrow}; }}
{_ROUNDING_CODE}"""


def operand_of(device: Device, precision: Precision, packed: PackedSequences) -> DeviceArray:
    """Values as the operand of a product; rounded once, then kept."""
    if not precision.narrow:
        return packed.values
    if packed.operand is None:
        packed.operand = round_operands(device, precision, packed.values)
    return packed.operand


def round_if_narrow(device: Device, precision: Precision, values: DeviceArray) -> DeviceArray:
    """Contiguous values as the operand of a product."""
    return round_operands(device, precision, values) if precision.narrow else values


def round_operands(device: Device, precision: Precision, values: DeviceArray) -> DeviceArray:
    """Round a contiguous array to the operand type."""
    return _convert(device, precision, "rounded", [values], precision.operand)


def round_rows_into(
    device: Device, precision: Precision, values: DeviceArray, out: DeviceArray
) -> None:
    """Round a sub-matrix, or a stack of sub-matrices, into the same position of `out`."""
    if values.size:
        stacked = values.ndim == 3
        row = values.size // values.shape[0] if stacked else values.size
        stride = values.strides[0] // values.dtype.itemsize if stacked else 0
        kernel = _rounding_kernel(device, precision, "rounded_rows")
        launch = grid_stride_launch(device, values.size)
        kernel(launch, values, out, row, stride, values.size)


def widen_operands(device: Device, precision: Precision, operands: DeviceArray) -> DeviceArray:
    """Convert operands to the accumulator type."""
    return _convert(device, precision, "widened", [operands], precision.accumulator)


def multiply_by_mask(
    device: Device, precision: Precision, x: DeviceArray, mask: DeviceArray
) -> DeviceArray:
    """Multiply an array by a mask, elementwise."""
    return _convert(device, precision, "multiplied", [x, mask], precision.accumulator)


def _convert(
    device: Device, precision: Precision, name: str, inputs: list[DeviceArray], dtype: str
) -> DeviceArray:
    out = device.empty(inputs[0].shape, dtype)
    if out.size:
        kernel = _rounding_kernel(device, precision, name)
        kernel(grid_stride_launch(device, out.size), *inputs, out, out.size)
    return out


def _rounding_kernel(device: Device, precision: Precision, name: str) -> Kernel:
    key = ("rounding", precision.name)
    return cached_kernels(device, key, _ROUNDING_KERNELS, lambda: _rounding_source(precision))[name]
