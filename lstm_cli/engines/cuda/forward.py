"""The general forward kernel of a cell: a whole sequence in one launch, for any size.

One thread computes one unit of one row: its gates' products, then the cell's equations on them.
Between phases of a step all blocks wait for one another, and nothing else does: the host takes
part in no step. Steps are packed: only valid ones are stored and computed.
"""

from __future__ import annotations

from lstm_cli.cells import Cell
from lstm_cli.cells.tracing import PROJECTED
from lstm_cli.engines.cuda.pointwise import emit
from lstm_cli.engines.schedule import MASK, Phase, Schedule, symbols

NAME = "forward"

PRIMITIVES = """
#ifndef LSTM_HOST
__device__ __forceinline__ void grid_arrive(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ __forceinline__ void grid_wait(const unsigned* counter, unsigned target) {
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while ((int)(seen - target) < 0);
}
__device__ __forceinline__ float load_global(const float* p) { return __ldcg(p); }
__device__ __forceinline__ double load_global(const double* p) { return __ldcg(p); }
#endif
"""
"""What blocks hand over to one another with; values that change are read past the L1 cache."""

MEET = """
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      grid_arrive(meeting);
      met += gridDim.x;
      grid_wait(meeting, met);
    }
    __syncthreads();
"""


def parameters(schedule: Schedule) -> list[str]:
    """The kernel's parameters, in order, in C++.

    ``z`` (Q, G*H) are input projections of all Q valid steps, with bias; ``w_k`` (K, columns) and
    ``b_k`` the transposed weights of product k; ``h`` (Q, P) and ``c`` (Q, H) the states after
    every step, ``h_first`` and ``c_first`` those before; ``record`` (Q, slots, H); ``counts`` and
    ``begins`` (T,) how many rows have a step, and where its first one stands among the Q.
    """
    found = ["const real* z"]
    for k in range(len(schedule.phases)):
        found += [f"const real* w_{k}", f"const real* b_{k}"]
    found += ["const real* p", "const real* m", "const real* h_first", "const real* c_first"]
    found += ["real* h", "real* c", "real* record"]
    found += [f"real* reads_{k}" for k in range(1, len(schedule.phases))]
    return [*found, "const long long* counts", "const long long* begins", "unsigned* meeting",
            "long long T"]  # fmt: skip


def source(cell: Cell, schedule: Schedule, element: str) -> str:
    """CUDA C++ of the kernel `NAME`; `element` is ``float`` or ``double``."""
    steps = "".join(_phase(cell, schedule, k) + MEET for k in range(len(schedule.phases)))
    listed = ",\n    ".join(parameters(schedule))
    return f"""{PRIMITIVES}
typedef {element} real;
extern "C" __global__ void __launch_bounds__(256) {NAME}(
    {listed}) {{
  const long long H = {cell.hidden_size}, P = {cell.output_size};
  const long long me = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const long long all = (long long)gridDim.x * blockDim.x;
  unsigned met = 0;
  for (long long t = 0; t < T; t++) {{
    const long long count = counts[t], first = begins[t];
    const real* h_before = t ? h + begins[t - 1] * P : h_first;
    const real* c_before = t ? c + begins[t - 1] * H : c_first;
{steps}  }}
}}
"""


def _phase(cell: Cell, schedule: Schedule, k: int) -> str:
    """A product and what follows it, over all rows of a step."""
    phase = schedule.phases[k]
    columns, gates = ("P" if phase.projects else "H"), max(1, len(phase.stage.gates))
    K = "H" if k else "P"  # behind the first product, vectors have the units' size
    vector = f"(reads_{k} + row * H)" if k else "(h_before + row * P)"
    masked = " * m[row * P + j]" if k == 0 and schedule.dropout else ""
    lines = [f"real own[{gates}];"]
    for gate in range(gates):
        start = f"b_{k} ? b_{k}[{gate} * {columns} + unit] : real(0)"
        lines.append(f"own[{gate}] = {start};")
    lines += [
        f"for (long long j = 0; j < {K}; j++) {{",
        f"  const real x = load_global({vector} + j){masked};",
        *(
            f"  own[{g}] += x * w_{k}[(j * {gates} + {g}) * {columns} + unit];"
            for g in range(gates)
        ),
        "}",
    ]
    roots = phase.roots
    values = {name: _address(cell, schedule, phase, name) for name in symbols(roots.values())}
    computed, names = emit(roots, values)
    lines += [*computed, *(_store(schedule, k, name, value) for name, value in names.items())]
    body = "\n".join("      " + line for line in lines)
    return f"""    for (long long item = me; item < count * {columns}; item += all) {{
      const long long row = item / {columns}, unit = item % {columns}, q = first + row;
{body}
    }}"""


def _address(cell: Cell, schedule: Schedule, phase: Phase, name: str) -> str:
    """Where a symbol's value is, for one row and unit."""
    gates = len(cell.letters)
    if name.startswith("slot "):
        slot = int(name.removeprefix("slot "))
        return f"load_global(record + (q * {len(schedule.slots)} + {slot}) * H + unit)"
    if name == "h_prev":
        return "load_global(h_before + row * P + unit)"
    if name == "c_prev":
        return "load_global(c_before + row * H + unit)"
    if name == MASK:
        return "m[row * P + unit]"
    if name == PROJECTED:
        return "own[0]"
    kind, _, gate = name.partition("_")
    if kind == "x":
        return f"z[(q * {gates} + {cell.letters.index(gate)}) * H + unit]"
    if kind == "p":
        return f"p[{cell.peephole_gates.index(gate)} * H + unit]"
    return f"own[{phase.stage.gates.index(gate)}]"


def _store(schedule: Schedule, k: int, name: str, value: str) -> str:
    """A result to where it is kept."""
    if name == "reads":
        return f"reads_{k + 1}[row * H + unit] = {value};"
    if name == "h":
        return f"h[q * P + unit] = {value};"
    if name == "c":
        return f"c[q * H + unit] = {value};"
    slot = int(name.removeprefix("slot "))
    return f"record[(q * {len(schedule.slots)} + {slot}) * H + unit] = {value};"
