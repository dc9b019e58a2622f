"""Rows of a batch on the device: copies without gaps, and rows of sequences that have a step."""

from __future__ import annotations

from lstm_cli.engines.cuda.batch import Batch
from lstm_cli.engines.cuda.device import Argument, Device, DeviceArray
from lstm_cli.engines.cuda.launches import compiled, over
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.primitives import PRELUDE

KERNELS = ("dense_rows", "seen_rows")

CODE = """
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


def source(precision: Precision) -> str:
    """CUDA C++ of `KERNELS`."""
    return f"{PRELUDE}\ntypedef {precision.c_real} real;\n{CODE}"


def dense_rows(device: Device, precision: Precision, rows: DeviceArray) -> DeviceArray:
    """A copy of rows (Q, F) that may be apart, without gaps."""
    Q, F = rows.shape
    out = device.empty((Q, F), precision.real)
    step = rows.strides[0] // rows.dtype.itemsize
    _start(device, precision, "dense_rows", out, rows, out, Q, F, step)
    return out


def seen_rows(device: Device, precision: Precision, rows: DeviceArray, batch: Batch) -> DeviceArray:
    """A copy of rows (N, F) without gaps, 0 where a sequence has no step."""
    N, F = rows.shape
    out = device.empty((N, F), precision.real)
    if N and batch.sorted_steps[-1] > 0:
        device.copy(rows, out)
    else:
        _start(device, precision, "seen_rows", out, rows, out, N, F, batch.order, batch.steps)
    return out


def _start(
    device: Device, precision: Precision, name: str, out: DeviceArray, *arguments: Argument
) -> None:
    if out.size:
        key = ("rows", precision.real)
        kernel = compiled(device, key, KERNELS, lambda: source(precision))[name]
        kernel(over(device, out.size), *arguments)
