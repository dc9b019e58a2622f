"""General forward kernel of a cell: a whole sequence in one launch, for any size.

A block computes the same tiles of rows and columns in every step, so one thread owns a state. A
product reads an exchange buffer in the operand type, which other blocks have written. A grid
barrier separates two phases, and the host takes part in no step.
"""

from __future__ import annotations

from functools import lru_cache

from lstm_cli.cells import Cell
from lstm_cli.cells.cell import PROJECTED
from lstm_cli.engines.cuda.codegen.cell import emit
from lstm_cli.engines.cuda.codegen.matmul import (
    MAX_THREADS,
    KernelParameters,
    general_prelude,
    index_statements,
    kernel_source,
    tile_loop,
)
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.schedule import MASK, CellSchedule, Phase, symbols

KERNEL_NAME = "forward"

SHARED_PARAMETERS = (
    "const long long* order",
    "const long long* starts",
    "const long long* steps",
    "const long long* counts",
    "long long N",
    "long long longest",
    "long long H",
    "long long P",
    "long long h_row",
    "long long c_row",
    "long long y_row",
    "unsigned char* scratch",
    "long long scratch_bytes",
    "unsigned* barrier_counter",
)
"""Parameters of the batch. `DeviceBatch` has `order` to `counts`; ``*_row`` are row strides."""


@lru_cache(maxsize=64)
def parameters(phases: int) -> KernelParameters:
    """Parameters of the kernel; see `ForwardRun`. ``w_k`` are the packed weights of product k."""
    names = ["const real* z", "const real* bias", "const real* bias_hh", "const real* p"]
    names += ["const real* m", "real* h", "real* c", "real* y", "element* y_element"]
    names += [
        "real* c_steps",
        "real* record",
        "long long column",
        "long long reverse",
        "long long arrivals_before",
    ]
    for k in range(phases):
        names += [f"const element* w_{k}", f"element* reads_{k}"]
    return KernelParameters(SHARED_PARAMETERS, tuple(names))


def source(cell: Cell, schedule: CellSchedule, precision: Precision, rows: int) -> str:
    """CUDA C++ of the kernel `KERNEL_NAME`, for tiles of `rows` sequences and any other sizes."""
    prelude, body = general_prelude(precision, rows), _body(cell, schedule)
    names = parameters(len(schedule.phases))
    return kernel_source(prelude, KERNEL_NAME, MAX_THREADS, names, body)


def _body(cell: Cell, schedule: CellSchedule) -> str:
    """Initialization before the first step, and the loop over steps."""
    phases = range(len(schedule.phases))
    steps = "".join(
        _phase(cell, schedule, k) + "    grid_barrier(barrier_counter, arrivals);\n" for k in phases
    )
    gates = max(max(1, len(phase.stage.gates)) for phase in schedule.phases)
    later = "".join(f"\n    x_{k}[i] = narrow(real(0));" for k in phases if k)
    masked = " * m[n * P + j]" if schedule.dropout else ""
    return f"""{index_statements()}
  real* sums = (real*)memory + (blockDim.x >> 5) * R * CHUNK;  // (warps, R, {gates}, 32)
  element* x_0 = (element*)(scratch + blockIdx.y * scratch_bytes);  // (2, N, P8)
{_buffers(schedule)}
  for (long long i = me; i < N * P8; i += all) {{
    const long long r = i / P8, j = i % P8, n = order[r];
    const element start = narrow(j < P ? h[n * h_row + j]{masked} : real(0));
    x_0[i] = start;
    x_0[N * P8 + i] = narrow(real(0));
    if (reads_0 && j < P && steps[r] > 0) {{
      reads_0[(reverse ? starts[r] + steps[r] - 1 : starts[r]) * P + j] = start;
    }}
  }}
  for (long long i = me; i < N * H8; i += all) {{{later}
  }}
  grid_barrier(barrier_counter, arrivals);
  for (long long t = 0; t < longest; t++) {{
    const long long count = counts[t];
    const element* before = x_0 + (t & 1) * N * P8;
    element* after = x_0 + (~t & 1) * N * P8;
{steps}  }}
"""


