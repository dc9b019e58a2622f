"""Sizes of a persistent kernel: who holds which weights, and how blocks share out sequences.

A *group* of blocks holds all recurrent weights of a direction, each block those of its own units,
and runs some sequences from first step to last. Groups know nothing of one another, so a batch
that is large enough is spread over several. Which of the possible plans is taken is decided by a
model of how long a step takes; its constants are modelled, not measured.
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
"""How blocks hand over what they computed: none to hand to, shared memory, global memory."""

MIN_OTHER_REGISTERS = 76
"""Of a thread, for addresses, counters and what the equations need in between, at least."""


@dataclass(frozen=True)
class DeviceLimits:
    """What a plan must know of a device; see `Device`."""

    multiprocessors: int
    shared_bytes: int
    largest_cluster: int

    @classmethod
    def of(cls, device: Device) -> DeviceLimits:
        """A device's."""
        return cls(device.multiprocessors, device.shared_bytes, device.largest_cluster)


@dataclass(frozen=True)
class RecurrenceShape:
    """The recurrence of one direction, as a plan sees it.

    Attributes
    ----------
    backward
        Whether derivatives are handed on, rather than h.
    H
        Units.
    gates
        Recurrent parts that a product gives, or whose derivatives it multiplies.
    narrow
        Whether operands have 16 bits.
    values
        Numbers that a thread holds of each of its units and sequences.
    tables
        Numbers of each unit in shared memory: biases and peepholes.
    """

    backward: bool
    H: int
    gates: int
    narrow: bool
    values: int
    tables: int

    @property
    def chunk(self) -> int:
        """Numbers of a row in 64 bytes."""
        return 32 if self.narrow else 16

    @property
    def item_bytes(self) -> int:
        """Of an operand."""
        return 2 if self.narrow else 4


@dataclass(frozen=True)
class PersistentPlan:
    """A kernel's sizes.

    Attributes
    ----------
    kind
        `BLOCK`, `CLUSTER` or `GRID`.
    blocks, units
        Blocks of a group, and units of a block.
    sequences
        Of a group; `columns` of them at a time share a product.
    row_warps, sum_warps
        Warps of a block that share out rows, and that share out sums.
    held
        Chunks of 64 bytes of a row that a warp keeps in registers; the others are in shared
        memory.
    """

    work: RecurrenceShape
    kind: str
    blocks: int
    units: int
    sequences: int
    columns: int
    row_warps: int
    sum_warps: int
    held: int

    @property
    def cluster(self) -> int:
        """Blocks of a thread-block cluster; 1: none."""
        return self.blocks if self.kind == CLUSTER else 1

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_warps * self.sum_warps

    @property
    def rows(self) -> int:
        """Of a block's weights."""
        return self.units * (1 if self.work.backward else self.work.gates)

    @property
    def tiles(self) -> int:
        """Of 16 rows, that one warp multiplies."""
        return ceil(ceil(self.rows / 16) / self.row_warps)

    @property
    def width(self) -> int:
        """Of the vector that is handed on, without padding."""
        each = self.blocks * self.units
        return each * self.work.gates if self.work.backward else each

    @property
    def chunks(self) -> int:
        """Of a row, that one warp multiplies."""
        return ceil(ceil(self.width / self.work.chunk) / self.sum_warps)

    @property
    def padded(self) -> int:
        """The vector's width with the zeros behind it."""
        return self.chunks * self.sum_warps * self.work.chunk

    @property
    def parts(self) -> int:
        """Products of a step, one after the other."""
        return self.sequences // self.columns

    @property
    def items(self) -> int:
        """Units and sequences of a thread, of each part."""
        return ceil(self.units * self.columns / self.threads)

    @property
    def row_numbers(self) -> int:
        """How far apart vectors are; in shared memory so that 8 lanes meet no bank twice."""
        if self.kind == GRID:
            return self.padded
        odd = self.padded // self.work.chunk % 2
        return self.padded + (0 if odd else self.work.chunk)

    @property
    def sum_row(self) -> int:
        """How far apart the sums of two sequences are: 4 more than a multiple of 16."""
        return self.tiles * self.row_warps * 16 + 4

    @property
    def weight_bytes(self) -> int:
        """Of weights in a block's shared memory."""
        return self.row_warps * self.sum_warps * self.tiles * (self.chunks - self.held) * 1024

    @property
    def exchange_bytes(self) -> int:
        """Of a group's two vectors of every sequence."""
        return 2 * self.sequences * self.row_numbers * self.work.item_bytes

    @property
    def sum_bytes(self) -> int:
        """Of all warps' sums, twice where parts follow one another."""
        return min(2, self.parts) * self.sum_warps * self.columns * self.sum_row * 4

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        own = self.exchange_bytes if self.kind != GRID else 0
        table = (self.work.tables * self.units + self.sequences) * 4
        return self.weight_bytes + own + self.sum_bytes + ceil(table / 16) * 16

    @property
    def registers(self) -> int:
        """That a thread needs, by estimate."""
        sums = self.tiles * self.columns // 8 * 4 * self.sets
        loads = self.ahead * self.columns // 8 * 4
        items = self.items * self.parts * self.work.values
        return self.spare + sums + loads + items + self.held * self.tiles * 8

    @property
    def spare(self) -> int:
        """Registers for addresses, and what the equations need in between; as ptxas has it."""
        return MIN_OTHER_REGISTERS + self.columns + (12 if self.work.narrow else 0)

    @property
    def sets(self) -> int:
        """Of sums in a thread, so that four products do not wait for one another."""
        return 2 if self.tiles * self.columns // 8 < 4 else 1

    @property
    def ahead(self) -> int:
        """Chunks of the vector that are loaded before the first of them is multiplied."""
        most = 8 if self.kind == GRID else 4
        return max(1, min(self.chunks, most * 8 // self.columns))

    def groups(self, N: int) -> int:
        """Of a batch of N."""
        return max(1, ceil(N / self.sequences))


@lru_cache(maxsize=256)
def recurrence_shape(cell: Cell, precision: Precision, backward: bool) -> RecurrenceShape | str:
    """What there is to do, or in a few words why no persistent kernel can."""
    used = precision.backward if backward else precision
    if not used.tensor_cores:
        return f"{precision.name} is exact: tensor cores round what they multiply"
    if len(stages(cell)) > 1:
        return "a step has more than one product"
    gates, letters = multiplied_gates(cell), len(cell.letters)
    peepholes = len(cell.peephole_gates)
    if backward:
        slots = len(training(cell, False).slots)
        values = slots + letters + peepholes + 8
        return RecurrenceShape(True, cell.hidden_size, len(gates), used.narrow, values, peepholes)
    tables = letters * (2 if cell.recurrent_bias else 1) + peepholes
    slots = len(training(cell, False).slots)
    return RecurrenceShape(
        False, cell.hidden_size, len(gates), used.narrow, max(letters, slots) + 6, tables
    )


@lru_cache(maxsize=256)
def multiplied_gates(cell: Cell) -> tuple[str, ...]:
    """The gates whose recurrent part matters: not a coupled one, nor one that is missing."""
    schedule = training(cell, False)
    phase = schedule.phases[0]
    names = symbols(phase.roots.values())
    return tuple(gate for gate in phase.stage.gates if f"h_{gate}" in names)
