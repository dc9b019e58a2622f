"""The folder of a training run: resuming, other files in it, two processes, faults of the disk."""

from __future__ import annotations

import errno
import os
import re
import shutil

import h5py
import numpy as np
import pytest
from training_files import CONFIG, checkpoint_progress, metrics_rows, write_classes

from lstm_cli.formats import native
from lstm_cli.workflows.train.training_folder import TrainingFolder
from lstm_cli.workflows.train.training_run import TrainingRun

pytestmark = pytest.mark.usefixtures("at_root")


def test_a_folder_that_holds_a_run(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    lstm("train", net, words, "--output", out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    outcome = lstm("train", net, words, "--output", out)
    assert outcome.code == 1
    assert "holds a run already" in outcome.err
    assert "hint: --resume" in outcome.err
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert {**before, ".lock": b""} == {**after, ".lock": b""}


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "model.safetensors"])
def test_files_that_would_be_overwritten(lstm, net, words, tmp_path, name):
    out = tmp_path / "run"
    out.mkdir()
    (out / name).write_text("mine")
    for more in ([], ["--resume"]):
        outcome = lstm("train", net, words, "--output", out, *more)
        assert outcome.code == 1
        assert name in outcome.err
    assert (out / name).read_text() == "mine"


def test_resuming_in_an_empty_folder_begins(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    outcome = lstm("train", net, words, "--output", out, "--resume")
    assert outcome.code == 0, outcome.err
    assert len(metrics_rows(out)) == 3


def test_resuming_a_run_that_has_ended(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    lstm("train", net, words, "--output", out)
    before = (out / "model.safetensors").read_bytes()
    outcome = lstm("train", net, words, "--output", out, "--resume")
    assert outcome.code == 0
    assert "has ended after epoch 3: all epochs are done" in outcome.err
    assert (out / "model.safetensors").read_bytes() == before
    assert lstm("train", net, words, "--output", out, "--resume", "--json").json["epochs"] == 3


def test_more_epochs_move_the_end_of_a_cosine(lstm, net, words, tmp_path):
    given = ["train", net, words, "--output", tmp_path / "run", "--set", "train.schedule=cosine"]
    lstm(*given)
    outcome = lstm(*given, "--resume", "--set", "train.epochs=4")
    assert outcome.code == 0
    assert "the cosine of the learning rate now ends" in outcome.err


def test_layers_without_biases_get_none(lstm, net, words, tmp_path):
    """Neither the model nor the checkpoint, after decay and a resumed run, holds a bias."""
    text = net.read_text().replace("hidden_size: 4", "hidden_size: 4, bias: false")
    net.write_text(text.replace("units: 3", "units: 3, bias: false"))
    out, whole = tmp_path / "run", tmp_path / "whole"
    decay = ["--set", "train.optimizer={type: adamw, learning_rate: 0.02, weight_decay: 0.1}"]
    more = ["--set", "train.epochs=6"]
    assert lstm("train", net, words, "--output", out, *decay).code == 0
    assert lstm("train", net, words, "--output", out, *decay, *more, "--resume").code == 0
    lstm("train", net, words, "--output", whole, *decay, *more)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    kept = native.read(out / "checkpoint.safetensors", allow_integers=True).tensors
    assert any(re.fullmatch(r"updates/.*/layers\.1\.weight", name) for name in kept)
    assert not [name for name in kept if name.rpartition(".")[2].startswith("bias")]
    assert not [n for n in native.read(out / "model.safetensors").tensors if "bias" in n]
    assert metrics_rows(out)[-1]["loss"] < metrics_rows(out)[0]["loss"]
    changed = ["--set", "model.layers.1.bias=true", *decay, *more, "--resume"]
    refused = lstm("train", net, words, "--output", out, *changed)
    assert refused.code == 4
    assert "bias" in refused.err


def test_more_epochs_go_on(lstm, net, words, tmp_path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    lstm("train", net, words, "--output", out)
    more = ["--set", "train.epochs=6"]
    assert lstm("train", net, words, "--output", out, *more, "--resume").code == 0
    lstm("train", net, words, "--output", whole, *more)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (out / "config.yaml").read_bytes() == (whole / "config.yaml").read_bytes()
    assert len(metrics_rows(out)) == 6


def test_everything_that_changed_is_named(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    lstm("train", net, words, "--output", out)
    sets = ["--set", "train.optimizer.learning_rate=0.5", "--set", "model.layers.0.peepholes=true"]
    outcome = lstm(
        "train", net, words, "--output", out, "--resume", *sets, "--batch-size", 4, "--seed", 2
    )
    assert outcome.code == 4
    for text in (
        "train.optimizer.learning_rate was 0.02, and is now 0.5",
        "model.layers.0.peepholes was False, and is now True",
        "train.batch_size was 8, and is now 4",
        "train.seed was 0, and is now 2",
        "--set train.optimizer.learning_rate=0.5",
    ):
        assert text in outcome.err
    fewer = lstm("train", net, words, "--output", out, "--resume", "--set", "train.epochs=2")
    assert fewer.code == 4
    assert "train.epochs was 3, and is now 2" in fewer.err
    dtype = lstm("train", net, words, "--output", out, "--resume", "--dtype", "float64")
    assert dtype.code == 4
    assert "hint: --dtype float32" in dtype.err


def test_another_optimizer_is_named_key_by_key(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    lstm("train", net, words, "--output", out)
    outcome = lstm("train", net, words, "--output", out, "--resume", "--set", "train.optimizer=sgd")
    assert outcome.code == 4
    assert "train.optimizer.type was adam, and is now sgd" in outcome.err


def test_other_data(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    lstm("train", net, words, "--output", out)
    more = ["--output", out, "--resume", "--set", "train.epochs=9"]
    fewer = lstm("train", net, write_classes(tmp_path / "b.h5", N=29), *more)
    assert fewer.code == 3
    assert "30 sequences" in fewer.err
    assert "29 sequences" in fewer.err
    with h5py.File(words, "a") as file:
        file["inputs"][17, 1, 2] += 0.5
    changed = lstm("train", net, words, *more)
    assert changed.code == 3
    assert "other values in inputs" in changed.err


def test_a_damaged_checkpoint(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    lstm("train", net, words, "--output", out)
    path = out / "checkpoint.safetensors"
    whole = path.read_bytes()
    more = ["--output", out, "--resume", "--set", "train.epochs=9"]
    path.write_bytes(whole[: len(whole) // 2])
    assert lstm("train", net, words, *more).code == 4
    path.write_bytes((out / "model.safetensors").read_bytes())
    none = lstm("train", net, words, *more)
    assert none.code == 4
    assert "is no checkpoint of a run" in none.err
    file = native.read(out / "model.safetensors")
    native.write(path, file.tensors, file.config, {"training": '{"progress": {}, "facts": {}}'})
    assert lstm("train", net, words, *more).code == 4


def test_metrics_that_were_half_written_are_mended(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    lstm("train", net, words, "--output", out)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "updates": 16}\n{"epo')
    lstm("train", net, words, "--output", out, "--resume", "--set", "train.epochs=5")
    assert [row["epoch"] for row in metrics_rows(out)] == [1, 2, 3, 4, 5]
    assert all("loss" in row for row in metrics_rows(out))
    (out / "metrics.jsonl").unlink()
    outcome = lstm("train", net, words, "--output", out, "--resume", "--set", "train.epochs=6")
    assert outcome.code == 0
    assert "lacks some of the 5 epochs" in outcome.err


def test_one_process_at_a_time(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with TrainingFolder(out, resume=False):
        outcome = lstm("train", net, words, "--output", out, "--resume")
        assert outcome.code == 1
        assert "another process is training" in outcome.err
        assert f"process {os.getpid()}" in outcome.err
    assert list(out.iterdir()) == []
    assert lstm("train", net, words, "--output", out).code == 0


def test_a_folder_that_another_process_made_meanwhile(lstm, net, words, tmp_path, monkeypatch):
    out, run = tmp_path / "run", TrainingRun.run

    def beaten(self, *given):
        monkeypatch.undo()
        assert lstm("train", net, words, "--output", out).code == 0
        return run(self, *given)

    monkeypatch.setattr(TrainingRun, "run", beaten)
    outcome = lstm("train", net, words, "--output", out)
    assert outcome.code == 1
    assert "holds a run already" in outcome.err
    assert checkpoint_progress(out)["epoch"] > 0


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("more", [(), ("--resume",), ("--checkpoint-every", 0)])
def test_a_failed_first_attempt_leaves_nothing(lstm, net, tmp_path, exists, more):
    """Data are mended, and the same command works: it begins anew."""
    out, words = tmp_path / "runs" / "run", tmp_path / "words.h5"
    if exists:
        out.mkdir(parents=True)
        (out / ".0123abcd.part.model.safetensors").write_text("half")
    kinds = np.zeros(30, np.int64)
    kinds[7] = 3
    features = write_classes(tmp_path / "wide.h5")
    with h5py.File(features, "a") as file:
        x = np.pad(file["inputs"][...], ((0, 0), (0, 0), (0, 1)))
        del file["inputs"]
        file["inputs"] = x
    attempts = {
        "7": lambda: write_classes(words, targets=kinds),
        "not finite": lambda: write_classes(words, bad=np.nan),
        "does not fit": lambda: write_classes(words, targets=np.zeros((30, 4), np.float32)),
        "features": lambda: shutil.copy(features, words),
    }
    arguments = ("train", net, words, "--output", out, "--batch-size", 30, *more)
    for what, spoil in attempts.items():
        spoil()
        outcome = lstm(*arguments)
        assert outcome.code == 3, outcome.err
        assert what in outcome.err or what == "does not fit"
        assert list(out.parent.iterdir() if out.parent.exists() else ()) == (
            [out] if exists else []
        )
        assert not exists or list(out.iterdir()) == []
        words.unlink()
    write_classes(words)
    assert lstm(*arguments).code == 0
    assert {"model.safetensors", "checkpoint.safetensors", "config.yaml", "metrics.jsonl"} <= {
        path.name for path in out.iterdir()
    }


def test_a_wrong_label_of_two_classes_is_found_before_the_first_step(lstm, net, tmp_path):
    net.write_text(
        CONFIG.replace("units: 3, activation: softmax", "units: 1, activation: sigmoid").replace(
            "loss: cross_entropy", "loss: binary_cross_entropy"
        )
    )
    kinds = np.arange(30) % 2
    kinds[29] = 2
    words = write_classes(tmp_path / "words.h5", targets=kinds)
    given = ("train", net, words, "--output", tmp_path / "run", "--checkpoint-every", 0)
    outcome = lstm(*given, "--batch-size", 1)
    assert outcome.code == 3
    assert "2 in sequence 29" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", range(1, 9))
def test_a_full_disk_at_any_call(lstm, net, words, tmp_path, number):
    """Before the first checkpoint nothing is left; later the last one, and whole lines."""
    out, calls = tmp_path / "run", []

    def faulty(function):
        def call(*arguments):
            calls.append(function)
            if len(calls) >= number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", faulty(os.fsync))
        outcome = lstm("train", net, words, "--output", out, "--quiet")
    assert outcome.code == 1, outcome.err
    assert "no space left on device" in outcome.err
    assert not list(tmp_path.rglob(".*.part.*"))
    if number == 1:
        assert not out.exists()
    else:
        assert lstm("train", net, words, "--output", out, "--resume", "--quiet").code == 0
    again = lstm("train", net, words, "--output", tmp_path / "whole", "--quiet")
    assert again.code == 0
    if number > 1:
        whole = tmp_path / "whole" / "model.safetensors"
        assert (out / "model.safetensors").read_bytes() == whole.read_bytes()
        assert [row["loss"] for row in metrics_rows(out)] == [
            row["loss"] for row in metrics_rows(whole.parent)
        ]


def test_half_a_line_of_metrics_is_taken_back(lstm, net, words, tmp_path, monkeypatch):
    from lstm_cli.workflows.train import training_folder

    def half(file, data):
        file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training_folder, "write_all", half)
    out = tmp_path / "run"
    assert lstm("train", net, words, "--output", out).code == 1
    assert (out / "metrics.jsonl").read_bytes() == b""


def test_a_file_in_the_place_of_the_folder(lstm, net, words, tmp_path):
    (tmp_path / "run.h5").write_text("mine")
    outcome = lstm("train", net, words, "--output", tmp_path / "run.h5")
    assert outcome.code == 2
    assert "is a file, but a training run needs a folder" in outcome.err
    hint = outcome.err.rpartition("hint: --output ")[2].strip()
    assert lstm("train", net, words, "--output", hint).code == 0
    assert (tmp_path / "run.h5").read_text() == "mine"


@pytest.mark.parametrize("name", ["tensorboard", "curves.png", "metrics.jsonl"])
def test_a_folder_with_files_of_others(lstm, net, words, tmp_path, name):
    out = tmp_path / "run"
    (out / name).mkdir(parents=True)
    outcome = lstm("train", net, words, "--output", out)
    assert outcome.code == 1
    assert "files that a run would replace" in outcome.err
    assert [path.name for path in out.iterdir()] == [name]


def test_what_a_dead_process_left_is_removed(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").write_text("process 1\n")
    (out / ".0123abcd.part.checkpoint.safetensors").write_bytes(b"half")
    assert lstm("train", net, words, "--output", out).code == 0
    assert not list(out.glob(".*.part.*"))


def test_a_folder_that_cannot_be_made(lstm, net, words, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = lstm("train", net, words, "--output", tmp_path / "file" / "run")
    assert outcome.code == 1
    assert "cannot be written" in outcome.err


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("at", [3, 5, 9, 12])
def test_a_full_disk_leaves_the_last_checkpoint(lstm, net, words, tmp_path, monkeypatch, call, at):
    """The disk fills up at one write of 7 checkpoints, 3 rows, up to 3 models and a config."""
    out, whole, calls = tmp_path / "run", tmp_path / "whole", []
    lstm("train", net, words, "--output", whole)
    real = getattr(os, call)

    def full(*args):
        calls.append(args)
        if len(calls) > at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        outcome = lstm("train", net, words, "--output", out, "--checkpoint-every", 0)
    assert outcome.code == 1
    assert "no space left on device" in outcome.err
    assert "hint: free some space" in outcome.err
    assert not list(out.glob(".*.part"))
    assert checkpoint_progress(out)["epoch"] <= 2
    resumed = lstm("train", net, words, "--output", out, "--resume")
    assert resumed.code == 0, resumed.err
    name = "model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
    strip = [{**row, "seconds": 0} for row in metrics_rows(out)]
    assert strip == [{**row, "seconds": 0} for row in metrics_rows(whole)]
