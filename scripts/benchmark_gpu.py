"""Measure a GPU against PyTorch on the same GPU, and write a page of Markdown as results come.

    python scripts/benchmark_gpu.py --output benchmarks/gpu-h200.md
    python scripts/benchmark_gpu.py --quick --minutes 7

The most telling sizes come first, and the page is complete whenever the run ends. Measurements run
in a process of their own: a size that breaks the GPU's context, or never ends, costs only itself.
Results are kept as lines of JSON next to the page; --resume continues from them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "tests" / "support")]

from check_gpu import make_device  # noqa: E402 - behind the path
from gpu_page import Page  # noqa: E402

HIDDEN = (64, 128, 160, 192, 256, 320, 512, 768, 1024, 1536, 2048)
BATCH = (1, 5, 8, 16, 32, 64, 128)
STEPS = (32, 128, 1024)
DTYPES = ("tf32", "float16", "bfloat16")
SILENT = 240
"""Seconds without output after which the measuring process counts as dead."""

Job = tuple[str, str, bool, int, int, int]
"""One measurement: dtype, mode, ragged, H, N, T."""


def quick() -> list[Job]:
    """The most telling sizes, for a run of some minutes."""
    hidden = (64, 192, 256, 512, 768, 1024, 2048)
    jobs = list(product(DTYPES, ("forward",), (False,), hidden, (1, 16, 64), (128,)))
    jobs += product(DTYPES, ("train",), (False,), (192, 512, 1024), (16, 64), (128,))
    some = ("tf32", "bfloat16")
    jobs += product(some, ("forward", "train"), (True,), (256, 512, 1024), (32,), (128,))
    random.Random(1).shuffle(jobs)  # so that a run that ends early has some of everything
    return jobs


def full() -> list[Job]:
    """The quick sizes, then all others in one fixed random order."""
    rest = list(product(DTYPES, ("forward", "train"), (False,), HIDDEN, BATCH, STEPS))
    rest += product(DTYPES, ("forward", "train"), (True,), HIDDEN[::2], (8, 32, 128), (128, 1024))
    random.Random(2).shuffle(rest)
    return list(dict.fromkeys([*quick(), *rest]))


def tiny() -> list[Job]:
    """Sizes that only show that all parts work."""
    some = ("tf32", "bfloat16")
    return list(product(some, ("forward", "train"), (False, True), (8,), (3,), (4,)))


def measured(job: Job, engine: Any, peers: list[Any], seconds: float) -> dict[str, Any]:
    """Compare and time one size."""
    from lstm_cli.workflows import bench

    _, mode, ragged, H, N, T = job
    results = bench.measure(
        [bench.GridSize(H, N, T, H)],
        bench.one_lstm,
        engine,
        peers,
        mode=mode,
        ragged=ragged,
        seconds=seconds,
    )
    (result,), (explained,) = results, bench.explain(results, bench.one_lstm, engine)
    record = {
        "ours": result.lstm_cli_timing.median,
        "step": explained.step,
        "floor": explained.floor,
    }
    record["way"] = ", ".join(layer.explanation.way for layer in explained.layers)
    theirs = [timing.median for timing in result.timings[1:]]
    record |= {"theirs": theirs[0] if theirs else None, "ratio": result.ahead_of_best}
    problems = [f"{name}: {reason}" for name, reason in result.skipped.items()]
    for name, one in result.agreements.items():
        record["difference"] = one.difference
        if not one.ok:
            off = f"difference {one.difference:.2g}, tolerance {one.tolerance:.0e}"
            problems.append(f"{name}: {one.what}, {off}")
    return record | {"problem": "; ".join(problems)}


def child(options: argparse.Namespace) -> int:
    """Measure the jobs on stdin; prints a line of JSON before and after each."""
    from lstm_cli.engines.cuda.engine import CudaEngine
    from lstm_cli.errors import DeviceError
    from lstm_cli.workflows import bench

    device = make_device(options.host)
    try:
        peers = [bench.peer("torch")]
    except DeviceError:
        peers = []
    engines: dict[str, Any] = {}
    for line in sys.stdin:
        job = tuple(json.loads(line))
        say({"begun": job})
        if job[0] not in engines:
            engines[job[0]] = CudaEngine(job[0], device)
        try:
            result = measured(job, engines[job[0]], peers, options.seconds)
        except Exception as error:  # of any class: too little memory, a lost GPU
            result = {
                "problem": f"it failed: {type(error).__name__}: {str(error).splitlines()[0:1]}"
            }
        say({"job": job, **result})
        gc.collect()
        if not options.host:
            import cupy

            cupy.get_default_memory_pool().free_all_blocks()  # PyTorch may need it
    return 0


def say(document: dict[str, Any]) -> None:
    """Print a line of JSON."""
    print(json.dumps(document), flush=True)


def lines_of(process: subprocess.Popen[str], until: float) -> Iterator[str]:
    """Output lines, until the process ends, is silent for too long, or the time is up."""
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=listen, daemon=True).start()
    last_line = monotonic()
    while monotonic() < until and monotonic() - last_line < SILENT:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            continue
        if not line:
            return
        last_line = monotonic()
        yield line


def run(jobs: list[Job], options: argparse.Namespace, until: float) -> Iterator[dict[str, Any]]:
    """Yield records of the jobs; a job that ends its process has a record of the failure."""
    remaining = list(jobs)
    while remaining and monotonic() < until:
        current, before = None, len(remaining)
        for message in child_messages(list(remaining), options, until):
            if "begun" in message:
                current = tuple(message["begun"])
            elif "job" in message:
                current = None
                remaining.remove(tuple(message["job"]))
                yield message
        if not remaining or monotonic() >= until:
            return
        if current is None and len(remaining) == before:
            raise SystemExit("the measuring process does not start: see above")
        if current is None:
            continue
        remaining.remove(current)
        yield {"job": current, "problem": "it failed: the process ended, or was silent for long"}


def child_messages(
    jobs: list[Job], options: argparse.Namespace, until: float
) -> Iterator[dict[str, Any]]:
    """Messages of a process that measures the jobs."""
    command = [sys.executable, __file__, "--child", "--seconds", str(options.seconds)]
    command += ["--host"] * options.host
    with tempfile.TemporaryFile("w+", encoding="utf-8") as job_file:
        job_file.write("".join(json.dumps(job) + "\n" for job in jobs))
        job_file.flush()
        job_file.seek(0)
        with subprocess.Popen(
            command, stdin=job_file, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                for line in lines_of(process, until):
                    if line.startswith("{"):
                        yield json.loads(line)
            finally:
                process.kill()


def record(message: dict[str, Any]) -> dict[str, Any]:
    """Record of a message, in the form of `gpu_page.Record`."""
    dtype, mode, ragged, *size = message.pop("job")
    empty = dict.fromkeys(("ours", "theirs", "ratio", "step", "floor", "way", "difference"))
    return {"dtype": dtype, "mode": mode, "ragged": ragged, "size": size, **empty, **message}


def page_name(title: str) -> str:
    """Name of a GPU's page: ``NVIDIA H200`` is ``h200``."""
    words = "".join(c if c.isalnum() else " " for c in title.lower()).split()
    return "-".join(word for word in words if word != "nvidia")


