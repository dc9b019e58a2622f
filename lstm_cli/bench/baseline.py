"""Results set beside earlier ones, to see what a change made faster or slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lstm_cli.bench.host import Machine
from lstm_cli.bench.results import WORK, SizeResult, Timing
from lstm_cli.bench.sizes import Size


@dataclass(frozen=True)
class BaselineSize:
    """One size of a baseline; `layers` as in `SizeResult`, our timing first."""

    size: Size
    layers: str
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class Baseline:
    """A baseline: what was measured, and on what; `mode` is one of `MODES`."""

    machine: Machine
    sizes: tuple[BaselineSize, ...]
    mode: str = "forward"


@dataclass(frozen=True)
class Change:
    """One size then and now.

    Attributes
    ----------
    before, now
        Our median seconds.
    ratio
        before / now: above 1 it became faster.
    """

    size: Size
    layers: str
    before: float
    now: float
    ratio: float


@dataclass(frozen=True)
class Comparison:
    """Changes, and what to know before believing them, one sentence a note."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def compare(results: Sequence[SizeResult], baseline: Baseline, machine: Machine) -> Comparison:
    """Set results beside a baseline, size by size, where both measured the same layers.

    A baseline of another mode is compared with nothing, which its note says.
    """
    modes = {result.mode for result in results}
    if modes - {baseline.mode}:
        return Comparison((), (_mode_note(baseline.mode, *sorted(modes - {baseline.mode})),))
    before = {(entry.size, entry.layers): entry for entry in baseline.sizes}
    changes, absent, titles = [], [], {}
    for result in results:
        entry = before.get((result.size, result.layers))
        if entry is None:
            absent.append(f"{result.size} ({result.layers})")
            continue
        then, now = entry.timings[0], result.ours
        ratio = then.median / now.median
        changes.append(Change(result.size, result.layers, then.median, now.median, ratio))
        if then.title != now.title:
            titles[then.title] = now.title
    notes = _machine_notes(baseline.machine, machine)
    notes += [f"the baseline is of {then}, this is {now}" for then, now in titles.items()]
    if absent:
        notes.append("the baseline does not have " + "; ".join(absent))
    return Comparison(tuple(changes), tuple(notes))


def _mode_note(before: str, now: str) -> str:
    return (
        f"the baseline is of {WORK[before]}, this is of {WORK[now]}, so nothing is compared: "
        f"bench --mode {before} measures what the baseline did"
    )


def _machine_notes(before: Machine, now: Machine) -> list[str]:
    """What of the machine is another than it was."""
    notes = []
    for what in ("processor", "accelerator", "cores", "threads", "system"):
        then, here = getattr(before, what), getattr(now, what)
        if then != here:
            then, here = then or "none", here or "none"
            notes.append(f"the baseline was measured with {what} {then}, this with {here}")
    for package, here in now.versions.items():
        then = before.versions.get(package, here)
        # Comparing versions of this program is what a baseline is for.
        if then != here and package != "lstm-cli":
            notes.append(f"the baseline was measured with {package} {then}, this with {here}")
    return notes
