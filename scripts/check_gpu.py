"""Check the cuda engine on a device: each cell, dtype and kind of kernels, against the reference.

    python scripts/check_gpu.py contract --report contract.json
    python scripts/check_gpu.py versions
    python scripts/check_gpu.py contract --host --most 40   # no GPU: kernels built with g++

It needs NumPy and CuPy, neither pydantic nor pytest. Each dtype and kind of kernels has its own
process: after a wrong address a GPU computes nothing more for the process that used it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

PASSED, FAILED, CANNOT, LEFT = STATES = ("passed", "failed", "cannot", "left")
SILENT = 300
"""Seconds beyond its limit after which a process counts as hanging."""


def make_device(host: bool, ordinal: int = 0) -> Any:
    """Create the GPU, or the tests' host device."""
    if host:
        from cuda_host.device import HostDevice

        return HostDevice()
    from lstm_cli.engines.cuda.runtime.gpu import Gpu

    return Gpu(ordinal)


def check_one(dtype: str, kernels: str, options: argparse.Namespace) -> int:
    """Check a dtype and kind of kernels in this process; prints a line of JSON per case."""
    from gpu_checks import cases, problems, without_repeats

    device, failures = make_device(options.host), 0
    chosen = [case for case in cases(options.most) if options.only in case.name]
    random.Random(1).shuffle(chosen)  # so that a short run has some of everything
    until = perf_counter() + options.limit
    for case in chosen:
        start = perf_counter()
        if start > until:
            print(json.dumps({"case": case.name, "state": LEFT, "problems": []}), flush=True)
            continue
        try:
            checked = without_repeats(case) if options.once else case
            result = problems(checked, dtype, device, kernels)
        except Exception as error:  # of any class: a kernel that does not compile, a lost GPU
            result = [f"it failed: {type(error).__name__}: {error}"]
        state = CANNOT if result is None else FAILED if result else PASSED
        failures += state == FAILED
        seconds = perf_counter() - start
        line = {"case": case.name, "state": state, "problems": result or [], "seconds": seconds}
        print(json.dumps(line), flush=True)
    return 1 if failures else 0


def check_all(options: argparse.Namespace) -> int:
    """Check each dtype and kind of kernels in its own process; prints the failures."""
    from lstm_cli.engines.cuda.kernels import KERNELS
    from lstm_cli.engines.cuda.precision import PRECISIONS

    report = []
    pairs = list(product(options.dtype or PRECISIONS, options.kernels or KERNELS))
    if options.total:
        options.limit = options.total / ceil(len(pairs) / options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        for entry in pool.map(lambda pair: child(*pair, options), pairs):
            report.append(entry)
            counts = ", ".join(f"{entry[state]} {state}" for state in STATES)
            print(f"{entry['dtype']}, {entry['way']}: {counts} ({entry['seconds']:.0f} s)")
            for line in entry["problems"]:
                print(f"  {line}")
            sys.stdout.flush()
            if options.report:
                Path(options.report).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 1 if any(entry[FAILED] for entry in report) else 0


def child(dtype: str, kernels: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one dtype and kind of kernels in a process of its own, and return the report."""
    command = [sys.executable, __file__, "one", "--dtype", dtype, "--kernels", kernels]
    command += ["--most", str(options.most), "--only", options.only]
    command += ["--host"] * options.host + ["--once"] * options.once
    command += ["--limit", str(options.limit)]
    start, longest = perf_counter(), options.limit + SILENT
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=longest)
        output, code, error = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode(errors="replace")
        code, error = -1, f"not done after {longest:.0f} s: the next case hangs"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    entry: dict[str, Any] = {"dtype": dtype, "way": kernels}
    entry["seconds"] = perf_counter() - start
    for state in STATES:
        entry[state] = sum(line["state"] == state for line in lines)
    entry["problems"] = [
        f"{line['case']}: {problem}" for line in lines for problem in line["problems"]
    ]
    if code not in (0, 1) or not lines or (code and not entry[FAILED]):
        entry[FAILED] += 1
        last = lines[-1]["case"] if lines else "the beginning"
        tail = " | ".join(error.strip().splitlines()[-3:])
        entry["problems"].append(f"ended with {code} behind {last}: {tail}")
    return entry


def versions(options: argparse.Namespace) -> int:
    """Print the device and the versions of its software."""
    try:
        device = make_device(options.host)
    except Exception as error:  # of any class: no CuPy, no driver
        print(f"{type(error).__name__}: {error}")
        return 1
    print(f"device: {device.title}, {device.architecture}")
    print(f"multiprocessors: {device.multiprocessors}")
    print(f"shared memory of a block: {device.shared_bytes} bytes")
    print(f"largest cluster: {device.largest_cluster} blocks")
    print("free and all memory: {} and {} bytes".format(*device.memory()))
    for name, version in getattr(device, "versions", {}).items():
        print(f"{name}: {version}")
    try:
        from lstm_cli.workflows.bench.peers.torch_peer import TorchPeer

        for name, version in TorchPeer().versions.items():
            print(f"{name}: {version}")
    except Exception as error:
        print(f"torch: {error}")
    return 0


def main() -> int:
    """Run one step of the checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["contract", "one", "versions"])
    parser.add_argument("--host", action="store_true", help="no GPU: kernels run on the processor")
    parser.add_argument(
        "--most", type=int, default=1 << 20, help="largest number of units per layer"
    )
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--once", action="store_true", help="no repetitions")
    parser.add_argument("--limit", type=float, default=1800, help="seconds per process")
    parser.add_argument("--total", type=float, help="seconds for all processes, about")
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parser.add_argument("--dtype", action="append", help="default: all")
    parser.add_argument("--kernels", action="append", help="default: all")
    parser.add_argument("--report", help="JSON file for the results")
    options = parser.parse_args()
    if options.step == "versions":
        return versions(options)
    if options.step == "one":
        return check_one(options.dtype[0], options.kernels[0], options)
    return check_all(options)


if __name__ == "__main__":
    sys.exit(main())
