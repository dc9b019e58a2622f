"""Script of each process of ``test_jit_stress``: many small runs on one engine by many threads.

Prints a JSON object: the number of wrong results, and the process's resources before and after.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from networks import Array, network, random_inputs, random_lengths, random_states, recurrent

from lstm_cli.engines.jit import batch
from lstm_cli.engines.jit.codegen import matmul
from lstm_cli.engines.jit.engine import JitEngine
from lstm_cli.engines.types import DenseSpec, TrainingPass
from lstm_cli.network import backpropagation
from lstm_cli.network.network import Network

D, CALLERS, THREADS = 5, 4, 2

SPECS = [
    recurrent("lstm", 13, D, directions=2, peepholes=True, projection_size=7),
    recurrent("gru", 9, 14, index=1, reset_after=False),
    DenseSpec(2, 9, 4, None),
]


@dataclass(frozen=True)
class Job:
    """A batch for a forward pass, or for a forward and a backward pass."""

    x: Array
    lengths: Array | None
    state: Any
    trains: bool

    def run(self, net: Network) -> list[bytes]:
        """All bits of the results."""
        if not self.trains:
            result = net.run(self.x, self.lengths, self.state)
            return [part.tobytes() for part in (result.outputs, *_parts(result.state))]
        training = TrainingPass(seed=3)
        tape = backpropagation.forward(net, self.x, self.lengths, self.state, training)
        d = np.cos(np.arange(tape.outputs.size, dtype=np.float32)).reshape(tape.outputs.shape)
        d *= tape.outputs != 0
        back = backpropagation.backward(net, tape, d, d_logits=False)
        parts = [*back.weights.values(), back.inputs, *_parts(back.state.values())]
        return [part.tobytes() for part in parts]


def _parts(state: Any) -> list[Array]:
    return [part for pair in state for part in pair if part is not None]


def jobs() -> list[Job]:
    """Batches of many shapes, ragged or not, with states or without."""
    rng = np.random.default_rng(1)
    batches = []
    for seed in range(60):
        N, T = int(rng.integers(1, 12)), int(rng.integers(1, 10))
        if seed % 20 == 5:
            N, T = 10 * N, 10 * T  # results so large that their memory is reused
        lengths = random_lengths(N, T, seed) if seed % 3 else None
        state = random_states(SPECS, N, seed) if seed % 2 else None
        x = random_inputs(N, T, D, seed).astype(np.float32)
        batches.append(Job(x, lengths, state, trains=seed % 6 == 5))
    return batches


def resources() -> dict[str, int]:
    """Resident memory (kB), open files and threads of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":", 1) for line in status)
    return {
        "memory": int(values["VmRSS"].split()[0]),
        "threads": int(values["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }


def main(runs: int, seed: int) -> None:
    """Share `runs` runs among the callers."""
    batch.MIN_STEP_WORK = batch.MIN_BATCH_WORK = 0  # share even small work
    matmul._MIN_THREAD_WORK = 1  # type: ignore[misc]
    batches = jobs()
    engine = JitEngine("float32", THREADS)
    net = network(SPECS, engine)
    begin = threading.Barrier(CALLERS)

    def everything(_: int) -> list[list[bytes]]:
        begin.wait(60)
        return [job.run(net) for job in batches]

    def some(count: int, caller: int) -> int:
        rng = np.random.default_rng([seed, caller])
        chosen = rng.integers(0, len(batches), count)
        return sum(batches[k].run(net) != expected[k] for k in chosen)

    with ThreadPoolExecutor(CALLERS) as pool:
        single = network(SPECS, JitEngine("float32", THREADS))
        expected = [job.run(single) for job in batches]
        others = list(pool.map(everything, range(CALLERS)))
        wrong = sum(a != b for other in others for a, b in zip(other, expected, strict=True))
        half = partial(some, runs // CALLERS // 2)
        wrong += sum(pool.map(half, range(CALLERS)))
        before = resources()  # by now all memory has its final size
        wrong += sum(pool.map(half, range(CALLERS, 2 * CALLERS)))
        after = resources()
    spaces = max(len(free) for free in engine._resources.workspaces._free.values())
    report = {"wrong": wrong, "before": before, "after": after, "spaces": spaces}
    print(json.dumps(report))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
