"""Measure this machine's CPU and write the results as Markdown.

    python scripts/benchmark_cpu.py --output benchmarks/cpu-jit.md

It takes some minutes, and the machine should be idle: a section is measured again if other programs
used more than 0.05 cores. All ratios are within one run: candidates take turns in every round, and
their results are compared before they are timed. PyTorch, ONNX Runtime and onnx must be installed;
Linux or macOS. --quick measures almost nothing, to see that all parts work.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.table import Table

from lstm_cli.cli.display import units
from lstm_cli.cli.display.bench_tables import bench_report
from lstm_cli.cli.display.tables import plain_table
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.selection import create_engine
from lstm_cli.network.network import Network
from lstm_cli.network.results import layer_flops
from lstm_cli.workflows import bench
from lstm_cli.workflows.bench import GridSize
from lstm_cli.workflows.bench.protocol import interleave
from lstm_cli.workflows.bench.sizes import random_inputs, random_weights

ROOT = Path(__file__).parents[1]
WIDTH = 100


def sizes(*numbers: tuple[int, int, int]) -> tuple[GridSize, ...]:
    """Sizes of H, N and T, with D = H."""
    return tuple(GridSize(H, N, T, H) for H, N, T in numbers)


GRID = sizes(
    (32, 1, 100),
    (128, 1, 100),
    (128, 32, 100),
    (256, 1, 100),
    (256, 64, 100),
    (512, 1, 50),
    (512, 16, 50),
    (512, 64, 50),
    (1024, 1, 25),
    (1024, 64, 25),
    (1536, 8, 25),
    (2048, 32, 10),
)
ODD = bench.grid((33, 50, 100, 200), (1, 8, 32), (100,))
TRAINING = sizes(
    (32, 1, 100),
    (32, 32, 100),
    (50, 8, 100),
    (100, 32, 100),
    (128, 1, 100),
    (128, 32, 100),
    (256, 32, 100),
    (512, 1, 50),
    (512, 16, 50),
    (512, 64, 50),
    (1024, 64, 25),
)
RAGGED = bench.grid((64, 100, 256, 512), (8, 64), (100,))
HALVES = sizes(*((H, N, 25) for H in (512, 1024, 2048) for N in (1, 16, 64)))
TINY = sizes((5, 3, 4))

QUIET, TRIES = 0.05, 4
"""Most cores that other programs may use during a section, and most attempts."""


@dataclass(frozen=True)
class Section:
    """A grid of sizes, and options to measure it."""

    title: str
    text: str
    grid: tuple[GridSize, ...]
    peers: tuple[str, ...]
    mode: str = "forward"
    ragged: bool = False


SECTIONS = (
    Section("Forward", "", GRID, bench.PEERS),
    Section("Forward, sizes that no vector divides", "", ODD, bench.PEERS),
    Section(
        "Training",
        "A step is forward, loss (mse on every step), backward and Adam's update.",
        TRAINING,
        ("torch",),
        "train",
    ),
    Section(
        "Ragged batches",
        "Lengths uniform in [T/10, T]. PyTorch gets packed sequences, ONNX Runtime "
        "`sequence_lens`. GFLOP/s\ncount valid steps; `a step` is the time of a step of "
        "full-length sequences over that of a valid step.",
        RAGGED,
        bench.PEERS,
        ragged=True,
    ),
    Section("Ragged batches, training", "", RAGGED, ("torch",), "train", ragged=True),
)


def rendered(*parts: object) -> str:
    """Tables and lines as a fenced block."""
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False, color_system=None)
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=True, markup=False)
        else:
            console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "```text\n" + "\n".join(map(str.rstrip, text.splitlines())) + "\n```"


def measured(section: Section, engine: Engine, seconds: float) -> str:
    """A section in Markdown."""
    peers = [bench.peer(name) for name in section.peers]
    results = bench.measure(
        section.grid,
        bench.one_lstm,
        engine,
        peers,
        mode=section.mode,
        ragged=section.ragged,
        seconds=seconds,
        progress=lambda done, total, size: say(f"  {done + 1} of {total}: {size}"),
    )
    here = bench.machine(engine.threads, peers)
    memory = replace(bench.memory(engine), peak=None)  # the peak may be from another section
    report = bench_report(results, (), here, engine, None, memory)
    return f"{section.text}\n\n{rendered(*report)}".lstrip()


def on_a_quiet_machine(make: Callable[[], str], tries: int) -> str:
    """Results of `make`, repeated while other programs disturb it, and the other programs' load."""
    for left in reversed(range(tries)):
        with bench.watch_other_programs() as others:
            text = make()
        if others.cores is None:
            return text
        if others.cores <= QUIET or not left:
            break
        say(f"  other programs used {others.cores:.2f} cores: measured again")
    disturbed = (
        "" if others.cores <= QUIET else "\n**The machine was not quiet: this may not hold.**"
    )
    return f"{text}\n\nOther programs used {others.cores:.2f} cores meanwhile.{disturbed}"


