"""Measure pipelined recurrent layers against the same layers one after the other, on one GPU.

    python scripts/measure_pipelines.py --report pipelines.json
    python scripts/measure_pipelines.py --quick

It measures stacks of 2 and 4 LSTM layers, D = H: forward passes, and training passes with their
derivatives. Both sides are compared before they are timed, and alternate. Here every possible stack
is a pipeline. The table also says whether the engine itself would choose it, and what its model
expects. Nothing else may run on the GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "tests" / "support")]

from check_gpu import make_device  # noqa: E402 - behind the path
from networks import network, random_inputs, recurrent  # noqa: E402

from lstm_cli.engines.cuda.engine import CudaEngine  # noqa: E402
from lstm_cli.engines.cuda.stacks import PipelineOptions  # noqa: E402
from lstm_cli.engines.types import TrainingPass  # noqa: E402
from lstm_cli.network import backpropagation  # noqa: E402

ROUNDS = 7
CALLS = 3
"""Calls of each side per round."""
CLOSE = {"float32": 2e-5, "tf32": 4e-3, "bfloat16": 3e-2}
"""Largest difference of two plans of the same layers by rounding, by dtype."""

Job = tuple[str, str, int, int, int, int]
"""One measurement: dtype, mode, layers, H, N, T."""


@dataclass(frozen=True)
class MeasuredStack:
    """Measured times of one stack.

    Attributes
    ----------
    apart, beside
        Median milliseconds of the layers one after the other, and of the pipeline.
    ratio
        Median of the rounds' own ratios; above 1 the pipeline is faster.
    windows, steps
        Chunks of the forward pipeline, and steps per chunk.
    modelled
        Ratio that the model expects of the forward pass.
    chosen
        True if the engine itself chooses the pipeline.
    """

    dtype: str
    mode: str
    layers: int
    size: tuple[int, int, int]
    apart: float | None = None
    beside: float | None = None
    ratio: float | None = None
    windows: int | None = None
    steps: int | None = None
    modelled: float | None = None
    chosen: bool | None = None
    problem: str = ""


def jobs(*, quick: bool, host: bool) -> Iterator[Job]:
    """Measurements, the most telling first."""
    if host:
        yield from product(("float32", "bfloat16"), ("forward", "train"), (2,), (8,), (2,), (6,))
        return
    modes, depths = ("forward", "train"), (2, 4)
    telling = list(product(("bfloat16", "tf32"), modes, depths, (256,), (16,), (1024,)))
    yield from telling
    if not quick:
        sizes = (64, 128, 256, 512, 1024), (1, 16, 64), (128, 1024)
        for job in product(("bfloat16", "tf32", "float32"), modes, depths, *sizes):
            if job not in telling:
                yield job


def call_of(engine: CudaEngine, job: Job) -> Callable[[], list[Any]]:
    """Call that runs a stack, with all data on the device; it returns arrays there."""
    _, mode, depth, H, N, T = job
    net = network([recurrent("lstm", H, H, index=k) for k in range(depth)], engine)
    x = engine.copy(random_inputs(N, T, H))
    if mode == "forward":
        return lambda: [net.run(x).outputs]
    d = engine.copy(np.random.default_rng(1).standard_normal((N, T, H)) / (N * T))

    def step() -> list[Any]:
        tape = backpropagation.forward(net, x, None, None, TrainingPass())
        gradients = backpropagation.backward(net, tape, d, d_logits=False)
        return [engine.to_padded(tape.values), *gradients.tensors.values()]

    return step


def measured(job: Job, device: Any) -> MeasuredStack:
    """Compare and time both sides."""
    dtype, mode, depth, H, N, T = job
    sides = [
        CudaEngine(dtype, device, "auto", PipelineOptions(when)) for when in ("never", "always")
    ]
    specs = [recurrent("lstm", H, H, index=k) for k in range(depth)]
    plan = sides[1].stacks.plan(specs, N, T)
    by_itself = CudaEngine(dtype, device).stacks.plan(specs, N, T)
    unmeasured = MeasuredStack(dtype, mode, depth, (H, N, T), chosen=not isinstance(by_itself, str))
    if isinstance(plan, str):
        return MeasuredStack(**{**asdict(unmeasured), "problem": plan})
    calls = [call_of(engine, job) for engine in sides]
    sequential, pipelined = ([np.asarray(sides[0].to_host(a)) for a in call()] for call in calls)
    off = max(
        float(np.abs(a - b).max() / max(1e-30, np.abs(a).max()))
        for a, b in zip(sequential, pipelined, strict=True)
    )
    if not off <= CLOSE[dtype]:
        return MeasuredStack(**{**asdict(unmeasured), "problem": f"results differ by {off:.2g}"})
    rounds = np.array([[timed(call, device) for call in calls] for _ in range(ROUNDS)])
    apart, beside = np.median(rounds, axis=0) * 1e3
    ratio = float(np.median(rounds[:, 0] / rounds[:, 1]))
    measured_values = {"apart": float(apart), "beside": float(beside), "ratio": ratio}
    measured_values |= {"windows": plan.chunks, "steps": plan.chunk_steps}
    measured_values["modelled"] = plan.sequential_seconds / plan.seconds
    return MeasuredStack(**{**asdict(unmeasured), **measured_values})


def timed(call: Callable[[], Any], device: Any) -> float:
    """Device seconds per call, from an idle device."""
    device.wait()
    start = device.record_event()
    results = [call() for _ in range(CALLS)]
    seconds = float(device.record_event().seconds_since(start)) / CALLS
    results.clear()
    return seconds


def table(stacks: list[MeasuredStack]) -> str:
    """Markdown table of the measurements."""
    lines = [
        "| dtype | mode | layers | H × N × T | sequential | pipelined | ratio | by the model "
        "| chunks | by itself |",
        "|---|---|--:|---|--:|--:|--:|--:|---|---|",
    ]
    for one in stacks:
        size = " × ".join(map(str, one.size))
        cells = [one.dtype, one.mode, str(one.layers), size]
        if one.ratio is None:
            cells += [one.problem, *[""] * 5]
        else:
            cells += [f"{one.apart:.3f} ms", f"{one.beside:.3f} ms", f"{one.ratio:.2f}"]
            cells += [f"{one.modelled:.2f}", f"{one.windows} of {one.steps} steps"]
            cells += ["yes" if one.chosen else "no"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print a table, and write a report after every stack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", action="store_true", help="no GPU: check that all parts work")
    parser.add_argument("--quick", action="store_true", help="only the most telling stacks")
    parser.add_argument("--report", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    device, stacks = make_device(options.host), list[MeasuredStack]()
    for job in jobs(quick=options.quick, host=options.host):
        try:
            stacks.append(measured(job, device))
        except Exception as error:  # of any class: too little memory, a lost GPU
            problem = f"it failed: {type(error).__name__}: {str(error).splitlines()[0:1]}"
            dtype, mode, depth, *size = job
            stacks.append(MeasuredStack(dtype, mode, depth, tuple(size), problem=problem))
        if options.report is not None:
            options.report.write_text(json.dumps([asdict(o) for o in stacks]), encoding="utf-8")
    print(table(stacks))
    return 1 if any(word in o.problem for o in stacks for word in ("differ", "failed")) else 0


if __name__ == "__main__":
    sys.exit(main())
