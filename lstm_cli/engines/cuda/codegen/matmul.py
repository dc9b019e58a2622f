"""Parts of the general kernels: products of a few rows, grid barriers, kernel parameters.

A tile is some rows of a batch times the 32 columns of a warp's lanes. Each warp of a block computes
a part of the sums of a tile, and shared memory collects the parts. Then each warp takes some rows
of the tile. So even one sequence keeps a block busy, and sizes alone fix the order of every sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lstm_cli.engines.cuda.codegen.primitives import PRELUDE
from lstm_cli.engines.cuda.precision import Precision

MAX_THREADS = 256
"""Largest number of threads per block."""

CHUNK = 64
"""Count of numbers of a row that a warp keeps in shared memory at a time."""

ROW_MULTIPLE = 8
"""Divisor of the padded length of a multiplied row: 16 bytes of the narrowest type."""

CONVERSIONS: Mapping[str, tuple[str, str, str]] = {
    "float32": ("float", "x", "x"),
    "float64": ("double", "x", "x"),
    "tf32": ("float", "x", "round_tf32(x)"),
    "float16": ("unsigned short", "widen_f16(x)", "narrow_f16(x)"),
    "bfloat16": ("unsigned short", "widen_bf16(x)", "narrow_bf16(x)"),
}
"""C++ by precision: operand type, conversion of operand `x` to the accumulator type, and back."""

MULTIPLY_CODE = """
union Few { Quad quad; element x[sizeof(Quad) / sizeof(element)]; };
union Four { Quad quad[sizeof(real) / 4]; real x[4]; };

// A warp's part of the products of R rows and G * 32 columns: x (rows, K), w (K, G, columns).
template <int R, int G>
__device__ __forceinline__ void multiply(
    real (&sum)[R][G], const element* x, long long stride, long long row, long long rows,
    const element* w, long long columns, long long first, long long K, unsigned char* memory) {
  constexpr int V = sizeof(Quad) / sizeof(element);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  real* held = (real*)memory + warp * R * CHUNK;
  const long long column = first + lane < columns ? first + lane : columns - 1;
  long long k = K / 8 * warp / warps * 8;
  const long long end = K / 8 * (warp + 1) / warps * 8;
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int g = 0; g < G; g++) sum[r][g] = real(0);
  if (row >= rows) k = end;
  for (; k < end; k += CHUNK) {
    const int size = end - k < CHUNK ? (int)(end - k) : CHUNK;
    __syncwarp();
#pragma unroll
    for (int i = lane; i < R * (CHUNK / V); i += 32) {
      const int r = i / (CHUNK / V), j = i % (CHUNK / V) * V;
      if (j < size) {
        const long long from = row + r < rows ? row + r : rows - 1;
        Few few;
        few.quad = load_global((const Quad*)(x + from * stride + k + j));
#pragma unroll
        for (int v = 0; v < V; v++) held[r * CHUNK + j + v] = widen(few.x[v]);
      }
    }
    __syncwarp();
    const element* factors = w + k * G * columns + column;
#pragma unroll 2
    for (int j = 0; j < size; j += 4) {
      Four a[R];
#pragma unroll
      for (int r = 0; r < R; r++)
#pragma unroll
        for (int part = 0; part < (int)(sizeof(real) / 4); part++)
          a[r].quad[part] = ((const Quad*)(held + r * CHUNK + j))[part];
#pragma unroll
      for (int u = 0; u < 4; u++) {
#pragma unroll
        for (int g = 0; g < G; g++) {
          const real b = widen(*factors);
          factors += columns;
#pragma unroll
          for (int r = 0; r < R; r++) sum[r][g] += a[r].x[u] * b;
        }
      }
    }
  }
}

// The warps' parts to shared memory, and from there the sums of one row and column.
template <int R, int G>
__device__ __forceinline__ void leave(const real (&sum)[R][G], real* sums) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int g = 0; g < G; g++) sums[((warp * R + r) * G + g) * 32 + lane] = sum[r][g];
}
template <int R, int G>
__device__ __forceinline__ void gather(real (&own)[G], const real* sums, int item) {
  const int warps = blockDim.x >> 5;
#pragma unroll
  for (int g = 0; g < G; g++) own[g] = real(0);
  for (int warp = 0; warp < warps; warp++)
#pragma unroll
    for (int g = 0; g < G; g++)
      own[g] += sums[((warp * R + item / 32) * G + g) * 32 + item % 32];
}

// All blocks of a direction wait for one another.
__device__ __forceinline__ void grid_barrier(unsigned* barrier_counter, unsigned& arrivals) {
  __syncthreads();
  if (gridDim.x > 1) {
    arrivals += gridDim.x;
    if (threadIdx.x == 0) {
      __threadfence();
      grid_arrive(barrier_counter);
      grid_wait(barrier_counter, arrivals);
    }
    __syncthreads();
  }
}
"""

BARRIER_COUNTER_WORDS = 64
"""Number of 32-bit words of grid barrier counters, one per direction in its own cache line."""


def general_prelude(precision: Precision, rows: int) -> str:
    """CUDA C++ before a general kernel: the types and functions of a precision."""
    operand, widen, narrow = CONVERSIONS[precision.name]
    return f"""{PRELUDE}
