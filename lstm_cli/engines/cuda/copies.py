"""Values from one layout to another: packed and padded batches, flattened steps, operands."""

from __future__ import annotations

import numpy as np

from lstm_cli.engines.cuda.batch import Batch, Sequences
from lstm_cli.engines.cuda.device import Array, Device, DeviceArray, Kernel, dtype_name
from lstm_cli.engines.cuda.launches import LOOP, compiled, over
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.primitives import PRELUDE
from lstm_cli.engines.cuda.rounding import rounded

TYPES = {"float32": "float", "float64": "double"}
"""Real numbers in C++."""

ELEMENTS = TYPES | {"uint16": "unsigned short"}
"""And 16-bit floats, which are only moved."""

KERNELS = ("pack", "unpack", "repack", "begun", "normalize", "take", "put")


def element_of(device: Device, precision: Precision, values: Sequences) -> DeviceArray:
    """The values as the operand of a product, made once."""
    if not precision.narrow:
        return values.real
    if values.element is None:
        values.element = rounded(device, precision, values.real)
    return values.element


PADDING = """
extern "C" __global__ void __launch_bounds__(256) pack(
    const given* from, real* to, const long long* order, const long long* starts,
    const long long* steps, long long T, long long F, long long n_step, long long t_step,
    long long f_step, long long size) {
  LOOP {
    const long long f = k % F, t = k / F % T, i = k / F / T;
    if (t < steps[i])
      to[(starts[i] + t) * F + f] = real(from[order[i] * n_step + t * t_step + f * f_step]);
  }
}
extern "C" __global__ void __launch_bounds__(256) unpack(
    const real* from, real* to, const long long* order, const long long* starts,
    const long long* steps, long long stored, long long T, long long F, long long size) {
  LOOP {
    const long long f = k % F, t = k / F % T, i = k / F / T;
    const long long here = stored < T ? stored : T;
    to[(order[i] * T + t) * F + f] =
        t < steps[i] && t < here ? from[(starts[i] + t) * F + f] : real(0);
  }
}
extern "C" __global__ void __launch_bounds__(256) repack(
    const real* from, real* to, const long long* order, const long long* starts,
    const long long* steps, long long stored, long long T, long long F, long long size) {
  LOOP {
    const long long f = k % F, t = k / F % T, i = k / F / T;
    if (t < steps[i])
      to[(starts[i] + t) * F + f] = t < stored ? from[(order[i] * stored + t) * F + f] : real(0);
  }
}
extern "C" __global__ void __launch_bounds__(256) normalize(
    const given* from, real* to, const double* mean, const double* scale, long long T, long long F,
    long long n_step, long long t_step, long long f_step, long long size) {
  LOOP {
    const long long f = k % F, t = k / F % T, n = k / F / T;
    to[k] = real((double(from[n * n_step + t * t_step + f * f_step]) - mean[f]) / scale[f]);
  }
}
extern "C" __global__ void __launch_bounds__(256) begun(
    const real* from, real* to, const long long* order, const long long* steps, long long F,
    long long size) {
  LOOP {
    const long long f = k % F, i = k / F, n = order[i];
    to[n * F + f] = steps[i] ? from[n * F + f] : real(0);
  }
}
""".replace("LOOP", LOOP)
"""Between (Q, F), the steps that there are, and (N, T, F), as its caller has a batch."""


