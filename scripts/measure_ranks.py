"""Time of the exchange between ranks: ``mpiexec -n 2 python scripts/measure_ranks.py``.

Prints the seconds of one exchange (median of 21) for gradients of several sizes, and the latency
and the bandwidth of a straight line through them.
"""

from __future__ import annotations

import platform
from statistics import median
from time import perf_counter

import numpy as np

from lstm_cli.training.micro_batches import sum_over_ranks
from lstm_cli.workflows.cluster import mpi_status, open_exchange

SIZES = (1_000, 100_000, 1_000_000, 10_000_000)
"""Numbers of parameters, in float32."""


def main() -> None:
    exchange = open_exchange()
    size = exchange.size
    present = dict.fromkeys(range(size), 1.0)
    node = exchange.rank, exchange.rank + 1
    times = []
    for parameters in SIZES:
        values = np.random.default_rng(exchange.rank).standard_normal(parameters).astype("f4")
        seconds = []
        for _ in range(21):
            exchange.gather(None)
            start = perf_counter()
            sum_over_ranks({node: values}, size, present, parameters, "float32", exchange)
            seconds.append(perf_counter() - start)
        times.append(max(exchange.gather(median(seconds))))
    if exchange.rank == 0:
        print(f"{size} ranks on {platform.node()}, {mpi_status().library}")
        for parameters, spent in zip(SIZES, times, strict=True):
            print(f"{parameters:>12,} parameters  {spent * 1e3:9.3f} ms")
        slope = (times[-1] - times[0]) / (4 * (SIZES[-1] - SIZES[0]))
        print(f"latency {times[0] * 1e6:.0f} us, {1e-9 / slope:.2f} GB/s of gradients")


if __name__ == "__main__":
    main()
