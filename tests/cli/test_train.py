"""``lstm-cli train`` as a user runs it, and every way in which it can go wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys

import h5py
import numpy as np
import pytest

import lstm_cli
from lstm_cli.api.training_folder import TrainingFolder
from lstm_cli.api.training_run import TrainingRun
from lstm_cli.formats import native

pytestmark = pytest.mark.usefixtures("at_root")

VOWELS = "data/japanese-vowels.h5:/train"
VOWELS_CONFIG = "configs/japanese-vowels.yaml"

CONFIG = """\
model:
  input_size: 3
  layers:
    - {type: lstm, hidden_size: 4, return_sequences: false}
    - {type: dense, units: 3, activation: softmax}
train:
  loss: cross_entropy
  optimizer: {type: adam, learning_rate: 0.02}
  batch_size: 8
  epochs: 3
"""


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.yaml"
    path.write_text(CONFIG)
    return path


def write(path, N=30, seed=0, group="/", targets=None, bad=None):
    """Ragged sequences of three classes; `bad` is put at sequence 11, step 2, feature 1."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, N)
    x = rng.standard_normal((N, 9, 3)).astype(np.float32)
    kinds = np.minimum(rng.integers(0, 4, N), 2)
    x[np.arange(N), 0, kinds] += 3
    if bad is not None:
        x[11, 2, 1] = bad
    with h5py.File(path, "a") as file:
        place = file.require_group(group)
        place["inputs"], place["lengths"] = x, lengths
        place["targets"] = kinds if targets is None else targets
    return path


@pytest.fixture
def words(tmp_path):
    return write(tmp_path / "words.h5")


