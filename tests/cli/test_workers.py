"""``run --workers``: results of one run from several processes, also when some of them die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data_files import file_writer
from repository import ROOT
from result_comparison import assert_equal_results

from lstm_cli.errors import LstmCliError
from lstm_cli.workflows.workers import MOST_DEATHS, run_tasks

CONFIG = """\
model:
  input_size: 3
  layers:
    - {type: lstm, hidden_size: 64}
    - {type: dense, units: 2, activation: softmax}
  init: {seed: 4}
"""


@pytest.fixture
def days(tmp_path: Path, in_tmp_path: None) -> None:
    """A config, and a folder with four files of ragged sequences with classes."""
    (tmp_path / "days").mkdir()
    rng = np.random.default_rng(1)
    for k in range(4):
        lengths = rng.integers(1, 40, 30)
        x, y = rng.standard_normal((lengths.sum(), 3)), rng.integers(0, 2, lengths.sum())
        file_writer(tmp_path / "days")(f"d{k}.h5", inputs=x, lengths=lengths, targets=y)
    Path("net.yaml").write_text(CONFIG)


RUN = ("run", "net.yaml", "days", "--threads", "1", "--json")


@pytest.mark.usefixtures("days")
def test_results_are_those_of_one_run(lstm):
    one = lstm(*RUN, "--output", "one.h5").json
    two = lstm(*RUN, "--output", "two.h5", "--workers", "2")
    assert two.code == 0, two.err
    assert "16 of 16" in two.err
    assert (two.json["metrics"], two.json["workers"]) == (one["metrics"], 2)
    assert_equal_results("two.h5", "one.h5")
    assert not list(Path().glob("*.shard-*"))
    alone = lstm(*RUN, "--workers", "1", "--quiet")
    assert (alone.json["metrics"], alone.err) == (one["metrics"], "")


@pytest.mark.usefixtures("days")
def test_an_error_of_a_worker_is_that_of_the_run(lstm):
    """A value that is not finite, in the third file: the same message, once, and no process."""
    file_writer(Path("days"))("d2.h5", more=0)
    import h5py

    with h5py.File("days/d2.h5", "a") as file:
        file["inputs"][5, 1] = np.nan
    one = lstm(*RUN, "--set", "train.loss=cross_entropy")
    two = lstm(*RUN, "--set", "train.loss=cross_entropy", "--workers", "2", "--quiet")
    assert (two.code, two.err) == (3, one.err)
    assert two.json == one.json


def processes(parent: int) -> list[int]:
    """Worker processes of a command, from /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "stat").read_text().rpartition(")")[2].split()
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status[1]) == parent and b"spawn_main" in words and status[0] != "Z":
            found.append(int(path.name))
    return found


def start(*arguments: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "lstm_cli", *RUN, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, stdout=-1, stderr=-1, text=True, env=environment)


def started_workers(command: subprocess.Popen[str], shards: int) -> list[int]:
    """The workers of a command, once there are this many shards."""
    end = time.monotonic() + 60
    while True:
        workers = processes(command.pid)
        if workers and len(list(Path().glob("two.h5.shard-*"))) >= shards:
            return workers
        assert command.poll() is None, command.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")


@linux
@pytest.mark.usefixtures("days")
def test_a_killed_worker_a_killed_command_and_a_stopped_one(lstm):
    """The killed command leaves no worker; the next one keeps its shards, and survives a kill."""
    slow = ("--set", "model.layers.0.hidden_size=512", "--batch-size", "1")
    one = lstm(*RUN, *slow, "--output", "one.h5").json
    arguments = (*slow, "--output", "two.h5", "--workers", "2")
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)):
        command = start(*arguments)
        workers = started_workers(command, shards=1)
        command.send_signal(number)
        command.communicate(timeout=30)
        assert command.returncode == code
        end = time.monotonic() + 20
        while any(map(is_alive, workers)):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert not list(Path().glob(".*.part.*"))
    finished = len(list(Path().glob("two.h5.shard-*")))
    command = start(*arguments)
    os.kill(started_workers(command, finished + 1)[0], signal.SIGKILL)
    out, err = command.communicate(timeout=120)
    assert command.returncode == 0, err
    assert "is finished and was not run again" in err
    assert json.loads(out)["metrics"] == one["metrics"]
    assert_equal_results("two.h5", "one.h5")


class FragilePool:
    """Threads as workers, that die when they compute a task in `deadly`."""

    size = most_submitted = 2

    def __init__(self, deadly: dict[int, int]) -> None:
        self.deadly, self.started = dict(deadly), 0

    def start(self) -> Executor:
        self.started += 1
        return ThreadPoolExecutor(2)

    def stop(self, executor: Executor, *, is_done: bool) -> None:
        executor.shutdown(cancel_futures=True)

    def is_lost(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def compute(self, number: int) -> int:
        if self.deadly.get(number, 0) > 0:
            self.deadly[number] -= 1
            raise BrokenExecutor
        return number * number


def test_lost_tasks_are_done_again_up_to_a_bound() -> None:
    results: dict[int, int] = {}
    pool = FragilePool({3: MOST_DEATHS - 1})
    run_tasks(pool, pool.compute, range(1, 7), results.__setitem__, lambda: None)
    assert results == {n: n * n for n in range(1, 7)}
    assert pool.started == MOST_DEATHS
    pool = FragilePool({3: MOST_DEATHS})
    with pytest.raises(LstmCliError, match="share 3 was lost 3 times|share [24] was lost 3 times"):
        run_tasks(pool, pool.compute, range(1, 7), results.__setitem__, lambda: None)


def test_a_task_that_the_pool_gives_up() -> None:
    def compute(number: int) -> int:
        raise MemoryError

    with pytest.raises(LstmCliError, match="share 1 was lost"):
        run_tasks(FragilePool({}), compute, [1], lambda *_: None, lambda: None)


def test_a_request_to_stop() -> None:
    def check() -> None:
        raise KeyboardInterrupt

    pool = FragilePool({})
    with pytest.raises(KeyboardInterrupt):
        run_tasks(pool, pool.compute, [1, 2], lambda *_: None, check)
