"""Expressions on the device's arrays, element by element: a kernel for each set of expressions.

DeferredSums are made in one order, whatever runs when: each block leaves the sum of its own numbers, and
the host adds these up. They come to the host together, when the first of them is asked for, so that
a training step waits once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lstm_cli.cells.expression import Expression, topological
from lstm_cli.engines.arrays import Late
from lstm_cli.engines.cuda.codegen.cell import emit
from lstm_cli.engines.cuda.codegen.layout import C_TYPES
from lstm_cli.engines.cuda.codegen.primitives import GRID_STRIDE_LOOP, PRELUDE
from lstm_cli.engines.cuda.runtime.device import (
    LOOP_THREADS,
    Device,
    DeviceArray,
    Launch,
    cached_kernels,
    dtype_name,
    grid_stride_launch,
)

MAX_SUM_BLOCKS = 64
"""Blocks that share out a sum, at most."""

SUM_BUFFER_SIZE = 1 << 13
"""Parts of sums that are kept on the device before they are fetched."""

BLOCK_SUM = """
__device__ __forceinline__ void leave_sum(double own, double* sums, double* to) {
  sums[threadIdx.x] = own;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) to[blockIdx.x] = sums[0];
}
"""
"""The sum of a block's own numbers, in an order that is always the same."""


class DeferredSums:
    """DeferredSums that the device makes and the host asks for later."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._parts: DeviceArray | None = None
        self._used = 0
        self._open: list[_DeferredSum] = []

    def room(self, parts: int) -> tuple[DeviceArray, Late]:
        """Where so many parts of a sum go, and the sum of all, for later."""
        if self._used + parts > SUM_BUFFER_SIZE:
            self.fetch()
        if self._parts is None:
            self._parts = self.device.empty((SUM_BUFFER_SIZE,), "float64")
        place = slice(self._used, self._used + parts)
        self._used += parts
        made = _DeferredSum(self, place)
        self._open.append(made)
        return self._parts[place], made

    def fetch(self) -> None:
        """All that were asked to be made, to the host."""
        if self._parts is not None and self._used:
            found = self.device.download(self._parts[: self._used])
            for one in self._open:
                one.value = float(found[one.place].sum())
        self._open, self._used = [], 0


class _DeferredSum:
    def __init__(self, sums: DeferredSums, place: slice) -> None:
        self.sums, self.place = sums, place
        self.value: float | None = None

    def __call__(self) -> float:
        if self.value is None:
            self.sums.fetch()
        return self.value if self.value is not None else 0.0


def evaluate(
    device: Device,
    roots: Mapping[str, Expression],
    values: Mapping[str, DeviceArray | float],
    out: Mapping[str, DeviceArray],
) -> None:
    """Every root into its array of `out`; see `lstm_cli.engines.arrays.Elementwise`."""
    first = next(iter(out.values()))
    for array in out.values():
        _require_same_layout(first, array)
    given, numbers = _symbol_values(roots.values(), values, first)
    if not first.size:
        return
    real = dtype_name(first.dtype)
    key = ("evaluate", tuple(roots.items()), tuple(given), tuple(numbers), real)
    kernel = cached_kernels(
        device, key, ["evaluate"], lambda: _evaluate_source(roots, list(given), list(numbers), real)
    )["evaluate"]
    arrays = [*given.values(), *(out[name] for name in roots)]
    kernel(grid_stride_launch(device, first.size), *arrays, *numbers.values(), first.size)


def total(
    device: Device, root: Expression, values: Mapping[str, DeviceArray | float], sums: DeferredSums
) -> Late:
    """The sum of a root over all elements, each computed and added in double precision."""
    first = next(value for value in values.values() if not isinstance(value, float | int))
    given, numbers = _symbol_values([root], values, first)
    if not first.size:
        return lambda: 0.0
    real = dtype_name(first.dtype)
    key = ("total", root, tuple(given), tuple(numbers), real)
    kernel = cached_kernels(
        device, key, ["total"], lambda: _total_source(root, list(given), list(numbers), real)
    )["total"]
    parts = min(MAX_SUM_BLOCKS, -(-first.size // LOOP_THREADS))
    place, late = sums.room(parts)
    launch = Launch((parts, 1, 1), LOOP_THREADS, shared=LOOP_THREADS * 8)
    kernel(launch, *given.values(), place, *numbers.values(), first.size)
    return late


def _symbol_values(
    roots: Any, values: Mapping[str, DeviceArray | float], like: DeviceArray
) -> tuple[dict[str, DeviceArray], dict[str, float]]:
    """Arrays and numbers that the roots read, by name, in an order that is always the same."""
    names = [str(node.payload) for node in topological(roots) if node.op == "symbol"]
    numbers = {n: float(values[n]) for n in names if isinstance(values[n], float | int)}
    arrays = {name: values[name] for name in names if name not in numbers}
    for array in arrays.values():
        _require_same_layout(like, array)
    return arrays, numbers


def _require_same_layout(one: DeviceArray, other: DeviceArray) -> None:
    if one.shape != other.shape or one.dtype != other.dtype:
        raise ValueError(
            f"arrays of one shape and dtype are wanted, not {one.shape} {one.dtype} and "
            f"{other.shape} {other.dtype}"
        )


def _evaluate_source(
    roots: Mapping[str, Expression], arrays: Sequence[str], numbers: Sequence[str], real: str
) -> str:
    """CUDA C++ of the kernel ``evaluate``."""
    lines, names = emit(roots, _symbol_expressions(arrays, numbers, "a{}[k]"))
    lines += [f"o{k}[k] = {name};" for k, name in enumerate(names.values())]
    outs = [f"real* o{k}" for k in range(len(roots))]
    listed = ", ".join([*_kernel_parameters(arrays, numbers, outs), "long long size"])
    body = "\n    ".join(lines)
    return f"""{PRELUDE}
typedef {C_TYPES[real]} real;
extern "C" __global__ void __launch_bounds__({LOOP_THREADS}) evaluate({listed}) {{
  {GRID_STRIDE_LOOP} {{
    {body}
  }}
}}
"""


def _total_source(
    root: Expression, arrays: Sequence[str], numbers: Sequence[str], given: str
) -> str:
    """CUDA C++ of the kernel ``total``."""
    lines, names = emit({"": root}, _symbol_expressions(arrays, numbers, "real(a{}[k])"))
    parameters = _kernel_parameters(arrays, numbers, ["double* to"])
    listed = ", ".join([*parameters, "long long size"]).replace("real*", "given*")
    body = "\n    ".join([*lines, f"own += {names['']};"])
    return f"""{PRELUDE}
typedef double real;
typedef {C_TYPES[given]} given;
{BLOCK_SUM}
extern "C" __global__ void __launch_bounds__({LOOP_THREADS}) total({listed}) {{
  DYNAMIC_SHARED(memory);
  double own = 0;
  {GRID_STRIDE_LOOP} {{
    {body}
  }}
  leave_sum(own, (double*)memory, to);
}}
"""


def _symbol_expressions(
    arrays: Sequence[str], numbers: Sequence[str], element: str
) -> dict[str, str]:
    named = {name: element.format(k) for k, name in enumerate(arrays)}
    return named | {name: f"real(n{k})" for k, name in enumerate(numbers)}


def _kernel_parameters(
    arrays: Sequence[str], numbers: Sequence[str], outs: Sequence[str]
) -> list[str]:
    reads = [f"const real* a{k}" for k in range(len(arrays))]
    return [*reads, *outs, *(f"double n{k}" for k in range(len(numbers)))]