typedef {precision.c_accumulator} real;
typedef {operand} element;
constexpr int R = {rows}, CHUNK = {CHUNK};
__device__ __forceinline__ real widen(element x) {{ return {widen}; }}
__device__ __forceinline__ element narrow(real x) {{ return {narrow}; }}
{MULTIPLY_CODE}"""


def index_statements() -> str:
    """CUDA C++ at the start of general kernels: thread index, padded sizes, barrier counter."""
    return """  const long long me = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const long long all = (long long)gridDim.x * blockDim.x;
  const long long P8 = (P + 7) / 8 * 8, H8 = (H + 7) / 8 * 8;
  unsigned arrivals = (unsigned)arrivals_before;
  barrier_counter += blockIdx.y * 32;"""


def tile_loop(k: int, gates: int, columns: str, product: str, body: Sequence[str]) -> str:
    """CUDA C++ of one phase of a step: a loop over tiles.

    Parameters
    ----------
    k
        Number of the product, for its weights ``w_<k>``.
    gates
        Number of sums per row and column.
    columns
        Number of columns, in C++.
    product
        Arguments of ``multiply``, separated by ``;``: the vectors with their stride, the number of
        vectors, and the length of a vector.
    body
        Statements for the row ``r`` and the column ``unit``, whose sums are ``own``.
    """
    vectors, rows, K = product.split("; ")
    inner = "\n".join("          " + line for line in body)
    return f"""
    {{
      const long long wide = ({columns} + 31) / 32, tiles = (count + R - 1) / R * wide;
      for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {{
        const long long row = tile / wide * R, first = tile % wide * 32;
        real sum[R][{gates}];
        multiply<R, {gates}>(sum, {vectors}, row, {rows}, w_{k}, {columns}, first, {K}, memory);
        leave<R, {gates}>(sum, sums);
        __syncthreads();
        for (int item = threadIdx.x; item < R * 32; item += blockDim.x) {{
          const long long r = row + item / 32, unit = first + item % 32;
          if (r >= count || unit >= {columns}) continue;
          real own[{gates}];
          gather<R, {gates}>(own, sums, item);
{inner}
        }}
        __syncthreads();
      }}
    }}
"""


def kernel_source(
    start: str, name: str, threads: int, parameters: KernelParameters, body: str, cluster: int = 1
) -> str:
    """CUDA C++ of a kernel, compiled for one block per multiprocessor.

    Parameters
    ----------
    start
        Source before the kernel.
    body
        Statements; ``memory`` is the block's dynamic shared memory.
    cluster
        Blocks per thread-block cluster; 1 without clusters.
    """
    clusters = f"CLUSTER({cluster}) " if cluster > 1 else ""
    return f"""{start}
extern "C" __global__ void {clusters}__launch_bounds__({threads}, 1) {name}(
    {parameters.declarations}) {{
  DYNAMIC_SHARED(memory);
{parameters.direction_statements(body)}
{body}}}
"""


@dataclass(frozen=True)
class KernelParameters:
    """Parameters of a kernel: those of the batch, and those of each of two directions.

    Attributes
    ----------
    shared, per_direction
        Declarations in C++, such as ``const real* z``.
    """

    shared: tuple[str, ...]
    per_direction: tuple[str, ...]

    @property
    def declarations(self) -> str:
        """CUDA C++ of the parameter list."""
        directions = [f"{one}_of_{d}" for d in range(2) for one in self.per_direction]
        return ",\n    ".join([*self.shared, *directions])

    def direction_statements(self, body: str) -> str:
        """Statements that define each name used in `body`, with the block's direction's value."""
        lines = []
        for one in self.per_direction:
            name = _parameter_name(one)
            if re.search(rf"\b{name}\b", body):
                lines.append(f"  {one} = blockIdx.y ? {name}_of_1 : {name}_of_0;")
        return "\n".join(lines)

    def values(
        self, shared: Mapping[str, Any], per_direction: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Arguments in order; a missing second direction repeats those of the first."""
        shared_names, direction_names = self._names
        arguments = [shared[name] for name in shared_names]
        for d in range(2):
            values = per_direction[min(d, len(per_direction) - 1)]
            arguments += [values[name] for name in direction_names]
        return arguments

    @cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        """Names without types; cached, since every launch needs them."""
        shared = [_parameter_name(one) for one in self.shared]
        return shared, [_parameter_name(one) for one in self.per_direction]


def _parameter_name(parameter: str) -> str:
    return parameter.split()[-1].lstrip("*")


def padded_size(size: int) -> int:
    """Length of a multiplied row with its padding."""
    return -(-size // ROW_MULTIPLE) * ROW_MULTIPLE


def shared_memory_bytes(precision: Precision, rows: int, gates: int, warps: int) -> int:
    """Bytes of shared memory per block: a chunk of each row, and the sums of every warp."""
    return warps * rows * (CHUNK + gates * 32) * precision.accumulator_bytes