def halves(grid: Sequence[GridSize], threads: int | None, seconds: float) -> str:
    """A section on bfloat16 compared with float32, in Markdown."""
    columns = ("float32", "bfloat16", "GFLOP/s", "float32 / bfloat16", "difference")
    table = plain_table("H × N × T", *columns, numbers=columns)
    for size in grid:
        say(f"  {size}")
        layers = bench.one_lstm(size)
        weights = random_weights(layers, 0, "float32")
        x = random_inputs(layers, size, 0, "float32")
        networks = [
            Network(layers, weights, create_engine("jit", "cpu", dtype, threads))
            for dtype in ("float32", "bfloat16")
        ]
        whole, half = (network.run(x).outputs for network in networks)
        difference = float(np.abs(whole - half).max())
        calls = [partial(network.run, x) for network in networks]
        samples = interleave(calls, None, seconds).seconds
        before, after = np.median(samples, axis=0)
        ratio = float(np.median(samples[:, 0] / samples[:, 1]))
        flops = sum(layer_flops(layers[0], size.batch * size.steps).values())
        table.add_row(
            str(size),
            units.seconds(before),
            units.seconds(after),
            units.significant(flops / after / 1e9),
            f"{ratio:.2f}×",
            f"{difference:.1g}",
        )
    return rendered(table)


@dataclass(frozen=True)
class Process:
    """A process: its title and its command."""

    title: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


def processes() -> tuple[Process, ...]:
    """Processes to time from start to end; the others are compared with the first."""
    python = sys.executable
    data, weights = ROOT / "data/japanese-vowels.h5", ROOT / "data/japanese-vowels.safetensors"
    run = (python, "-m", "lstm_cli", "run", str(ROOT / "configs/japanese-vowels.yaml"))
    run = (*run, f"{data}:/test", "--json")
    script = (python, str(ROOT / "benchmarks/japanese_vowels_torch.py"), str(data), str(weights))
    return (
        Process("lstm-cli run", run, {}),
        Process("lstm-cli run, kernels compiled anew", run, {"LSTM_CLI_CACHE_DIR": ""}),
        Process("PyTorch script", script, {}),
        Process("lstm-cli --help", (python, "-m", "lstm_cli", "--help"), {}),
        Process("a bare interpreter", (python, "-c", "pass"), {}),
    )


def once(process: Process) -> tuple[float, int, str]:
    """Seconds, peak bytes and output of one process."""
    begun = perf_counter()
    child = subprocess.Popen(
        process.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **process.environment},
        text=True,
    )
    with child.stdout as stream:
        output = stream.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(process.command)} failed with {child.returncode}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), output


def accuracies(process: Process, peer: Process) -> tuple[float, float]:
    """Accuracy of both processes on the same file."""
    metrics = json.loads(once(process)[2])["metrics"]
    words = once(peer)[2].split()
    return float(metrics["accuracy"]), float(words[words.index("accuracy") + 1])


