"""A config beside a file that describes itself: every difference is named, and every hint works."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import h5py
import keras_files
import numpy as np
import pytest
import tmva_files
import yaml
from networks import random_inputs, random_weights
from repository import ROOT

import lstm_cli
from lstm_cli.workflows.model import read_config

N, T, D = 3, 5, 4
SHIPPED = ROOT / "configs"
LSTM = {"type": "lstm", "hidden_size": 3}
GRU = {"type": "gru", "hidden_size": 3}
RNN = {"type": "rnn", "hidden_size": 3}
DENSE = {"type": "dense", "units": 2}
HARD = {"name": "hard_sigmoid", "alpha": 0.3, "beta": 0.4}
DIFFERS = "is taken where"


@pytest.fixture(autouse=True)
def sequences(in_tmp_path):
    with h5py.File("d.h5", "w") as file:
        file["inputs"] = random_inputs(N, T, D).astype("f4")


def net(*layers: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {"model": {"input_size": D, **model, "layers": copy.deepcopy(list(layers))}}


def saved(mapping: dict[str, Any], path: str = "m.safetensors", lstm: Any = None) -> str:
    """A file of distinct weights; any format but the native one is converted to."""
    specs = read_config(mapping).specs
    weights = {name: v.astype("f4") for name, v in random_weights(specs, 3).items()}
    lstm_cli.build(mapping, engine="reference", weights=weights).save("m.safetensors")
    if path != "m.safetensors":
        outcome = lstm("convert", "m.safetensors", path)
        assert outcome.code == 0, outcome.err
    return path


def written(mapping: dict[str, Any], path: str = "C.yaml") -> str:
    Path(path).write_text(yaml.safe_dump(mapping))
    return path


def ran(lstm: Any, *arguments: Any) -> tuple[Any, str]:
    """Outputs of a run, and its messages on one line."""
    reference = ("--engine", "reference", "--dtype", "float64", "--output", "o.h5", "--force")
    outcome = lstm("run", *arguments, *reference)
    assert outcome.code == 0, outcome.err
    with h5py.File("o.h5") as file:
        return file["outputs"][...], " ".join(outcome.err.split())


def hinted(err: str) -> tuple[list[str], list[str]]:
    """The command of a note without its DATA, and its settings."""
    hint = err.partition("To take what ")[2]
    command = re.search(r"lstm-cli run (.*?) DATA", hint)
    settings = re.search(r", or (--set .*?)(?= note: |$)", hint)
    return shlex.split(command[1]) if command else [], shlex.split(settings[1]) if settings else []


def check_hints(lstm: Any, config: str, path: str, expected: Any = None) -> str:
    """Run both, do what the note says either way, and see the file's own outputs; the messages."""
    mixed, err = ran(lstm, config, "d.h5", "--weights", path)
    command, settings = hinted(err)
    assert command[0] == path
    local, alone = ran(lstm, *command, "d.h5")
    assert DIFFERS not in alone
    if expected is None:
        expected = local
    np.testing.assert_allclose(local, expected, rtol=0, atol=2e-6)
    assert mixed.shape != local.shape or abs(mixed - local).max() > 1e-4
    if settings:
        mended, quiet = ran(lstm, config, "d.h5", "--weights", path, *settings)
        assert DIFFERS not in quiet
        np.testing.assert_allclose(mended, expected, rtol=0, atol=2e-6)
    return err


