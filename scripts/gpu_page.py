"""Markdown page of `benchmark_gpu.py` with the measurements on a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from typing import Any

from measure_pipelines import MeasuredStack, table

Record = Mapping[str, Any]
"""Measurement of one size, dtype and mode.

Keys: `dtype`, `mode`, `ragged`, `size` (H, N, T); `ours`, `theirs`, `step` and `floor` in seconds;
`ratio`, `way`, `difference`, `problem`."""

WORDS = {
    ("forward", False): "Forward passes",
    ("train", False): "Training steps",
    ("forward", True): "Forward passes, ragged",
    ("train", True): "Training steps, ragged",
}
TARGETS = {False: 1.5, True: 5.0}
"""Target of the geometric mean of ratios, for full and for ragged batches."""

GROUPS = tuple(WORDS)


@dataclass
class Page:
    """Content of a page.

    Attributes
    ----------
    title, machine
        Name of the GPU, and lines on the GPU and its software.
    records
        Measurements so far.
    planned
        Number of sizes to measure.
    contract, exchange, pipelines
        JSON files of the other scripts; None: not run.
    notes
        Further paragraphs.
    """

    title: str
    machine: Sequence[str]
    records: list[Record] = field(default_factory=list)
    planned: int = 0
    contract: Path | None = None
    exchange: Path | None = None
    pipelines: Path | None = None
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Markdown of the page."""
        parts = [f"# The cuda engine on {self.title}", _INTRODUCTION, _fenced(self.machine)]
        parts += [*self.notes, *self._contract(), *self._exchanges(), *self._pipelines()]
        parts += [*self._means(), *self._slow_sizes()]
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

    def _contract(self) -> list[str]:
        entries = _loaded(self.contract)
        if entries is None:
            return ["## Contract\n\nThe contract checks have not run."]
        lines = [
            "| dtype | way | passed | failed | cannot run it | no time left |",
            "|---|---|--:|--:|--:|--:|",
        ]
        problems = []
        for one in entries:
            counts = " | ".join(str(one[k]) for k in ("passed", "failed", "cannot", "left"))
            lines.append(f"| {one['dtype']} | {one['way']} | {counts} |")
            problems += [f"{one['dtype']}, {one['way']}: {line}" for line in one["problems"]]
        failed = sum(one["failed"] for one in entries)
        verdict = f"**{failed} checks failed.**" if failed else "All checks passed."
        parts = [f"## Contract\n\nEvery cell and option beside the reference engine. {verdict}"]
        parts.append("\n".join(lines))
        return [*parts, _fenced(problems[:200])] if problems else parts

    def _exchanges(self) -> list[str]:
        entries = _loaded(self.exchange)
        if entries is None:
            return ["## Exchange of h\n\nNot measured."]
        lines = ["| where | blocks | groups | bytes of h | an exchange |", "|---|--:|--:|--:|--:|"]
        for one in entries:
            took = one["problem"] if one["micro"] is None else f"{one['micro']:.2f} µs"
            place = f"| {one['kind']} | {one['blocks']} | {one['groups']} | {one['payload']:,}"
            lines.append(f"{place} | {took} |")
        text = (
            "The least that a step needs: each block writes its share, waits, and reads all of h."
        )
        return [f"## Exchange of h\n\n{text}", "\n".join(lines)]

    def _pipelines(self) -> list[str]:
        entries, title = _loaded(self.pipelines), "## Pipelined layers"
        if entries is None:
            return [f"{title}\n\nNot measured."]
        stacks = [MeasuredStack(**one) for one in entries]
        text = "Stacks of LSTM layers; above 1 a pipeline is faster than one layer after the other."
        return [f"{title}\n\n{text}", table(stacks)]

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
        return [f"## Against PyTorch\n\n{text}", "\n".join(lines) if len(lines) > 2 else _NO_PEER]

    def _slow_sizes(self) -> list[str]:
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
there. Each side is timed by events in its own queue, in alternating rounds; a ratio is the
median of the rounds' own ratios, above 1 where lstm-cli is faster. Outputs, or the loss, gradients
and update of a first step, are compared before. In tf32, float16 and bfloat16 both sides are
compared with float64. PyTorch is `torch.nn.LSTM`: tf32 is float32 with TF32 allowed; 16-bit forward
passes have weights and inputs in that dtype, 16-bit training is `torch.autocast` with weights in
float32 (in float16 with a scaled loss). Ragged: lengths uniform in [T/10, T], PyTorch with packed
sequences. `floor` is modeled, not measured: the least time of a step by the model that chooses the
plan.

Made by `scripts/check_gpu.sh`."""

_NO_PEER = "There was no library to compare with."


def geometric_mean(ratios: Iterable[float]) -> float:
    """Geometric mean of positive numbers."""
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
