"""Tables of gates, layers, timings, weights files, engines and GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lstm_cli.cli.display import units
from lstm_cli.errors import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from lstm_cli.engines.cuda.runtime.status import GpuStatus
    from lstm_cli.engines.selection import EngineStatus
    from lstm_cli.workflows.inspect_shapes import (
        DirectionShapes,
        FileTensor,
        GateBlock,
        LayerShapes,
    )
    from lstm_cli.workflows.timing import TimingRow


def plain_table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """A table without ruled lines: dim headings, numbers flush right, long cells wrapped."""
    right = set(numbers)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, header_style="dim", justify=justify, overflow="fold")
    return table


class NamesTable:
    """A table with unbroken names from a file; a wide table has the names on separate lines.

    Parameters
    ----------
    columns
        Headings.
    names
        Columns of names, at one end of the row. In a wide table, names of the last columns are
        below their row, names of the first columns above it.
    numbers
        Headings of columns that are flush right.
    """

    def __init__(self, columns: Sequence[str], names: range, numbers: Iterable[str] = ()) -> None:
        self.columns, self.names, self.numbers = tuple(columns), names, set(numbers)
        self.rows: list[tuple[list[str], str]] = [(list(columns), "dim")]

    def add_row(self, *cells: Text | str, style: str = "") -> None:
        """Add a row of one line; missing cells are empty."""
        texts = [printable(str(cell)) for cell in cells]
        self.rows.append((texts + [""] * (len(self.columns) - len(cells)), style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        every, above = range(len(self.columns)), 0 in self.names
        lines = self._lines(every)
        if max(map(cell_len, lines)) > options.max_width:
            others = self._lines([k for k in every if k not in self.names])
            lines = []
            for (cells, _), other in zip(self.rows, others, strict=True):
                # The terminal wraps a long name, so a copy of it has no line break.
                names = "  ".join(cells[k] for k in self.names if cells[k])
                parts = [names, other] if above else [other, names and f"    {names}"]
                lines.append("\n".join(part for part in parts if part))
        for (_, style), line in zip(self.rows, lines, strict=True):
            yield Segment(line, console.get_style(style))
            yield Segment.line()

    def _lines(self, columns: Sequence[int]) -> list[str]:
        """Rows of some columns, each as wide as its widest cell."""
        lines = [""] * len(self.rows)
        for k in columns:
            cells = [row[k] for row, _ in self.rows]
            width, right = max(map(cell_len, cells)), self.columns[k] in self.numbers
            for n, cell in enumerate(cells):
                space = " " * (width - cell_len(cell))
                lines[n] += (space + cell if right else cell + space) + "  "
        return [line.rstrip() for line in lines]


def heading(layer: LayerShapes) -> Text:
    """The line above a layer's tables."""
    return Text(f"layer {layer.index}  {layer.title}", style="bold")


def engines_table(statuses: Sequence[EngineStatus]) -> Table:
    """Engines: device, usability, dtypes, and details or the reason against use."""
    table = plain_table("engine", "device", "usable", "dtypes", "")
    for status in statuses:
        usable, dtypes = "yes" if status.usable else "no", ", ".join(status.dtypes)
        table.add_row(status.engine, status.device, usable, dtypes, status.detail)
    return table


def gpus_table(gpus: Sequence[GpuStatus]) -> Table:
    """GPUs: compute capability, memory, and the reason against use."""
    table = plain_table("GPU", "", "capability", "memory", "free", "", numbers=("memory", "free"))
    for gpu in gpus:
        free = "" if gpu.memory_free is None else units.size(gpu.memory_free)
        total = units.size(gpu.memory_total)
        table.add_row(gpu.name, gpu.title, gpu.compute_capability, total, free, gpu.detail)
    return table


def normalized_line(source: str | None) -> str:
    """The line on normalized inputs, with the source of mean and scale."""
    return f"inputs normalized: (x - mean) / scale, from {source}"


def gate_tables(layer: LayerShapes) -> list[NamesTable]:
    """Shapes of every gate of a recurrent layer; equal directions share a table."""
    tables = []
    for _, group in groupby(layer.directions, key=lambda d: (d.gates, d.states)):
        alike = list(group)
        every = len(alike) == len(layer.directions)
        title = "gate" if every else f"gate, {alike[0].direction}"
        tables.append(_gate_table(title, alike[0]))
    return tables


def _gate_table(title: str, direction: DirectionShapes) -> NamesTable:
    columns = (title, "", "W input", "U recurrent", "b", "activation", "per step")
    table = NamesTable(columns, range(0))
    for gate in direction.gates:
        table.add_row(
            gate.name,
            gate.letter,
            *(units.shape(s) for s in (gate.W, gate.U)),
            units.shape(gate.b) if gate.b else "none",
            gate.activation,
            units.shape(gate.per_step),
        )
    words = {"h": "output state", "c": "cell state"}
    for name, shape in direction.states.items():
        table.add_row(words[name], name, "", "", "", "", units.shape(shape))
    return table


