"""Where the time of a run went: what was timed, and the rows of its table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from lstm_cli.engines.setup_time import COMPILING, FRESH_MEMORY, PACKING, setup_seconds
from lstm_cli.engines.types import LayerSpec, RecurrentSpec
from lstm_cli.network.results import layer_flops

ALONE, BESIDE = "device to host", "device to host/beside the next batch"
"""Copies of results: such as were waited for, and such as ran while the next batch was computed."""


SETUP = (COMPILING, PACKING, FRESH_MEMORY)
"""What comes before the first kernels run."""

BETWEEN = "between layers"
"""What a pass takes beside its layers' kernels: Python, and arrays for results."""


@dataclass(frozen=True)
class TimingRow:
    """One row of the table of timings.

    Attributes
    ----------
    name
        ``read``, ``layer 0 lstm``, ``input projection``, ...
    part
        Whether it is a part of the row above it.
    calls
        How often.
    seconds, p50, p95
        Total, median and 95th percentile of a call.
    share
        Of the whole.
    gflops, gbytes, sequences
        Rates a second, where the row has them.
    """

    name: str
    part: bool
    calls: int
    seconds: float
    share: float
    p50: float
    p95: float
    gflops: float | None = None
    gbytes: float | None = None
    sequences: float | None = None


class Stopwatch:
    """Gathers the seconds of every call, by name, and what was done in them."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.flops: dict[str, float] = {}
        self.bytes: dict[str, int] = {}

    def add(self, name: str, seconds: float, *, flops: float = 0.0, nbytes: int = 0) -> None:
        """One call."""
        self.seconds.setdefault(name, []).append(seconds)
        if flops:
            self.flops[name] = self.flops.get(name, 0.0) + flops
        if nbytes:
            self.bytes[name] = self.bytes.get(name, 0) + nbytes

    def passed(self, seconds: float, before: Mapping[str, float], layers: float) -> None:
        """One batch's pass: what it spent on setting up since `before`, and between layers."""
        after = setup_seconds()
        spent = {name: after[name] - before.get(name, 0.0) for name in after}
        for name, own in spent.items():
            if own:
                self.add(name, own)
        self.add(BETWEEN, max(0.0, seconds - layers - sum(spent.values())))

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        begun = perf_counter()
        try:
            yield
        finally:
            self.add(name, perf_counter() - begun)

    def layer(self, spec: LayerSpec, parts: Mapping[str, float], positions: int) -> None:
        """One batch through a layer: `positions` valid steps, or sequences once steps are gone."""
        name = layer_name(spec)
        work = layer_flops(spec, positions)
        self.add(name, sum(parts.values()), flops=sum(work.values()))
        if isinstance(spec, RecurrentSpec):
            for part, seconds in parts.items():
                self.add(f"{name}/{part}", seconds, flops=work.get(part, 0.0))


def layer_name(spec: LayerSpec) -> str:
    """A layer as the table of timings names it."""
    return f"layer {spec.index} {spec.kind}"


def timing_rows(
    watch: Stopwatch, layers: Sequence[LayerSpec], whole: float, sequences: int
) -> tuple[TimingRow, ...]:
    """The table: reading, setting up, layers and their parts, metrics, writing, the rest, all."""
    names = ["read", "read/host to device beside", "host to device", *SETUP]
    for spec in layers:
        own = layer_name(spec)
        names += [own, *(name for name in watch.seconds if name.startswith(own + "/"))]
    names += [BETWEEN, ALONE, BESIDE, "metrics", "write", "write gates"]
    rows = [_row(watch, name, whole) for name in names if any(watch.seconds.get(name, ()))]
    # A GPU computes while files are read: its rows and theirs may be more than the whole.
    rest = max(0.0, whole - sum(row.seconds for row in rows if not row.part))
    rows.append(TimingRow("rest", False, 1, rest, rest / whole if whole else 0.0, rest, rest))
    rate = sequences / whole if whole else None
    return (*rows, TimingRow("all", False, 1, whole, 1.0, whole, whole, sequences=rate))


def _row(watch: Stopwatch, name: str, whole: float) -> TimingRow:
    calls = np.asarray(watch.seconds[name])
    total = float(calls.sum())
    p50, p95 = np.interp((0.5, 0.95), np.linspace(0, 1, len(calls)), np.sort(calls))
    label = name.rpartition("/")[2]
    flops, nbytes = watch.flops.get(name), watch.bytes.get(name)
    return TimingRow(
        label,
        "/" in name,
        len(calls),
        total,
        total / whole if whole else 0.0,
        float(p50),
        float(p95),
        flops / total / 1e9 if flops and total else None,
        nbytes / total / 1e9 if nbytes and total else None,
    )
