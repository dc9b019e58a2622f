"""Data and configs that ``lstm-cli train`` refuses, and what a failed run keeps."""

from __future__ import annotations

import sys

import h5py
import numpy as np
import pytest
from training_files import CONFIG, checkpoint_progress, write_classes

import lstm_cli
from lstm_cli.formats import native

pytestmark = pytest.mark.usefixtures("at_root")


@pytest.mark.parametrize("normalize", ["false", "true"])
def test_a_nan_in_the_inputs(lstm, net, tmp_path, normalize):
    data = write_classes(tmp_path / "bad.h5", bad=np.nan)
    out = tmp_path / "run"
    outcome = lstm("train", net, data, "--output", out, "--set", f"train.normalize={normalize}")
    assert outcome.code == 3
    assert "bad.h5:/inputs" in outcome.err
    assert "sequence 11, step 2, feature 1" in outcome.err
    assert f"hint: lstm-cli data {data}" in outcome.err


def test_a_nan_in_the_inputs_leaves_the_last_checkpoint(lstm, net, tmp_path):
    data = write_classes(tmp_path / "bad.h5", bad=np.inf)
    out = tmp_path / "run"
    outcome = lstm("train", net, data, "--output", out, "--checkpoint-every", 0)
    assert outcome.code == 3
    assert f"the last good checkpoint is {out}/checkpoint.safetensors" in outcome.err
    file = native.read(out / "checkpoint.safetensors", allow_integers=True)
    assert all(np.isfinite(value).all() for value in file.tensors.values())


def test_a_nan_in_the_validation(lstm, net, words, tmp_path):
    write_classes(tmp_path / "bad.h5", bad=np.nan)
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
    data = write_classes(tmp_path / "bad.h5", targets=targets)
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
    out, words = tmp_path / "run", write_classes(tmp_path / "nan.h5", bad=np.nan)
    often = ["--batch-size", 1, "--checkpoint-every", 0]
    outcome = lstm("train", net, words, "--output", out, *often)
    assert outcome.code == 3, outcome.err
    assert f"the last good checkpoint is {out}" in outcome.err
    assert checkpoint_progress(out)["batch"] > 0


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
    data = write_classes(tmp_path / "four.h5", targets=np.arange(30) % 4)
    outcome = lstm("train", net, data, "--output", tmp_path / "run")
    assert outcome.code == 3
    assert "four.h5:/targets" in outcome.err


def test_an_auc_of_one_class(lstm, tmp_path):
    targets = np.zeros(30, np.int64)
    data = write_classes(tmp_path / "one.h5", targets=targets)
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
    write_classes(tmp_path / "held.h5", seed=2, N=20)
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
    write_classes(tmp_path / "held.h5", seed=1, N=17)
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
