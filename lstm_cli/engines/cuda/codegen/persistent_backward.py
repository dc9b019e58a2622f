"""Persistent backward kernel of a cell, from the last step to the first; its speed is unmeasured.

Blocks exchange du, the derivatives for the recurrent parts of all gates. A block keeps the columns
of W_hh for its own units on the chip. The product of these columns with du is the derivative for h
of the step before. So a step multiplies the following step's du, then computes the equations. One
more product after the first step computes the derivatives for the initial states.
"""

from __future__ import annotations

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.codegen.cell import emit
from lstm_cli.engines.cuda.codegen.exchange import EXCHANGES, cluster_copy_code
from lstm_cli.engines.cuda.codegen.matmul import KernelParameters, kernel_source
from lstm_cli.engines.cuda.codegen.persistent_forward import (
    ITEM_INDICES,
    ITEM_LOOP,
    product_gate_blocks,
    stored_block,
)
from lstm_cli.engines.cuda.codegen.tensor_cores import (
    INDEX_CODE,
    WEIGHT_LOADING_CODE,
    kernel_constants,
    persistent_prelude,
    product_code,
)
from lstm_cli.engines.cuda.planning.plan import CLUSTER, PersistentPlan
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.schedule import CellSchedule, symbols

KERNEL_NAME = "persistent_backward"

SHARED_PARAMETERS = (
    "const long long* order",
    "const long long* starts",
    "const long long* steps",
    "long long N",
    "long long first_row",
    "long long h_row",
    "long long c_row",
    "long long h_first_row",
    "long long c_first_row",
    "long long y_row",
    "long long d_row",
    "unsigned char* exchange_buffer",
    "unsigned* counters",
)
"""Parameters of the batch; a launch takes groups of sequences from `first_row` on."""

DIRECTION_PARAMETERS = (
    "const element* w",
    "const real* p",
    "const real* m",
    "const real* record",
    "const real* c_steps",
    "const real* h_first",
    "const real* c_first",
    "const real* y",
    "const real* d_y",
    "real* dh",
    "real* dc",
    "real* dz",
    "real* du",
    "real* dp",
    "long long column",
    "long long reverse",
)
"""Parameters of a direction; see `BackwardRun`. ``du`` is null where it would equal ``dz``."""

PARAMETERS = KernelParameters(SHARED_PARAMETERS, DIRECTION_PARAMETERS)

WEIGHT_ADDRESS = """  constexpr int WIDE = BLOCKS * UNITS;
  const int gate = k / WIDE, from = k % WIDE, unit = first + row;
  if (row >= UNITS || unit >= H || gate >= {gates} || from >= H) return nullptr;
  return w + ((long long){block} * H + from) * H + unit;"""


def source(cell: Cell, schedule: CellSchedule, precision: Precision, plan: PersistentPlan) -> str:
    """CUDA C++ of the kernel `KERNEL_NAME`; `precision` is that of derivatives."""
    parts = _BackwardSource(cell, schedule, plan)
    exchange = EXCHANGES[plan.kind]
    counts = {"SLOTS": max(1, len(schedule.slots)), "PEEPHOLES": max(1, len(cell.peephole_gates))}
    sizes = kernel_constants(plan, len(parts.blocks), len(cell.letters), aligned=False) | counts
    body = f"""{INDEX_CODE}{WEIGHT_LOADING_CODE}
  {exchange.buffers}
  float* sums = (float*)next_memory;
  next_memory += {min(2, plan.parts)} * SUM_WARPS * COLUMNS * SUM_ROW * 4;
{parts.load_tables()}
{parts.load_states()}
  const element* before = exchange;
  element* after = exchange + SEQUENCES * ROW;
  int now = 0, were = 0;
  {"cluster_arrive();" if plan.kind == CLUSTER else exchange.arrive}
  for (int t = longest; t >= 0; t--) {{
    if (t > 0) {{
{parts.load_values()}
    }}
    were = now;  // how many sequences have a step t, and how many a step t - 1
    while (now < rows && lengths[now] >= t) now++;
    {exchange.wait}
#pragma unroll
    for (int part = 0; part < PARTS; part++) {{
      const bool behind = part * COLUMNS < were;
      float* own_sums = sums + (part & 1) * (SUM_WARPS * COLUMNS * SUM_ROW);
      if (behind) {{
{product_code(plan)}
      }}
{parts.compute()}
    }}
    if (t == 0) break;
    {exchange.arrive}
{parts.store_results()}
    element* read = (element*)before;
    before = after, after = read;
  }}
{parts.store_states()}
"""
    start = persistent_prelude(precision, sizes, parts.weight_address()) + cluster_copy_code(plan)
    return kernel_source(start, KERNEL_NAME, plan.threads, PARAMETERS, body, plan.cluster)


