"""What loads what: optional packages stay unloaded, and public names are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lstm_cli

ROOT = Path(__file__).parents[2]

OPTIONAL = ("cupy", "torch", "onnx", "onnxruntime", "matplotlib", "tensorboard", "llvmlite")


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_forward_pass_loads_no_optional_package():
    code = f"""
import sys, numpy, lstm_cli
layers = [{{"type": "lstm", "hidden_size": 3}}]
net = lstm_cli.build({{"model": {{"input_size": 2, "layers": layers}}}})
net.run(numpy.zeros((1, 4, 2)))
sys.exit(" ".join(name for name in {(*OPTIONAL, "h5py", "rich", "click")!r} if name in sys.modules))
"""
    assert run(code).stderr.strip() == ""


def test_importing_the_package_loads_no_numpy():
    assert run("import sys, lstm_cli; sys.exit('numpy' in sys.modules)").returncode == 0


def test_public_names():
    assert set(lstm_cli.__all__) <= set(dir(lstm_cli))
    for name in lstm_cli.__all__:
        assert getattr(lstm_cli, name) is not None


def test_no_assert_and_no_print_in_the_package():
    import ast

    for path in (ROOT / "lstm_cli").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"
            named = isinstance(node, ast.Call) and getattr(node.func, "id", None)
            assert named != "print", f"{path}:{node.lineno}"
