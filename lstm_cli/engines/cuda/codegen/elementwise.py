"""Elementwise kernels and sums of expressions: one kernel per set of expressions.

Each block adds up its own numbers, and the host adds up the blocks. So a sum has a fixed order. All
sums come to the host together when the first one is read, so a training step waits once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lstm_cli.cells.expression import Expression, topological
from lstm_cli.engines.cuda.codegen.cell import emit
from lstm_cli.engines.cuda.codegen.primitives import GRID_STRIDE_LOOP, PRELUDE
from lstm_cli.engines.cuda.precision import C_TYPES
from lstm_cli.engines.cuda.runtime.device import (
    LOOP_THREADS,
    Device,
    DeviceArray,
    Launch,
    cached_kernels,
    dtype_name,
    grid_stride_launch,
)
from lstm_cli.engines.types import Deferred

MAX_SUM_BLOCKS = 64
"""Largest number of blocks that compute one sum."""

SUM_BUFFER_SIZE = 1 << 13
"""Number of partial sums that fit on the device; when they are full, the host fetches all sums."""

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
"""CUDA C++ of a block's sum, in a fixed order."""


class DeferredSums:
    """Sums that the device computes, and the host fetches together when one is read."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._buffer: DeviceArray | None = None
        self._used = 0
        self._pending: list[_DeferredSum] = []

    def reserve(self, parts: int) -> tuple[DeviceArray, Deferred]:
        """Reserve device memory for the partial sums of one sum.

        Returns
        -------
        buffer, total
            (parts,) float64 on the device, and a function that waits for the total and returns it.
        """
        if self._used + parts > SUM_BUFFER_SIZE:
            self.fetch()
        if self._buffer is None:
            self._buffer = self.device.empty((SUM_BUFFER_SIZE,), "float64")
        place = slice(self._used, self._used + parts)
        self._used += parts
        total = _DeferredSum(self, place)
        self._pending.append(total)
        return self._buffer[place], total

    def fetch(self) -> None:
        """Copy all pending sums to the host."""
        if self._buffer is not None and self._used:
            parts = self.device.download(self._buffer[: self._used])
            for pending in self._pending:
                pending.value = float(parts[pending.place].sum())
        self._pending, self._used = [], 0


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
    """Compute every root elementwise into its array of `out`.

    Parameters
    ----------
    values
        Array or number of each symbol. All arrays have the shape and dtype of those of `out`.

    Raises
    ------
    ValueError
        The arrays differ in shape or dtype.
    """
    first = next(iter(out.values()))
    for array in out.values():
        _require_same_layout(first, array)
    arrays, numbers = _symbol_values(roots.values(), values, first)
    if not first.size:
        return
    dtype = dtype_name(first.dtype)
    key = ("evaluate", tuple(roots.items()), tuple(arrays), tuple(numbers), dtype)
    kernels = cached_kernels(
        device,
        key,
        ["evaluate"],
        lambda: _evaluate_source(roots, list(arrays), list(numbers), dtype),
    )
    outputs = [out[name] for name in roots]
    launch = grid_stride_launch(device, first.size)
    kernels["evaluate"](launch, *arrays.values(), *outputs, *numbers.values(), first.size)


def total(
    device: Device, root: Expression, values: Mapping[str, DeviceArray | float], sums: DeferredSums
) -> Deferred:
    """Deferred sum of a root over all elements, computed and added in double precision."""
    first = next(value for value in values.values() if not isinstance(value, float | int))
    arrays, numbers = _symbol_values([root], values, first)
    if not first.size:
        return lambda: 0.0
    dtype = dtype_name(first.dtype)
    key = ("total", root, tuple(arrays), tuple(numbers), dtype)
    kernels = cached_kernels(
        device, key, ["total"], lambda: _total_source(root, list(arrays), list(numbers), dtype)
    )
    blocks = min(MAX_SUM_BLOCKS, -(-first.size // LOOP_THREADS))
    parts, deferred = sums.reserve(blocks)
    launch = Launch((blocks, 1, 1), LOOP_THREADS, shared=LOOP_THREADS * 8)
    kernels["total"](launch, *arrays.values(), parts, *numbers.values(), first.size)
    return deferred


def _symbol_values(
    roots: Iterable[Expression], values: Mapping[str, DeviceArray | float], like: DeviceArray
) -> tuple[dict[str, DeviceArray], dict[str, float]]:
    """Arrays and numbers that the roots read, by name, in a fixed order."""
    names = [str(node.payload) for node in topological(roots) if node.op == "symbol"]
    numbers = {n: float(values[n]) for n in names if isinstance(values[n], float | int)}
    arrays = {name: values[name] for name in names if name not in numbers}
    for array in arrays.values():
        _require_same_layout(like, array)
    return arrays, numbers


def _require_same_layout(one: DeviceArray, other: DeviceArray) -> None:
    if one.shape != other.shape or one.dtype != other.dtype:
        raise ValueError(
            f"arrays must have one shape and dtype, not {one.shape} {one.dtype} and "
            f"{other.shape} {other.dtype}"
        )


def _evaluate_source(
    roots: Mapping[str, Expression], arrays: Sequence[str], numbers: Sequence[str], dtype: str
) -> str:
    """CUDA C++ of the kernel ``evaluate``."""
    lines, names = emit(roots, _symbol_expressions(arrays, numbers, "a{}[k]"))
    lines += [f"o{k}[k] = {name};" for k, name in enumerate(names.values())]
    outs = [f"real* o{k}" for k in range(len(roots))]
    listed = ", ".join([*_kernel_parameters(arrays, numbers, outs), "long long size"])
    body = "\n    ".join(lines)
    return f"""{PRELUDE}
typedef {C_TYPES[dtype]} real;
extern "C" __global__ void __launch_bounds__({LOOP_THREADS}) evaluate({listed}) {{
  {GRID_STRIDE_LOOP} {{
    {body}
  }}
}}
"""


def _total_source(
    root: Expression, arrays: Sequence[str], numbers: Sequence[str], dtype: str
) -> str:
    """CUDA C++ of the kernel ``total``."""
    lines, names = emit({"": root}, _symbol_expressions(arrays, numbers, "real(a{}[k])"))
    parameters = _kernel_parameters(arrays, numbers, ["double* to"])
    listed = ", ".join([*parameters, "long long size"]).replace("real*", "given*")
    body = "\n    ".join([*lines, f"own += {names['']};"])
    return f"""{PRELUDE}
typedef double real;
typedef {C_TYPES[dtype]} given;
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
    expressions = {name: element.format(k) for k, name in enumerate(arrays)}
    return expressions | {name: f"real(n{k})" for k, name in enumerate(numbers)}


def _kernel_parameters(
    arrays: Sequence[str], numbers: Sequence[str], outs: Sequence[str]
) -> list[str]:
    inputs = [f"const real* a{k}" for k in range(len(arrays))]
    return [*inputs, *outs, *(f"double n{k}" for k in range(len(numbers)))]
