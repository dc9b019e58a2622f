"""What the general kernels are made of: products of a few rows, meetings of blocks, parameters.

A tile is some rows of a batch times the 32 columns of a warp's lanes. The warps of a block share
out the sum of a tile's product, add up their parts in shared memory, and then share out its
rows. So even one sequence keeps a block busy, and the order of every sum is fixed by sizes alone.
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
"""Of a block at most."""

CHUNK = 64
"""Numbers of a row that a warp holds in shared memory at a time."""

ROW_MULTIPLE = 8
"""What the length of a row that is multiplied is rounded up to: 16 bytes of the narrowest type."""

CONVERSIONS: Mapping[str, tuple[str, str, str]] = {
    "float32": ("float", "x", "x"),
    "float64": ("double", "x", "x"),
    "tf32": ("float", "x", "round_tf32(x)"),
    "float16": ("unsigned short", "widen_f16(x)", "narrow_f16(x)"),
    "bfloat16": ("unsigned short", "widen_bf16(x)", "narrow_bf16(x)"),
}
"""By precision: the operands' type in C, an operand as a number, and a number as an operand."""

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
__device__ __forceinline__ void meet(unsigned* meeting, unsigned& met) {
  __syncthreads();
  if (gridDim.x > 1) {
    met += gridDim.x;
    if (threadIdx.x == 0) {
      __threadfence();
      grid_arrive(meeting);
      grid_wait(meeting, met);
    }
    __syncthreads();
  }
}
"""

BARRIER_COUNTER_WORDS = 64
"""32-bit counters of meetings: each direction's own, a cache line apart."""


def general_prelude(precision: Precision, rows: int) -> str:
    """What a general kernel's source begins with: the types and functions of a precision."""
    element, widen, narrow = CONVERSIONS[precision.name]
    return f"""{PRELUDE}
typedef {precision.c_real} real;
typedef {element} element;
constexpr int R = {rows}, CHUNK = {CHUNK};
__device__ __forceinline__ real widen(element x) {{ return {widen}; }}
__device__ __forceinline__ element narrow(real x) {{ return {narrow}; }}
{MULTIPLY_CODE}"""


def index_statements() -> str:
    """Statements at the beginning of both kernels: a thread's place, padded sizes, meetings."""
    return """  const long long me = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const long long all = (long long)gridDim.x * blockDim.x;
  const long long P8 = (P + 7) / 8 * 8, H8 = (H + 7) / 8 * 8;
  unsigned met = (unsigned)met_before;
  meeting += blockIdx.y * 32;"""


def tile_loop(k: int, gates: int, columns: str, product: str, body: Sequence[str]) -> str:
    """The code of one phase of a step: a loop over tiles.

    KernelParameters
    ----------
    k
        The number of the product, for its weights ``w_<k>``.
    gates
        How many sums a row and column have.
    columns
        How many columns there are, in C++.
    product
        Arguments of ``multiply`` for the vectors: where they are, and how far apart, and how many
        there are; with the length of a vector, parted by ``;``.
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
    start: str, name: str, threads: int, given: KernelParameters, body: str, cluster: int = 1
) -> str:
    """The source of a kernel that keeps a multiprocessor to itself.

    KernelParameters
    ----------
    start
        What goes before it.
    body
        Statements, to which ``memory`` is the block's dynamic shared memory.
    cluster
        Blocks of a thread-block cluster; 1: none.
    """
    clusters = f"CLUSTER({cluster}) " if cluster > 1 else ""
    return f"""{start}
extern "C" __global__ void {clusters}__launch_bounds__({threads}, 1) {name}(
    {given.declared}) {{
  DYNAMIC_SHARED(memory);
{given.chosen(body)}
{body}}}
"""


@dataclass(frozen=True)
class KernelParameters:
    """A kernel's parameters: those of the batch, and those that each of two directions has.

    Attributes
    ----------
    shared, own
        As in C++: ``const real* z``.
    """

    shared: tuple[str, ...]
    own: tuple[str, ...]

    @property
    def declared(self) -> str:
        """The list in C++."""
        both = [f"{one}_of_{d}" for d in range(2) for one in self.own]
        return ",\n    ".join([*self.shared, *both])

    def chosen(self, body: str) -> str:
        """Statements that give each name that `body` has the value of the block's direction."""
        lines = []
        for one in self.own:
            name = _parameter_name(one)
            if re.search(rf"\b{name}\b", body):
                lines.append(f"  {one} = blockIdx.y ? {name}_of_1 : {name}_of_0;")
        return "\n".join(lines)

    def values(self, shared: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The arguments in order; a second direction that is not there has the first one's."""
        of_all, of_one = self._names
        found = [shared[name] for name in of_all]
        for d in range(2):
            given = own[min(d, len(own) - 1)]
            found += [given[name] for name in of_one]
        return found

    @cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        """Without their types: this is asked for at every launch."""
        return [_parameter_name(one) for one in self.shared], [
            _parameter_name(one) for one in self.own
        ]


def _parameter_name(parameter: str) -> str:
    return parameter.split()[-1].lstrip("*")


def padded_size(size: int) -> int:
    """The length of a row that is multiplied, with the zeros behind it."""
    return -(-size // ROW_MULTIPLE) * ROW_MULTIPLE


def shared_memory_bytes(precision: Precision, rows: int, gates: int, warps: int) -> int:
    """Shared memory of a block: a chunk of each row, and every warp's sums."""
    size = 8 if precision.real == "float64" else 4
    return warps * rows * (CHUNK + gates * 32) * size
