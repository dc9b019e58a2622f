"""Many small runs by several processes and threads at once: the same bits, and nothing leaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from repository import ROOT

from lstm_cli.engines.selection import engine_statuses

USABLE = any(status.usable for status in engine_statuses() if status.engine == "jit")

pytestmark = [
    pytest.mark.skipif(not USABLE, reason="no jit engine here"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc"),
]

PROCESSES, RUNS, CALLERS = 3, 4800, 4


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Report of each process; all start at once, with no kernels on disk."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")]),
        "LSTM_CLI_CACHE_DIR": str(tmp_path_factory.mktemp("kernels")),
    }
    command = [sys.executable, str(ROOT / "tests/support/jit_stress.py"), str(RUNS)]
    started = [
        subprocess.Popen(
            [*command, str(n)], env=env, cwd=ROOT, text=True, stdout=-1, stderr=subprocess.PIPE
        )
        for n in range(PROCESSES)
    ]
    results = []
    try:
        for process in started:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            results.append(json.loads(out))
    finally:
        for process in started:
            process.kill()
            process.wait()
    return results


def test_every_run_gives_the_same_bits(reports: list[dict[str, Any]]) -> None:
    assert PROCESSES * RUNS >= 10_000
    assert [report["wrong"] for report in reports] == [0] * PROCESSES


def test_nothing_leaks(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        before, after = report["before"], report["after"]
        assert after["threads"] == before["threads"]
        assert after["files"] == before["files"]
        assert after["memory"] - before["memory"] < 8 << 10, "kB"
        assert 0 < report["spaces"] <= CALLERS, "workspaces of one purpose"