class _BackwardSource:
    """Parts of the kernel's source."""

    def __init__(self, cell: Cell, schedule: CellSchedule, plan: PersistentPlan) -> None:
        self.cell, self.plan, self.schedule = cell, plan, schedule
        self.derivatives = schedule.backward[0].derivatives
        self.blocks = product_gate_blocks(cell)
        self.names = symbols(self.derivatives.values())
        self.slots = [int(n.removeprefix("slot ")) for n in self.names if n.startswith("slot ")]
        self.has_c = "c" in cell.states

    def weight_address(self) -> str:
        return WEIGHT_ADDRESS.format(
            gates=len(self.blocks), block=stored_block(self.blocks, "gate")
        )

    def load_tables(self) -> str:
        """Load peepholes and lengths into shared memory."""
        number = len(self.cell.peephole_gates)
        peepholes = f"""  float* own_p = (float*)next_memory;
  next_memory += {number} * UNITS * 4;
  for (int i = thread; i < {number} * UNITS; i += THREADS) {{
    const int unit = unit_first + i % UNITS;
    own_p[i] = unit < H ? p[i / UNITS * H + unit] : 0.0f;
  }}
"""
        return f"""{peepholes if number else ""}  int* lengths = (int*)next_memory;
  for (int i = thread; i < SEQUENCES; i += THREADS)
    lengths[i] = i < rows ? (int)steps[base + i] : 0;
  __syncthreads();"""

    def load_states(self) -> str:
        """Load derivatives for the final states into registers, and zeros into the buffers."""
        code = EXCHANGES[self.plan.kind]
        c = "dc_[i] = dc[q * c_row + unit];" if self.has_c else ""
        number = len(self.cell.peephole_gates)
        p = [f"dp_[i][{k}] = dp[(q * {number} + {k}) * H + unit];" for k in range(number)]
        return f"""  for (int i = {code.first}; i < 2 * SEQUENCES * PADDED; i += {code.stride})
    exchange[i / PADDED * ROW + i % PADDED] = element(0);
  const int by = reverse ? -1 : 1;
  real dh_[PARTS * ITEMS], dc_[PARTS * ITEMS], m_[PARTS * ITEMS], d_y_[PARTS * ITEMS];
  real h_before[PARTS * ITEMS], c_before[PARTS * ITEMS], kept_[PARTS * ITEMS][SLOTS];
  real dz_[PARTS * ITEMS][GATES], du_[PARTS * ITEMS][GATES], dp_[PARTS * ITEMS][PEEPHOLES];
  int length_[PARTS * ITEMS], row_[PARTS * ITEMS];
{ITEM_LOOP}{ITEM_INDICES}
      length_[i] = 0, row_[i] = 0, dh_[i] = dc_[i] = 0.0f, m_[i] = 1.0f;
      h_before[i] = c_before[i] = d_y_[i] = 0.0f;
#pragma unroll
      for (int k = 0; k < PEEPHOLES; k++) dp_[i][k] = 0.0f;
      if (item < UNITS * COLUMNS && n < rows && unit < H) {{
        const long long q = order[base + n];
        length_[i] = (int)steps[base + n];
        row_[i] = (int)starts[base + n] + (reverse ? 0 : length_[i] - 1);
        dh_[i] = dh[q * h_row + unit];
        {c}
        {"if (dp) { " + " ".join(p) + " }" if p else ""}
        if (m) m_[i] = m[q * H + unit];
      }}
    }}"""

    def load_values(self) -> str:
        """Load the values of step t - 1 while the block waits for other blocks."""
        slots = len(self.schedule.slots)
        loads = [f"kept_[i][{s}] = at[{s} * H];" for s in self.slots]
        if loads:
            loads.insert(0, f"const real* at = record + q * ({slots} * H) + unit;")
        loads.append("if (d_y) d_y_[i] = d_y[q * d_row + column + unit];")
        if "c_prev" in self.names:
            first = "c_first[order[base + n] * c_first_row + unit]"
            loads.append(f"c_before[i] = t > 1 ? c_steps[(q - by) * H + unit] : {first};")
        if "h_prev" in self.names:
            first = "h_first[order[base + n] * h_first_row + unit]"
            other = "y[(q - by) * y_row + column + unit]"
            loads.append(f"h_before[i] = t > 1 ? {other} : {first};")
        inner = "\n        ".join(loads)
        return f"""{ITEM_LOOP}{ITEM_INDICES}
      if (t <= length_[i]) {{
        const long long q = row_[i];
        {inner}
      }}
    }}"""

    def compute(self) -> str:
        """Add up the product's sums, then compute the equations, for each item of one part."""
        lines, names = emit(self.derivatives, {name: self._value(name) for name in self.names})
        body = [*lines]
        for g, gate in enumerate(self.cell.letters):
            body.append(f"dz_[i][{g}] = {names.get(f'x_{gate}', '0.0f')};")
            body.append(f"du_[i][{g}] = {names.get(f'h_{gate}', '0.0f')};")
        for k, gate in enumerate(self.cell.peephole_gates):
            if f"p_{gate}" in names:
                body.append(f"dp_[i][{k}] += {names[f'p_{gate}']};")
        if self.has_c:
            body.append(f"dc_[i] = {names.get('c_prev', '0.0f')};")
        body.append(f"dh_[i] = {names.get('h_prev', '0.0f')};")
        for k, g in enumerate(self.blocks):
            body.append(f"after[n * ROW + {k} * BLOCKS * UNITS + unit] = narrow(du_[i][{g}]);")
        inner = "\n".join("          " + line for line in body)
        return f"""#pragma unroll
      for (int j = 0; j < ITEMS; j++) {{
        const int i = part * ITEMS + j, item = j * THREADS + thread, u = item % UNITS;
        const int n = part * COLUMNS + item / UNITS, unit = unit_first + u;
        if (behind && t < length_[i]) {{
          real own = 0.0f;
#pragma unroll
          for (int s = 0; s < SUM_WARPS; s++)
            own += own_sums[(s * COLUMNS + item / UNITS) * SUM_ROW + u];
          dh_[i] += own * m_[i];
        }}
        if (t > 0 && t <= length_[i]) {{
{inner}
        }}
      }}"""

    def _value(self, name: str) -> str:
        """CUDA C++ of a symbol's value."""
        if name.startswith("p_"):
            return f"own_p[{self.cell.peephole_gates.index(name[2:])} * UNITS + u]"
        if name.startswith("slot "):
            return f"kept_[i][{name.removeprefix('slot ')}]"
        return {
            "d_h": "(dh_[i] + d_y_[i])",
            "d_c": "dc_[i]",
            "h_prev": "h_before[i]",
            "c_prev": "c_before[i]",
            "mask": "m_[i]",
        }[name]

    def store_results(self) -> str:
        """Store the results of a step in global memory."""
        gates = range(len(self.cell.letters))
        dz = " ".join(f"dz[at + {g} * H] = dz_[i][{g}];" for g in gates)
        du = " ".join(f"du[at + {g} * H] = du_[i][{g}];" for g in gates)
        return f"""{ITEM_LOOP}{ITEM_INDICES}
      if (t <= length_[i]) {{
        const long long at = (long long)row_[i] * (GATES * H) + unit;
        row_[i] -= by;
        {dz}
        if (du) {{ {du} }}
      }}
    }}"""

    def store_states(self) -> str:
        """Store the derivatives for the initial states and for the peepholes."""
        number = len(self.cell.peephole_gates)
        c = "dc[q * c_row + unit] = dc_[i];" if self.has_c else ""
        p = [f"dp[(q * {number} + {k}) * H + unit] = dp_[i][{k}];" for k in range(number)]
        return f"""{ITEM_LOOP}{ITEM_INDICES}
      if (length_[i] > 0) {{
        const long long q = order[base + n];
        dh[q * h_row + unit] = dh_[i];
        {c}
        {"if (dp) { " + " ".join(p) + " }" if p else ""}
      }}
    }}"""
