"""Scripts that check a GPU, tested without one: they work, find mistakes, and survive failures."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_host import build
from cuda_host.device import HostDevice
from repository import ROOT

BASH = shutil.which("bash")

if build.COMPILER is None:
    pytest.skip("there is no C++ compiler", allow_module_level=True)


@pytest.fixture
def scripts(monkeypatch):
    """Function that imports a script as a module."""
    monkeypatch.setattr(
        sys, "path", [str(ROOT / "scripts"), str(ROOT / "tests" / "support"), *sys.path]
    )
    return importlib.import_module


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "pytest", "hypothesis", "llvmlite", "_pytest",
                                      "threadpoolctl", "torch", "onnx", "onnxruntime"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.mark.skipif(BASH is None or os.name != "posix", reason="needs bash")
def test_the_whole_script_runs_without_optional_packages(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT, encoding="utf-8")
    page = tmp_path / "gpu-host.md"
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(tmp_path),
        "OUTPUT": str(page),
        "LSTM_CLI_GPU_ONLY": "rnn",
    }
    command = [str(BASH), str(ROOT / "scripts/check_gpu.sh"), "--host"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== all passed" in done.stdout
    text = page.read_text(encoding="utf-8")
    for words in (
        "# The cuda engine on host",
        "All checks passed.",
        "| bfloat16 | general |",
        "| grid | 8 | 1 | 8,192 |",
        "## Pipelined layers",
        "| float32 | train | 2 | 8 × 2 × 6 |",
        "8 of 8 sizes were measured.",
        "## Training steps, ragged, bfloat16",
        "No measured size is below 1.0.",
    ):
        assert words in text


def test_a_mistake_of_the_engine_is_reported(scripts, monkeypatch):
    checks = scripts("gpu_checks")
    case = next(case for case in checks.cases(8) if case.name == "lstm 8 × 8")
    device = HostDevice()
    assert checks.problems(case, "float32", device, "auto") == []
    original = checks.CudaEngine.layer

    def swapped_layer(self, spec, weights):
        swapped = dict(weights)
        name = "layers.0.weight_hh"
        i, f, g, o = np.split(np.asarray(self.to_host(weights[name])), 4)
        swapped[name] = np.concatenate([f, i, g, o])
        return original(self, spec, swapped)

    monkeypatch.setattr(checks.CudaEngine, "layer", swapped_layer)
    for dtype in checks.TOLERANCES:
        problems = checks.problems(case, dtype, device, "auto")
        assert any("outputs is off" in line for line in problems), dtype
        assert any("gradient of" in line for line in problems), dtype


def test_missing_kernels_are_no_failure_but_any_other_error_is(scripts, monkeypatch):
    from lstm_cli.errors import DeviceError

    checks = scripts("gpu_checks")
    case = next(checks.cases(8))
    for text, expected in (
        (f"the layer {checks.NO_PERSISTENT_KERNEL}", None),
        ("the launch was refused", ["it failed: the launch was refused"]),
    ):

        def fails(*_, text=text):
            raise DeviceError(text)

        monkeypatch.setattr(checks, "computed", fails)
        assert checks.problems(case, "float32", HostDevice(), "auto") == expected


def test_exchanges_are_checked(scripts, monkeypatch):
    exchange = scripts("measure_exchange")
    device = HostDevice(multiprocessors=8, seed=3)
    good = [exchange.cluster(device, 4, 2, 4096, 3), exchange.grid(device, 8, 4096, 3)]
    assert [one.problem for one in good] == ["", ""]
    assert all(one.micro > 0 for one in good)
    wrong = exchange.GRID_KERNEL.replace("(step + place)", "(step + 2 * place)")
    wrong = wrong.replace("(unsigned)step + place", "(unsigned)step + 2 * place")
    monkeypatch.setattr(exchange, "GRID_KERNEL", wrong)
    result = exchange.grid(device, 8, 4096, 3)
    assert (result.micro, result.problem) == (None, "blocks read what was not written")
    refused = exchange.cluster(HostDevice(largest_cluster=1), 4, 1, 0, 3)
    assert refused.micro is None, "a refused launch is a line of the table"
    assert refused.problem


def test_exchange_kernels_compile_for_a_gpu(scripts):
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    compile_log = scripts("cuda_gate").compile_log
    exchange = scripts("measure_exchange")
    for architecture in ("90", "90a", "100", "120"):
        for size in (2, 8, 16):
            source = exchange.PRELUDE + exchange.CLUSTER_KERNEL.replace("@C@", str(size))
            assert "0 bytes stack frame" in compile_log(source, architecture)
    for architecture in ("80", "86", "89", "90a", "120"):
        source = exchange.PRELUDE + exchange.GRID_KERNEL
        assert "0 bytes stack frame" in compile_log(source, architecture)


def test_a_size_that_ends_its_process_costs_that_size_alone(scripts, monkeypatch):
    benchmark = scripts("benchmark_gpu")
    jobs, counts = benchmark.tiny()[:4], []

    def child(remaining, options, until):
        counts.append(len(remaining))
        for job in remaining:
            yield {"begun": job}
            if job == jobs[1]:
                return
            yield {"job": list(job), "ratio": 2.0, "problem": ""}

    monkeypatch.setattr(benchmark, "child_messages", child)
    records = [benchmark.record(one) for one in benchmark.run(jobs, None, float("inf"))]
    assert counts == [4, 2]
    assert [one["ratio"] for one in records] == [2.0, None, 2.0, 2.0]
    assert "it failed" in records[1]["problem"]
    assert records[1]["size"] == list(jobs[1][3:])


def test_a_run_starts_with_some_of_everything_and_has_each_size_once(scripts):
    benchmark = scripts("benchmark_gpu")
    quick, full = benchmark.quick(), benchmark.full()
    assert full[: len(quick)] == quick
    assert len(set(full)) == len(full)
    whole = {(H, N, T) for d, m, r, H, N, T in full if (d, m, r) == ("tf32", "train", False)}
    assert len(whole) == 11 * 7 * 3
    assert {job[:3] for job in quick} > {("tf32", "forward", False), ("bfloat16", "train", True)}


def test_a_page_lists_slow_and_failed_sizes(scripts, tmp_path):
    page = scripts("gpu_page")

    def record(H, ratio, **more):
        both = {"ours": 1e-3, "theirs": 2e-3, "step": 1.25e-6, "floor": 0.5e-6, "way": "general"}
        size = {"dtype": "tf32", "mode": "forward", "ragged": False, "size": [H, 8, 32]}
        return {**size, **both, "ratio": ratio, "problem": "", **more}

    contract = tmp_path / "contract.json"
    counts = {"passed": 3, "failed": 1, "cannot": 0, "left": 0}
    contract.write_text(json.dumps([{"dtype": "tf32", "way": "auto", **counts, "problems": ["x"]}]))
    records = [record(64, 4.0), record(128, 0.5), record(256, None, problem="it failed: lost")]
    text = page.Page("NVIDIA H200", ["driver 1"], records, 7, contract).text()
    for words in (
        "**1 checks failed.**",
        "3 of 7 sizes were measured.",
        "| Forward passes | tf32 | 2 | 1.41 | 1 | 1.5 |",
        "forward passes, tf32, 128 × 8 × 32: 0.50, general",
        "forward passes, tf32, 256 × 8 × 32: it failed: lost",
        "| 64 × 8 × 32 | 1.000 ms | 2.000 ms | 4.00 | 1.25 | 0.50 | general |",
    ):
        assert words in text
    assert scripts("benchmark_gpu").page_name("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"


def test_a_process_that_dies_is_a_failure(scripts, monkeypatch):
    check = scripts("check_gpu")
    options = SimpleNamespace(most=8, only="", host=True, once=True, limit=1)
    for output, code in (("", 139), ('{"case": "a", "state": "passed", "problems": []}\n', 139)):
        done = SimpleNamespace(stdout=output, stderr="Segmentation fault", returncode=code)
        monkeypatch.setattr(check.subprocess, "run", lambda *_, done=done, **__: done)
        report = check.child("tf32", "auto", options)
        assert report["failed"] == 1
        assert "Segmentation fault" in report["problems"][-1]


def test_the_page_without_measurements_says_so_and_has_modeled_times(scripts):
    text = (ROOT / "benchmarks/gpu.md").read_text(encoding="utf-8")
    assert "**Nothing on this page has been measured.**" in text
    assert "scripts/check_gpu.sh --quick" in text
    assert "**Modeled, not measured:**" in text
    floors = scripts("modeled_floors")
    for backward in (False, True):
        for dtype in ("bfloat16", "tf32"):
            table = floors.table(dtype, backward=backward).splitlines()
            assert len(table) == 2 + len(floors.HIDDEN)
            assert table[0] in text


@pytest.mark.skipif(BASH is None or os.name != "posix", reason="needs bash")
def test_without_a_gpu_it_says_so_and_stops(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.replace('"torch"', '"cupy"'), "utf-8")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    command = [str(BASH), str(ROOT / "scripts/check_gpu.sh"), "--quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "== no GPU can be used here: nothing was checked" in done.stdout
    assert "cupy" in done.stdout
