"""Persistent forward kernel of a cell with one product per step; its speed is unmeasured.

A block loads the recurrent weights of its units once, and they stay on the chip. In each step it
multiplies them with the group's vectors h. Then each thread computes some units and sequences,
whose states are in registers. Loads of a step's input part start before the block waits for the
other blocks' h. Stores of a step's results follow the block's own arrival at the barrier.
"""

from __future__ import annotations

from functools import lru_cache

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.codegen.cell import emit
from lstm_cli.engines.cuda.codegen.exchange import EXCHANGES, cluster_copy_code
from lstm_cli.engines.cuda.codegen.matmul import KernelParameters, kernel_source
from lstm_cli.engines.cuda.codegen.tensor_cores import (
    INDEX_CODE,
    WEIGHT_LOADING_CODE,
    kernel_constants,
    persistent_prelude,
    product_code,
)
from lstm_cli.engines.cuda.planning.plan import CLUSTER, PersistentPlan, multiplied_gates
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.schedule import MASK, CellSchedule, symbols

KERNEL_NAME = "persistent_forward"

SHARED_PARAMETERS = (
    "const long long* order",
    "const long long* starts",
    "const long long* steps",
    "long long N",
    "long long first_row",
    "long long h_row",
    "long long c_row",
    "long long y_row",
    "unsigned char* exchange_buffer",
    "unsigned* counters",
)
"""Parameters of the batch; a launch takes groups of sequences from `first_row` on."""

DIRECTION_PARAMETERS = (
    "const element* w",
    "const real* z",
    "const real* bias",
    "const real* bias_hh",
    "const real* p",
    "const real* m",
    "real* h",
    "real* c",
    "real* y",
    "element* y_element",
    "real* c_steps",
    "real* record",
    "element* reads",
    "long long column",
    "long long reverse",
)
"""Parameters of a direction; see `ForwardRun`. ``w`` is the whole recurrent matrix, as stored."""

PARAMETERS = KernelParameters(SHARED_PARAMETERS, DIRECTION_PARAMETERS)

WEIGHT_ADDRESS = """  const int gate = row / UNITS, unit = first + row % UNITS;
  if (gate >= {rows} || unit >= H || k >= H) return nullptr;
  return w + ((long long){block} * H + unit) * H + k;"""


def source(cell: Cell, schedule: CellSchedule, precision: Precision, plan: PersistentPlan) -> str:
    """CUDA C++ of the kernel `KERNEL_NAME`."""
    parts = _ForwardSource(cell, schedule, plan)
    aligned = plan.shape.H * plan.shape.operand_bytes % 16 == 0
    exchange = EXCHANGES[plan.kind]
    sizes = kernel_constants(plan, 1, len(cell.letters), aligned=aligned) | {
        "SLOTS": max(1, len(schedule.slots))
    }
    body = f"""{INDEX_CODE}{WEIGHT_LOADING_CODE}
  {exchange.buffers}
  float* sums = (float*)next_memory;
  next_memory += {min(2, plan.parts)} * SUM_WARPS * COLUMNS * SUM_ROW * 4;
{parts.load_tables()}
{parts.load_states()}
  const element* before = exchange;
  element* after = exchange + SEQUENCES * ROW;
  const int by = reverse ? -1 : 1;
  int now = rows;
  {"cluster_arrive();" if plan.kind == CLUSTER else exchange.arrive}
  for (int t = 0; t < longest; t++) {{
{parts.load_inputs()}
    while (lengths[now - 1] <= t) now--;
    {exchange.wait}
#pragma unroll
    for (int part = 0; part < PARTS; part++) {{
      if (part * COLUMNS >= now) continue;
      float* own_sums = sums + (part & 1) * (SUM_WARPS * COLUMNS * SUM_ROW);
{product_code(plan)}
{parts.compute()}
    }}
    if (t + 1 < longest) {{
      {exchange.arrive}
    }}
{parts.store_results()}
    element* read = (element*)before;
    before = after, after = read;
  }}
{parts.store_states()}
"""
    start = persistent_prelude(precision, sizes, parts.weight_address()) + cluster_copy_code(plan)
    return kernel_source(start, KERNEL_NAME, plan.threads, PARAMETERS, body, plan.cluster)