def other_layer(layer: LayerShapes) -> NamesTable:
    """Tensors and outputs of a dense, dropout or flatten layer."""
    table = NamesTable(("tensor", "", "shape"), range(0))
    for block in layer.blocks:
        table.add_row(block.role, block.symbol, units.shape(block.shape))
    table.add_row("output", "y", units.shape(layer.flows[-1].per_batch))
    return table


def timing_table(rows: Sequence[TimingRow]) -> Table:
    """Timings of a run by part."""
    columns = ("calls", "total", "share", "p50", "p95", "rate")
    table = plain_table("time", *columns, numbers=columns)
    for row in rows:
        last = row.name in ("rest", "all")
        table.add_row(
            f"  {row.name}" if row.part else row.name,
            "" if last else str(row.calls),
            units.seconds(row.seconds),
            "" if row.part else f"{row.share * 100:.0f} %",
            "" if last else units.seconds(row.p50),
            "" if last else units.seconds(row.p95),
            _rate(row),
            style="bold" if row.name == "all" else ("dim" if row.part else ""),
        )
    return table


def _rate(row: TimingRow) -> str:
    if row.sequences is not None:
        return f"{units.significant(row.sequences)} sequences/s"
    if row.gflops is not None:
        return f"{units.significant(row.gflops)} GFLOP/s"
    return f"{units.size(row.gbytes * 1e9)}/s" if row.gbytes is not None else ""


def block_tables(layer: LayerShapes, *, compared: bool) -> list[NamesTable]:
    """Every matrix and vector of every gate of a layer, a table for each direction.

    With `compared`, the table also has the shapes in a weights file.
    """
    groups = groupby(layer.blocks, key=lambda block: block.stored.rpartition(".")[0])
    return [_block_table(prefix, list(blocks), compared) for prefix, blocks in groups]


def _block_table(prefix: str, blocks: Sequence[GateBlock], compared: bool) -> NamesTable:
    sizes: tuple[str, ...] = ("shape", "params", "bytes")
    marked = any(block.mark for block in blocks)
    if compared:
        sizes = ("config", "weights file", "misfit") if marked else ("config", "weights file")
    columns = ("", "role", "formula", *sizes, f"in {prefix}")
    table = NamesTable(columns, range(len(columns) - 1, len(columns)), ("params", "bytes"))
    for block in blocks:
        sides = (_compared(block) if compared else _sizes(block))[: len(sizes)]
        style = "red" if block.mark else ""
        place = block.stored.removeprefix(f"{prefix}.")
        table.add_row(block.symbol, block.role, block.formula, *sides, place, style=style)
    if not compared:
        count, size = sum(b.parameters for b in blocks), sum(b.bytes for b in blocks)
        table.add_row("", "all", "", "", f"{count:,}", units.size(size), "", style="bold")
    return table


def place_tables(layer: LayerShapes) -> list[NamesTable]:
    """Tensors of another format's file for every gate's matrix, a table for each direction."""
    groups = groupby(layer.blocks, key=lambda block: block.stored.rpartition(".")[0])
    return [_place_table(list(blocks)) for _, blocks in groups]


def _place_table(blocks: Sequence[GateBlock]) -> NamesTable:
    dtypes = {place.dtype for block in blocks for place in block.places}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    columns: tuple[str, ...] = (
        "",
        "shape",
        "stored as" if dtype is None else f"stored as {dtype}, under",
    )
    columns += ("",) if dtype else ("dtype", "")
    table = NamesTable(columns, range(2, len(columns)))
    for block in blocks:
        first = block.symbol, units.shape(block.found or block.shape)
        for k, place in enumerate(block.places):
            name = printable(f"{place.name}{place.part}")
            cells = [
                name,
                *([] if dtype else [place.dtype]),
                place.change,
            ]
            table.add_row(*(first if k == 0 else ("", "")), *cells)
        if not block.places:
            table.add_row(*first, "-", *([] if dtype else [""]), block.mark or "")
    return table


def _sizes(block: GateBlock) -> tuple[str, str, str]:
    return units.shape(block.shape), f"{block.parameters:,}", units.size(block.bytes)


def _compared(block: GateBlock) -> tuple[str, str, str]:
    found = "-" if block.found is None else units.shape(block.found)
    return units.shape(block.shape), found, f"✗ {block.mark}" if block.mark else ""


def flow_table(layer: LayerShapes) -> NamesTable:
    """Activations of a layer, per step and per batch."""
    columns = ("activation", "per step", "per batch", "bytes")
    table = NamesTable(columns, range(0), ("bytes",))
    for flow in layer.flows:
        nbytes = units.size(flow.bytes) if flow.bytes is not None else ""
        shapes = (units.shape(flow.per_step), units.shape(flow.per_batch))
        table.add_row(flow.name, *shapes, nbytes)
    return table


def stored_table(tensors: Sequence[FileTensor]) -> NamesTable:
    """The tensors of a weights file, as stored."""
    table = NamesTable(("tensor", "shape", "dtype", "bytes"), range(1), ("bytes",))
    for tensor in tensors:
        table.add_row(
            printable(tensor.name),
            units.shape(tensor.shape),
            tensor.dtype,
            units.size(tensor.bytes),
        )
    return table
