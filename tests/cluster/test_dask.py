"""``run --dask`` on a cluster of two workers on this machine. Opt-in: ``LSTM_DASK=1``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi_commands import COMMAND, environment
from result_comparison import assert_equal_results

if not os.environ.get("LSTM_DASK"):
    pytest.skip("LSTM_DASK=1 runs these", allow_module_level=True)
distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Dask's own sockets and loops


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of a cluster of two workers."""
    options = {"n_workers": 2, "threads_per_worker": request.param, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as one:
        yield one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config, and a folder with twenty files of ragged sequences with a class a step."""
    rng = np.random.default_rng(0)
    (tmp_path / "days").mkdir()
    for k in range(20):
        lengths = rng.integers(1, 40, 20)
        with h5py.File(tmp_path / f"days/d{k}.h5", "w") as file:
            file["inputs"] = rng.standard_normal((lengths.sum(), 3))
            file["targets"], file["lengths"] = rng.integers(0, 2, lengths.sum()), lengths
    (tmp_path / "net.yaml").write_text(
        "model:\n  input_size: 3\n  layers:\n    - {type: lstm, hidden_size: 512}\n"
        "    - {type: dense, units: 2, activation: softmax}\n"
    )
    return tmp_path


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    words = [*COMMAND, "run", "net.yaml", "days", "--json", "--batch-size", "1", *more]
    return subprocess.Popen(words, stdout=-1, stderr=-1, text=True, cwd=folder, env=environment())


def test_results_are_those_of_one_run_though_a_worker_is_killed(client, folder) -> None:
    one, err = start(folder, "--output", "one.h5").communicate(timeout=120)
    metrics = json.loads(one)["metrics"]
    address = client.scheduler.address
    for kills in (False, True):
        command = start(folder, "--output", "two.h5", "--dask", address)
        if kills:
            end = time.monotonic() + 60
            while len(list(folder.glob("two.h5.shard-*"))) < 2:
                assert command.poll() is None, command.communicate()[1]
                assert time.monotonic() < end
                time.sleep(0.01)
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        out, err = command.communicate(timeout=120)
        assert command.returncode == 0, err
        document = json.loads(out)
        workers = sum(client.nthreads().values())
        assert (document["metrics"], document["threads"]) == (metrics, 1)
        assert kills or document["workers"] == workers
        assert_equal_results(folder / "two.h5", folder / "one.h5")
        assert not list(folder.glob("*.shard-*"))
    assert not any(client.run(_kept).values())


def _kept() -> int:
    from lstm_cli.cli import shares

    return len(shares._kept_runs)


def test_errors(client, folder) -> None:
    address = client.scheduler.address
    command = start(folder, "--dask", address, "--workers", "2")
    assert (command.wait(60), "exclude one another" in command.communicate()[1]) == (2, True)
    command = start(folder, "--dask", "tcp://127.0.0.1:1")
    assert command.wait(90) == 5
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in command.communicate()[1]
    with h5py.File(folder / "days/d7.h5", "a") as file:
        file["inputs"][5, 1] = np.nan
    command = start(folder, "--dask", address, "--set", "train.loss=cross_entropy")
    err = command.communicate(timeout=120)[1]
    assert (command.returncode, err.count("error:")) == (3, 1)
    assert "days/d7.h5:/inputs, sequence " in err
