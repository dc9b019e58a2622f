"""Numbers on the device in the operands' type and back, and their products with masks."""

from __future__ import annotations

from lstm_cli.engines.cuda.device import Device, DeviceArray
from lstm_cli.engines.cuda.launches import compiled, over
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.primitives import PRELUDE
from lstm_cli.engines.cuda.products import CONVERSIONS

KERNELS = ("rounded", "widened", "multiplied")

CODE = """
#define EACH(i) \\
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; \\
       i += (long long)gridDim.x * blockDim.x)
extern "C" __global__ void __launch_bounds__(256) rounded(
    const real* from, element* to, long long size) {
  EACH(i) to[i] = narrow(from[i]);
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
        key = ("rounding", precision.name)
        kernel = compiled(device, key, KERNELS, lambda: source(precision))[name]
        kernel(over(device, out.size), *given, out, out.size)
    return out