def main() -> int:
    """Measure, and write the page after every result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="default: benchmarks/gpu-<name>.md")
    parser.add_argument("--minutes", type=float, default=os.environ.get("LSTM_CLI_GPU_MINUTES"))
    parser.add_argument("--quick", action="store_true", help="only the most telling sizes")
    parser.add_argument("--seconds", type=float, default=0.3, help="seconds per library and size")
    parser.add_argument("--contract", type=Path, help="JSON of check_gpu.py")
    parser.add_argument("--exchange", type=Path, help="JSON of measure_exchange.py")
    parser.add_argument("--pipelines", type=Path, help="JSON of measure_pipelines.py")
    parser.add_argument("--machine", type=Path, help="text file on the machine")
    parser.add_argument("--resume", action="store_true", help="continue an earlier run")
    parser.add_argument("--host", action="store_true", help="no GPU: see that all parts work")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    until = monotonic() + 60 * float(options.minutes) if options.minutes else float("inf")
    title = make_device(options.host).title
    path = options.output or ROOT / f"benchmarks/gpu-{page_name(title)}.md"
    log_path = path.with_suffix(".jsonl")
    jobs = tiny() if options.host else quick() if options.quick else full()
    lines = options.machine.read_text(encoding="utf-8").splitlines() if options.machine else []
    page = Page(title, lines, [], len(jobs), options.contract, options.exchange, options.pipelines)
    if log_path.exists() and options.resume:
        page.records += map(json.loads, log_path.read_text(encoding="utf-8").splitlines())
        done = {(r["dtype"], r["mode"], r["ragged"], *r["size"]) for r in page.records}
        jobs = [job for job in jobs if job not in done]
        page.planned = len(jobs) + len(page.records)
    path.write_text(page.text(), encoding="utf-8")
    with log_path.open("a" if options.resume else "w", encoding="utf-8") as log:
        for message in run(jobs, options, until):
            page.records.append(record(message))
            log.write(json.dumps(page.records[-1]) + "\n")
            log.flush()
            path.write_text(page.text(), encoding="utf-8")
            one, ratio = page.records[-1], page.records[-1]["ratio"]
            outcome = one["problem"] or (f"{ratio:.2f}" if ratio else "no peer")
            progress = f"{len(page.records)} of {page.planned}: {label(one)}: {outcome}"
            print(progress, file=sys.stderr)
    path.write_text(page.text(), encoding="utf-8")
    print(path)
    wrong = ("difference", "it failed")
    return 1 if any(word in r["problem"] for r in page.records for word in wrong) else 0


def label(one: dict[str, Any]) -> str:
    """Mode, dtype and size of a record."""
    ragged = ", ragged" * one["ragged"]
    return f"{one['mode']}{ragged}, {one['dtype']}, {' × '.join(map(str, one['size']))}"


if __name__ == "__main__":
    sys.exit(main())