OPTIONS = {
    "activation": (LSTM, {"activation": "relu"}, "activation: tanh in C.yaml, relu in m"),
    "slope": (
        {**LSTM, "activation": {"name": "leaky_relu", "alpha": 0.1}},
        {"activation": {"name": "leaky_relu", "alpha": 0.3}},
        'activation: {"name": "leaky_relu", "alpha": 0.1} in C.yaml, {"name": "leaky_relu", '
        '"alpha": 0.3} in m',
    ),
    "beta": ({**GRU, "recurrent_activation": "hard_sigmoid"}, {"recurrent_activation": HARD},
             "recurrent_activation: hard_sigmoid in C.yaml, "),
    "cell": (LSTM, {"cell_activation": "softsign"}, "cell_activation: tanh in C.yaml, softsign"),
    "follows": (LSTM, {"activation": "relu", "cell_activation": "tanh"},
                "activation: tanh in C.yaml, relu"),
    "both": ({**LSTM, "cell_activation": "tanh"}, {"activation": "relu", "cell_activation": "relu"},
             "cell_activation: tanh in C.yaml, relu"),
    "gates": (LSTM, {"recurrent_activation": "hard_sigmoid"},
              "recurrent_activation: sigmoid in C.yaml, hard_sigmoid"),
    "pair": ({**LSTM, "bidirectional": True}, {"activation": ["tanh", "relu"]},
             'activation: tanh in C.yaml, ["tanh", "relu"]'),
    "clip": (LSTM, {"clip": 0.5}, "clip: null in C.yaml, 0.5 in m"),
    "clip of rnn": ({**RNN, "clip": 0.5}, {"clip": None}, "clip: 0.5 in C.yaml, null in m"),
    "coupled": (LSTM, {"coupled_input_forget": True},
                "coupled_input_forget: false in C.yaml, true in m"),
    "forget": (LSTM, {"forget_gate": False}, "forget_gate: true in C.yaml, false in m"),
    "reset": (GRU, {"reset_after": False}, "reset_after: true in C.yaml, false in m"),
    "last": (RNN, {"return_sequences": False}, "return_sequences: true in C.yaml, false in m"),
    "stateful": (GRU, {"stateful": True}, "stateful: false in C.yaml, true in m"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name, lstm):
    layer, change, words = OPTIONS[name]
    path = saved(net({**layer, **change}, DENSE))
    config = written(net(layer, DENSE))
    if name == "stateful":
        err = ran(lstm, config, "d.h5", "--weights", path)[1]
        settings = hinted(err)[1]
        assert settings == ["--set", "model.layers.0.stateful=true"]
        assert DIFFERS not in ran(lstm, config, "d.h5", "--weights", path, *settings)[1]
    else:
        err = check_hints(lstm, config, path)
    assert f"layers[0].{words}" in err
    assert "layers[1]" not in err


def test_dense_layers_and_numbers_moved_by_dropout(lstm):
    pytest.importorskip("onnxruntime")
    from onnx_exports import run_model

    path = saved(net(GRU, {**DENSE, "activation": "softmax"}), "m.onnx", lstm)
    config = written(net(GRU, {"type": "dropout", "rate": 0.4}, {**DENSE, "activation": "relu"}))
    expected = run_model(Path(path), {"x": random_inputs(N, T, D)})["y"]
    err = check_hints(lstm, config, path, expected)
    assert "layers[2].activation: relu in C.yaml, softmax in m.onnx" in err
    assert "--set model.layers.2.activation=softmax" in err


@pytest.mark.parametrize("layer", [LSTM, GRU, RNN], ids=["lstm", "gru", "rnn"])
def test_onnx_against_its_runtime(layer, lstm):
    pytest.importorskip("onnxruntime")
    from onnx_exports import run_model

    change = {"activation": "softsign", "clip": 0.7}
    change |= {"recurrent_activation": HARD} if layer is not RNN else {}
    path = saved(net({**layer, **change, "bidirectional": True}, DENSE), "m.onnx", lstm)
    expected = run_model(Path(path), {"x": random_inputs(N, T, D)})["y"]
    config = written(net({**layer, "bidirectional": True}, DENSE))
    err = check_hints(lstm, config, path, expected)
    assert err.count(" in C.yaml, ") == len(change)


def test_flatten_and_order_of_layers(lstm):
    flat = {"type": "flatten"}
    path = saved(net(LSTM, DENSE, flat, steps=T))
    err = check_hints(lstm, written(net(LSTM, DENSE)), path)
    assert "layers: lstm → dense in C.yaml, lstm → dense → flatten in m.safetensors" in err
    assert "--set" not in err
    path = saved(net(LSTM, flat, steps=T + 1))
    err = check_hints(lstm, written(net(LSTM, flat, steps=T)), path)
    assert "steps: 5 in C.yaml, 6 in m.safetensors" in err
    assert "--set model.steps=6" in err


def test_tmva(lstm):
    rng = np.random.default_rng(5)
    layers = [
        tmva_files.recurrent("GRULayer", D, 3, T, rng, ResetGateAfter=0),
        tmva_files.flat(3 * T),
        tmva_files.dense(3 * T, 2, 3, rng),
    ]
    path = tmva_files.write(Path("m.xml"), layers, shape=(T, D), output="S")
    expected = tmva_files.evaluate(layers, random_inputs(N, T, D).astype("f4"), "S")
    mapping = net(GRU, {"type": "flatten"}, DENSE, steps=T)
    outcome = lstm("run", written(mapping), "d.h5", "--weights", path)
    assert outcome.code == 4  # TMVA's output function is a layer of its own
    local = yaml.safe_load(lstm_cli.load(path, engine="reference").config.to_yaml())
    for layer in local["model"]["layers"]:
        layer.pop("reset_after", None)
        layer |= {"activation": "relu"} if layer["type"] == "dense" else {}
    err = check_hints(lstm, written(local), str(path), expected)
    assert "layers[0].reset_after: true in C.yaml, false in m.xml" in err
    assert "layers[2].activation: relu in C.yaml, tanh in m.xml" in err


@pytest.mark.parametrize("version", ["2.2.4", None])
def test_defaults_of_an_older_keras(version, lstm):
    rng = np.random.default_rng(2)
    parts = keras_files.drawn("LSTM", D, 3, rng)
    config = {"units": 3, "return_sequences": True, "batch_input_shape": [None, None, D]}
    entry = keras_files.entry("LSTM", "lstm_1", **config, activation="tanh")
    model = {"class_name": "Sequential", "config": {"name": "s", "layers": [entry]}}
    variables = {"lstm_1": keras_files.cell_names("lstm_1", parts)}
    path = str(keras_files.legacy(Path("k.h5"), variables, model, version=version))
    gate = keras_files.sigmoid if version is None else keras_files.hard_sigmoid
    expected = keras_files.recurrence("LSTM", random_inputs(N, T, D).astype("f4"), parts, gate)
    other = "sigmoid" if version else "hard_sigmoid"
    err = check_hints(lstm, written(net({**LSTM, "recurrent_activation": other})), path, expected)
    assert "layers[0].recurrent_activation:" in err
    assert "k.h5 alone: the file does not state recurrent_activation of layer 0" in err
    if version is None:  # The config's own default is as uncertain as that of the file.
        again, err = ran(lstm, written(net(LSTM)), "d.h5", "--weights", path)
        np.testing.assert_allclose(again, expected, rtol=0, atol=2e-6)
        assert DIFFERS not in err
        assert "k.h5 alone: the file does not state recurrent_activation of layer 0" in err
        (setting,) = re.findall(r"--set (\S+)", err)
        x, old = random_inputs(N, T, D).astype("f4"), keras_files.hard_sigmoid
        mended, err = ran(lstm, "C.yaml", "d.h5", "--weights", path, "--set", setting)
        expected = keras_files.recurrence("LSTM", x, parts, old)
        np.testing.assert_allclose(mended, expected, rtol=0, atol=2e-6)
        assert "note" not in err
    agreed = net({**LSTM, "recurrent_activation": "hard_sigmoid" if version else "sigmoid"})
    quiet = ran(lstm, written(agreed), "d.h5", "--weights", path)[1]
    assert "note" not in quiet.replace("notes", "")


def test_many_differences_are_counted(lstm):
    own = [{**LSTM, "activation": "relu", "clip": 9.0}] * 5
    path = saved(net(*own, DENSE))
    err = check_hints(lstm, written(net(*[LSTM] * 5, DENSE)), path)
    assert err.count(" in C.yaml, ") == 8
    assert "; and 2 more. To take" in err
    assert "--set" not in err


def test_the_readers_options_stand_in_the_command(lstm):
    path = saved(net({**LSTM, "activation": "relu"}), "m.onnx", lstm)
    Path(path).rename("with space.bin")
    config = written(net(LSTM))
    err = ran(lstm, config, "d.h5", "--weights", "with space.bin", "--from", "onnx")[1]
    command, _ = hinted(err)
    assert command == ["with space.bin", "--from", "onnx"]
    assert DIFFERS not in ran(lstm, *command, "d.h5")[1]


def test_no_second_opinion(lstm):
    """Options set by hand, files that do not describe themselves, and what changes no output."""
    path = saved(net({**LSTM, "activation": "relu"}, DENSE))
    setting = ("--set", "model.layers.0.activation=softsign")
    for config in (path, written(net(LSTM, DENSE))):
        assert DIFFERS not in ran(lstm, config, "d.h5", "--weights", path, *setting)[1]
    part = ("--set", "model.layers.0.activation={name: elu}")
    part += ("--set", "model.layers.0.activation.alpha=0.5")
    assert DIFFERS not in ran(lstm, written(net(LSTM, DENSE)), "d.h5", "--weights", path, *part)[1]
    for bare in ("m.pt", "m.weights.h5"):
        saved(net(LSTM, {**DENSE, "activation": "softmax"}), bare, lstm)
        assert DIFFERS not in ran(lstm, "C.yaml", "d.h5", "--weights", bare)[1]
    training = {"dropout": 0.3, "recurrent_dropout": 0.1, "forget_bias": 0.0}
    saved(net({**LSTM, **training}, {"type": "dropout", "rate": 0.5}, DENSE))
    config = net({**LSTM, "cell_activation": "tanh"}, {"type": "dropout", "rate": 0.1}, DENSE)
    config["data"] = {"inputs": "inputs"}
    assert DIFFERS not in ran(lstm, written(config), "d.h5", "--weights", path)[1]


PLAIN = [
    {**LSTM, "activation": {"name": "leaky_relu", "alpha": 0.1}, "clip": 1.7, "stateful": True},
    {**GRU, "bidirectional": True, "recurrent_activation": {**HARD, "alpha": 1 / 3}},
    {**RNN, "activation": {"name": "affine", "alpha": 0.7}, "return_sequences": False},
    {**DENSE, "activation": {"name": "elu", "alpha": 0.3}},
]


@pytest.mark.parametrize(("suffix", "layers"), [
    (".safetensors", PLAIN),
    (".onnx", PLAIN),
    (".keras", [{**LSTM, "bidirectional": True,
                 "recurrent_activation": {"name": "hard_sigmoid", "alpha": 1 / 6}},
                {**GRU, "reset_after": False, "activation": {"name": "leaky_relu", "alpha": 0.1}},
                {**RNN, "activation": "relu"}, {**DENSE, "activation": "softplus"}]),
    (".xml", [{**LSTM, "stateful": True}, {**GRU, "reset_after": False}, {"type": "flatten"},
              {**DENSE, "activation": "gauss"}]),
])  # fmt: skip
def test_a_file_and_the_config_it_was_made_from_agree(suffix, layers, lstm):
    mapping = net(*layers, **({"steps": T} if suffix == ".xml" else {}))
    path = saved(mapping, f"m{suffix}", lstm)
    found = lstm_cli.load(path, config=mapping, engine="reference").notes
    assert not any(DIFFERS in note for note in found), found


@pytest.mark.parametrize("suffix", [".onnx", ".keras", ".xml"])
def test_a_forget_gate_that_is_written_as_open(suffix, lstm):
    """`forget_gate: false` has no place in these formats: the gate is 1 there, unless it is not."""
    mapping = net({**LSTM, "forget_gate": False}, DENSE)
    if suffix == ".xml":
        mapping = net({**LSTM, "forget_gate": False}, {"type": "flatten"}, DENSE, steps=T)
    path = saved(mapping, f"m{suffix}", lstm)
    config = written(mapping)
    assert DIFFERS not in ran(lstm, config, "d.h5", "--weights", path)[1]
    mapping["model"]["layers"][0]["forget_gate"] = True
    path = saved(mapping, f"m{suffix}", lstm)
    err = check_hints(lstm, config, path)
    assert f"layers[0].forget_gate: false in C.yaml, true in m{suffix}" in err


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.glob("*.yaml")))
def test_shipped_configs_agree_with_their_weights(name):
    assert lstm_cli.build(SHIPPED / name, engine="reference").notes == ()


