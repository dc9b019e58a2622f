"""Every command has help with an example, and help costs next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repository import ROOT

from lstm_cli.cli.main import COMMANDS
from lstm_cli.version import __version__

HEAVY = ("numpy", "h5py", "rich", "pydantic", "cupy", "llvmlite", "yaml", "safetensors")


def test_help_lists_every_command(lstm):
    outcome = lstm("--help")
    assert outcome.code == 0
    assert all(name in outcome.out for name in COMMANDS)


def test_no_arguments_is_a_usage_error(lstm):
    outcome = lstm()
    assert outcome.code == 2
    assert "Usage:" in outcome.err


def test_version(lstm):
    assert __version__ in lstm("--version").out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_carries_an_example(lstm, name):
    outcome = lstm(name, "--help")
    assert outcome.code == 0
    assert f"lstm-cli {name}" in outcome.out.partition("Example")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_readme_names_every_command(name):
    assert f"lstm-cli {name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from lstm_cli.cli import main; code = main(sys.argv[1:]);"
        f"loaded = [n for n in {HEAVY!r} if n in sys.modules];"
        "sys.exit(f'{code} {loaded}' if code or loaded else 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


def test_a_closed_pipe_ends_quietly():
    command = [sys.executable, "-m", "lstm_cli", "schema"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert b"Traceback" not in err
    assert b"Exception" not in err
