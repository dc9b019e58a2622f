"""``lstm-cli train`` as a user runs it: what is learned, printed and saved."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from training_files import metrics_rows, write_classes

from lstm_cli.formats import native

pytestmark = pytest.mark.usefixtures("at_root")

VOWELS = "data/japanese-vowels.h5:/train"


def test_a_run_from_beginning_to_end(lstm, net, words, tmp_path):
    out = tmp_path / "run"
    outcome = lstm("train", net, words, "--output", out, "--set", "train.validation=0.2")
    assert outcome.code == 0, outcome.err
    names = {"model.safetensors", "checkpoint.safetensors", "config.yaml", "metrics.jsonl"}
    assert names <= {path.name for path in out.iterdir()}
    result = metrics_rows(out)
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
    write_classes(words, seed=1, group="held", N=17)
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
    best = min(metrics_rows(whole), key=lambda row: row["val_loss"])["epoch"]
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
    assert len(metrics_rows(out)) == epochs


def test_starting_weights(lstm, net, words, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    lstm("train", net, words, "--output", first)
    arguments = ["--weights", first / "model.safetensors"]
    outcome = lstm("train", net, words, "--output", second, *arguments, "--json")
    assert outcome.json["metrics"]["loss"] < metrics_rows(first)[-1]["loss"]
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
    data = write_classes(tmp_path / "two.h5", targets=np.arange(30) % 2)
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
    result = metrics_rows(out)
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