ITEM_LOOP = """#pragma unroll
    for (int i = 0; i < PARTS * ITEMS; i++) {"""
"""CUDA C++ of the loop over a thread's items: unit ``u`` of sequence ``n`` of the group."""

ITEM_INDICES = """
      const int item = i % ITEMS * THREADS + thread, u = item % UNITS;
      const int n = i / ITEMS * COLUMNS + item / UNITS;
      const int unit = unit_first + u;"""


@lru_cache(maxsize=64)
def product_gate_blocks(cell: Cell) -> tuple[int, ...]:
    """Numbers of the gate blocks of the recurrent matrix that the kernel multiplies."""
    return tuple(cell.letters.index(gate) for gate in multiplied_gates(cell))


def stored_block(blocks: tuple[int, ...], number: str) -> str:
    """CUDA C++ of the stored gate block for a kernel's block `number`."""
    if blocks == tuple(range(len(blocks))):
        return number
    text = str(blocks[-1])
    for k in reversed(range(len(blocks) - 1)):
        text = f"{number} == {k} ? {blocks[k]} : {text}"
    return f"({text})"


class _ForwardSource:
    """Parts of the kernel's source."""

    def __init__(self, cell: Cell, schedule: CellSchedule, plan: PersistentPlan) -> None:
        self.cell, self.schedule, self.plan = cell, schedule, plan
        self.phase = schedule.phases[0]
        self.blocks = product_gate_blocks(cell)
        self.names = symbols(self.phase.roots.values())
        self.inputs = [g for g in cell.letters if f"x_{g}" in self.names]
        self.has_c = "c" in cell.states

    def weight_address(self) -> str:
        block = stored_block(self.blocks, "gate")
        return WEIGHT_ADDRESS.format(rows=len(self.blocks), block=block)

    def load_tables(self) -> str:
        """Load biases, peepholes and lengths into shared memory."""
        G, P = len(self.cell.letters), len(self.cell.peephole_gates)
        tables = [("own_bias", "bias", G)]
        tables += [("own_bias_hh", "bias_hh", G)] if self.cell.recurrent_bias else []
        tables += [("own_p", "p", P)] if P else []
        lines = []
        for name, source_name, count in tables:
            lines.append(f"""  float* {name} = (float*)next_memory;
  next_memory += {count} * UNITS * 4;
  for (int i = thread; i < {count} * UNITS; i += THREADS) {{
    const int unit = unit_first + i % UNITS;
    {name}[i] = unit < H ? {source_name}[i / UNITS * H + unit] : 0.0f;
  }}""")
        return (
            "\n".join(lines)
            + """
  int* lengths = (int*)next_memory;
  for (int i = thread; i < SEQUENCES; i += THREADS)
    lengths[i] = i < rows ? (int)steps[base + i] : 0;
  __syncthreads();"""
        )

    def load_states(self) -> str:
        """Load states into registers, and the first vectors into the buffers."""
        code = EXCHANGES[self.plan.kind]
        mask = " * m[order[base + n] * H + k]" if self.schedule.dropout else ""
        c = "c_[i] = c[q * c_row + unit];" if self.has_c else ""
        m = "m_[i] = m[q * H + unit];" if self.schedule.dropout else ""
        return f"""  for (int i = {code.first}; i < 2 * SEQUENCES * PADDED; i += {code.stride}) {{
    const int k = i % PADDED, n = i / PADDED % SEQUENCES;
    real x = 0.0f;
    if (i < SEQUENCES * PADDED && n < rows && k < H)
      x = h[order[base + n] * h_row + k]{mask};
    exchange[i / PADDED * ROW + k] = narrow(x);
  }}
  real h_[PARTS * ITEMS], c_[PARTS * ITEMS], m_[PARTS * ITEMS], z_[PARTS * ITEMS][GATES];
  real kept_[PARTS * ITEMS][SLOTS];
  int length_[PARTS * ITEMS], row_[PARTS * ITEMS];
{ITEM_LOOP}{ITEM_INDICES}
      length_[i] = 0, row_[i] = 0, h_[i] = c_[i] = m_[i] = 0.0f;
      if (item < UNITS * COLUMNS && n < rows && unit < H) {{
        const long long q = order[base + n];
        length_[i] = (int)steps[base + n];
        row_[i] = (int)starts[base + n] + (reverse ? length_[i] - 1 : 0);
        h_[i] = h[q * h_row + unit];
        {c}
        {m}
        if (reads && length_[i] > 0) reads[(long long)row_[i] * H + unit] = {self._next("i")};
      }}
    }}"""

    def _next(self, i: str) -> str:
        """CUDA C++ of an item's h as the next product reads it."""
        return f"narrow(h_[{i}] * m_[{i}])" if self.schedule.dropout else f"narrow(h_[{i}])"

    def load_inputs(self) -> str:
        """Load input parts into registers while the block waits for other blocks."""
        numbers = [self.cell.letters.index(g) for g in self.inputs]
        loads = " ".join(f"z_[i][{g}] = from[{g} * H];" for g in numbers)
        return f"""{ITEM_LOOP}{ITEM_INDICES}
      if (t < length_[i]) {{
        const real* from = z + (long long)row_[i] * (GATES * H) + unit;
        {loads}
      }}
    }}"""

    def compute(self) -> str:
        """Compute the equations for each unit and sequence of one part."""
        values = {name: self._value(name) for name in self.names}
        lines, names = emit(self.phase.roots, values)
        sums = len(self.blocks)
        body = [f"real own[{sums}];", "#pragma unroll"]
        body += [f"for (int g = 0; g < {sums}; g++) {{", "  own[g] = 0.0f;", "#pragma unroll"]
        body += ["  for (int s = 0; s < SUM_WARPS; s++)"]
        body += ["    own[g] += own_sums[(s * COLUMNS + item / UNITS) * SUM_ROW + g * UNITS + u];"]
        body += ["}", *lines]
        for name, value in names.items():
            place = "h_[i]" if name == "h" else "c_[i]" if name == "c" else ""
            slot = name.removeprefix("slot ")
            body.append(f"{place or f'kept_[i][{slot}]'} = {value};")
        body.append(f"after[n * ROW + unit] = {self._next('i')};")
        inner = "\n".join("          " + line for line in body)
        return f"""#pragma unroll
      for (int j = 0; j < ITEMS; j++) {{
        const int i = part * ITEMS + j, item = j * THREADS + thread, u = item % UNITS;
        const int n = part * COLUMNS + item / UNITS, unit = unit_first + u;
        if (t < length_[i]) {{
{inner}
        }}
      }}"""

    def _value(self, name: str) -> str:
        """CUDA C++ of a symbol's value."""
        if name in ("h_prev", "c_prev"):
            return f"{name[0]}_[i]"
        if name == MASK:
            return "m_[i]"
        kind, _, gate = name.partition("_")
        if kind == "p":
            return f"own_p[{self.cell.peephole_gates.index(gate)} * UNITS + u]"
        block = self.cell.letters.index(gate)
        if kind == "x":
            return f"(z_[i][{block}] + own_bias[{block} * UNITS + u])"
        own = f"own[{self.blocks.index(block)}]"
        two = self.cell.recurrent_bias
        return f"({own} + own_bias_hh[{block} * UNITS + u])" if two else own

    def store_results(self) -> str:
        """Store the results of a step in global memory."""
        c = "if (c_steps) c_steps[q * H + unit] = c_[i];" if self.has_c else ""
        slots = len(self.schedule.slots)
        kept = " ".join(f"at[{s} * H] = kept_[i][{s}];" for s in range(slots))
        record = f"real* at = record + q * ({slots} * H) + unit; {kept}" if slots else ""
        return f"""{ITEM_LOOP}{ITEM_INDICES}
      if (t < length_[i]) {{
        const long long q = row_[i];
        row_[i] += by;
        if (y) y[q * y_row + column + unit] = h_[i];
        if (y_element) y_element[q * y_row + column + unit] = narrow(h_[i]);
        {c}
        if (reads && t + 1 < length_[i]) reads[(q + by) * H + unit] = {self._next("i")};
        if (record) {{ {record} }}
      }}
    }}"""

    def store_states(self) -> str:
        """Store the final states."""
        c = "c[q * c_row + unit] = c_[i];" if self.has_c else ""
        return f"""{ITEM_LOOP}{ITEM_INDICES}
      if (length_[i] > 0) {{
        const long long q = order[base + n];
        h[q * h_row + unit] = h_[i];
        {c}
      }}
    }}"""
