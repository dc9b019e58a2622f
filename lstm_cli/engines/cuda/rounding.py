"""Numbers on the device in the operands' type and back, and their products with masks."""

from __future__ import annotations

from lstm_cli.engines.cuda.device import Device, DeviceArray, Kernel
from lstm_cli.engines.cuda.launches import compiled, over
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.primitives import PRELUDE
from lstm_cli.engines.cuda.products import CONVERSIONS

KERNELS = ("rounded", "rounded_rows", "widened", "multiplied")

CODE = """
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


def source(precision: Precision) -> str:
    """CUDA C++ of `KERNELS`."""
    element, widen, narrow = CONVERSIONS[precision.name]
    return f"""{PRELUDE}
typedef {precision.c_real} real;
typedef {element} element;
__device__ __forceinline__ real widen(element x) {{ return {widen}; }}
__device__ __forceinline__ element narrow(real x) {{ return {narrow}; }}
{CODE}"""


def rounded(device: Device, precision: Precision, real: DeviceArray) -> DeviceArray:
    """An array without gaps in the operands' type."""
    return _each(device, precision, "rounded", [real], precision.element)


def round_rows(
    device: Device, precision: Precision, real: DeviceArray, element: DeviceArray
) -> None:
    """The same of a stack of matrices, or of one, that is part of an array; to the same part."""
    if real.size:
        stacked = real.ndim == 3
        row = real.size // real.shape[0] if stacked else real.size
        step = real.strides[0] // real.dtype.itemsize if stacked else 0
        given = (real, element, row, step, real.size)
        _kernel(device, precision, "rounded_rows")(over(device, real.size), *given)


def widened(device: Device, precision: Precision, element: DeviceArray) -> DeviceArray:
    """Operands as the numbers that they are."""
    return _each(device, precision, "widened", [element], precision.real)


def multiplied(
    device: Device, precision: Precision, x: DeviceArray, mask: DeviceArray
) -> DeviceArray:
    """The product of two arrays, number by number."""
    return _each(device, precision, "multiplied", [x, mask], precision.real)


def _each(
    device: Device, precision: Precision, name: str, given: list[DeviceArray], dtype: str
) -> DeviceArray:
    out = device.empty(given[0].shape, dtype)
    if out.size:
        _kernel(device, precision, name)(over(device, out.size), *given, out, out.size)
    return out


def _kernel(device: Device, precision: Precision, name: str) -> Kernel:
    key = ("rounding", precision.name)
    return compiled(device, key, KERNELS, lambda: source(precision))[name]
