"""Measure the exchange of h from step to step: in a cluster, and across the grid.

    python scripts/measure_exchange.py

In every step each block writes its share of h for all others. Then it waits and reads all of h.
That is the least that a persistent kernel needs per step. A payload of 0 bytes shows the barrier
alone. The values that blocks read are checked. --host runs the kernels on the processor, where the
times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "tests" / "support")]

from check_gpu import make_device  # noqa: E402 - behind the path

from lstm_cli.engines.cuda.codegen.primitives import PRELUDE  # noqa: E402
from lstm_cli.engines.cuda.runtime.device import Launch  # noqa: E402

THREADS, TRIES = 256, 5

CLUSTER_KERNEL = """
extern "C" __global__ void CLUSTER(@C@) __launch_bounds__(256) cluster_@C@(
    unsigned* out, long long steps, long long words) {
  DYNAMIC_SHARED(memory);
  Quad* h = (Quad*)memory;  // two turns of all words
  const unsigned rank = cluster_rank(), own = (unsigned)words / @C@;
  const unsigned target = threadIdx.x % @C@;
  unsigned sum = 0;
  cluster_arrive();
  cluster_wait();
  for (long long step = 0; step < steps; step++) {
    Quad* into = h + (step & 1) * words;
    for (unsigned i = threadIdx.x / @C@; i < own; i += blockDim.x / @C@) {
      const unsigned place = rank * own + i;
      const Quad value = {(unsigned)step + place, 0, 0, 0};
      store_cluster(into + place, target, value);
    }
    cluster_arrive();
    cluster_wait();
    for (unsigned i = threadIdx.x; i < (unsigned)words; i += blockDim.x) sum += into[i].x;
  }
  cluster_arrive();
  cluster_wait();
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""

GRID_KERNEL = """
extern "C" __global__ void __launch_bounds__(256) across_grid(
    unsigned* out, Quad* h, unsigned* counter, long long steps, long long words) {
  const unsigned own = (unsigned)words / gridDim.x;
  unsigned sum = 0;
  for (long long step = 0; step < steps; step++) {
    Quad* into = h + (step & 1) * words;
    for (unsigned i = threadIdx.x; i < own; i += blockDim.x) {
      const unsigned place = blockIdx.x * own + i;
      const Quad value = {(unsigned)step + place, 0, 0, 0};
      into[place] = value;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      grid_arrive(counter);
      grid_wait(counter, (unsigned)((step + 1) * gridDim.x));
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < (unsigned)words; i += blockDim.x) {
      sum += load_global(into + i).x;
    }
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""


@dataclass(frozen=True)
class ExchangeTime:
    """Measured time of an exchange.

    Attributes
    ----------
    kind
        ``cluster`` or ``grid``.
    blocks, groups
        Blocks per group, and groups at the same time.
    payload
        Bytes of h that every block reads.
    micro
        Microseconds per exchange, the median of some tries; None after a `problem`.
    """

    kind: str
    blocks: int
    groups: int
    payload: int
    micro: float | None
    problem: str = ""


def cluster(device: Any, size: int, groups: int, payload: int, steps: int) -> ExchangeTime:
    """Measure an exchange in distributed shared memory, in some clusters at the same time."""
    words = payload // 16 // size * size

    def once() -> tuple[float, Any]:
        source = PRELUDE + CLUSTER_KERNEL.replace("@C@", str(size))
        kernel = device.compile(source, (f"cluster_{size}",))[f"cluster_{size}"]
        launch = Launch((size * groups, 1, 1), THREADS, max(16, 2 * words * 16), cluster=size)
        out = device.zeros((size * groups * THREADS,), "uint32")
        start = device.record_event()
        kernel(launch, out, steps, words)
        return device.record_event().seconds_since(start), out

    return measured("cluster", size, groups, words, steps, once, device)


def grid(device: Any, blocks: int, payload: int, steps: int) -> ExchangeTime:
    """Measure an exchange through the L2 cache, with a counter of arrived blocks."""
    words = payload // 16 // blocks * blocks

    def once() -> tuple[float, Any]:
        kernel = device.compile(PRELUDE + GRID_KERNEL, ("across_grid",))["across_grid"]
        launch = Launch((blocks, 1, 1), THREADS, cooperative=True)
        out = device.zeros((blocks * THREADS,), "uint32")
        h = device.zeros((max(4, 2 * words * 4),), "uint32")
        counter = device.zeros((1,), "uint32")
        start = device.record_event()
        kernel(launch, out, h, counter, steps, words)
        return device.record_event().seconds_since(start), out

    return measured("grid", blocks, 1, words, steps, once, device)


def measured(
    kind: str, blocks: int, groups: int, words: int, steps: int, once: Any, device: Any
) -> ExchangeTime:
    """Median of some tries, if the blocks read the right values."""
    try:
        once()
        tries = []
        for _ in range(TRIES):
            seconds, out = once()
            tries.append(seconds)
        sums = device.download(out).reshape(blocks * groups, THREADS).astype(np.uint64)
    except Exception as error:  # of any class: this GPU has no such clusters, say
        return ExchangeTime(
            kind, blocks, groups, words * 16, None, f"{type(error).__name__}: {error}"
        )
    every = np.arange(words, dtype=np.uint64)
    expected = int(every.sum()) * steps + words * (steps * (steps - 1) // 2)
    # Sums of threads are modulo 2^32, and so is their total.
    if (sums.sum(axis=1) % 2**32 != expected % 2**32).any():
        return ExchangeTime(
            kind, blocks, groups, words * 16, None, "blocks read what was not written"
        )
    return ExchangeTime(kind, blocks, groups, words * 16, float(np.median(tries)) / steps * 1e6)


def measure_all(device: Any, steps: int) -> Iterator[ExchangeTime]:
    """Measure clusters of 2 to 16 blocks, one and as many as fit; grids of 8 to all blocks."""
    payloads = (0, 8 << 10, 32 << 10)  # of h: 512 units of 8 sequences in 16 bits are 8 KB
    for size in (2, 4, 8, 16):
        if size <= device.largest_cluster:
            many = max(1, device.multiprocessors // size)
            for groups in dict.fromkeys((1, max(1, many - 1))):
                for payload in payloads:
                    yield cluster(device, size, groups, payload, steps)
    largest = device.multiprocessors
    for blocks in dict.fromkeys(b for b in (8, 16, 32, 64, 128, largest) if b <= largest):
        for payload in (*payloads, 128 << 10):
            yield grid(device, blocks, payload, steps)


def table(times: list[ExchangeTime]) -> str:
    """Markdown table of the measurements."""
    lines = ["| where | blocks | groups | h | an exchange |", "|---|--:|--:|--:|--:|"]
    for one in times:
        took = one.problem if one.micro is None else f"{one.micro:.2f} µs"
        size = "nothing" if not one.payload else f"{one.payload / 1024:.3g} KB"
        lines.append(f"| {one.kind} | {one.blocks} | {one.groups} | {size} | {took} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print a table, and write a report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", action="store_true", help="no GPU: check that all parts work")
    parser.add_argument("--steps", type=int, help="exchanges per launch")
    parser.add_argument("--report", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    device = make_device(options.host)
    times: list[ExchangeTime] = []
    for one in measure_all(device, options.steps or (3 if options.host else 2000)):
        times.append(one)
        if options.report is not None:
            options.report.write_text(json.dumps([asdict(o) for o in times]), encoding="utf-8")
    print(table(times))
    wrong = "blocks read what was not written"
    return 1 if any(one.problem == wrong for one in times) or not any(o.micro for o in times) else 0


if __name__ == "__main__":
    sys.exit(main())
