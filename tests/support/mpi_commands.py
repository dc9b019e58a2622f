"""Commands of lstm-cli under mpiexec."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from repository import ROOT

PLACES = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
MPIEXEC = shutil.which("mpiexec", path=PLACES)
COMMAND = (sys.executable, "-m", "lstm_cli")


def environment() -> dict[str, str]:
    """The environment without the variables of a launcher that may have started the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "SLURM"))}
    return {
        **kept,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def start(ranks: int, *arguments: object) -> subprocess.Popen[str]:
    """Start a command on several ranks."""
    words = [str(MPIEXEC), "-n", str(ranks), *COMMAND, *map(str, arguments)]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def run(ranks: int, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command on several ranks."""
    process = start(ranks, *arguments)
    try:
        out, err = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err
