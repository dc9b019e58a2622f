"""General backward kernel of a cell: a whole sequence from its last step to its first.

A step begins with the product that brings back h's derivative from the following step. The gradient
of the cell's graph computes the rest. Tiles, exchange buffers and grid barriers are those of the
forward kernel. The kernel stores derivatives of pre-activations for all steps; afterwards, large
products over all steps compute those of weights and inputs.
"""

from __future__ import annotations

from functools import lru_cache

from lstm_cli.cells import Cell
from lstm_cli.cells.cell import PROJECTED, Stage
from lstm_cli.cells.expression import Expression, lift
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
from lstm_cli.engines.schedule import MASK, BackwardPhase, CellSchedule, reads_symbol, symbols

KERNEL_NAME = "backward"

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
    "long long h_first_row",
    "long long c_first_row",
    "long long y_row",
    "long long d_row",
    "unsigned char* scratch",
    "long long scratch_bytes",
    "unsigned* barrier_counter",
)
"""Parameters of the batch. `DeviceBatch` has `order` to `counts`; ``*_row`` are row strides."""


@lru_cache(maxsize=64)
def parameters(phases: int) -> KernelParameters:
    """Parameters of the kernel; see `BackwardRun`. ``w_k`` are the packed weights of product k."""
    names = ["const real* p", "const real* m", "const real* record", "const real* c_steps"]
    names += ["const real* h_first", "const real* c_first", "const real* y", "const real* d_y"]
    names += ["real* dh", "real* dc", "real* dz", "real* du", "real* d_projected", "real* dp"]
    names += ["long long column", "long long reverse", "long long arrivals_before"]
    names += [f"const element* w_{k}" for k in range(phases)]
    return KernelParameters(SHARED_PARAMETERS, tuple(names))


def differentiated_stages(schedule: CellSchedule) -> tuple[Stage, ...]:
    """Stage whose product each backward phase differentiates.

    The first phase differentiates the first product of the following step.
    """
    return tuple(phase.stage or schedule.phases[0].stage for phase in schedule.backward)


@lru_cache(maxsize=256)
def shares_derivatives(schedule: CellSchedule) -> bool:
    """True if input and recurrent parts have equal derivatives, which are then stored once."""
    derivatives: dict[str, Expression] = {}
    for phase in schedule.backward:
        derivatives |= phase.derivatives
    names = [name for name in derivatives if name.startswith("x_")]
    return all(derivatives[name] is derivatives.get("h" + name[1:]) for name in names)


def source(cell: Cell, schedule: CellSchedule, precision: Precision, rows: int) -> str:
    """CUDA C++ of the kernel `KERNEL_NAME`, for tiles of `rows` sequences and any other sizes."""
    prelude, body = general_prelude(precision, rows), _body(cell, schedule)
    declared = parameters(len(schedule.backward))
    return kernel_source(prelude, KERNEL_NAME, MAX_THREADS, declared, body)


def _body(cell: Cell, schedule: CellSchedule) -> str:
    """Initialization, and the loop over steps in reverse. Step -1 only computes h's derivative."""
    phases, size = range(len(schedule.backward)), len(cell.letters)
    first = _phase(cell, schedule, 0)
    later = "".join(
        _phase(cell, schedule, k) + "    grid_barrier(barrier_counter, arrivals);\n"
        for k in phases
        if k
    )
    return f"""{index_statements()}
  const long long U = {size} * H8;
  real* sums = (real*)memory + (blockDim.x >> 5) * R * CHUNK;  // (warps, R, 1, 32)
  element* u_0 = (element*)(scratch + blockIdx.y * scratch_bytes);  // (2, N, {size}, H8)
  element* projected = u_0 + 2 * N * U;  // (N, P8)
  for (long long i = me; i < N * (2 * U + P8); i += all) u_0[i] = narrow(real(0));
  grid_barrier(barrier_counter, arrivals);
  for (long long t = longest - 1; t >= -1; t--) {{
    const long long count = counts[t < 0 ? 0 : t], ran = t + 1 < longest ? counts[t + 1] : 0;
    const element* following = u_0 + (~t & 1) * N * U;
    element* current = u_0 + (t & 1) * N * U;
{first}    if (t < 0) break;
    grid_barrier(barrier_counter, arrivals);
{later}  }}
"""


def scratch_bytes(cell: Cell, precision: Precision, N: int, P8: int, H8: int) -> int:
    """Bytes of scratch memory per direction, a multiple of 16."""
    return N * (2 * len(cell.letters) * H8 + P8) * precision.operand_bytes


