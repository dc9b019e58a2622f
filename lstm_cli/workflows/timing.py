"""Timings of a run: a stopwatch for each part, and the rows of the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from lstm_cli.engines.setup_time import COMPILING, FRESH_MEMORY, PACKING, setup_seconds
from lstm_cli.engines.types import LayerSpec, RecurrentSpec
from lstm_cli.network.results import layer_flops

COPY_BACK, OVERLAPPED_COPY_BACK = "device to host", "device to host/beside the next batch"
"""Rows for copies of results: with waiting, and during the next batch."""
SETUP = (COMPILING, PACKING, FRESH_MEMORY)
"""Rows for the work before the first kernels run."""
BETWEEN_LAYERS = "between layers"
"""Row for the time of a pass outside its layers: Python code, and arrays for results."""


@dataclass(frozen=True)
class TimingRow:
    """One row of the table of timings.

    Attributes
    ----------
    name
        Name: ``read``, ``layer 0 lstm``, ``input projection``, ...
    part
        The row is a part of the row above it.
    calls
        Number of calls.
    seconds, p50, p95
        Seconds: in total, and median and 95th percentile of a call.
    share
        Share of the whole run's time.
    gflops, gbytes, sequences
        GFLOP, GB and sequences per second; None if the row has no such rate.
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
    """Gathers seconds, floating-point operations and bytes of every call, by row name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.flops: dict[str, float] = {}
        self.bytes: dict[str, int] = {}

    def add(self, name: str, seconds: float, *, flops: float = 0.0, nbytes: int = 0) -> None:
        """Add one call to a row."""
        self.seconds.setdefault(name, []).append(seconds)
        if flops:
            self.flops[name] = self.flops.get(name, 0.0) + flops
        if nbytes:
            self.bytes[name] = self.bytes.get(name, 0) + nbytes

    def add_pass(self, seconds: float, before: Mapping[str, float], layers: float) -> None:
        """Add the setup and the time between layers of one batch's pass.

        Parameters
        ----------
        seconds, layers
            Seconds of the pass, and of its layers.
        before
            Result of `setup_seconds` before the pass.
        """
        after = setup_seconds()
        setup = {name: after[name] - before.get(name, 0.0) for name in after}
        for name, part in setup.items():
            if part:
                self.add(name, part)
        self.add(BETWEEN_LAYERS, max(0.0, seconds - layers - sum(setup.values())))

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Time the body of a ``with`` statement."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(name, perf_counter() - start)

    def add_layer(self, spec: LayerSpec, parts: Mapping[str, float], positions: int) -> None:
        """Add one batch's time in a layer.

        Parameters
        ----------
        parts
            Seconds by part, such as ``input projection``.
        positions
            Number of valid steps of all sequences; number of sequences once the steps are gone.
        """
        name = layer_name(spec)
        work = layer_flops(spec, positions)
        self.add(name, sum(parts.values()), flops=sum(work.values()))
        if isinstance(spec, RecurrentSpec):
            for part, seconds in parts.items():
                self.add(f"{name}/{part}", seconds, flops=work.get(part, 0.0))


def layer_name(spec: LayerSpec) -> str:
    """Return the name of a layer's row: ``layer 0 lstm``."""
    return f"layer {spec.index} {spec.kind}"


def timing_rows(
    watch: Stopwatch, layers: Sequence[LayerSpec], whole: float, sequences: int
) -> tuple[TimingRow, ...]:
    """Return the table: reading, setup, layers and their parts, metrics, writing, rest, all.

    Parameters
    ----------
    whole
        Seconds of the whole run.
    """
    names = ["read", "read/host to device beside", "host to device", *SETUP]
    for spec in layers:
        layer = layer_name(spec)
        names += [layer, *(name for name in watch.seconds if name.startswith(layer + "/"))]
    names += [BETWEEN_LAYERS, COPY_BACK, OVERLAPPED_COPY_BACK, "metrics", "write", "write gates"]
    rows = [_row(watch, name, whole) for name in names if any(watch.seconds.get(name, ()))]
    # A GPU computes while files are read: the sum of the rows may exceed the whole.
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
