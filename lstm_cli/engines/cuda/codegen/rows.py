"""Kernels that take a matrix row by row: softmax and its derivative. A warp has a row."""

from __future__ import annotations

import numpy as np

from lstm_cli.engines.arrays import Array, RowsLoss
from lstm_cli.engines.cuda.codegen.elementwise import BLOCK_SUM, MAX_SUM_BLOCKS, DeferredSums
from lstm_cli.engines.cuda.codegen.layout import C_TYPES
from lstm_cli.engines.cuda.codegen.primitives import PRELUDE
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import (
    Device,
    DeviceArray,
    Kernel,
    Launch,
    cached_kernels,
    dtype_name,
)

ROW_THREADS = 128
"""Of a block: four rows at a time."""

ROW_BLOCKS_PER_SM = 16
"""For each multiprocessor, at most."""

ROW_LOOP = """for (long long row = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
       row < rows; row += (long long)gridDim.x * (blockDim.x / 32))"""
"""In C++: the rows of a thread's warp."""

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


def row_launch(device: Device, rows: int, shared: int = 0) -> Launch:
    """A launch with a warp for each row, as far as that is useful."""
    blocks = min(-(-rows // (ROW_THREADS // 32)), ROW_BLOCKS_PER_SM * device.multiprocessors)
    return Launch((max(1, blocks), 1, 1), ROW_THREADS, shared=shared)


def softmax(device: Device, logits: DeviceArray, bias: DeviceArray) -> DeviceArray:
    """Softmax over the columns of logits (rows, F), to which the bias is added in place."""
    out = device.empty(logits.shape, dtype_name(logits.dtype))
    if out.size:
        kernel = _softmax_kernel(device, "softmax", dtype_name(logits.dtype))
        kernel(row_launch(device, logits.shape[0]), logits, bias, out, *logits.shape)
    return out


def softmax_backward(device: Device, y: DeviceArray, d: DeviceArray) -> DeviceArray:
    """The derivative for the logits from the one for the softmax `y`, (rows, F) each."""
    out = device.empty(y.shape, dtype_name(y.dtype))
    if out.size:
        kernel = _softmax_kernel(device, "through", dtype_name(y.dtype))
        kernel(row_launch(device, y.shape[0]), y, d, out, *y.shape)
    return out


def _softmax_kernel(device: Device, name: str, real: str) -> Kernel:
    return cached_kernels(
        device, ("softmax", real), ["softmax", "through"], lambda: _softmax_source(real)
    )[name]


def _softmax_source(real: str) -> str:
    return f"{PRELUDE}\ntypedef {C_TYPES[real]} real;\n{WARP_REDUCTIONS}{SOFTMAX_CODE}"


# MERGED classes: """Cross-entropy of a softmax on the device: the loss of rows and its derivative in one kernel."""
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
    """The loss of logits (rows, F); see `lstm_cli.engines.arrays.Elementwise`."""
    rows, F = logits.shape
    out = device.empty(logits.shape, dtype_name(logits.dtype))
    weight = _total_weight(targets, class_weights)
    scale = 1 / weight if weight else 0.0
    if not out.size:
        return RowsLoss(lambda: 0.0, out, weight, scale)
    classes = device.upload(targets.astype(np.int64)) if targets.ndim == 1 else None
    shares = device.upload(targets.astype(np.float64)) if targets.ndim == 2 else None
    counts = None if class_weights is None else device.upload(class_weights.astype(np.float64))
    real = dtype_name(logits.dtype)
    kernel = cached_kernels(
        device, ("classes", real), ["cross_entropy"], lambda: _cross_entropy_source(real)
    )
    blocks = min(MAX_SUM_BLOCKS, -(-rows // (ROW_THREADS // 32)))
    place, late = sums.room(blocks)
    given = (logits, classes, shares, counts, out, place, float(label_smoothing), float(scale))
    launch = Launch((blocks, 1, 1), ROW_THREADS, shared=ROW_THREADS * 8)
    kernel["cross_entropy"](launch, *given, rows, F)
    return RowsLoss(late, out, weight, scale)


def _total_weight(targets: Array, class_weights: Array | None) -> float:
    """What all rows count for together."""
    if class_weights is None:
        return float(len(targets))
    return float((class_weights[targets] if targets.ndim == 1 else targets @ class_weights).sum())


def _cross_entropy_source(real: str) -> str:
    return f"{PRELUDE}\ntypedef {C_TYPES[real]} real;\n{WARP_REDUCTIONS}{BLOCK_SUM}{CROSS_ENTROPY_CODE}"


# MERGED reduce: """Sums over rows on the device, in an order that sizes alone decide."""
COLUMN_SUMS_KERNEL = "column_sums"
COLUMN_SUM_THREADS = 256
MIN_ROWS_PER_BLOCK = 256
"""Rows that one block adds up, at least."""
MAX_ROW_BLOCKS = 64

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
    return f"{PRELUDE}\ntypedef {precision.c_real} real;\n{COLUMN_SUMS_CODE}"


def column_sums(device: Device, precision: Precision, matrix: DeviceArray) -> DeviceArray:
    """The sum of a matrix (rows, columns) without gaps over its rows: (columns,)."""
    rows, columns = matrix.shape
    if rows == 0:
        return device.zeros((columns,), precision.real)
    key = ("column sums", precision.real)
    kernel = cached_kernels(
        device, key, [COLUMN_SUMS_KERNEL], lambda: column_sums_source(precision)
    )[COLUMN_SUMS_KERNEL]
    item = 8 if precision.real == "float64" else 4
    runs = min(MAX_ROW_BLOCKS, -(-rows // MIN_ROWS_PER_BLOCK))
    while True:
        run = -(-rows // runs)
        runs = -(-rows // run)
        out = device.empty((runs, columns), precision.real)
        launch = Launch(
            (-(-columns // 32), runs, 1), COLUMN_SUM_THREADS, shared=COLUMN_SUM_THREADS * item
        )
        kernel(launch, matrix, out, rows, columns, columns, run)
        if runs == 1:
            return out.reshape(columns)
        matrix, rows, runs = out, runs, 1
