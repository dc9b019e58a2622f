"""A comparison of two weights files as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lstm_cli.api.data_notes import itemize
from lstm_cli.cli import units
from lstm_cli.cli.tables import plain_table
from lstm_cli.errors import counted

if TYPE_CHECKING:
    from lstm_cli.api.comparison.comparison import FileComparison, FileSummary
    from lstm_cli.api.comparison.diagnosis import Diagnosis
    from lstm_cli.api.comparison.first_difference import Divergence
    from lstm_cli.api.comparison.metrics import ComparedBlock

FEW = 4
"""Equal blocks of a direction that are listed like the others; more become a count."""


def report(comparison: FileComparison) -> list[Any]:
    """Everything but what the data say."""
    lines: list[Any] = [_file("A", comparison.a), _file("B", comparison.b), ""]
    for layer, group in groupby(comparison.blocks, key=lambda block: block.layer):
        shown = list(_layer(f"layer {layer}  {comparison.titles[layer]}", list(group)))
        if len(shown) > 1 and lines[-1] != "":
            lines.append("")
        lines += [*shown, *([""] if len(shown) > 1 else [])]
    if lines[-1] != "":
        lines.append("")
    if comparison.folded is not None:
        other = "B" if comparison.folded == "A" else "A"
        lines.append(
            f"note: {comparison.folded} normalizes its inputs (inputs.mean, inputs.scale), {other} "
            "does not: the normalization was folded into the weights to compare them"
        )
    if comparison.lost:
        lines.append(
            f"warning: the fold loses digits: {itemize(comparison.lost)}; equal weights give other "
            "outputs then, which --data shows"
        )
    lines += [f"differs: {what}" for what in comparison.layers]
    lines += [
        f"{'differs' if option.counts else 'note'}: {option.what}" for option in comparison.options
    ]
    if comparison.diagnosis is not None:
        lines += _diagnosis(comparison.diagnosis)
    return [*lines, _verdict(comparison), *_hints(comparison.diagnosis)]


def _file(label: str, file: FileSummary) -> str:
    return f"{label}  {file.path} · {file.title} · sha256 {file.sha256[:8]}…"


def _layer(title: str, blocks: Sequence[ComparedBlock]) -> Iterator[Any]:
    """A heading for each direction, the blocks that differ, and the others if they are few."""
    if all(block.equal for block in blocks):
        yield Text.assemble((title, "bold"), f" · {_counted(len(blocks))} equal")
        return
    directions = dict.fromkeys(block.direction for block in blocks)
    for k, direction in enumerate(directions):
        yield from [""] if k else []
        yield Text(title + (f" · {direction}" if len(directions) > 1 else ""), style="bold")
        yield from _rows([block for block in blocks if block.direction == direction])


def _rows(blocks: Sequence[ComparedBlock]) -> Iterator[Any]:
    equal = [block for block in blocks if block.equal]
    folded = len(equal) > FEW
    shown = [block for block in blocks if not (folded and block.equal)]
    if alike := [block for block in shown if block.figures is not None]:
        yield _table(alike)
    if unlike := [block for block in shown if block.figures is None]:
        yield _shapes_table(unlike)
    if folded or len(equal) == len(blocks):
        others = "the other" if len(equal) < len(blocks) else "all"
        yield f"{others} {_counted(len(equal))} are equal"


def _counted(count: int) -> str:
    return f"{count} matrices and vectors" if count != 1 else "1 matrix"


def _table(blocks: Sequence[ComparedBlock]) -> Table:
    numbers = ("difference", "relative", "norm A", "norm B", "correlation")
    table = plain_table("gate", "", "shape", *numbers, numbers=numbers)
    for block in blocks:
        shape = units.shape(block.shape_a or ())
        cells = (block.gate, block.matrix, shape, *_numbers(block))
        table.add_row(*cells, style="dim" if block.equal else "")
    return table


def _numbers(block: ComparedBlock) -> tuple[str, ...]:
    found = block.figures
    if found is None:
        return ()
    return (
        _number(found.difference),
        _number(found.relative),
        _number(found.norm_a),
        _number(found.norm_b),
        "-" if found.correlation is None else _correlation(found.correlation),
    )


def _shapes_table(blocks: Sequence[ComparedBlock]) -> Table:
    """Blocks that have no shape in common, or no counterpart."""
    table = plain_table("gate", "", "shape in A", "shape in B")
    for block in blocks:
        shapes = ("none" if s is None else units.shape(s) for s in (block.shape_a, block.shape_b))
        table.add_row(block.gate, block.matrix, *shapes)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _correlation(value: float) -> str:
    """Four places, but 1 only for what is 1."""
    text = f"{value:.4f}"
    return f"{value:.7f}" if text in ("1.0000", "-1.0000") and abs(value) < 1 - 1e-9 else text


def _diagnosis(diagnosis: Diagnosis) -> Iterator[str]:
    for finding in diagnosis.findings:
        where = f" ({', '.join(finding.where)})" if finding.where else ""
        yield f"explained: {finding.what}{where}"
    for blocks in diagnosis.unexplained:
        yield f"not explained: {blocks}"


def _hints(diagnosis: Diagnosis | None) -> list[str]:
    found = [] if diagnosis is None else [finding.hint for finding in diagnosis.findings]
    return [f"hint: {hint}" for hint in dict.fromkeys(found) if hint is not None]


def _verdict(comparison: FileComparison) -> str:
    blocks = comparison.blocks
    within = f" within {comparison.tolerance:g}" if comparison.tolerance else ""
    apart = [block for block in blocks if not block.equal]
    if comparison.equal:
        return f"equal{within}: {_counted(len(blocks))}"
    if not apart:
        return f"{_counted(len(blocks))} are equal{within}, the networks are not"
    largest = max((b.figures.difference for b in apart if b.figures is not None), default=None)
    by = "" if largest is None else f", by up to {largest:.3g}"
    how = {"wholly": "explained", "partly": "explained in part", "not": "not explained"}
    explained = how[comparison.diagnosis.explained] if comparison.diagnosis is not None else ""
    beyond = f" beyond {comparison.tolerance:g}" if comparison.tolerance else ""
    return f"{len(apart)} of {_counted(len(blocks))} differ{beyond}{by}: {explained}"


def divergence_report(found: Divergence) -> list[Any]:
    """Where the outputs part, layer by layer."""
    which = "all" if found.sequences == found.of else f"the first {found.sequences} of"
    steps = "" if found.steps is None else f", {counted(found.steps, 'step')} of each at most"
    numbers = ("first step", "sequence", "largest", "at step", "in sequence")
    table = plain_table("layer", "", "value", *numbers, numbers=numbers)
    for part in found.parts:
        first = ("-", "-") if not part.exceeds else (part.first_step, part.first_sequence)
        largest = (_number(part.largest), part.step, part.sequence)
        cells = ["" if cell is None else str(cell) for cell in (*first, *largest)]
        style = "" if part.exceeds else "dim"
        table.add_row(str(part.layer), part.direction, part.value, *cells, style=style)
    lines: list[Any] = [
        "",
        f"run on {which} {counted(found.of, 'sequence')}{steps}, in float64",
        table,
    ]
    lines += [*(f"note: {note}" for note in found.notes), found.what]
    if found.outputs is not None:
        out = found.outputs
        step = "" if out.step is None else f", step {out.step}"
        where = f" (sequence {out.sequence}{step})" if out.largest > 0 else ""
        lines.append(f"the networks' outputs differ by up to {_number(out.largest)}{where}")
    return lines
