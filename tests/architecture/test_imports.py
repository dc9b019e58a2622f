"""What loads what: optional packages stay unloaded, and public names are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lstm_cli

ROOT = Path(__file__).parents[2]

OPTIONAL = ("cupy", "torch", "onnx", "onnxruntime", "matplotlib", "tensorboard")
"""What only an extra installs."""

PREPARE = """
import sys, lstm_cli
layers = [{"type": "lstm", "hidden_size": 3}]
config = {"model": {"input_size": 2, "layers": layers}}
"""


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def loaded(code, names):
    """Which of the modules are loaded after `code`."""
    text = f"{code}\nprint(*[name for name in {names!r} if name in sys.modules], file=sys.stderr)"
    found = run(text)
    assert found.returncode == 0, found.stderr
    return found.stderr.split()


def test_a_forward_pass_loads_no_optional_package():
    code = PREPARE + "import numpy; lstm_cli.build(config).run(numpy.zeros((1, 4, 2)))"
    assert loaded(code, (*OPTIONAL, "h5py", "rich", "click")) == []


def test_the_compiler_is_loaded_by_the_jit_engine_alone():
    forward = "import numpy; net.run(numpy.zeros((1, 4, 2)))"
    build = "net = lstm_cli.build(config, engine={!r});"
    assert loaded(PREPARE + build.format("reference") + forward, ("llvmlite",)) == []
    usable = "from lstm_cli.engines.selection import engine_statuses as s; import sys;" + (
        "sys.exit(next(not e.usable for e in s() if e.engine == 'jit'))"
    )
    if run(usable).returncode == 0:  # so the test can fail
        assert loaded(PREPARE + build.format("jit") + forward, ("llvmlite",)) == ["llvmlite"]


@pytest.mark.parametrize(
    "code",
    [
        "from lstm_cli.config import from_mapping; from_mapping(config)",
        "from lstm_cli.config import load; load('configs/japanese-vowels.yaml')",
        "import lstm_cli.workflows.run, lstm_cli.workflows.train.training_run",
        "from lstm_cli.engines import selection; from lstm_cli.engines.jit import engine",
        "from lstm_cli.cli import main; main(['--help'])",
        "from lstm_cli.cli import main; main(['run', '--help'])",
        "from lstm_cli.cli import main; main(['inspect-shapes', 'configs/japanese-vowels.yaml'])",
        "from lstm_cli.cli import main; main(['data', 'data/japanese-vowels.h5:/test'])",
        "from lstm_cli.cli import main; main(['schema'])",
        "from lstm_cli.cli import main; main(['run', 'configs/japanese-vowels.yaml', "
        "'data/japanese-vowels.h5:/test', '--engine', 'reference', '--quiet'])",
        "from lstm_cli.cli import main; main(['bench', '--hidden', '3', '--batch', '1', "
        "'--steps', '2', '--rounds', '1', '--engine', 'reference', '--quiet'])",
    ],
)
def test_what_needs_no_kernels_loads_no_compiler(code):
    assert loaded(PREPARE + code, ("llvmlite",)) == []


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
