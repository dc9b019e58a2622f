"""The page that `benchmark_gpu.py` writes: what was measured on a GPU, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from typing import Any

from measure_pipelines import Measured, table

Record = Mapping[str, Any]
"""A size in one dtype and mode: `dtype`, `mode`, `ragged`, `size` (H, N, T), `ours` and `theirs` in
seconds, `ratio`, `step` and `floor` in seconds, `way`, `difference`, `problem`."""

WORDS = {
    ("forward", False): "Forward passes",
    ("train", False): "Training steps",
    ("forward", True): "Forward passes, ragged",
    ("train", True): "Training steps, ragged",
}
TARGETS = {False: 1.5, True: 5.0}
"""The geometric mean that performance is to reach, of full and of ragged batches."""

GROUPS = tuple(WORDS)


@dataclass
class Page:
    """All that a page says.

    Attributes
    ----------
    title, machine
        The GPU, and lines on it and on what drives it.
    records
        What was measured so far.
    planned
        How many sizes there are.
    contract, handover, pipelines
        What the other scripts have written as JSON; None: not run.
    notes
        Further paragraphs.
    """

    title: str
    machine: Sequence[str]
    records: list[Record] = field(default_factory=list)
    planned: int = 0
    contract: Path | None = None
    handover: Path | None = None
    pipelines: Path | None = None
    notes: Sequence[str] = ()

    def text(self) -> str:
        """The page."""
        parts = [f"# The cuda engine on {self.title}", _INTRODUCTION, _fenced(self.machine)]
        parts += [*self.notes, *self._checked(), *self._handed(), *self._beside()]
        parts += [*self._means(), *self._below()]
        for mode, ragged in GROUPS:
            for dtype in dict.fromkeys(r["dtype"] for r in self.records):
                parts += _section(self._of(mode, ragged, dtype), mode, ragged, dtype)
        return "\n\n".join(part for part in parts if part) + "\n"

    def _of(self, mode: str, ragged: bool, dtype: str | None = None) -> list[Record]:
        return [
            r
            for r in self.records
            if (r["mode"], r["ragged"]) == (mode, ragged) and dtype in (None, r["dtype"])
        ]

    def _checked(self) -> list[str]:
        found = _loaded(self.contract)
        if found is None:
            return ["## Contract\n\nThe contract checks have not run."]
        lines = [
            "| dtype | way | passed | failed | cannot run it | no time left |",
            "|---|---|--:|--:|--:|--:|",
        ]
        problems = []
        for one in found:
            counts = " | ".join(str(one[k]) for k in ("passed", "failed", "cannot", "left"))
            lines.append(f"| {one['dtype']} | {one['way']} | {counts} |")
            problems += [f"{one['dtype']}, {one['way']}: {line}" for line in one["problems"]]
        failed = sum(one["failed"] for one in found)
        verdict = f"**{failed} checks failed.**" if failed else "All checks passed."
        parts = [f"## Contract\n\nEvery cell and option beside the reference engine. {verdict}"]
        parts.append("\n".join(lines))
        return [*parts, _fenced(problems[:200])] if problems else parts

    def _handed(self) -> list[str]:
        found = _loaded(self.handover)
        if found is None:
            return ["## Hand-over of h\n\nNot measured."]
        lines = ["| where | blocks | groups | bytes of h | a hand-over |", "|---|--:|--:|--:|--:|"]
        for one in found:
            took = one["problem"] if one["micro"] is None else f"{one['micro']:.2f} µs"
            place = f"| {one['kind']} | {one['blocks']} | {one['groups']} | {one['payload']:,}"
            lines.append(f"{place} | {took} |")
        text = "What a step needs at least: every block writes its share, meets the others, reads."
        return [f"## Hand-over of h\n\n{text}", "\n".join(lines)]

    def _beside(self) -> list[str]:
        found, title = _loaded(self.pipelines), "## Layers side by side"
        if found is None:
            return [f"{title}\n\nNot measured."]
        made = [Measured(**one) for one in found]
        text = "Stacks of LSTM layers; above 1 a pipeline is faster than one layer after the other."
        return [f"{title}\n\n{text}", table(made)]

    def _means(self) -> list[str]:
        lines = [
            "| what | dtype | sizes | geometric mean | below 1.0 | to reach |",
            "|---|---|--:|--:|--:|--:|",
        ]
        dtypes = list(dict.fromkeys(r["dtype"] for r in self.records))
        for mode, ragged in GROUPS:
            for dtype in [*dtypes, None]:
                ratios = [r["ratio"] for r in self._of(mode, ragged, dtype) if r["ratio"]]
                if ratios:
                    mean, below = geometric_mean(ratios), sum(ratio < 1 for ratio in ratios)
                    row = (WORDS[mode, ragged], dtype or "all", len(ratios), f"{mean:.2f}")
                    lines.append(
                        "| {} | {} | {} | {} |".format(*row) + f" {below} | {TARGETS[ragged]} |"
                    )
        measured = len(self.records)
        text = f"{measured} of {self.planned} sizes were measured."
        if measured < self.planned:
            text += " The run was ended before the others, or had no time for them."
        return [f"## Against PyTorch\n\n{text}", "\n".join(lines) if len(lines) > 2 else _NOBODY]

    def _below(self) -> list[str]:
        slow = sorted(
            (r for r in self.records if r["ratio"] and r["ratio"] < 1), key=lambda r: r["ratio"]
        )
        wrong = [r for r in self.records if r["problem"]]
        lines = [f"{_words(r)}: {r['ratio']:.2f}, {r['way']}" for r in slow]
        parts = []
        if self.records:
            none = "No measured size is below 1.0."
            parts.append("### Sizes below 1.0\n\n" + (_fenced(lines) if lines else none))
        if wrong:
            failed = [f"{_words(r)}: {r['problem']}" for r in wrong]
            parts.append("### Sizes without a ratio\n\n" + _fenced(failed))
        return parts


_INTRODUCTION = """\
One layer, D = H. Weights and inputs are in the GPU's memory before anything is timed, outputs stay
there. Each side is timed by events in its own queue, in rounds that take turns; a ratio is the
median of the rounds' own ratios, above 1 where lstm-cli is faster. Outputs, or the loss, gradients
and update of a first step, are compared before. In tf32, float16 and bfloat16 both sides are held
against float64. PyTorch is `torch.nn.LSTM`: tf32 is float32 with TF32 allowed; 16-bit forward
passes have weights and inputs in that dtype, 16-bit training is `torch.autocast` with weights in
float32 (in float16 with a scaled loss). Ragged: lengths uniform in [T/10, T], PyTorch with packed
sequences. `floor` is modelled, not measured: the least that a step takes by the model that chooses
the plan.

