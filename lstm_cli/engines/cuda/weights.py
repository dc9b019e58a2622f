"""Weights of a direction on the device, and matrices packed for the general kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.codegen.data_movement import round_operands
from lstm_cli.engines.cuda.codegen.matmul import CONVERSIONS, padded_size
from lstm_cli.engines.cuda.codegen.primitives import PRELUDE
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import (
    Device,
    DeviceArray,
    cached_kernels,
    grid_stride_launch,
)

MATRICES = ("weight_ih", "weight_hh", "weight_hr")
"""Names of the tensors that products multiply."""

PACK_KERNEL = "pack"

PACK_CODE = """
extern "C" __global__ void __launch_bounds__(256) pack(
    const element* from, element* to, long long A, long long B, long long C,
    long long A_filled, long long B_filled, long long a_step, long long b_step, long long c_step) {
  const long long all = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < A * B * C; i += all) {
    const long long a = i / C / B, b = i / C % B, c = i % C;
    element x = element(0);
    if (a < A_filled && b < B_filled) x = from[a * a_step + b * b_step + c * c_step];
    to[i] = ready(x);
  }
}
"""


@dataclass(frozen=True, eq=False)
class DirectionWeights:
    """Tensors of one direction on the device, as stored (row-major).

    Attributes
    ----------
    stored
        Tensors by name within the direction (``weight_ih``, ``weight_hh``, ``bias``, ``bias_ih``,
        ``bias_hh``, ``peephole``, ``weight_hr``), in the precision's accumulator type.
    operands
        The matrices of `stored` in the operand type; the same arrays if the types are equal.
    packings
        Packed copies of matrices by key, made at their first use.
    """

    cell: Cell
    input_size: int
    precision: Precision
    stored: dict[str, DeviceArray]
    operands: dict[str, DeviceArray]
    packings: dict[str, DeviceArray] = field(default_factory=dict)


@dataclass(frozen=True)
class MatrixPacking:
    """Layout of a packed matrix with axes A, B, C, relative to the stored matrix.

    Attributes
    ----------
    sizes
        Sizes of the three axes. A row of the packed matrix runs along C.
    filled
        Sizes of A and B without padding, which is zeros.
    strides
        Elements between neighbors on each axis in the stored matrix.
    """

    sizes: tuple[int, int, int]
    filled: tuple[int, int]
    strides: tuple[int, int, int]


def direction_weights(
    device: Device,
    cell: Cell,
    input_size: int,
    precision: Precision,
    stored: Mapping[str, DeviceArray],
) -> DirectionWeights:
    """Create a direction's weights, with matrices rounded to the operand type.

    Parameters
    ----------
    stored
        (rows, columns) or (size,) by name within the direction, in the accumulator type.
    """
    names = [name for name in MATRICES if name in stored]
    operands = {name: stored[name] for name in names}
    if precision.narrow:
        operands = {name: round_operands(device, precision, stored[name]) for name in names}
    return DirectionWeights(cell, input_size, precision, dict(stored), operands)


def operand_matrix(weights: DirectionWeights, precision: Precision, name: str) -> DeviceArray:
    """A matrix in the type that a precision multiplies."""
    return (weights.operands if precision.narrow else weights.stored)[name]


def packed_weights(
    device: Device,
    weights: DirectionWeights,
    precision: Precision,
    name: str,
    gates: range,
    *,
    transposed: bool,
) -> DeviceArray:
    """The packed matrix for a general kernel, cached in `weights`.

    Parameters
    ----------
    gates
        Gates whose row blocks are packed. Ignored for ``weight_hr``, which has no gates.
    transposed
        True for the forward pass: (K, gates, units), K being the matrix's columns. False for the
        backward pass: (gates, rows per gate, columns). Zeros pad the axis that is summed over.
    """
    key = f"general {name} {gates.start}:{gates.stop} {transposed} {precision.name}"
    if key not in weights.packings:
        matrix = operand_matrix(weights, precision, name)
        height, width = matrix.shape
        if name == "weight_hr":
            block, count = matrix, 1
        else:
            H = weights.cell.hidden_size
            block, count = matrix[gates.start * H : gates.stop * H], len(gates)
            height = H
        packing = _matrix_packing(count, height, width, transposed=transposed)
        weights.packings[key] = _pack_matrix(device, precision, block, packing)
    return weights.packings[key]


def _matrix_packing(gates: int, height: int, width: int, *, transposed: bool) -> MatrixPacking:
    if transposed:
        sizes, filled = (padded_size(width), gates, height), (width, gates)
        return MatrixPacking(sizes, filled, (1, height * width, width))
    sizes, filled = (gates, padded_size(height), width), (gates, height)
    return MatrixPacking(sizes, filled, (height * width, width, 1))


def _pack_matrix(
    device: Device, precision: Precision, block: DeviceArray, packing: MatrixPacking
) -> DeviceArray:
    unchanged = packing.filled == packing.sizes[:2] and packing.strides[2] == 1
    if unchanged and precision.name != "tf32":
        return block
    A, B, C = packing.sizes
    out = device.empty((A * B, C), precision.operand)
    key = ("pack", precision.name)
    kernel = cached_kernels(device, key, [PACK_KERNEL], lambda: pack_source(precision))[PACK_KERNEL]
    launch = grid_stride_launch(device, out.size)
    kernel(launch, block, out, A, B, C, *packing.filled, *packing.strides)
    return out


def pack_source(precision: Precision) -> str:
    """CUDA C++ of the packing kernel; TF32 operands are rounded."""
    ready = "round_tf32(x)" if precision.name == "tf32" else "x"
    return f"""{PRELUDE}
typedef {CONVERSIONS[precision.name][0]} element;
__device__ __forceinline__ element ready(element x) {{ return {ready}; }}
{PACK_CODE}"""