def test_every_command_and_the_interface(lstm):
    path = saved(net({**LSTM, "activation": "relu"}, DENSE), "m.onnx", lstm)
    mapping = {**net(LSTM, DENSE), "train": {"loss": "mse", "epochs": 1}}
    config = written(mapping)
    words = "C.yaml is taken where C.yaml and m.onnx differ: layers[0].activation: tanh in C.yaml"
    with h5py.File("t.h5", "w") as file:
        file["inputs"] = random_inputs(N, T, D).astype("f4")
        file["targets"] = random_inputs(N, T, 2).astype("f4")
    reference = ("--engine", "reference")
    train = ("train", config, "t.h5", "--output", "run", *reference)
    setting = ("--set", "model.layers.0.activation=relu")
    for command in (
        ("run", config, "d.h5", "--weights", path, *reference),
        ("inspect-shapes", config, "--weights", path),
        (*train, "--weights", path),
    ):
        outcome = lstm(*command)
        assert outcome.code == 0, outcome.err
        assert words in " ".join(outcome.err.split())
    resumed = lstm(*train, "--resume", "--set", "train.epochs=2", "--weights", path)
    assert resumed.code == 0, resumed.err
    assert DIFFERS not in resumed.err
    trained = ran(lstm, config, "d.h5", "--weights", "run/model.safetensors")[1]
    assert DIFFERS not in trained
    outcome = lstm("train", config, "t.h5", "--output", "run2", *reference, "--weights", path,
                   *setting)  # fmt: skip
    assert outcome.code == 0
    assert DIFFERS not in outcome.err
    convert = ("convert", path, "x.safetensors")
    outcome = lstm(*convert, "--config", config, "--json")
    assert words in outcome.json["notes"][0]
    assert "leave out --config, or --set model.layers.0.activation=relu" in outcome.json["notes"][0]
    for mended in (convert, (*convert, "--config", config, *setting)):
        assert not any(DIFFERS in note for note in lstm(*mended, "--json").json["notes"])
        activation = lstm_cli.load("x.safetensors", engine="reference").config.model.layers[0]
        assert activation.activation[0].name == "relu"
    for model in (
        lstm_cli.load(path, config, engine="reference"),
        lstm_cli.build(config, weights=path, engine="reference"),
        lstm_cli.build({**mapping, "weights": path}, engine="reference"),
        lstm_cli.build(mapping, weights=path, engine="reference"),
    ):
        (note,) = model.notes
        assert re.match(r"(C.yaml|the config) is taken where .*relu in m.onnx", note)
    saved(net(LSTM, DENSE), "other.onnx", lstm)
    (note,) = lstm_cli.build("other.onnx", weights=path, engine="reference").notes
    assert "tanh in other.onnx, relu in m.onnx" in note


