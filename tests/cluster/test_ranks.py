"""Training on several ranks under mpiexec: equal bits, signals, errors, mistakes of launchers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi_commands import MPIEXEC, environment, run, start

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="mpiexec is not installed")

N, T, D = 40, 12, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of ragged sequences: with a class each, and with two numbers a step."""
    path = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, T, D)).astype("f4")
    lengths = rng.integers(1, T + 1, N)
    for name, targets in (("classes", np.arange(N) % 2), ("steps", x[:, :, :2] * 0.5)):
        with h5py.File(path / f"{name}.h5", "w") as file:
            file["inputs"], file["targets"], file["lengths"] = x, targets, lengths
    bad = x.copy()
    bad[17, 0, 2] = np.nan
    with h5py.File(path / "bad.h5", "w") as file:
        file["inputs"], file["targets"], file["lengths"] = bad, np.arange(N) % 2, lengths
    return path


def config(path: Path, layer: str, last: bool = True, train: str = "") -> Path:
    head = "{type: dense, units: 2, activation: softmax}" if last else "{type: dense, units: 2}"
    loss = "cross_entropy" if last else "mse"
    path.write_text(
        f"model:\n  input_size: {D}\n  layers:\n"
        f"    - {{{layer}, return_sequences: {str(not last).lower()}}}\n    - {head}\n"
        f"train:\n  loss: {loss}\n  epochs: 2\n  batch_size: 9\n  micro_batches: 5\n{train}"
    )
    return path


def digest(output: Path) -> str:
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()


