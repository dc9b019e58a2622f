"""Kernels over the rows of a matrix: softmax, cross-entropy, and sums of columns.

Softmax and cross-entropy give each row to a warp. Every sum has an order that sizes alone decide.
"""

from __future__ import annotations

import numpy as np

from lstm_cli.engines.cuda.codegen.elementwise import BLOCK_SUM, MAX_SUM_BLOCKS, DeferredSums
from lstm_cli.engines.cuda.codegen.primitives import PRELUDE
from lstm_cli.engines.cuda.precision import C_TYPES, Precision
from lstm_cli.engines.cuda.runtime.device import (
    Device,
    DeviceArray,
    Kernel,
    Launch,
    cached_kernels,
    dtype_name,
)
from lstm_cli.engines.types import Array, RowsLoss

ROW_THREADS = 128
"""Threads per block, which compute four rows at a time."""

ROW_BLOCKS_PER_SM = 16
"""Largest number of blocks per multiprocessor."""

ROW_LOOP = """for (long long row = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
       row < rows; row += (long long)gridDim.x * (blockDim.x / 32))"""
"""CUDA C++ of the loop over the rows of a thread's warp."""

WARP_REDUCTIONS = """
template <class T> __device__ __forceinline__ T warp_sum(T x) {
  for (int lanes = 16; lanes; lanes /= 2) x += shuffle_xor(x, lanes);
  return x;
}
template <class T> __device__ __forceinline__ T warp_most(T x) {
  for (int lanes = 16; lanes; lanes /= 2) {
    const T other = shuffle_xor(x, lanes);
    x = other > x || other != other ? other : x;  // NaN stays
  }
  return x;
}
"""

SOFTMAX_CODE = """
extern "C" __global__ void __launch_bounds__(128) softmax(
    real* logits, const real* bias, real* to, long long rows, long long F) {
  const int lane = threadIdx.x % 32;
  ROW_LOOP {
    real* a = logits + row * F;
    real most = real(__uint_as_float(0xff800000u));
    for (long long f = lane; f < F; f += 32) {
      const real x = a[f] + bias[f];
      a[f] = x;
      most = x > most || x != x ? x : most;
    }
    most = warp_most(most);
    real sum = real(0);
    for (long long f = lane; f < F; f += 32) {
      const real x = exp(a[f] - most);
      to[row * F + f] = x;
      sum += x;
    }
    sum = warp_sum(sum);
    for (long long f = lane; f < F; f += 32) to[row * F + f] /= sum;
  }
}
extern "C" __global__ void __launch_bounds__(128) through(
    const real* y, const real* d, real* to, long long rows, long long F) {
  const int lane = threadIdx.x % 32;
  ROW_LOOP {
    real sum = real(0);
    for (long long f = lane; f < F; f += 32) sum += d[row * F + f] * y[row * F + f];
    sum = warp_sum(sum);
    for (long long f = lane; f < F; f += 32)
      to[row * F + f] = y[row * F + f] * (d[row * F + f] - sum);
  }
}
""".replace("ROW_LOOP", ROW_LOOP)