def whole(rounds: int) -> str:
    """A section on whole processes, in Markdown."""
    candidates = processes()
    accuracy, peer_accuracy = accuracies(candidates[0], candidates[2])
    if abs(accuracy - peer_accuracy) > 1e-6:
        raise SystemExit(f"the accuracies differ: {accuracy} and {peer_accuracy}")
    seconds = np.empty((rounds, len(candidates)))
    # A child starts as a copy of this process, so this process's memory counts too.
    peak, floor = [0] * len(candidates), 1.1 * (bench.peak_memory() or 0)
    for number in range(rounds):
        say(f"  {number + 1} of {rounds}")
        for turn in range(len(candidates)):
            k = (number + turn) % len(candidates)
            seconds[number, k], bytes_, _ = once(candidates[k])
            peak[k] = max(peak[k], bytes_)
    columns = ("median", "p95", "over lstm-cli run", "peak memory")
    table: Table = plain_table("process", *columns, numbers=columns)
    for k, process in enumerate(candidates):
        column = seconds[:, k]
        table.add_row(
            process.title,
            units.seconds(float(np.median(column))),
            units.seconds(float(np.percentile(column, 95))),
            f"{np.median(column / seconds[:, 0]):.2f}×",
            units.size(peak[k]) if peak[k] > floor else "",
        )
    start = float(np.median(seconds[:, 3] / seconds[:, 4]))
    return (
        "The test part of Japanese Vowels (370 utterances), interleaved in "
        f"{rounds} rounds; both say an\naccuracy of {accuracy:.3f}. The script is "
        "[japanese_vowels_torch.py](japanese_vowels_torch.py).\n`lstm-cli --help` "
        f"takes {start:.1f} times a bare interpreter's start.\n\n"
        f"{rendered(table)}"
    )


def heading(engine: Engine) -> str:
    """The heading: machine, engine and versions."""
    here = bench.machine(engine.threads, [bench.peer(name) for name in bench.PEERS])
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items())
    vector = getattr(getattr(engine, "machine", None), "cpu", "")
    return (
        "# The jit engine on a CPU\n\n"
        "One LSTM layer, D = H, float32. Results are compared before anything is timed, rounds "
        "are\ninterleaved, and a ratio is the median of the rounds' own ratios, above 1 where "
        "lstm-cli is faster.\n`of limit` is the share of the machine's measured multiply-add peak "
        "or, where that is larger, of the\nspeed at which all threads together can read the "
        "recurrent weights, once a step.\n\n"
        f"Machine: {here.processor} ({vector}), {here.cores} cores, {here.threads} threads each; "
        f"{here.system};\n{versions}.\n\n"
        "Made by `python scripts/benchmark_cpu.py --output benchmarks/cpu-jit.md`.\n"
    )


def say(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure all sections, then write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file; default: standard output")
    parser.add_argument("--seconds", type=float, default=1.0, help="per candidate and size")
    parser.add_argument("--rounds", type=int, default=15, help="of whole processes")
    parser.add_argument("--threads", type=int, help="default: what lstm-cli uses")
    parser.add_argument("--quick", action="store_true", help="see that all parts work")
    given = parser.parse_args()
    seconds, rounds = (0.01, 1) if given.quick else (given.seconds, given.rounds)
    parts: list[str] = []

    def add(title: str, make: Callable[[], str]) -> None:
        say(title)
        text = on_a_quiet_machine(make, 1 if given.quick else TRIES)
        parts.append(f"## {title}\n\n{text}\n")

    add("Whole processes", partial(whole, rounds))  # first, while this process is small
    for section in SECTIONS:
        chosen = replace(section, grid=TINY) if given.quick else section
        # A new engine, so that its workspace is that of this section.
        engine = create_engine("jit", "cpu", "float32", given.threads)
        add(section.title, partial(measured, chosen, engine, seconds))
    grid = TINY if given.quick else HALVES
    add("bfloat16 weights beside float32", partial(halves, grid, given.threads, seconds))
    text = "\n".join([heading(engine), *parts])
    if given.output is None:
        print(text)
    else:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
