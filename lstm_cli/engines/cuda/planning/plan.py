"""Plan of a persistent kernel, unmeasured on any GPU: weights and sequences of each block.

A *group* of blocks holds all recurrent weights of a direction; each block holds the weights of its
own units. The group runs some sequences from the first step to the last. Groups are independent, so
a large batch takes several groups. `lstm_cli.engines.cuda.planning.plan_search` chooses among the
possible plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import Device
from lstm_cli.engines.schedule import stages, symbols, training

BLOCK, CLUSTER, GRID = "block", "cluster", "grid"
"""Kinds of exchange between blocks: none, through shared memory, or through global memory."""

MIN_OTHER_REGISTERS = 76
"""Least number of registers per thread for addresses, counters and temporaries of equations."""


@dataclass(frozen=True)
class DeviceLimits:
    """Limits of a device that a plan depends on; see `Device`."""

    multiprocessors: int
    shared_bytes: int
    largest_cluster: int

    @classmethod
    def of(cls, device: Device) -> DeviceLimits:
        """Limits of a device."""
        return cls(device.multiprocessors, device.shared_bytes, device.largest_cluster)


@dataclass(frozen=True)
class RecurrenceShape:
    """Sizes of one direction's recurrence that a plan depends on.

    Attributes
    ----------
    backward
        True if blocks exchange derivatives instead of h.
    H
        Number of units.
    gates
        Number of recurrent parts that a product computes (forward), or whose derivatives it
        multiplies (backward).
    narrow
        True if operands have 16 bits.
    thread_values
        Numbers that a thread keeps per unit and sequence.
    shared_values
        Numbers per unit in shared memory: biases and peepholes.
    """

    backward: bool
    H: int
    gates: int
    narrow: bool
    thread_values: int
    shared_values: int

    @property
    def chunk(self) -> int:
        """Numbers of a row per chunk of 64 bytes."""
        return 32 if self.narrow else 16

    @property
    def operand_bytes(self) -> int:
        """Bytes per operand."""
        return 2 if self.narrow else 4


@dataclass(frozen=True)
class PersistentPlan:
    """Sizes of a persistent kernel.

    Attributes
    ----------
    kind
        Kind of exchange: `BLOCK`, `CLUSTER` or `GRID`.
    blocks, units
        Blocks per group, and units per block.
    sequences, columns
        Sequences per group, and sequences per product.
    row_warps, sum_warps
        Number of warps of a block that divide the rows, and of warps that divide each sum.
    register_chunks
        Chunks of 64 bytes of a row that a warp keeps in registers; the others stay in shared
        memory.
    """

    shape: RecurrenceShape
    kind: str
    blocks: int
    units: int
    sequences: int
    columns: int
    row_warps: int
    sum_warps: int
    register_chunks: int

    @property
    def cluster(self) -> int:
        """Blocks per thread-block cluster; 1 without clusters."""
        return self.blocks if self.kind == CLUSTER else 1

    @property
    def threads(self) -> int:
        """Threads per block."""
        return 32 * self.row_warps * self.sum_warps

    @property
    def rows(self) -> int:
        """Weight rows per block."""
        return self.units * (1 if self.shape.backward else self.shape.gates)

    @property
    def tiles(self) -> int:
        """16-row weight tiles per warp."""
        return ceil(ceil(self.rows / 16) / self.row_warps)

    @property
    def width(self) -> int:
        """Count of numbers per exchanged vector, without padding."""
        units = self.blocks * self.units
        return units * self.shape.gates if self.shape.backward else units

    @property
    def chunks(self) -> int:
        """64-byte chunks of a row per warp."""
        return ceil(ceil(self.width / self.shape.chunk) / self.sum_warps)

    @property
    def padded_width(self) -> int:
        """Count of numbers per exchanged vector, including zeros as padding."""
        return self.chunks * self.sum_warps * self.shape.chunk

    @property
    def parts(self) -> int:
        """Number of products per step, which run one after the other."""
        return self.sequences // self.columns

    @property
    def items(self) -> int:
        """Pairs of unit and sequence per thread and part."""
        return ceil(self.units * self.columns / self.threads)

    @property
    def vector_stride(self) -> int:
        """Stride from one vector to the next, in numbers.

        In shared memory the stride avoids bank conflicts between 8 lanes.
        """
        if self.kind == GRID:
            return self.padded_width
        odd = self.padded_width // self.shape.chunk % 2
        return self.padded_width + (0 if odd else self.shape.chunk)

    @property
    def sum_stride(self) -> int:
        """Stride from one sequence's sums to the next, in numbers: 4 more than a multiple of 16."""
        return self.tiles * self.row_warps * 16 + 4

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in a block's shared memory."""
        warps, shared_chunks = self.row_warps * self.sum_warps, self.chunks - self.register_chunks
        return warps * self.tiles * shared_chunks * 1024

    @property
    def exchange_bytes(self) -> int:
        """Bytes of a group's exchange buffers: two vectors per sequence."""
        return 2 * self.sequences * self.vector_stride * self.shape.operand_bytes

    @property
    def sum_bytes(self) -> int:
        """Bytes of all warps' sums; two buffers if there are several parts."""
        return min(2, self.parts) * self.sum_warps * self.columns * self.sum_stride * 4

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory per block."""
        exchange = self.exchange_bytes if self.kind != GRID else 0
        table = (self.shape.shared_values * self.units + self.sequences) * 4
        return self.weight_bytes + exchange + self.sum_bytes + ceil(table / 16) * 16

    @property
    def registers(self) -> int:
        """Estimated registers per thread."""
        sums = self.tiles * self.columns // 8 * 4 * self.accumulator_sets
        loads = self.prefetch_chunks * self.columns // 8 * 4
        items = self.items * self.parts * self.shape.thread_values
        weights = self.register_chunks * self.tiles * 8
        return self.other_registers + sums + loads + items + weights

    @property
    def other_registers(self) -> int:
        """Registers per thread for addresses and temporaries, estimated from reports of ptxas."""
        return MIN_OTHER_REGISTERS + self.columns + (12 if self.shape.narrow else 0)

    @property
    def accumulator_sets(self) -> int:
        """Number of independent sets of sums per thread: 2 for few tiles, so products overlap."""
        return 2 if self.tiles * self.columns // 8 < 4 else 1

    @property
    def prefetch_chunks(self) -> int:
        """Chunks of the vector that are loaded before the first of them is multiplied."""
        largest = 8 if self.kind == GRID else 4
        return max(1, min(self.chunks, largest * 8 // self.columns))

    def groups(self, N: int) -> int:
        """Number of groups for N sequences."""
        return max(1, ceil(N / self.sequences))


@lru_cache(maxsize=256)
def recurrence_shape(cell: Cell, precision: Precision, backward: bool) -> RecurrenceShape | str:
    """Sizes of a recurrence, or the reason why no persistent kernel can run it."""
    used = precision.backward if backward else precision
    if not used.tensor_cores:
        return f"{precision.name} is exact: tensor cores round what they multiply"
    if len(stages(cell)) > 1:
        return "a step has more than one product"
    gates, letters = len(multiplied_gates(cell)), len(cell.letters)
    peepholes, slots = len(cell.peephole_gates), len(training(cell, False).slots)
    if backward:
        values = slots + letters + peepholes + 8
        return RecurrenceShape(True, cell.hidden_size, gates, used.narrow, values, peepholes)
    tables = letters * (2 if cell.recurrent_bias else 1) + peepholes
    values = max(letters, slots) + 6
    return RecurrenceShape(False, cell.hidden_size, gates, used.narrow, values, tables)


@lru_cache(maxsize=256)
def multiplied_gates(cell: Cell) -> tuple[str, ...]:
    """Gates that have their own recurrent part; a coupled or missing forget gate has none."""
    phase = training(cell, False).phases[0]
    names = symbols(phase.roots.values())
    return tuple(gate for gate in phase.stage.gates if f"h_{gate}" in names)