Made by `scripts/check_gpu.sh`."""

_NOBODY = "There was nobody to compare with."


def geometric_mean(ratios: Iterable[float]) -> float:
    """Of numbers above 0."""
    logs = [log(ratio) for ratio in ratios]
    return exp(sum(logs) / len(logs))


def _section(records: Sequence[Record], mode: str, ragged: bool, dtype: str) -> list[str]:
    if not records:
        return []
    title = f"## {WORDS[mode, ragged]}, {dtype}"
    lines = [
        "| H × N × T | lstm-cli | PyTorch | ratio | µs a step | floor | way |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for r in sorted(records, key=lambda r: r["size"]):
        cells = [
            " × ".join(map(str, r["size"])),
            _milli(r["ours"]),
            _milli(r["theirs"]),
            f"{r['ratio']:.2f}" if r["ratio"] else "",
            "" if r["step"] is None else f"{r['step'] * 1e6:.2f}",
            "" if r["floor"] is None else f"{r['floor'] * 1e6:.2f}",
            r["way"] or "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [title, "\n".join(lines)]


def _words(r: Record) -> str:
    size = " × ".join(map(str, r["size"]))
    return f"{WORDS[r['mode'], r['ragged']].lower()}, {r['dtype']}, {size}"


def _milli(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3f} ms"


def _fenced(lines: Sequence[str]) -> str:
    return "```text\n" + "\n".join(lines) + "\n```" if lines else ""


def _loaded(path: Path | None) -> Any:
    if path is None or not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