def _phase(cell: Cell, schedule: CellSchedule, k: int) -> str:
    """CUDA C++ of a product, and of the derivatives that depend on no later product."""
    phase, stage = schedule.backward[k], differentiated_stages(schedule)[k]
    body = [
        "const long long n = order[r], length = steps[r];",
        "const long long q = starts[r] + (reverse ? length - 1 - t : t);",
        "const long long before = reverse ? q + 1 : q - 1;",
    ]
    if k == 0:
        body += _bring_back(schedule)
    elif "d_h" in symbols(phase.derivatives.values()):
        body.append("const real d_h = dh[n * h_row + unit];")
    body += _derivatives(cell, schedule, k)
    if stage.matrix == "weight_hr":
        return tile_loop(k, 1, "H", "projected, P8; count; P8", body)
    block = cell.letters.index(stage.gates[0])
    vectors = f"{'current' if k else 'following'} + {block} * H8, U"
    columns = "P" if k == 0 else "H"
    rows = "count" if k else "ran"
    return tile_loop(k, 1, columns, f"{vectors}; {rows}; {len(stage.gates)} * H8", body)


def _bring_back(schedule: CellSchedule) -> list[str]:
    """Statements that add up h's derivative: of the following step or final state, and of y."""
    carried = any("h_prev" in phase.derivatives for phase in schedule.backward)
    later = any("d_h" in symbols(phase.derivatives.values()) for phase in schedule.backward[1:])
    masked = "own[0] * m[n * P + unit]" if schedule.dropout else "own[0]"
    apart = " + dh[n * h_row + unit]" if carried else ""
    lines = [
        f"real d_h = t == length - 1 ? dh[n * h_row + unit] : {masked}{apart};",
        "if (t < 0) {",
        "  dh[n * h_row + unit] = d_h;",
        "  continue;",
        "}",
        "if (d_y) d_h += d_y[q * d_row + column + unit];",
    ]
    return [*lines, "dh[n * h_row + unit] = d_h;"] if later else lines


def _derivatives(cell: Cell, schedule: CellSchedule, k: int) -> list[str]:
    """Statements that compute and store a phase's derivatives."""
    phase = schedule.backward[k]
    roots = dict(phase.derivatives)
    if k == len(schedule.backward) - 1:  # gates that no state depends on have derivatives of 0
        known = {name for one in schedule.backward for name in one.derivatives}
        names = [f"{kind}_{gate}" for kind in "xh" for gate in cell.letters]
        roots |= {name: lift(0.0) for name in names if name not in known}
    shared = shares_derivatives(schedule)
    values = {name: _address(cell, schedule, phase, name) for name in symbols(roots.values())}
    lines, results = emit(roots, values)
    for name, value in results.items():
        lines += _store(cell, name, value, shared=shared)
    return lines


def _address(cell: Cell, schedule: CellSchedule, phase: BackwardPhase, name: str) -> str:
    """CUDA C++ of a symbol's value, for one row and unit."""
    if name.startswith("slot "):
        slot = name.removeprefix("slot ")
        return f"record[(q * {len(schedule.slots)} + {slot}) * H + unit]"
    if name.startswith("p_"):
        return f"p[{cell.peephole_gates.index(name[2:])} * H + unit]"
    if phase.stage is not None:
        stages = [one.stage for one in schedule.phases]
        if name == str(reads_symbol(stages.index(phase.stage)).payload):
            return "own[0]"
    return {
        "d_h": "d_h",
        "d_c": "dc[n * c_row + unit]",
        "h_prev": "(t ? y[before * y_row + column + unit] : h_first[n * h_first_row + unit])",
        "c_prev": "(t ? c_steps[before * H + unit] : c_first[n * c_first_row + unit])",
        MASK: "m[n * P + unit]",
    }[name]


def _store(cell: Cell, name: str, value: str, *, shared: bool) -> list[str]:
    """Statements that store a derivative."""
    size = len(cell.letters)
    if name == PROJECTED:
        return [
            f"d_projected[q * P + unit] = {value};",
            f"projected[r * P8 + unit] = narrow({value});",
        ]
    if name == "h_prev":
        return [f"dh[n * h_row + unit] = {value};"]
    if name == "c_prev":
        return [f"dc[n * c_row + unit] = {value};"]
    kind, _, gate = name.partition("_")
    if kind == "p":
        at = f"(n * {len(cell.peephole_gates)} + {cell.peephole_gates.index(gate)}) * H + unit"
        return [f"dp[{at}] += {value};"]
    block = cell.letters.index(gate)
    at = f"(q * {size} + {block}) * H + unit"
    if kind == "x":
        return [f"dz[{at}] = {value};"]
    exchange = f"current[(r * {size} + {block}) * H8 + unit] = narrow({value});"
    return [exchange] if shared else [f"du[{at}] = {value};", exchange]