def test_compare(lstm):
    path = saved(net({**LSTM, "activation": "relu"}, DENSE), "m.onnx", lstm)
    config = written(net(LSTM, DENSE))
    outcome = lstm("compare", path, path, "--config", config, "--json")
    err = " ".join(outcome.err.split())
    assert outcome.code == 0
    assert "A: m.onnx is taken where C.yaml and m.onnx differ: layers[0].activation: tanh" in err
    assert "--set" not in err
    assert DIFFERS not in lstm("compare", path, path).err


UNBIASED = ["m.safetensors", "m.pt", "m.keras", "m.weights.h5", "m.onnx"]


@pytest.mark.parametrize("path", UNBIASED)
@pytest.mark.parametrize("held", [False, True], ids=["none in the file", "biases in the file"])
def test_biases_on_one_side_only(path, held, lstm):
    """An error that names layer, tensor and line; its hint gives the file's own network."""
    layers = [{**LSTM, "bidirectional": True}, GRU, RNN, DENSE]
    theirs, mine = ([{**layer, "bias": bias} for layer in layers] for bias in (held, not held))
    path = saved(net(*theirs), path, lstm)
    config = Path(written(net(*mine)))
    refused = lstm("run", config, "d.h5", "--weights", path)
    assert refused.code == 4
    note = " ".join(refused.err.split())
    names = ["0.bias", "0.reverse.bias", "1.bias_ih", "1.bias_hh", "2.bias", "3.bias"]
    for name in names:
        layer = f"layer {name[0]} ({layers[int(name[0])]['type']})"
        if held:
            shape = rf"layers\.{re.escape(name)} \(\d+,\) is not wanted: "
            assert re.search(shape + re.escape(f"{layer} has no biases in the config"), note)
        else:
            assert f"layers.{name} is missing: {layer} has biases in the config" in note
    lines = [k for k, line in enumerate(config.read_text().splitlines(), 1) if "bias:" in line]
    for k, line in enumerate(lines):
        assert f"bias: {str(not held).lower()} in layers[{k}], C.yaml line {line}" in note
    hint = note.split("hint: ")[-1].split(" note: ")[0]
    assert hint == " ".join(f"--set model.layers.{k}.bias={str(held).lower()}" for k in range(4))
    mended, _ = ran(lstm, config, "d.h5", "--weights", path, *shlex.split(hint))
    alone, _ = ran(lstm, path, "d.h5")
    np.testing.assert_allclose(mended, alone, rtol=0, atol=2e-6)
    made = ("convert", path, "c.safetensors", "--config", config)
    assert lstm(*made).code == 4
    assert lstm(*made, *shlex.split(hint)).code == 0
    shown = lstm("inspect-shapes", config, "--weights", path)
    assert shown.code == 4
    assert ("no biases" in shown.out) == held
    assert ("missing" in shown.out) == (not held)
    lstm_cli.build(yaml.safe_load(config.read_text()), engine="reference")  # drawn, without weights


def test_a_bias_that_is_misnamed_is_not_taken_for_none(lstm):
    """A layer with one of a gru's two biases is no fault of the option."""
    saved(net(GRU))
    from safetensors.numpy import load_file, save_file

    tensors = load_file("m.safetensors")
    tensors["layers.0.bias_h"] = tensors.pop("layers.0.bias_hh")
    save_file(tensors, "m.safetensors")
    err = lstm("run", written(net(GRU)), "d.h5", "--weights", "m.safetensors").err
    assert "layers.0.bias_hh is missing" in err
    assert "the nearest name there is layers.0.bias_h" in err
    assert "bias=" not in err
