"""How near a timing comes to what the machine can do at most."""

from __future__ import annotations

from collections.abc import Mapping

from lstm_cli.bench.results import Shares, Timing
from lstm_cli.engines.machine import MachinePeaks, MeasurableEngine
from lstm_cli.engines.types import Engine


def limits_of(engine: Engine, reads: Mapping[int, int]) -> tuple[MachinePeaks, ...]:
    """The limits for what is read, measured once; none if the engine does not know its machine."""
    return (engine.measure_peaks(tuple(reads)),) if isinstance(engine, MeasurableEngine) else ()


def shares(timing: Timing, reads: Mapping[int, int], limits: MachinePeaks) -> Shares:
    """A timing's median beside the limits.

    Parameters
    ----------
    reads
        By bytes of a matrix, how many times a call reads it.
    """
    of_peak = timing.gflops / limits.gflops
    speeds = {one.bytes: one.gbytes * 1e9 for one in limits.reads}
    total = sum(size * times for size, times in reads.items())
    least = sum(size * times / speeds[size] for size, times in reads.items())
    if not total:
        return Shares(limits.gflops, of_peak)
    return Shares(limits.gflops, of_peak, total, total / least / 1e9, least / timing.median)
