"""Products by tensor cores with weights that stay on the chip; their speed is unmeasured.

An ``mma`` multiplies 16 rows with 8 columns, over 32 bytes of a row (16 numbers of 16 bits, or 8 of
TF32). Any numbers of a row may be taken together, if both operands agree. Here a lane takes 16
adjacent bytes of 64: its operands of two successive ``mma``. So vectors and weights are loaded 16
bytes at a time. This holds for all types: of a `Quad` x, y, z, w, the first ``mma`` takes x and y,
the second z and w.

A warp has some tiles of rows and some chunks of 64 bytes of these rows. The weights of the first
chunks stay in registers over all steps; every loop over them is unrolled, since registers have no
index. The other weights stay in shared memory, in the order in which lanes read them. If several
warps compute one sum, they leave their parts in shared memory. The threads that need the sum add up
the parts.
"""

from __future__ import annotations

from lstm_cli.engines.cuda.codegen.exchange import COUNTER_WORDS, EXCHANGES
from lstm_cli.engines.cuda.codegen.matmul import CONVERSIONS
from lstm_cli.engines.cuda.codegen.primitives import PRELUDE
from lstm_cli.engines.cuda.planning.plan import PersistentPlan
from lstm_cli.engines.cuda.precision import Precision

MMA_FUNCTIONS = {"tf32": "mma_tf32", "float16": "mma_f16", "bfloat16": "mma_bf16"}

OPERAND_WORDS = {
    True: "(unsigned)weight(w, first, row, k) | (unsigned)weight(w, first, row, k + 1) << 16",
    False: "__float_as_uint(round_tf32(weight(w, first, row, k)))",
}
"""CUDA C++ of a 32-bit word of an operand. The key is True if a word has two 16-bit numbers."""

STORED_WORDS = {True: "x", False: "__float_as_uint(round_tf32(__uint_as_float(x)))"}
"""CUDA C++ that converts a stored word `x` to an operand; keys as in `OPERAND_WORDS`."""

LOADING_CODE = """
// The weights of a block's row from number k on: zero outside the matrix.
__device__ __forceinline__ unsigned word(const element* w, int first, int row, int k) {
  return WORD;
}
__device__ __forceinline__ Quad weights_at(const element* w, int first, int row, int k) {
  constexpr int PER = 4 / sizeof(element);
  Quad quad;
  quad.x = word(w, first, row, k), quad.y = word(w, first, row, k + PER);
  quad.z = word(w, first, row, k + 2 * PER), quad.w = word(w, first, row, k + 3 * PER);
  return quad;
}
// The same of an address that 16 divides.
__device__ __forceinline__ Quad quick_weights_at(const element* w, int first, int row, int k) {
  Quad quad = {0, 0, 0, 0};
  const element* from = address(w, first, row, k);
  if (from) quad = *(const Quad*)from;
  quad.x = ready(quad.x), quad.y = ready(quad.y), quad.z = ready(quad.z), quad.w = ready(quad.w);
  return quad;
}
__device__ __forceinline__ void multiply(
    float (&sum)[SETS][TILES][COLUMNS / 8][4], int m, const Quad& low, const Quad& high,
    const Quad (&vectors)[COLUMNS / 8]) {
  const unsigned a[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
#pragma unroll
  for (int n = 0; n < COLUMNS / 8; n++) {
    const unsigned b[2] = {vectors[n].x, vectors[n].y};
    MULTIPLY(sum[0][m][n], a[0], b);
  }
#pragma unroll
  for (int n = 0; n < COLUMNS / 8; n++) {
    const unsigned b[2] = {vectors[n].z, vectors[n].w};
    MULTIPLY(sum[SETS - 1][m][n], a[1], b);
  }
}
"""

WEIGHT_LOADING_CODE = """
  Quad held[TILES][HELD ? HELD : 1][2];
  if (QUICK && ((unsigned long long)w & 15) == 0) {
#pragma unroll
    for (int c = 0; c < HELD; c++)
#pragma unroll
      for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          held[m][c][half] = quick_weights_at(
              w, unit_first, (row_warp * TILES + m) * 16 + half * 8 + lane_row,
              (sum_warp * CHUNKS + c) * CHUNK + lane_quad);
  } else {
#pragma unroll
    for (int c = 0; c < HELD; c++)
#pragma unroll
      for (int m = 0; m < TILES; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++)
          held[m][c][half] = weights_at(
              w, unit_first, (row_warp * TILES + m) * 16 + half * 8 + lane_row,
              (sum_warp * CHUNKS + c) * CHUNK + lane_quad);
        __syncwarp();  // keeps the compiler from asking for all of it at once, and spilling
      }
  }
  Quad* stored = (Quad*)next_memory + warp * TILES * (CHUNKS - HELD) * 64;
  next_memory += WARPS * TILES * (CHUNKS - HELD) * 1024;
  for (int i = 0; i < TILES * (CHUNKS - HELD) * 2; i++) {
    const int half = i % 2, c = HELD + i / 2 % (CHUNKS - HELD ? CHUNKS - HELD : 1);
    const int m = i / 2 / (CHUNKS - HELD ? CHUNKS - HELD : 1);
    stored[i * 32 + lane] = weights_at(
        w, unit_first, (row_warp * TILES + m) * 16 + half * 8 + lane_row,
        (sum_warp * CHUNKS + c) * CHUNK + lane_quad);
  }
"""
"""CUDA C++ that loads the weights into registers and shared memory, before the first step."""