def pack(device: Device, batch: Batch, array: DeviceArray, real: str) -> DeviceArray:
    """An array (N, T, F), float32 or float64 and with any gaps, as (Q, F)."""
    F = array.shape[2]
    if not batch.ragged and _plain(array) and dtype_name(array.dtype) == real:
        return array.reshape(batch.Q, F)
    out = device.empty((batch.Q, F), real)
    size = batch.N * batch.T * F
    if out.size:
        kernel = _kernel(device, "pack", real, dtype_name(array.dtype))
        steps = [stride // array.dtype.itemsize for stride in array.strides]
        places = (batch.order, batch.starts, batch.steps)
        kernel(over(device, size), array, out, *places, batch.T, F, *steps, size)
    return out


def normalize(
    device: Device, array: DeviceArray, mean: Array, scale: Array, real: str
) -> DeviceArray:
    """(x - mean) / scale of an array (N, T, F), float32 or float64 and with any gaps."""
    out = device.empty(tuple(array.shape), real)
    if out.size:
        kernel = _kernel(device, "normalize", real, dtype_name(array.dtype))
        steps = [stride // array.dtype.itemsize for stride in array.strides]
        own = device.upload(np.ascontiguousarray(mean)), device.upload(np.ascontiguousarray(scale))
        kernel(over(device, out.size), array, out, *own, *array.shape[1:], *steps, out.size)
    return out


def unpack(device: Device, values: Sequences) -> DeviceArray:
    """Values as (N, T, F), 0 in the padding; or (N, F), 0 for a sequence of length 0."""
    batch, real, dtype = values.batch, values.real, dtype_name(values.real.dtype)
    F = real.shape[1]
    if values.per_step:
        if not batch.ragged:
            return real.reshape(batch.N, batch.T, F)
        return padded(device, values, batch.T).reshape(batch.N, batch.T, F)
    if not batch.ragged and batch.T:
        return real
    out = device.empty(real.shape, dtype)
    if out.size:
        kernel = _kernel(device, "begun", dtype)
        kernel(over(device, real.size), real, out, batch.order, batch.steps, F, real.size)
    return out


def padded(device: Device, values: Sequences, T: int) -> DeviceArray:
    """Values over steps as (N, T * F), for any number T of steps; 0 behind each sequence's end."""
    batch, F, dtype = values.batch, values.real.shape[1], dtype_name(values.real.dtype)
    out = device.empty((batch.N, T * F), dtype)
    if out.size:
        kernel = _kernel(device, "unpack", dtype)
        places = (batch.order, batch.starts, batch.steps)
        kernel(over(device, out.size), values.real, out, *places, batch.T, T, F, out.size)
    return out


def repack(device: Device, batch: Batch, array: DeviceArray, T: int) -> DeviceArray:
    """The inverse of `padded`: (Q, F) of (N, T * F); steps behind T are 0."""
    dtype = dtype_name(array.dtype)
    F = array.shape[1] // T if T else 0
    out = device.empty((batch.Q, F), dtype)
    size = batch.N * batch.T * F
    if out.size:
        kernel = _kernel(device, "repack", dtype)
        places = (batch.order, batch.starts, batch.steps)
        kernel(over(device, size), array, out, *places, T, batch.T, F, size)
    return out


ROWS = """
extern "C" __global__ void __launch_bounds__(256) take(
    const real* from, real* to, const long long* rows, long long F, long long size) {
  LOOP to[k] = from[rows[k / F] * F + k % F];
}
extern "C" __global__ void __launch_bounds__(256) put(
    const real* from, real* to, const long long* rows, long long F, long long size) {
  LOOP to[rows[k / F] * F + k % F] = from[k];
}
""".replace("LOOP", LOOP)


def take(device: Device, array: DeviceArray, rows: DeviceArray) -> DeviceArray:
    """Some rows of a matrix, by number."""
    out = device.empty((rows.shape[0], array.shape[1]), dtype_name(array.dtype))
    if out.size:
        kernel = _kernel(device, "take", dtype_name(array.dtype))
        kernel(over(device, out.size), array, out, rows, array.shape[1], out.size)
    return out


def put(device: Device, array: DeviceArray, rows: DeviceArray, count: int) -> DeviceArray:
    """A matrix of `count` rows that has an array's rows at these numbers, and else 0."""
    out = device.zeros((count, array.shape[1]), dtype_name(array.dtype))
    if array.size:
        kernel = _kernel(device, "put", dtype_name(array.dtype))
        kernel(over(device, array.size), array, out, rows, array.shape[1], array.size)
    return out


def put_into(device: Device, array: DeviceArray, rows: DeviceArray, out: DeviceArray) -> None:
    """An array's rows to these of a matrix that is there."""
    if array.size:
        kernel = _kernel(device, "put", str(array.dtype))
        kernel(over(device, array.size), array, out, rows, array.shape[1], array.size)


def _plain(array: DeviceArray) -> bool:
    """Whether an array is in C order without gaps."""
    expected = array.dtype.itemsize
    for size, stride in zip(array.shape[::-1], array.strides[::-1], strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _kernel(device: Device, name: str, real: str, given: str | None = None) -> Kernel:
    given = given or real
    key = ("copies", real, given)
    return compiled(device, key, KERNELS, lambda: _source(real, given))[name]


def _source(real: str, given: str) -> str:
    return f"""{PRELUDE}
typedef {ELEMENTS[real]} real;
typedef {ELEMENTS[given]} given;
{PADDING}{ROWS}"""
