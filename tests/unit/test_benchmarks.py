"""The script that writes `benchmarks/` works in all parts, and its comparison agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from repository import ROOT

from lstm_cli.engines.selection import engine_statuses

VOWELS = ("data/japanese-vowels.h5", "data/japanese-vowels.safetensors")

pytest.importorskip("torch")


def output(*arguments: str) -> str:
    """Output of a Python process in the repository's folder."""
    command = [sys.executable, *arguments]
    places = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": places}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_pytorch_script_computes_what_run_does():
    _, accuracy, _, loss = output("benchmarks/japanese_vowels_torch.py", *VOWELS).split()
    run = ("run", "configs/japanese-vowels.yaml", f"{VOWELS[0]}:/test", "--json")
    metrics = json.loads(output("-m", "lstm_cli", *run))["metrics"]
    assert float(accuracy) == pytest.approx(metrics["accuracy"], abs=1e-6)
    assert float(loss) == pytest.approx(metrics["loss"], abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs POSIX")
def test_every_section_is_measured_and_written(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    if not any(status.engine == "jit" and status.usable for status in engine_statuses()):
        pytest.skip("no jit engine here")
    path = tmp_path / "cpu.md"
    output("scripts/benchmark_cpu.py", "--quick", "--output", str(path))
    text = path.read_text(encoding="utf-8")
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles == [
        "# The jit engine on a CPU",
        "## Whole processes",
        "## Forward",
        "## Forward, sizes that no vector divides",
        "## Training",
        "## Ragged batches",
        "## Ragged batches, training",
        "## bfloat16 weights beside float32",
    ]
    assert "Machine: " in text
    for word in ("torch", "onnxruntime", "numpy", "python"):
        assert f"{word} " in text.partition("## ")[0], "a version is not named"
    assert text.count("geometric mean over 1 size") == 5
    assert max(map(len, text.splitlines())) <= 120
