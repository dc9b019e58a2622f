"""Baselines: earlier results as a JSON file, to see what a change made faster or slower."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from lstm_cli.errors import LstmCliError
from lstm_cli.output_files import SIGNATURE, error_reason, write_atomically
from lstm_cli.workflows.bench.host import MachineInfo
from lstm_cli.workflows.bench.results import MODES, WORK, SizeResult, Timing
from lstm_cli.workflows.bench.sizes import GridSize


@dataclass(frozen=True)
class BaselineSize:
    """One size of a baseline; `layers` is as in `SizeResult`, and `timings` begin with lstm-cli."""

    size: GridSize
    layers: str
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class Baseline:
    """Earlier results and their machine; `mode` is one of `MODES`."""

    machine: MachineInfo
    sizes: tuple[BaselineSize, ...]
    mode: str = "forward"


@dataclass(frozen=True)
class TimingChange:
    """Change of one size's timing since the baseline.

    Attributes
    ----------
    before, now
        Median seconds of this program.
    ratio
        before / now: above 1 this program became faster.
    """

    size: GridSize
    layers: str
    before: float
    now: float
    ratio: float


@dataclass(frozen=True)
class BaselineComparison:
    """Changes since the baseline, and notes on other differences, one sentence each."""

    changes: tuple[TimingChange, ...]
    notes: tuple[str, ...]


def compare(
    results: Sequence[SizeResult], baseline: Baseline, machine: MachineInfo
) -> BaselineComparison:
    """Compare results with a baseline, size by size, where both measured the same layers.

    Results of different modes are not compared; a note says so.
    """
    modes = {result.mode for result in results}
    if modes - {baseline.mode}:
        return BaselineComparison(
            (), (_mode_note(baseline.mode, *sorted(modes - {baseline.mode})),)
        )
    before = {(entry.size, entry.layers): entry for entry in baseline.sizes}
    changes, absent, titles = [], [], {}
    for result in results:
        entry = before.get((result.size, result.layers))
        if entry is None:
            absent.append(f"{result.size} ({result.layers})")
            continue
        then, now = entry.timings[0], result.lstm_cli_timing
        ratio = then.median / now.median
        changes.append(TimingChange(result.size, result.layers, then.median, now.median, ratio))
        if then.title != now.title:
            titles[then.title] = now.title
    notes = _machine_notes(baseline.machine, machine)
    notes += [f"the baseline is of {then}, this is {now}" for then, now in titles.items()]
    if absent:
        notes.append("the baseline does not have " + "; ".join(absent))
    return BaselineComparison(tuple(changes), tuple(notes))


def _mode_note(before: str, now: str) -> str:
    return (
        f"the baseline is of {WORK[before]}, this is of {WORK[now]}, so nothing is compared: "
        f"bench --mode {before} measures what the baseline did"
    )


def _machine_notes(before: MachineInfo, now: MachineInfo) -> list[str]:
    notes = []
    for what in ("processor", "accelerator", "cores", "threads", "system"):
        then, here = getattr(before, what), getattr(now, what)
        if then != here:
            then, here = then or "none", here or "none"
            notes.append(f"the baseline was measured with {what} {then}, this with {here}")
    for package, here in now.versions.items():
        then = before.versions.get(package, here)
        # A baseline exists to compare versions of this program.
        if then != here and package != "lstm-cli":
            notes.append(f"the baseline was measured with {package} {then}, this with {here}")
    return notes


SCHEMA = 1
"""Version of the baseline file's layout."""

_HINT = "lstm-cli bench --save FILE writes a baseline"


class BaselineError(LstmCliError):
    """A baseline cannot be read or written."""


def save_baseline(
    path: str | Path, results: Sequence[SizeResult], machine: MachineInfo, *, force: bool = True
) -> None:
    """Write a baseline as JSON, under a temporary name until it is complete.

    Parameters
    ----------
    results
        At least one result, all of one mode.
    force
        Replace a file that another program wrote.

    Raises
    ------
    LstmCliError
        The folder does not exist, is not writable, or is full.
    """
    path = Path(path)
    sizes = [asdict(BaselineSize(r.size, r.layers, r.timings)) for r in results]
    document = {
        "producer": SIGNATURE,
        "schema": SCHEMA,
        "mode": results[0].mode,
        "machine": asdict(machine),
        "sizes": sizes,
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode(), "the baseline", force=force)