KINDS = {
    "lstm": ("type: lstm, hidden_size: 6, peepholes: true, dropout: 0.2", "classes", ""),
    "gru": ("type: gru, hidden_size: 6, bidirectional: true", "classes", "  clip_norm: 0.5\n"),
    "rnn": ("type: rnn, hidden_size: 6", "steps", "  truncate: 5\n"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_have_the_same_bits_on_any_number_of_ranks(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    layer, data, more = KINDS[kind]
    file = config(tmp_path / "c.yaml", layer, data == "classes", more + "  validation: 0.2\n")
    digests = set()
    for ranks, threads in ((1, 1), (2, 2), (3, 1)):
        output = tmp_path / f"r{ranks}"
        arguments = ("train", file, folder / f"{data}.h5", "--output", output)
        code, out, err = run(ranks, *arguments, "--threads", threads, "--json", "--quiet")
        assert code == 0, err
        document = json.loads(out)  # one document, of rank 0
        assert (document["epochs"], document["ranks"]) == (2, ranks)
        digests.add(digest(output))
    resumed = ("--output", tmp_path / "r3", "--resume", "--set", "train.epochs=3", "--quiet")
    assert run(2, "train", file, folder / f"{data}.h5", *resumed)[0] == 0
    single = ("--output", tmp_path / "r1", "--resume", "--set", "train.epochs=3", "--quiet")
    assert run(1, "train", file, folder / f"{data}.h5", *single)[0] == 0
    assert len(digests) == 1
    assert digest(tmp_path / "r3") == digest(tmp_path / "r1")


def ranks_of(output: Path) -> list[int]:
    """Process numbers of two ranks that write to a folder, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().split(b"\0")
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((v for v in variables if v.startswith(b"PMI_RANK=")), None)
        if rank is not None and str(output).encode() in words:
            found[int(rank.partition(b"=")[2])] = int(path.name)
    assert sorted(found) == [0, 1]
    return [found[0], found[1]]


def started_training(folder: Path, tmp_path: Path) -> tuple[subprocess.Popen[str], Path, Path]:
    """A long run of two ranks that has ended an epoch."""
    file = config(tmp_path / "c.yaml", "type: lstm, hidden_size: 6")
    output = tmp_path / "run"
    process = start(
        2,
        *("train", file, folder / "classes.h5", "--output", output, "--threads", 1),
        *("--set", "train.epochs=100000", "--checkpoint-every", 0.05),
    )
    end = time.monotonic() + 40
    while not (output / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    return process, output, file


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["TERM", "USR1"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_ends_all_with_a_checkpoint(
    folder: Path, tmp_path: Path, rank: int, number: int
) -> None:
    process, output, file = started_training(folder, tmp_path)
    os.kill(ranks_of(output)[rank], number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "stopped in epoch" in err
    rows = (output / "metrics.jsonl").read_text().splitlines()
    more = ("--set", f"train.epochs={len(rows) + 1}", "--quiet", "--json")
    fewer = run(3, "train", file, folder / "classes.h5", "--output", output, "--resume", *more)
    assert fewer[0] == 4  # the checkpoint is read: fewer epochs than before are refused
    assert "train.epochs was 100000" in fewer[2]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_leaves_a_whole_checkpoint_and_no_process(
    folder: Path, tmp_path: Path, rank: int
) -> None:
    process, output, _ = started_training(folder, tmp_path)
    ranks = ranks_of(output)
    os.kill(ranks[rank], signal.SIGKILL)
    began = time.monotonic()
    process.communicate(timeout=20)
    assert process.returncode != 0
    for number in ranks:
        while Path(f"/proc/{number}").exists():
            assert time.monotonic() - began < 20
            time.sleep(0.05)
    from lstm_cli.workflows.train.training_folder import read_checkpoint

    stored = read_checkpoint(output / "checkpoint.safetensors")
    assert all(np.isfinite(v).all() for v in stored.checkpoint.part("weights").values())


def test_a_value_that_is_not_finite_is_named_once_with_its_rank(
    folder: Path, tmp_path: Path
) -> None:
    file = config(tmp_path / "c.yaml", "type: lstm, hidden_size: 6")
    code, _, err = run(3, "train", file, folder / "bad.h5", "--output", tmp_path / "r", "--quiet")
    assert code == 3
    assert err.count("error:") == 1
    assert "sequence 17, step 0, feature 2" in err
    assert "rank " in err


def test_errors_of_all_ranks_are_printed_once(folder: Path, tmp_path: Path) -> None:
    file = config(tmp_path / "c.yaml", "type: lstm, hidden_size: 6")
    data, output = folder / "classes.h5", tmp_path / "r"
    many = run(6, "train", file, data, "--output", output)
    assert many[0] == 2
    assert many[2].count("error:") == 1
    assert "hint: --set train.micro_batches=6" in many[2]
    (output / "tensorboard").mkdir(parents=True)
    taken = run(2, "train", file, data, "--output", output)
    assert taken[0] == 1
    assert taken[2].count("error:") == 1
    missing = run(2, "train", tmp_path / "no.yaml", data, "--output", output)
    assert missing[0] == 4
    assert missing[2].count("error:") == 1


def test_other_commands_refuse_several_processes(folder: Path) -> None:
    code, out, err = run(2, "data", folder / "classes.h5")
    assert (code, out) == (2, "")
    assert err.count("error: data was started as 2 processes, but runs on one") == 1
    for words, printed in ((("train", "--help"), "out"), (("train", "--oops"), "error:")):
        _, out, err = run(2, *words)
        assert (out.count("Usage:") if printed == "out" else err.count(printed)) == 1


def test_an_error_of_one_rank_ends_all(folder: Path, tmp_path: Path) -> None:
    """A rank that cannot start, since its processors are of another kind, is not waited for."""
    file = config(tmp_path / "c.yaml", "type: lstm, hidden_size: 6")
    wrapper = tmp_path / "rank.py"
    wrapper.write_text(
        "import os, sys\n"
        "from lstm_cli.engines.reference.engine import ReferenceEngine\n"
        "ReferenceEngine.kernels_title = f\"kind {os.environ['PMI_RANK']}\"\n"
        "from lstm_cli.cli.main import main\n"
        "sys.exit(main())\n"
    )
    words = [MPIEXEC, "-n", "2", sys.executable, str(wrapper), "train", str(file)]
    words += [str(folder / "classes.h5"), "--output", str(tmp_path / "r"), "--engine", "reference"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 5
    assert done.stderr.count("the ranks compute on processors of different kinds") == 1