def row_launch(device: Device, rows: int) -> Launch:
    """Launch with a warp per row, up to `ROW_BLOCKS_PER_SM`."""
    blocks = min(-(-rows // (ROW_THREADS // 32)), ROW_BLOCKS_PER_SM * device.multiprocessors)
    return Launch((max(1, blocks), 1, 1), ROW_THREADS)


def softmax(device: Device, logits: DeviceArray, bias: DeviceArray) -> DeviceArray:
    """Softmax over the columns of logits (rows, F), to which the bias is added in place."""
    out = device.empty(logits.shape, dtype_name(logits.dtype))
    if out.size:
        rows, F = logits.shape
        kernel = _softmax_kernel(device, "softmax", dtype_name(logits.dtype))
        kernel(row_launch(device, rows), logits, bias, out, rows, F)
    return out


def softmax_backward(device: Device, y: DeviceArray, d: DeviceArray) -> DeviceArray:
    """Derivative for the logits from the derivative for the softmax `y`, (rows, F) each."""
    out = device.empty(y.shape, dtype_name(y.dtype))
    if out.size:
        rows, F = y.shape
        kernel = _softmax_kernel(device, "through", dtype_name(y.dtype))
        kernel(row_launch(device, rows), y, d, out, rows, F)
    return out


def _softmax_kernel(device: Device, name: str, dtype: str) -> Kernel:
    key, names = ("softmax", dtype), ["softmax", "through"]
    return cached_kernels(device, key, names, lambda: _softmax_source(dtype))[name]


def _softmax_source(dtype: str) -> str:
    return f"{PRELUDE}\ntypedef {C_TYPES[dtype]} real;\n{WARP_REDUCTIONS}{SOFTMAX_CODE}"


CROSS_ENTROPY_CODE = """
// The share of class f, smoothed, times what the class counts for.
__device__ __forceinline__ double share(
    double t, double counts, double smoothing, long long F) {
  return ((1 - smoothing) * t + smoothing / F) * counts;
}
extern "C" __global__ void __launch_bounds__(128) cross_entropy(
    const real* logits, const long long* classes, const double* shares, const double* counts,
    real* to, double* parts, double smoothing, double scale, long long rows, long long F) {
  DYNAMIC_SHARED(memory);
  const int lane = threadIdx.x % 32;
  double own = 0;
  ROW_LOOP {
    const real* a = logits + row * F;
    real most = real(__uint_as_float(0xff800000u));
    for (long long f = lane; f < F; f += 32) most = a[f] > most || a[f] != a[f] ? a[f] : most;
    most = warp_most(most);
    double powers = 0, weight = 0, whole = 0, loss = 0;
    for (long long f = lane; f < F; f += 32) {
      const double t = classes ? double(classes[row] == f) : shares[row * F + f];
      const double count = counts ? counts[f] : 1.0;
      powers += exp(double(a[f]) - double(most));
      weight += counts ? t * count : 0.0;
      const double s = share(t, count, smoothing, F);
      whole += s;
      loss -= s == 0 ? 0.0 : s * (double(a[f]) - double(most));
    }
    powers = warp_sum(powers);
    whole = warp_sum(whole);
    loss = warp_sum(loss) + whole * log1p(powers - 1);
    weight = counts ? warp_sum(weight) : 1.0;
    // A row's weight was multiplied in with its shares, which it is divided by again.
    const double part = counts ? (weight != 0 ? 1.0 : 0.0) : 1.0;
    if (lane == 0) own += loss * part;
    for (long long f = lane; f < F; f += 32) {
      const double t = classes ? double(classes[row] == f) : shares[row * F + f];
      const double s = share(t, counts ? counts[f] : 1.0, smoothing, F);
      const double p = exp(double(a[f]) - double(most)) / powers;
      to[row * F + f] = real((p * whole - s) * part * scale);
    }
  }
  leave_sum(own, (double*)memory, parts);
}
""".replace("ROW_LOOP", ROW_LOOP)


def cross_entropy(
    device: Device,
    logits: DeviceArray,
    targets: Array,
    class_weights: Array | None,
    label_smoothing: float,
    sums: DeferredSums,
) -> RowsLoss:
    """Loss of logits (rows, F) and its derivative, in one kernel.

    See `cross_entropy` of the engine protocol for the other parameters.
    """
    rows, F = logits.shape
    dtype = dtype_name(logits.dtype)
    out = device.empty(logits.shape, dtype)
    weight = _total_weight(targets, class_weights)
    scale = 1 / weight if weight else 0.0
    if not out.size:
        return RowsLoss(lambda: 0.0, out, weight, scale)
    classes = device.upload(targets.astype(np.int64)) if targets.ndim == 1 else None
    shares = device.upload(targets.astype(np.float64)) if targets.ndim == 2 else None
    counts = None if class_weights is None else device.upload(class_weights.astype(np.float64))
    key, names = ("classes", dtype), ["cross_entropy"]
    kernel = cached_kernels(device, key, names, lambda: _cross_entropy_source(dtype))[names[0]]
    blocks = min(MAX_SUM_BLOCKS, -(-rows // (ROW_THREADS // 32)))
    parts, total = sums.reserve(blocks)
    kernel(
        Launch((blocks, 1, 1), ROW_THREADS, shared=ROW_THREADS * 8),
        logits,
        classes,
        shares,
        counts,
        out,
        parts,
        float(label_smoothing),
        float(scale),
        rows,
        F,
    )
    return RowsLoss(total, out, weight, scale)


def _total_weight(targets: Array, class_weights: Array | None) -> float:
    if class_weights is None:
        return float(len(targets))
    return float((class_weights[targets] if targets.ndim == 1 else targets @ class_weights).sum())


def _cross_entropy_source(dtype: str) -> str:
    functions = f"{WARP_REDUCTIONS}{BLOCK_SUM}{CROSS_ENTROPY_CODE}"
    return f"{PRELUDE}\ntypedef {C_TYPES[dtype]} real;\n{functions}"


COLUMN_SUMS_KERNEL = "column_sums"

COLUMN_SUM_THREADS = 256
"""Threads per block of the column sums."""

MIN_ROWS_PER_BLOCK = 256
"""Least number of rows that one block adds up."""

MAX_ROW_BLOCKS = 64
"""Largest number of blocks among which the rows are divided."""

COLUMN_SUMS_CODE = """
// Block (x, y) adds up run y of the rows, in 32 columns; its 8 warps take every eighth row.
extern "C" __global__ void __launch_bounds__(256) column_sums(
    const real* from, real* to, long long rows, long long columns, long long row_step,
    long long run) {
  DYNAMIC_SHARED(memory);
  real* sums = (real*)memory;  // (8, 32)
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const long long column = blockIdx.x * 32ll + lane;
  const long long first = blockIdx.y * run, end = first + run < rows ? first + run : rows;
  real sum = real(0);
  if (column < columns)
    for (long long q = first + warp; q < end; q += 8) sum += from[q * row_step + column];
  sums[warp * 32 + lane] = sum;
  __syncthreads();
  if (warp == 0 && column < columns) {
    for (int k = 1; k < 8; k++) sum += sums[k * 32 + lane];
    to[blockIdx.y * columns + column] = sum;
  }
}
"""


def column_sums_source(precision: Precision) -> str:
    """CUDA C++ of the kernel `COLUMN_SUMS_KERNEL`."""
    return f"{PRELUDE}\ntypedef {precision.c_accumulator} real;\n{COLUMN_SUMS_CODE}"


def column_sums(device: Device, precision: Precision, matrix: DeviceArray) -> DeviceArray:
    """Sum a contiguous matrix (rows, columns) over its rows: (columns,)."""
    rows, columns = matrix.shape
    if rows == 0:
        return device.zeros((columns,), precision.accumulator)
    key, names = ("column sums", precision.accumulator), [COLUMN_SUMS_KERNEL]
    kernel = cached_kernels(device, key, names, lambda: column_sums_source(precision))[names[0]]
    shared = COLUMN_SUM_THREADS * precision.accumulator_bytes
    blocks = min(MAX_ROW_BLOCKS, -(-rows // MIN_ROWS_PER_BLOCK))
    while True:
        block_rows = -(-rows // blocks)
        blocks = -(-rows // block_rows)
        out = device.empty((blocks, columns), precision.accumulator)
        grid = (-(-columns // 32), blocks, 1)
        launch = Launch(grid, COLUMN_SUM_THREADS, shared=shared)
        kernel(launch, matrix, out, rows, columns, columns, block_rows)
        if blocks == 1:
            return out.reshape(columns)
        matrix, rows, blocks = out, blocks, 1