def load_baseline(path: str | Path) -> Baseline:
    """Read a baseline.

    Raises
    ------
    BaselineError
        The file is missing, unreadable, no baseline, or in another layout.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BaselineError(
            f"the baseline {path} cannot be read", found=error_reason(error), hint=_HINT
        ) from None
    except (ValueError, RecursionError) as error:
        raise _no_baseline(path, f"no JSON: {error}") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if type(schema) is not int:
        raise _no_baseline(path, "no schema")
    if schema != SCHEMA:
        raise BaselineError(
            f"the baseline {path} is written in another layout",
            expected=f"schema {SCHEMA}",
            found=f"schema {schema}",
            hint=_HINT,
        )
    try:
        return _baseline(document)
    except KeyError as error:
        raise _no_baseline(path, f"no {error.args[0]}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise _no_baseline(path, str(error)) from None


def _no_baseline(path: Path, found: str) -> BaselineError:
    return BaselineError(
        f"{path} is not a baseline",
        expected="the JSON that --save writes",
        found=found,
        hint=_HINT,
    )


def _baseline(document: Any) -> Baseline:
    """The document as dataclasses; KeyError or ValueError if it is no baseline."""
    top = _mapping(document, "the document")
    _text({"producer": "", **top}, "producer")  # absent in older files
    entry = _mapping(top["machine"], "machine")
    versions = _mapping(entry["versions"], "versions")
    machine = MachineInfo(
        _text(entry, "processor"),
        _count(entry, "cores"),
        _count(entry, "threads"),
        _text(entry, "system"),
        {name: _text(versions, name) for name in versions},
        _text({"accelerator": "", **entry}, "accelerator"),  # absent in older files
    )
    mode = _text({"mode": "forward", **top}, "mode")  # absent in older files
    sizes = tuple(_size(entry) for entry in _list(top, "sizes"))
    if mode not in MODES:
        raise ValueError(f"mode is neither {' nor '.join(MODES)}: {mode!r}")
    return Baseline(machine, sizes, mode)


def _size(value: Any) -> BaselineSize:
    entry = _mapping(value, "an entry of sizes")
    numbers = _mapping(entry["size"], "size")
    size = GridSize(*(_count(numbers, key) for key in ("hidden", "batch", "steps", "features")))
    timings = tuple(_timing(timing) for timing in _list(entry, "timings"))
    return BaselineSize(size, _text(entry, "layers"), timings)


def _timing(value: Any) -> Timing:
    entry = _mapping(value, "an entry of timings")
    for key in ("median", "p95"):
        if _number(entry, key) == 0:
            raise ValueError(f"{key} is zero")
    return Timing(
        _text(entry, "name"),
        _text(entry, "title"),
        _number(entry, "median"),
        _number(entry, "p95"),
        _count(entry, "calls"),
        _number(entry, "gflops"),
    )


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no mapping")
    return value


def _list(entry: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(entry[key], list) or not entry[key]:
        raise ValueError(f"{key} is no list of entries")
    return list(entry[key])


def _text(entry: dict[str, Any], key: str) -> str:
    return str(_checked(entry, key, "text", isinstance(entry[key], str)))


def _count(entry: dict[str, Any], key: str) -> int:
    value = entry[key]
    return int(_checked(entry, key, "count", type(value) is int and 0 < value < 2**53))


def _number(entry: dict[str, Any], key: str) -> float:
    value = entry[key]
    valid = type(value) in (int, float) and isfinite(value) and value >= 0
    return float(_checked(entry, key, "number to measure by", valid))


def _checked(entry: dict[str, Any], key: str, noun: str, valid: bool) -> Any:
    if not valid:
        raise ValueError(f"{key} is no {noun}: {entry[key]!r}")
    return entry[key]
