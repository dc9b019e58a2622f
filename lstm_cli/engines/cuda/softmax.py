"""Kernels that take a matrix row by row: softmax and its derivative. A warp has a row."""

from __future__ import annotations

from lstm_cli.engines.cuda.copies import TYPES
from lstm_cli.engines.cuda.device import Device, DeviceArray, Kernel, Launch, dtype_name
from lstm_cli.engines.cuda.launches import compiled
from lstm_cli.engines.cuda.primitives import PRELUDE

THREADS = 128
"""Of a block: four rows at a time."""

BLOCKS = 16
"""For each multiprocessor, at most."""

ROWS = """for (long long row = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
       row < rows; row += (long long)gridDim.x * (blockDim.x / 32))"""
"""In C++: the rows of a thread's warp."""

SUMS = """
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

SOFTMAX = """
extern "C" __global__ void __launch_bounds__(128) softmax(
    real* logits, const real* bias, real* to, long long rows, long long F) {
  const int lane = threadIdx.x % 32;
  ROWS {
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
  ROWS {
    real sum = real(0);
    for (long long f = lane; f < F; f += 32) sum += d[row * F + f] * y[row * F + f];
    sum = warp_sum(sum);
    for (long long f = lane; f < F; f += 32)
      to[row * F + f] = y[row * F + f] * (d[row * F + f] - sum);
  }
}
""".replace("ROWS", ROWS)


def by_rows(device: Device, rows: int, shared: int = 0) -> Launch:
    """A launch with a warp for each row, as far as that is useful."""
    blocks = min(-(-rows // (THREADS // 32)), BLOCKS * device.multiprocessors)
    return Launch((max(1, blocks), 1, 1), THREADS, shared=shared)


def softmax(device: Device, logits: DeviceArray, bias: DeviceArray) -> DeviceArray:
    """Softmax over the columns of logits (rows, F), to which the bias is added in place."""
    out = device.empty(logits.shape, dtype_name(logits.dtype))
    if out.size:
        kernel = _kernel(device, "softmax", dtype_name(logits.dtype))
        kernel(by_rows(device, logits.shape[0]), logits, bias, out, *logits.shape)
    return out


def softmax_backward(device: Device, y: DeviceArray, d: DeviceArray) -> DeviceArray:
    """The derivative for the logits from the one for the softmax `y`, (rows, F) each."""
    out = device.empty(y.shape, dtype_name(y.dtype))
    if out.size:
        kernel = _kernel(device, "through", dtype_name(y.dtype))
        kernel(by_rows(device, y.shape[0]), y, d, out, *y.shape)
    return out


def _kernel(device: Device, name: str, real: str) -> Kernel:
    return compiled(device, ("softmax", real), ["softmax", "through"], lambda: _source(real))[name]


def _source(real: str) -> str:
    return f"{PRELUDE}\ntypedef {TYPES[real]} real;\n{SUMS}{SOFTMAX}"