PRODUCT_CODE = """
      float sum[SETS][TILES][COLUMNS / 8][4];
#pragma unroll
      for (int s = 0; s < SETS; s++)
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
          for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) sum[s][m][n][e] = 0.0f;
#pragma unroll
      for (int c = 0; c < CHUNKS; c += AHEAD) {
        Quad vectors[AHEAD][COLUMNS / 8];
#pragma unroll
        for (int l = 0; l < AHEAD; l++)
#pragma unroll
          for (int n = 0; n < COLUMNS / 8; n++)
            if (c + l < CHUNKS) {
              const element* from = before + (part * COLUMNS + n * 8 + lane_row) * ROW +
                                    (sum_warp * CHUNKS + c + l) * CHUNK + lane_quad;
              vectors[l][n] = LOAD;
            }
#pragma unroll
        for (int l = 0; l < AHEAD; l++)
#pragma unroll
          for (int m = 0; m < TILES; m++) {
            if (c + l < HELD) {
              multiply(sum, m, held[m][c + l < HELD ? c + l : 0][0],
                       held[m][c + l < HELD ? c + l : 0][1], vectors[l]);
            } else if (c + l < CHUNKS) {
              const Quad* both = stored + (m * (CHUNKS - HELD) + c + l - HELD) * 64 + lane;
              multiply(sum, m, both[0], both[32], vectors[l]);
            }
          }
      }
#pragma unroll
      for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const int row = (row_warp * TILES + m) * 16 + (e >> 1) * 8 + lane_row;
            const int column = n * 8 + (lane & 3) * 2 + (e & 1);
            float total = sum[0][m][n][e];
            if (SETS == 2) total += sum[SETS - 1][m][n][e];
            own_sums[(sum_warp * COLUMNS + column) * SUM_ROW + row] = total;
          }
      __syncthreads();
"""
"""CUDA C++ of the product of one part, which leaves its sums in shared memory."""


def kernel_constants(
    plan: PersistentPlan, column_ranges: int, gates: int, *, aligned: bool
) -> dict[str, int]:
    """Constants of a kernel's source, by name.

    Parameters
    ----------
    column_ranges
        Ranges of columns of an exchanged vector that belong to one block.
    gates
        Number of gates.
    aligned
        True if 16 bytes of a row are contiguous and aligned in the stored matrix.
    """
    return {
        "H": plan.shape.H,
        "GATES": gates,
        "BLOCKS": plan.blocks,
        "UNITS": plan.units,
        "SEQUENCES": plan.sequences,
        "COLUMNS": plan.columns,
        "PARTS": plan.parts,
        "ROW_WARPS": plan.row_warps,
        "SUM_WARPS": plan.sum_warps,
        "WARPS": plan.row_warps * plan.sum_warps,
        "THREADS": plan.threads,
        "TILES": plan.tiles,
        "CHUNK": plan.shape.chunk,
        "CHUNKS": plan.chunks,
        "PADDED": plan.padded_width,
        "ROW": plan.vector_stride,
        "SUM_ROW": plan.sum_stride,
        "HELD": plan.register_chunks,
        "SETS": plan.accumulator_sets,
        "AHEAD": plan.prefetch_chunks,
        "ITEMS": plan.items,
        "OWN": column_ranges,
        "QUICK": int(aligned),
        "COUNTER_WORDS": COUNTER_WORDS,
    }


def persistent_prelude(precision: Precision, sizes: dict[str, int], address: str) -> str:
    """CUDA C++ before a persistent kernel: types, constants, and functions that load weights.

    Parameters
    ----------
    address
        Statements of the function ``address(w, first, row, k)``, which locates a weight.
    """
    operand, _, narrow = CONVERSIONS[precision.name]
    names = ", ".join(f"{name} = {value}" for name, value in sizes.items())
    loads = LOADING_CODE.replace("WORD;", OPERAND_WORDS[precision.narrow] + ";")
    return f"""{PRELUDE}
typedef float real;
typedef {operand} element;
constexpr int {names};
__device__ __forceinline__ element narrow(real x) {{ return {narrow}; }}
__device__ __forceinline__ unsigned ready(unsigned x) {{ return {STORED_WORDS[precision.narrow]}; }}
// Where number k of a row stands of the block whose units begin at `first`; null: it is 0.
__device__ __forceinline__ const element* address(
    const element* w, int first, int row, int k) {{
{address}
}}
__device__ __forceinline__ element weight(const element* w, int first, int row, int k) {{
  const element* from = address(w, first, row, k);
  return from ? *from : element(0);
}}
{loads.replace("MULTIPLY", MMA_FUNCTIONS[precision.name])}"""


def product_code(plan: PersistentPlan) -> str:
    """CUDA C++ of the product of one part, for a kind of exchange."""
    return PRODUCT_CODE.replace("LOAD;", EXCHANGES[plan.kind].load + ";")


INDEX_CODE = """  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int row_warp = warp % ROW_WARPS, sum_warp = warp / ROW_WARPS;
  const int lane_row = lane >> 2, lane_quad = (lane & 3) * (int)(sizeof(Quad) / sizeof(element));
  const int block = blockIdx.x % BLOCKS, group = blockIdx.x / BLOCKS;
  const int groups = gridDim.x / BLOCKS, unit_first = block * UNITS;
  const long long base = first_row + (long long)group * SEQUENCES;
  const int longest = base < N ? (int)steps[base] : 0;
  if (longest == 0) return;
  const int rows = N - base < SEQUENCES ? (int)(N - base) : SEQUENCES;
  unsigned char* next_memory = memory;
"""
"""CUDA C++ of a thread's indices. A group whose sequences have no step returns at once."""
