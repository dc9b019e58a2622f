"""Sums over rows on the device, in an order that sizes alone decide."""

from __future__ import annotations

from lstm_cli.engines.cuda.device import Device, DeviceArray, Launch
from lstm_cli.engines.cuda.launches import compiled
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.primitives import PRELUDE

NAME = "column_sums"
THREADS = 256
RUN = 256
"""Rows that one block adds up, at least."""
MOST_RUNS = 64

CODE = """
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


def source(precision: Precision) -> str:
    """CUDA C++ of the kernel `NAME`."""
    return f"{PRELUDE}\ntypedef {precision.c_real} real;\n{CODE}"


def column_sums(device: Device, precision: Precision, matrix: DeviceArray) -> DeviceArray:
    """The sum of a matrix (rows, columns) without gaps over its rows: (columns,)."""
    rows, columns = matrix.shape
    if rows == 0:
        return device.zeros((columns,), precision.real)
    key = ("column sums", precision.real)
    kernel = compiled(device, key, [NAME], lambda: source(precision))[NAME]
    item = 8 if precision.real == "float64" else 4
    runs = min(MOST_RUNS, -(-rows // RUN))
    while True:
        run = -(-rows // runs)
        runs = -(-rows // run)
        out = device.empty((runs, columns), precision.real)
        launch = Launch((-(-columns // 32), runs, 1), THREADS, shared=THREADS * item)
        kernel(launch, matrix, out, rows, columns, columns, run)
        if runs == 1:
            return out.reshape(columns)
        matrix, rows, runs = out, runs, 1