def _buffers(schedule: CellSchedule) -> str:
    """Declarations of the buffers: vectors of later products, and slots between phases."""
    phases, lines, place = len(schedule.phases), [], "x_0 + 2 * N * P8"
    for k in range(1, phases):
        lines.append(f"  element* x_{k} = {place};  // (N, H8)")
        place = f"x_{k} + N * H8"
    if schedule.slots:
        lines.append(f"  real* slots = (real*)({place});  // (N, {len(schedule.slots)}, H)")
    return "\n".join(lines)


def scratch_bytes(schedule: CellSchedule, precision: Precision, N: int, P8: int, H8: int) -> int:
    """Bytes of scratch memory per direction, a multiple of 16."""
    vectors = 2 * N * P8 + (len(schedule.phases) - 1) * N * H8
    slots = N * len(schedule.slots) * H8
    return vectors * precision.operand_bytes + slots * precision.accumulator_bytes


def _phase(cell: Cell, schedule: CellSchedule, k: int) -> str:
    """CUDA C++ of a product and the equations after it, over all rows of a step."""
    phase = schedule.phases[k]
    gates = max(1, len(phase.stage.gates))
    roots = phase.roots
    values = {name: _address(cell, schedule, phase, name) for name in symbols(roots.values())}
    computed, names = emit(roots, values)
    body = [
        "const long long n = order[r], length = steps[r];",
        "const long long q = starts[r] + (reverse ? length - 1 - t : t);",
    ]
    if schedule.slots:
        size = len(schedule.slots)
        body.append(f"real* kept = record ? record + q * {size} * H : slots + r * {size} * H;")
    if phase.stage.gates and cell.recurrent_bias:
        blocks = (cell.letters.index(gate) for gate in phase.stage.gates)
        body += [f"own[{g}] += bias_hh[{b} * H + unit];" for g, b in enumerate(blocks)]
    body += [*computed]
    for name, value in names.items():
        body += _store(schedule, k, name, value)
    columns = "P" if phase.projects else "H"
    vectors = "before, P8" if k == 0 else f"x_{k}, H8"
    return tile_loop(k, gates, columns, f"{vectors}; count; {'H8' if k else 'P8'}", body)


def _address(cell: Cell, schedule: CellSchedule, phase: Phase, name: str) -> str:
    """CUDA C++ of a symbol's value, for one row and unit."""
    if name.startswith("slot "):
        return f"kept[{name.removeprefix('slot ')} * H + unit]"
    if name in ("h_prev", "c_prev"):
        return f"{name[0]}[n * {name[0]}_row + unit]"
    if name == MASK:
        return "m[n * P + unit]"
    if name == PROJECTED:
        return "own[0]"
    kind, _, gate = name.partition("_")
    if kind == "x":
        block = cell.letters.index(gate)
        return f"(z[(q * {len(cell.letters)} + {block}) * H + unit] + bias[{block} * H + unit])"
    if kind == "p":
        return f"p[{cell.peephole_gates.index(gate)} * H + unit]"
    return f"own[{phase.stage.gates.index(gate)}]"


def _store(schedule: CellSchedule, k: int, name: str, value: str) -> list[str]:
    """Statements that store a result."""
    if name == "reads":
        return [
            f"const element read = narrow({value});",
            f"x_{k + 1}[r * H8 + unit] = read;",
            f"if (reads_{k + 1}) reads_{k + 1}[q * H + unit] = read;",
        ]
    if name == "c":
        return [
            f"c[n * c_row + unit] = {value};",
            f"if (c_steps) c_steps[q * H + unit] = {value};",
        ]
    if name != "h":
        return [f"kept[{name.removeprefix('slot ')} * H + unit] = {value};"]
    masked = f"{value} * m[n * P + unit]" if schedule.dropout else value
    return [
        f"h[n * h_row + unit] = {value};",
        f"if (y) y[q * y_row + column + unit] = {value};",
        f"if (y_element) y_element[q * y_row + column + unit] = narrow({value});",
        f"const element next = narrow({masked});",
        "after[r * P8 + unit] = next;",
        "if (reads_0 && t + 1 < length) reads_0[(reverse ? q - 1 : q + 1) * P + unit] = next;",
    ]
