"""Runs killed at any moment and resumed, against the bits of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from repository import ROOT
from training_files import metrics_rows

from lstm_cli.cli.interrupts import interrupts
from lstm_cli.formats import native

KILLS = 16
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

CONFIG = """\
model:
  input_size: 3
  layers:
    - {type: lstm, hidden_size: 5, peepholes: true, recurrent_dropout: 0.1}
    - {type: dropout, rate: 0.2}
    - {type: dense, units: 2, activation: softmax}
train:
  loss: cross_entropy
  optimizer: {type: adam, learning_rate: 0.01, weight_decay: 0.001}
  schedule: {type: reduce_on_plateau, patience: 1, factor: 0.5}
  batch_size: 7
  epochs: 30
  validation: 0.2
  class_weights: balanced
  normalize: standard
  clip_norm: 0.5
  seed: 5
"""


def write_data(path: Path, seed: int = 0) -> Path:
    """61 ragged sequences of two classes, a target a step."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, 61)
    x = rng.standard_normal((61, 12, 3)) * [1, 10, 0.1] + [5, 0, -1]
    with h5py.File(path, "w") as file:
        file["inputs"] = x.astype(np.float32)
        file["lengths"] = lengths
        file["targets"] = (x[..., 0] + x[..., 2] > 4).astype(np.int64)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "net.yaml").write_text(CONFIG)
    return folder / "net.yaml", write_data(folder / "words.h5")


def command(files, output, *more):
    config, data = files
    return [
        *(sys.executable, "-m", "lstm_cli", "train", str(config), str(data)),
        *("--output", str(output), "--threads", "1", "--quiet", *map(str, more)),
    ]


def start(files, output, *more):
    return subprocess.Popen(
        command(files, output, *more),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(files, output, *more):
    process = start(files, output, *more)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def undisturbed(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(files, output)
    return output


def metrics(output):
    rows = metrics_rows(output)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_run(files, expected):
    """Best weights, all that a checkpoint holds, and the metrics: the same bits."""
    name = "model.safetensors"
    assert (files / name).read_bytes() == (expected / name).read_bytes()
    a, b = (
        native.read(folder / "checkpoint.safetensors", allow_integers=True)
        for folder in (files, expected)
    )
    assert a.tensors.keys() == b.tensors.keys()
    for key, value in b.tensors.items():
        assert a.tensors[key].tobytes() == value.tobytes(), key
    assert metrics(files) == metrics(expected)
    assert (files / "config.yaml").read_bytes() == (expected / "config.yaml").read_bytes()


def progress(output):
    """Epochs and batches that the checkpoint says are done."""
    path = output / "checkpoint.safetensors"
    if not path.exists():
        return (-1, -1)
    told = json.loads(native.read(path, allow_integers=True).metadata["training"])["progress"]
    return told["epoch"], told["batch"]


@posix
def test_killed_at_random_moments(files, undisturbed, tmp_path):
    output, rng = tmp_path / "run", random.Random(3)
    lines = (undisturbed / "metrics.jsonl").read_text().splitlines()
    whole = sum(json.loads(line)["seconds"] for line in lines)
    records = []
    while len(records) < KILLS:
        before = progress(output)
        often = rng.choice([0, 0, 0.02, 10])
        process = start(files, output, "--resume", "--checkpoint-every", often)
        # Killed while it starts would be no test: wait until it has come further.
        deadline = time.monotonic() + 60
        while process.poll() is None and progress(output) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.random() * whole / 60)
        process.kill()
        _, err = process.communicate()
        if process.returncode == 0:
            break  # a machine that became faster ended the run before it was killed
        assert process.returncode == -signal.SIGKILL, err
        records.append(progress(output))
    assert len(records) >= KILLS // 2
    assert records == sorted(records)
    assert len(set(records)) == len(records)
    assert any(batch for _, batch in records), "no kill fell within an epoch"
    finish(files, output, "--resume")
    assert_same_run(output, undisturbed)


def wait_for_progress(process, output):
    """Until the first batch is saved."""
    deadline = time.monotonic() + 60
    while progress(output) <= (0, 0):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(files, undisturbed, tmp_path, number):
    output = tmp_path / "a run"
    line = [
        word for word in command(files, output, "--checkpoint-every", "0.02") if word != "--quiet"
    ]
    process = subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_progress(process, output)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "finishing the step; Ctrl-C again stops at once" in err
    note = next(text for text in err.splitlines() if text.startswith("stopped in epoch"))
    assert note.startswith(f"stopped in epoch {progress(output)[0] + 1}; lstm-cli train ")
    assert note.endswith("--resume continues")
    assert "Traceback" not in err
    # The printed line continues the run.
    again = note.partition("; lstm-cli ")[2].removesuffix(" continues")
    resumed = subprocess.run(
        [sys.executable, "-m", "lstm_cli", *shlex.split(again)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(output, undisturbed)


@posix
def test_asked_twice_it_stops_at_once(capfd):
    with interrupts(quiet=False) as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        assert "finishing the step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@posix
def test_two_processes_in_one_folder(files, undisturbed, tmp_path):
    output = tmp_path / "run"
    first = start(files, output, "--checkpoint-every", "0.02")
    wait_for_progress(first, output)
    first.send_signal(signal.SIGSTOP)  # or it might end before the second one looks
    try:
        second = start(files, output, "--resume")
        _, err = second.communicate(timeout=60)
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"process {first.pid}" in err
    _, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert_same_run(output, undisturbed)


def test_the_run_of_another_thread_count_goes_on_with_it(files, tmp_path, lstm):
    config, data = files
    arguments = ("train", config, data, "--output", tmp_path / "run", "--quiet")
    assert lstm(*arguments, "--threads", 1, "--set", "train.epochs=1").code == 0
    more = lstm(*arguments, "--set", "train.epochs=2", "--resume", "--json").json
    assert more["threads"] == 1
    assert more["notes"] == [] or all("threads" not in note for note in more["notes"])
    other = lstm(*arguments, "--set", "train.epochs=3", "--resume", "--threads", 2, "--json").json
    assert other["threads"] == 2
    assert not any("threads" in note for note in other["notes"])  # the bits are the same
    numpy = ("train", config, data, "--output", tmp_path / "numpy", "--engine", "reference")
    assert lstm(*numpy, "--threads", 1, "--set", "train.epochs=1", "--quiet").code == 0
    more = ("--set", "train.epochs=2", "--resume", "--threads", 2, "--json")
    notes = lstm(*numpy, *more).json["notes"]
    assert any("threads 1 and continues with 2" in note for note in notes)