def rows(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def checkpoint_of(output):
    file = native.read(output / "checkpoint.safetensors", allow_integers=True)
    return json.loads(file.metadata["training"])["progress"]


def test_a_run_from_beginning_to_end(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    outcome = lstm("train", net, words, "--output", out, "--set", "train.validation=0.2")
    assert outcome.code == 0, outcome.err
    names = {"model.safetensors", "checkpoint.safetensors", "config.yaml", "metrics.jsonl"}
    assert names <= {path.name for path in out.iterdir()}
    result = rows(out)
    assert [list(row) for row in result] == [
        ["epoch", "updates", "loss", "accuracy", "val_loss", "val_accuracy", "rate", "seconds"]
    ] * 3
    assert [row["updates"] for row in result] == [3, 6, 9]
    assert "24 sequences for training, 6 for validation" in outcome.out
    best = min(result, key=lambda row: row["val_loss"])
    assert f"in epoch {best['epoch']} of 3" in outcome.out
    assert f"lstm-cli run {out}/model.safetensors" in outcome.out
    lines = [line for line in outcome.err.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert f"val_loss {result[2]['val_loss']:.4g}" in lines[2]
    assert "rate 0.02" in lines[2]


def test_json_and_quiet(lstm, net, words, tmp_path):
    outcome = lstm("train", net, words, "--output", tmp_path / "run", "--json", "--quiet")
    document = outcome.json
    assert outcome.err == ""
    assert document["epochs"] == 3
    assert document["end"] == "epochs"
    assert document["monitor"] == "loss"
    assert document["metrics"]["loss"] == document["best"]
    assert set(document["metrics"]) == {"epoch", "updates", "loss", "accuracy", "rate", "seconds"}
    assert document["output"]["model.safetensors"] == str(tmp_path / "run/model.safetensors")
    assert {"device", "engine", "model"} <= set(document)


@pytest.mark.parametrize("normalize", ["false", "standard", "minmax"])
def test_the_model_runs_without_a_config_and_gives_its_validation_metrics(
    lstm, net, words, tmp_path, normalize
):
    write(words, seed=1, group="held", N=17)
    sets = ["--set", f"train.validation={words}:/held", "--set", f"train.normalize={normalize}"]
    with h5py.File(words, "a") as file:
        for name in ("inputs", "lengths", "targets"):
            file.move(name, f"train/{name}")
    out = tmp_path / "run"
    train = lstm("train", net, f"{words}:/train", "--output", out, *sets, "--json")
    assert train.code == 0, train.err
    assert train.json["data"] == {"sequences": 30, "held_out": 17}
    run = lstm("run", out / "model.safetensors", f"{words}:/held", "--json").json
    for name in ("loss", "accuracy"):
        expected = train.json["metrics"][f"val_{name}"]
        assert run["metrics"][name] == pytest.approx(expected, rel=1e-5)
    # The config in the folder names the same data, seen from there.
    again = lstm(
        "train", out / "config.yaml", f"{words}:/train", "--output", out, "--resume", "--quiet"
    )
    assert again.code == 0, again.err


def test_two_runs_are_alike_and_another_seed_is_not(lstm, net, words, tmp_path):
    for name, more in (("a", []), ("b", []), ("c", ["--seed", 8])):
        assert lstm("train", net, words, "--output", tmp_path / name, *more).code == 0
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_the_best_weights_are_those_of_their_epoch(lstm, net, words, tmp_path):
    """A rate so large that the loss does not fall for long."""
    sets = ["--set", "train.optimizer.learning_rate=0.5", "--set", "train.validation=0.3"]
    whole = tmp_path / "whole"
    lstm("train", net, words, "--output", whole, *sets, "--set", "train.epochs=12")
    best = min(rows(whole), key=lambda row: row["val_loss"])["epoch"]
    assert best < 12
    short = tmp_path / "short"
    lstm("train", net, words, "--output", short, *sets, "--set", f"train.epochs={best}")
    a, b = (native.read(out / "model.safetensors").tensors for out in (whole, short))
    for name, value in b.items():
        np.testing.assert_array_equal(a[name], value)


def test_patience_ends_early_and_resuming_says_so(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    sets = ["--set", "train.optimizer.learning_rate=1.0", "--set", "train.patience=2"]
    sets += ["--set", "train.validation=0.3"]
    outcome = lstm(
        "train", net, words, "--output", out, *sets, "--set", "train.epochs=50", "--json"
    )
    epochs = outcome.json["epochs"]
    assert outcome.json["end"] == "patience"
    assert epochs == outcome.json["best_epoch"] + 2 < 50
    again = lstm(
        "train", net, words, "--output", out, *sets, "--set", "train.epochs=60", "--resume"
    )
    assert again.code == 0
    assert "has ended" in again.err
    assert "patience" in again.err
    assert len(rows(out)) == epochs


def test_starting_weights(lstm, net, words, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    lstm("train", net, words, "--output", first)
    arguments = ["--weights", first / "model.safetensors"]
    outcome = lstm("train", net, words, "--output", second, *arguments, "--json")
    assert outcome.json["metrics"]["loss"] < rows(first)[-1]["loss"]
    other = tmp_path / "other.safetensors"
    lstm("train", net, words, "--output", tmp_path / "third", "--seed", 3)
    (tmp_path / "third" / "model.safetensors").rename(other)
    more = ["--set", "train.epochs=5", "--resume"]
    refused = lstm("train", net, words, "--output", second, "--weights", other, *more)
    assert refused.code == 4
    assert "is not the file that the run" in refused.err
    assert lstm("train", net, words, "--output", second, *arguments, *more).code == 0


def test_class_weights_and_label_smoothing_change_the_run(lstm, net, words, tmp_path):
    options = {
        "plain": [],
        "balanced": ["train.class_weights=balanced"],
        "named": ["train.class_weights={0: 2.0, 2: 0.5}"],
        "smooth": ["train.label_smoothing=0.2"],
    }
    result = {}
    for name, sets in options.items():
        given = [word for one in sets for word in ("--set", one)]
        outcome = lstm("train", net, words, "--output", tmp_path / name, *given)
        assert outcome.code == 0, outcome.err
        result[name] = (tmp_path / name / "model.safetensors").read_bytes()
    tensors = {native.read(tmp_path / n / "model.safetensors").tensors["layers.1.bias"].tobytes()
               for n in options}  # fmt: skip
    assert len(tensors) == 4
    wrong = lstm(
        "train", net, words, "--output", tmp_path / "x", "--set", "train.class_weights={7: 2.0}"
    )
    assert wrong.code == 4
    assert "names an unknown class: 7" in wrong.err


def test_a_class_that_does_not_occur_has_no_balance(lstm, net, tmp_path):
    data = write(tmp_path / "two.h5", targets=np.arange(30) % 2)
    outcome = lstm(
        "train", net, data, "--output", tmp_path / "x", "--set", "train.class_weights=balanced"
    )
    assert outcome.code == 3
    assert "class 2 does not occur" in outcome.err


@pytest.mark.parametrize(
    ("config", "data", "names"),
    [
        ("sunspots", "data/sunspots.h5", {"loss", "mse", "mae"}),
        ("tmva-time", "data/tmva-time.h5:/train", {"loss", "accuracy", "auc"}),
        ("every-option", VOWELS, {"loss", "accuracy"}),
    ],
)
def test_shipped_configs(lstm, tmp_path, config, data, names):
    outcome = lstm(
        "train",
        f"configs/{config}.yaml",
        data,
        *("--output", tmp_path / "run", "--set", "train.epochs=1", "--json"),
    )
    assert outcome.code == 0, outcome.err
    assert names <= set(outcome.json["metrics"])


def test_sunspots_are_learned_in_their_own_units(lstm, tmp_path):
    out = tmp_path / "run"
    sets = ["--set", "train.epochs=8", "--set", "train.validation=0.2"]
    outcome = lstm("train", "configs/sunspots.yaml", "data/sunspots.h5", "--output", out, *sets)
    assert outcome.code == 0, outcome.err
    result = rows(out)
    with h5py.File("data/sunspots.h5") as file:
        variance = float(np.var(file["inputs"][()]))
    # Raw sunspot numbers: a forecast of their mean has their variance for an error.
    assert result[0]["mse"] > 0.2 * variance
    assert result[-1]["mse"] < 0.3 * variance
    assert result[-1]["val_mse"] < variance


def test_binary_classes_can_be_balanced(lstm, tmp_path):
    sets = ["--set", "train.class_weights=balanced", "--set", "train.label_smoothing=0.1"]
    outcome = lstm(
        "train",
        "configs/tmva-time.yaml",
        "data/tmva-time.h5:/train",
        *("--output", tmp_path / "run", "--set", "train.epochs=1", *sets, "--json"),
    )
    assert outcome.code == 0, outcome.err


def test_batch_size_and_dtype(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    options = ["--batch-size", 5, "--dtype", "float64", "--json"]
    document = lstm("train", net, words, "--output", out, *options).json
    assert document["metrics"]["updates"] == 18
    assert document["dtype"] == "float64"
    assert native.read(out / "model.safetensors").tensors["layers.1.bias"].dtype == np.float64
    auto = lstm("train", net, words, "--output", tmp_path / "b", "--batch-size", "auto", "--json")
    assert auto.json["metrics"]["updates"] == 12


# The folder


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
    assert len(rows(out)) == 3


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
    assert rows(out)[-1]["loss"] < rows(out)[0]["loss"]
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
    assert len(rows(out)) == 6


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
    fewer = lstm("train", net, write(tmp_path / "b.h5", N=29), *more)
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
    assert [row["epoch"] for row in rows(out)] == [1, 2, 3, 4, 5]
    assert all("loss" in row for row in rows(out))
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
    assert checkpoint_of(out)["epoch"] > 0


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
    features = write(tmp_path / "wide.h5")
    with h5py.File(features, "a") as file:
        x = np.pad(file["inputs"][...], ((0, 0), (0, 0), (0, 1)))
        del file["inputs"]
        file["inputs"] = x
    attempts = {
        "7": lambda: write(words, targets=kinds),
        "not finite": lambda: write(words, bad=np.nan),
        "does not fit": lambda: write(words, targets=np.zeros((30, 4), np.float32)),
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
    write(words)
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
    words = write(tmp_path / "words.h5", targets=kinds)
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
        assert [row["loss"] for row in rows(out)] == [row["loss"] for row in rows(whole.parent)]


def test_half_a_line_of_metrics_is_taken_back(lstm, net, words, tmp_path, monkeypatch):
    from lstm_cli.api import training_folder

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
    assert checkpoint_of(out)["epoch"] <= 2
    resumed = lstm("train", net, words, "--output", out, "--resume")
    assert resumed.code == 0, resumed.err
    name = "model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
    strip = [{**row, "seconds": 0} for row in rows(out)]
    assert strip == [{**row, "seconds": 0} for row in rows(whole)]


# Data and config


@pytest.mark.parametrize("normalize", ["false", "true"])
def test_a_nan_in_the_inputs(lstm, net, tmp_path, normalize):
    data = write(tmp_path / "bad.h5", bad=np.nan)
    out = tmp_path / "run"
    outcome = lstm("train", net, data, "--output", out, "--set", f"train.normalize={normalize}")
    assert outcome.code == 3
    assert "bad.h5:/inputs" in outcome.err
    assert "sequence 11, step 2, feature 1" in outcome.err
    assert f"hint: lstm-cli data {data}" in outcome.err


def test_a_nan_in_the_inputs_leaves_the_last_checkpoint(lstm, net, tmp_path):
    data = write(tmp_path / "bad.h5", bad=np.inf)
    out = tmp_path / "run"
    outcome = lstm("train", net, data, "--output", out, "--checkpoint-every", 0)
    assert outcome.code == 3
    assert f"the last good checkpoint is {out}/checkpoint.safetensors" in outcome.err
    file = native.read(out / "checkpoint.safetensors", allow_integers=True)
    assert all(np.isfinite(value).all() for value in file.tensors.values())


def test_a_nan_in_the_validation(lstm, net, words, tmp_path):
    write(tmp_path / "bad.h5", bad=np.nan)
    outcome = lstm(
        "train",
        net,
        words,
        *("--output", tmp_path / "run", "--set", f"train.validation={tmp_path}/bad.h5", "--quiet"),
    )
    assert outcome.code == 3
    assert "bad.h5:/inputs, sequence 11, step 2, feature 1" in outcome.err


def test_a_nan_in_the_targets(lstm, net, tmp_path):
    targets = np.random.default_rng(1).standard_normal((30, 2)).astype(np.float32)
    targets[13, 1] = np.nan
    data = write(tmp_path / "bad.h5", targets=targets)
    sets = ["--set", "model.layers.1={type: dense, units: 2}", "--set", "train.loss=mse"]
    outcome = lstm("train", net, data, "--output", tmp_path / "run", *sets)
    assert outcome.code == 3
    assert "nan at " in outcome.err
    assert "bad.h5:/targets, sequence 13, value 1" in outcome.err


def test_a_rate_that_explodes(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    sets = ["--set", "train.optimizer={type: sgd, learning_rate: 1e39}"]
    outcome = lstm("train", net, words, "--output", out, *sets)
    assert outcome.code == 1
    assert "a value in training is not finite" in outcome.err
    assert "epoch 1, batch 1 of 4" in outcome.err
    assert "--set train.clip_norm=1.0" in outcome.err
    assert "layers." in outcome.err
    assert "checkpoint" not in outcome.err
    assert not out.exists()


def test_what_was_saved_before_a_value_that_is_not_finite_is_kept(lstm, net, tmp_path):
    out, words = tmp_path / "run", write(tmp_path / "nan.h5", bad=np.nan)
    often = ["--batch-size", 1, "--checkpoint-every", 0]
    outcome = lstm("train", net, words, "--output", out, *often)
    assert outcome.code == 3, outcome.err
    assert f"the last good checkpoint is {out}" in outcome.err
    assert checkpoint_of(out)["batch"] > 0


def test_no_section_train(lstm, net, words, tmp_path):
    net.write_text(CONFIG.partition("train:")[0])
    outcome = lstm("train", net, words, "--output", tmp_path / "run")
    assert outcome.code == 4
    assert "hint: --set train.loss=" in outcome.err
    assert not (tmp_path / "run").exists()


def test_no_targets(lstm, net, words, tmp_path):
    with h5py.File(words, "a") as file:
        del file["targets"]
    outcome = lstm("train", net, words, "--output", tmp_path / "run")
    assert outcome.code == 3
    assert "no targets" in outcome.err


def test_a_class_that_the_network_does_not_have(lstm, net, tmp_path):
    data = write(tmp_path / "four.h5", targets=np.arange(30) % 4)
    outcome = lstm("train", net, data, "--output", tmp_path / "run")
    assert outcome.code == 3
    assert "four.h5:/targets" in outcome.err


def test_an_auc_of_one_class(lstm, tmp_path):
    targets = np.zeros(30, np.int64)
    data = write(tmp_path / "one.h5", targets=targets)
    config = tmp_path / "two.yaml"
    config.write_text(CONFIG.replace("units: 3", "units: 2") + "  monitor: auc\n")
    outcome = lstm("train", config, data, "--output", tmp_path / "run")
    assert outcome.code == 4
    assert "train.monitor is auc" in outcome.err


def test_stateful_layers_want_other_data_for_validation(lstm, net, words, tmp_path):
    sets = ["--set", "model.layers.0.stateful=true"]
    share = lstm(
        "train", net, words, "--output", tmp_path / "a", *sets, "--set", "train.validation=0.2"
    )
    assert share.code == 4
    assert "is stateful" in share.err
    write(tmp_path / "held.h5", seed=2, N=20)
    other = lstm(
        "train",
        net,
        words,
        "--output",
        tmp_path / "b",
        *sets,
        "--set",
        f"train.validation={tmp_path}/held.h5",
    )
    assert other.code == 0, other.err


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_validation_is_found_from_where_it_is_written(lstm, net, words, tmp_path, monkeypatch):
    write(tmp_path / "held.h5", seed=1, N=17)
    for folder in ("configs", "here", "real"):
        (tmp_path / folder).mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "configs" / "c.yaml").write_text(net.read_text())
    monkeypatch.chdir(tmp_path / "here")
    arguments = ("train", "../configs/c.yaml", "../words.h5", "--engine", "reference", "--quiet")
    held = ("--set", "train.validation=../held.h5", "--set", "train.epochs=1")
    assert lstm(*arguments, "--output", "link/run", *held).code == 0
    written = (tmp_path / "real" / "run" / "config.yaml").read_text()
    assert "validation: ../../held.h5" in written
    monkeypatch.chdir(tmp_path)
    arguments = ("here/link/run/config.yaml", "words.h5", "--output", "here/link/run")
    more = ("--engine", "reference", "--quiet", "--resume", "--set", "train.epochs=2")
    outcome = lstm("train", *arguments, *more)
    assert outcome.code == 0, outcome.err
    assert lstm("data", "here/link/run/../../held.h5").code == 0
    monkeypatch.chdir(tmp_path / "configs")
    arguments = ("c.yaml", "../words.h5", "--output", "../real/run", *more[:-1], "train.epochs=3")
    again = ("--set", "train.validation=../held.h5")
    assert lstm("train", *arguments, *again).code == 0


def test_validation_data_of_another_form(lstm, net, words, tmp_path):
    with h5py.File(tmp_path / "held.h5", "w") as file:
        file["inputs"] = np.zeros((3, 4, 2))
        file["targets"] = np.zeros(3, np.int64)
    outcome = lstm(
        "train",
        net,
        words,
        "--output",
        tmp_path / "x",
        "--set",
        f"train.validation={tmp_path}/held.h5",
    )
    assert outcome.code == 3
    assert "held.h5" in outcome.err


def test_a_missing_extra_is_said_once(lstm, net, words, tmp_path):
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        outcome = lstm("train", net, words, "--output", tmp_path / "run")
        assert outcome.err.count("pip install 'lstm-cli[plot]'") == 1
    else:
        lstm("train", net, words, "--output", tmp_path / "run")
        picture = (tmp_path / "run" / "curves.png").read_bytes()
        assert picture.startswith(b"\x89PNG")


def test_events_for_tensorboard(lstm, net, words, tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    out = tmp_path / "run"
    lstm("train", net, words, "--output", out)
    lstm("train", net, words, "--output", out, "--resume", "--set", "train.epochs=5")
    (path,) = (out / "tensorboard").iterdir()
    events = list(loader.EventFileLoader(str(path)).Load())
    steps = [e.step for e in events for value in e.summary.value if value.tag == "loss"]
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["reference", "jit"])
@pytest.mark.parametrize(
    ("layer", "x", "hint"),
    [
        ("{type: rnn, hidden_size: 1, activation: relu}", 1.0, "--set model.layers.0.clip=5"),
        ("{type: dense, units: 1}", 1e25, "--set train.normalize=true"),
        ("{type: dense, units: 1}", 1.0, "--dtype float64"),
    ],
    ids=["clip", "normalize", "float64"],
)
def test_a_value_that_is_not_finite_before_any_update(lstm, tmp_path, name, layer, x, hint):
    config, data, weights = tmp_path / "c.yaml", tmp_path / "d.h5", tmp_path / "w.safetensors"
    config.write_text(
        "model:\n  input_size: 1\n  layers:\n"
        f"    - {layer}\n    - {{type: dense, units: 1}}\n"
        "train: {loss: mse, epochs: 1, optimizer: {type: sgd, learning_rate: 1e-30}}\n"
    )
    inputs = np.full((2, 120, 1), x, "f4")
    inputs[1] *= 1e-6  # sequence 0 overflows first
    with h5py.File(data, "w") as file:
        file["inputs"], file["targets"] = inputs, np.ones((2, 120, 1), "f4")
    net = lstm_cli.build(config)
    tensors = {name: np.ones_like(value) for name, value in net.weights.items()}
    if "rnn" in layer:
        tensors |= {"layers.0.weight_hh": np.full((1, 1), 4.0), "layers.0.bias": np.zeros(1)}
        tensors["layers.1.weight"] = np.full((1, 1), 1e-20)
    elif x == 1:
        tensors["layers.1.weight"] = np.full((1, 1), 1e20)
    lstm_cli.build(config, weights=tensors).save(weights)
    arguments = ["train", config, data, "--engine", name, "--quiet"]
    if "normalize" not in hint:
        arguments += ["--weights", weights]
    failed = lstm(*arguments, "--output", tmp_path / "a")
    assert failed.code == 1
    assert f": {hint} " in failed.err
    assert "learning_rate" not in failed.err
    if "rnn" in layer:
        assert "inf in state h of layer 0 (rnn), unit 0" in failed.err
        assert "step 64 of sequence 0 of" in failed.err
    assert lstm(*arguments, *hint.split(), "--output", tmp_path / "b").code == 0
