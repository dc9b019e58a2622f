"""A direction's tensors on the device, and its matrices as the general kernels multiply them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.codegen.layout import round_operands
from lstm_cli.engines.cuda.codegen.matmul import CONVERSIONS, padded_size
from lstm_cli.engines.cuda.codegen.primitives import PRELUDE
from lstm_cli.engines.cuda.passes import DirectionWeights
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import (
    Device,
    DeviceArray,
    cached_kernels,
    grid_stride_launch,
)

MATRICES = ("weight_ih", "weight_hh", "weight_hr")
"""The tensors that products multiply."""

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


@dataclass(frozen=True)
class MatrixPacking:
    """How a matrix is turned round: axes A, B, C of the packed one, by what the other has there.

    Attributes
    ----------
    sizes
        Of the three axes; the last two are side by side.
    filled
        How much of A and B is there; behind it stand zeros.
    steps
        How far apart neighbours on each axis are in the stored matrix.
    """

    sizes: tuple[int, int, int]
    filled: tuple[int, int]
    steps: tuple[int, int, int]


def direction_weights(
    device: Device,
    cell: Cell,
    input_size: int,
    precision: Precision,
    real: Mapping[str, DeviceArray],
) -> DirectionWeights:
    """A direction's tensors with the operands of its products.

    Parameters
    ----------
    real
        (rows, columns) or (size,) by name within the direction, as stored, of `precision.real`.
    """
    names = [name for name in MATRICES if name in real]
    element = {name: real[name] for name in names}
    if precision.narrow:
        element = {name: round_operands(device, precision, real[name]) for name in names}
    return DirectionWeights(cell, input_size, precision, dict(real), element)


def operand_matrix(tensors: DirectionWeights, precision: Precision, name: str) -> DeviceArray:
    """A matrix in the type that a precision multiplies."""
    return (tensors.element if precision.narrow else tensors.real)[name]


def packed_weights(
    device: Device, tensors: DirectionWeights, precision: Precision, name: str, gates: range,
    *, transposed: bool,
) -> DeviceArray:  # fmt: skip
    """A matrix as a general kernel multiplies it, made once.

    Parameters
    ----------
    gates
        Which of the gates' blocks of rows; of ``weight_hr``, whose rows are no gates', ignored.
    transposed
        (K, gates, units) for the forward pass, K being the matrix's columns, or (gates, rows of a
        gate, columns) for the backward pass; the axis that is summed over is padded with zeros.
    """
    key = f"general {name} {gates.start}:{gates.stop} {transposed} {precision.name}"
    if key not in tensors.made:
        whole = operand_matrix(tensors, precision, name)
        height, width = whole.shape
        if name == "weight_hr":
            block, number = whole, 1
        else:
            H = tensors.cell.hidden_size
            block, number = whole[gates.start * H : gates.stop * H], len(gates)
            height = H
        packing = _matrix_packing(number, height, width, transposed=transposed)
        tensors.made[key] = _pack_matrix(device, precision, block, packing)
    return tensors.made[key]


def _matrix_packing(gates: int, height: int, width: int, *, transposed: bool) -> MatrixPacking:
    if transposed:
        sizes, filled = (padded_size(width), gates, height), (width, gates)
        return MatrixPacking(sizes, filled, (1, height * width, width))
    sizes, filled = (gates, padded_size(height), width), (gates, height)
    return MatrixPacking(sizes, filled, (height * width, width, 1))


def _pack_matrix(
    device: Device, precision: Precision, block: DeviceArray, packing: MatrixPacking
) -> DeviceArray:
    plain = packing.filled == packing.sizes[:2] and packing.steps[2] == 1
    if plain and precision.name != "tf32":
        return block  # it stands so already
    A, B, C = packing.sizes
    out = device.empty((A * B, C), precision.element)
    kernel = cached_kernels(
        device, ("pack", precision.name), [PACK_KERNEL], lambda: pack_source(precision)
    )[PACK_KERNEL]
    sizes = (A, B, C, *packing.filled, *packing.steps)
    kernel(grid_stride_launch(device, out.size), block, out, *sizes)
    return out


def pack_source(precision: Precision) -> str:
    """CUDA C++ of the kernel that packs a matrix: operands as they are, or rounded to TF32."""
    ready = "round_tf32(x)" if precision.name == "tf32" else "x"
    return f"""{PRELUDE}
typedef {CONVERSIONS[precision.name][0]} element;
__device__ __forceinline__ element ready(element x) {{ return {ready}; }}
{PACK_CODE}"""
