"""Normalized inputs in every command, against NumPy's (x - mean) / scale in float64.

The scaled inputs are run through a network that knows nothing of a normalization.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from networks import random_weights
from normalized_models import (
    DENSE,
    LENGTHS,
    LSTM,
    MEAN,
    SCALE,
    file_tensors,
    normalized_model,
    raw_inputs,
    write_config,
)
from safetensors.numpy import save_file

import lstm_cli
from lstm_cli.formats import native

pytestmark = pytest.mark.usefixtures("in_tmp_path")

DIGITS = {"float32 at 1e5": (1e5, 50.0, "f4"), "float64 at 1.6e9": (1.6e9, 5.0, "f8")}
HEAD = {"type": "dense", "units": 2, "activation": "softmax"}
TRAIN = {
    "loss": "cross_entropy",
    "optimizer": {"type": "adam", "learning_rate": 0.03},
    "epochs": 4,
    "batch_size": 20,
    "normalize": "standard",
}
STILL = ("--set", "train.optimizer={type: sgd, learning_rate: 1e-30}", "--set", "train.epochs=1")


@pytest.fixture(params=DIGITS)
def offset(request, tmp_path):
    """Two classes told apart by a feature far from 0, and that feature as it was before."""
    mean, deviation, dtype = DIGITS[request.param]
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 180)
    z = rng.standard_normal((180, 9, 2))
    z[..., 0] += np.where(y, 0.6, -0.6)[:, None]
    x = z.copy()
    x[..., 0] = mean + deviation * z[..., 0]
    for name, values in (("x.h5", x.astype(dtype)), ("z.h5", z.astype("f4"))):
        with h5py.File(name, "w") as file:
            for group, part in (("train", slice(0, 120)), ("test", slice(120, None))):
                file[f"{group}/inputs"], file[f"{group}/targets"] = values[part], y[part]
    return x.astype(dtype)


def test_what_is_learned_from_raw_data_is_what_scaled_data_give(lstm, offset, tmp_path):
    write_config(tmp_path / "c.yaml", LSTM, HEAD, train=TRAIN)
    result = {}
    for name in "xz":
        more = ("--set", f"train.validation={tmp_path}/{name}.h5:/test")
        outcome = lstm("train", "c.yaml", f"{name}.h5:/train", "--output", name, *more, "--json")
        assert outcome.code == 0, outcome.err
        for dtype in ("float32", "bfloat16"):
            given = (f"{name}/model.safetensors", f"{name}.h5:/test", "--dtype", dtype, "--json")
            result[name, dtype] = lstm("run", *given).json["metrics"]
        assert result[name, "float32"]["loss"] == pytest.approx(outcome.json["metrics"]["val_loss"])
    assert result["z", "float32"]["accuracy"] > 0.9
    for dtype in ("float32", "bfloat16"):
        assert result["x", dtype]["accuracy"] == result["z", dtype]["accuracy"]
        assert result["x", dtype]["loss"] == pytest.approx(result["z", dtype]["loss"], rel=2e-2)
    stored, rows = (
        file_tensors("x/model.safetensors"),
        offset[:120].reshape(-1, 2).astype(np.longdouble),
    )
    assert stored["inputs.mean"].dtype == stored["inputs.scale"].dtype == np.float64
    np.testing.assert_allclose(stored["inputs.mean"], rows.mean(0).astype(float), rtol=1e-13)
    np.testing.assert_allclose(stored["inputs.scale"], rows.std(0).astype(float), rtol=1e-9)
    kept = file_tensors("x/checkpoint.safetensors")
    np.testing.assert_array_equal(kept["weights/inputs.mean"], stored["inputs.mean"])
    assert not [name for name in kept if name.startswith("updates") and "inputs" in name]


def layouts(x):
    """Equal sequences in every layout, with NaN in the padding."""
    flat = np.concatenate([row[:n] for row, n in zip(x, LENGTHS, strict=True)])
    padded = x.copy()
    for row, n in zip(padded, LENGTHS, strict=True):
        row[n:] = np.nan
    with h5py.File("dense.h5", "w") as file:
        file["inputs"], file["lengths"] = padded, LENGTHS
    with h5py.File("concatenated.h5", "w") as file:
        file["inputs"], file["lengths"] = flat, LENGTHS
    with h5py.File("vlen.h5", "w") as file:
        rows = file.create_dataset("inputs", len(x), h5py.vlen_dtype("f8"))
        for k, n in enumerate(LENGTHS):
            rows[k] = x[k, :n].ravel()
        rows.attrs["features"] = 3
    with h5py.File("groups.h5", "w") as file:
        for k, n in enumerate(LENGTHS):
            file[f"{k}/inputs"] = x[k, :n].astype("f4" if k == 1 else "f8")
    return ("dense", "concatenated", "vlen", "groups")


def test_every_layout_reads_its_own_type(lstm, tmp_path):
    layers = (
        {"type": "gru", "hidden_size": 5, "bidirectional": True},
        DENSE,
    )
    plain, x = normalized_model("m.safetensors", *layers), raw_inputs()
    x[1] = x[1].astype("f4")
    expected = plain.run((x - MEAN) / SCALE, LENGTHS).outputs
    names = layouts(x)
    for name in names:
        for dtype in ("float32", "float64"):
            arguments = ("m.safetensors", f"{name}.h5", "--output", "out.h5", "--dtype", dtype)
            assert lstm("run", *arguments, "--batch-size", 2, "--quiet").code == 0
            with h5py.File("out.h5") as file:
                for k, n in enumerate(LENGTHS):
                    local = file[f"{k}/outputs"][()] if name == "groups" else file["outputs"]
                    if name == "vlen":
                        local = local[k].reshape(n, 2)
                    elif name == "dense":
                        assert not local[k, n:].any()
                        local = local[k, :n]
                    elif name == "concatenated":
                        local = local[sum(LENGTHS[:k]) : sum(LENGTHS[: k + 1])]
                    atol = 2e-5 if dtype == "float32" else 1e-6
                    np.testing.assert_allclose(local, expected[k, :n], rtol=0, atol=atol)
    with h5py.File("whole.h5", "w") as file:  # integers, beside a file of float32
        file["inputs"] = np.round(x[:, :, [0, 2]]).astype("i8")
    with h5py.File("half.h5", "w") as file:
        file["inputs"] = np.round(x[:, :, [2, 2]]).astype("f4")
    pair = [np.round(x[:, :, [0, 2]]), np.round(x[:, :, [2, 2]])]
    plain = normalized_model("i.safetensors", *layers, mean=MEAN[[0, 2]], scale=SCALE[[0, 2]])
    for first, second in ((0, 1), (1, 0)):
        files = [("whole.h5", "half.h5")[k] for k in (first, second)]
        assert lstm("run", "i.safetensors", *files, "--output", "out.h5", "--quiet").code == 0
        arguments = np.concatenate([pair[first], pair[second]])
        wanted = plain.run((arguments - MEAN[[0, 2]]) / SCALE[[0, 2]]).outputs
        with h5py.File("out.h5") as file:
            np.testing.assert_allclose(file["outputs"], wanted, rtol=0, atol=2e-5)


def test_windows_of_a_series_and_gates(lstm, tmp_path):
    plain = normalized_model(
        "m.safetensors", {"type": "lstm", "hidden_size": 4}, {"type": "dense", "units": 3}
    )
    x = raw_inputs(1, 30)[0]
    with h5py.File("s.h5", "w") as file:
        file["inputs"] = x
    window = (
        "--set",
        "data.window={length: 6, stride: 3, horizon: 1}",
        "--set",
        "data.layout=series",
    )
    given = ("m.safetensors", "s.h5", "--output", "o.h5", "--gates", "g.h5", "--quiet")
    assert lstm("run", *given, *window).code == 0
    cut = np.stack([x[k : k + 6] for k in range(0, 24, 3)])
    expected = plain.run((cut - MEAN) / SCALE, keep=True)
    with h5py.File("o.h5") as file, h5py.File("g.h5") as gates:
        np.testing.assert_allclose(file["outputs"][:8], expected.outputs, rtol=0, atol=2e-5)
        found = []
        gates.visititems(lambda name, item: found.append(name) if name.endswith("/f") else None)
        own = gates[found[0]][:8].reshape(8, 6, 4)
        np.testing.assert_allclose(own, expected.kept[0]["forward"]["f"], rtol=0, atol=2e-5)


# Beginning from weights


def test_weights_that_normalize_keep_their_normalization(lstm, offset, tmp_path):
    path = write_config(tmp_path / "c.yaml", LSTM, HEAD, train=TRAIN)
    assert lstm("train", path, "x.h5:/train", "--output", "a").code == 0
    before = file_tensors("a/model.safetensors")
    for normalize in ("standard", "false"):
        more = ("--weights", "a/model.safetensors", *STILL, "--set", f"train.normalize={normalize}")
        outcome = lstm("train", path, "x.h5:/test", "--output", normalize, *more, "--json")
        assert outcome.code == 0, outcome.err
        assert ("train.normalize keeps these" in outcome.err) == (normalize == "standard")
        for name, value in file_tensors(f"{normalize}/model.safetensors").items():
            np.testing.assert_array_equal(value, before[name], name)
        run = lstm("run", "a/model.safetensors", "x.h5:/test", "--json").json["metrics"]
        assert outcome.json["metrics"]["loss"] == pytest.approx(run["loss"], rel=1e-5)
    path.write_text(path.read_text() + "weights: a/model.safetensors\n")
    named = lstm("run", path, "x.h5:/test", "--json").json
    assert named["metrics"] == run
    assert named["model"]["normalization"]["mean"] == before["inputs.mean"].tolist()


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "dense"])
def test_weights_for_raw_data_compute_the_same_when_they_come_to_be_normalized(
    lstm, tmp_path, kind
):
    rng = np.random.default_rng(2)
    first = {"type": kind, "hidden_size": 5, "bidirectional": True}
    if kind == "dense":
        first = {"type": kind, "units": 5, "activation": "tanh"}
    train = TRAIN | {"loss": "mse"}
    path = write_config(tmp_path / "c.yaml", first, DENSE, train=train)
    with h5py.File("x.h5", "w") as file:
        file["inputs"] = rng.standard_normal((30, 6, 2)) * [3, 0.2] + [7, -1]
        file["targets"] = rng.standard_normal((30, 6, 2)) * [20, 0.1] + [300, 4]
    specs = lstm_cli.build(path, engine="reference").config.specs
    native.write("w.safetensors", random_weights(specs, 5), None)
    more = ("--weights", "w.safetensors", "--dtype", "float64")
    expected = lstm("run", path, "x.h5", *more, "--json").json["metrics"]["mse"]
    done = lstm("train", path, "x.h5", "--output", "a", *more, *STILL, "--json")
    assert done.code == 0, done.err
    assert done.json["metrics"]["mse"] == pytest.approx(expected, rel=1e-9)
    again = lstm("run", "a/model.safetensors", "x.h5", "--dtype", "float64", "--json")
    assert again.json["metrics"]["mse"] == pytest.approx(expected, rel=1e-9)
    more = ("--weights", "a/model.safetensors", "--dtype", "float64", *STILL, "--json")
    further = lstm("train", path, "x.h5", "--output", "b", *more)
    assert further.json["metrics"]["mse"] == pytest.approx(expected, rel=1e-9)


def test_normalization_with_layers_without_biases(lstm, tmp_path):
    """Inputs stay normalized; targets are scaled only by a last layer that can take their mean."""
    rng = np.random.default_rng(2)
    bare = [{"type": "lstm", "hidden_size": 5, "bias": False}, DENSE | {"bias": False}]
    path = write_config(tmp_path / "c.yaml", *bare, train=TRAIN | {"loss": "mse"})
    with h5py.File("x.h5", "w") as file:
        file["inputs"] = rng.standard_normal((30, 6, 2)) * [3, 0.2] + [7, -1]
        file["targets"] = rng.standard_normal((30, 6, 2)) + 3
    outcome = lstm("train", path, "x.h5", "--output", "a")
    assert outcome.code == 0, outcome.err
    assert not [name for name in file_tensors("a/model.safetensors") if "bias" in name]
    unscaled = "the targets are not scaled: layer 1 (dense) has no bias to take their mean in"
    assert f"{unscaled}; --set model.layers.1.bias=true scales them" in " ".join(
        outcome.err.split()
    )
    mended = lstm("train", path, "x.h5", "--output", "b", "--set", "model.layers.1.bias=true")
    assert "not scaled" not in mended.err
    mean = file_tensors("b/model.safetensors")["layers.1.bias"]
    np.testing.assert_allclose(mean, 3, atol=0.5)  # the targets' own, but for what was learned
    assert [name for name in file_tensors("b/model.safetensors") if "bias" in name] == [
        "layers.1.bias"
    ]
    raw_ = ("--set", "train.normalize=false")
    assert lstm("train", path, "x.h5", "--output", "d", *raw_).code == 0
    more = ("--weights", "d/model.safetensors")
    further = lstm("train", path, "x.h5", "--output", "e", *more)
    assert further.code == 4
    assert "layer 0 (lstm) has no bias" in further.err
    assert "--set train.normalize=false" in further.err
    assert lstm("train", path, "x.h5", "--output", "e", *more, *raw_).code == 0


def test_flatten_first(lstm, tmp_path):
    """Padding is 0 in normalized values: only a network that normalizes itself can do that."""
    layers = ({"type": "flatten"}, DENSE)
    path = write_config(tmp_path / "c.yaml", *layers, train=TRAIN | {"loss": "mse"}, D=3, steps=7)
    x, y = raw_inputs(), np.random.default_rng(4).standard_normal((4, 2))
    with h5py.File("x.h5", "w") as file:
        file["inputs"], file["lengths"], file["targets"] = x, [7, 2, 3, 5], y
    assert lstm("train", path, "x.h5", "--output", "a").code == 0
    stored = file_tensors("a/model.safetensors")
    z = (x - stored["inputs.mean"]) / stored["inputs.scale"]
    for row, n in zip(z, [7, 2, 3, 5], strict=True):
        row[n:] = 0
    assert lstm("run", "a/model.safetensors", "x.h5", "--output", "o.h5", "--quiet").code == 0
    with h5py.File("o.h5") as file:
        expected = z.reshape(4, 21) @ stored["layers.1.weight"].T + stored["layers.1.bias"]
        np.testing.assert_allclose(file["outputs"], expected, rtol=0, atol=1e-5)
    for name in ("a.onnx", "a.keras", "a.pt", "a.xml"):
        refused = lstm("convert", "a/model.safetensors", name)
        assert refused.code == 4
        assert "inputs.mean and inputs.scale" in refused.err
        assert "layer 0 (flatten)" in refused.err
    assert "name a DST that ends in .safetensors" in refused.err
    assert lstm("convert", "a/model.safetensors", "b.safetensors").code == 0
    np.testing.assert_array_equal(
        file_tensors("b.safetensors")["inputs.scale"], stored["inputs.scale"]
    )
    # The plain weights of such a layer cannot come to be normalized.
    plain = {name: value for name, value in stored.items() if name.startswith("layers")}
    native.write("p.safetensors", plain, None)
    arguments = (path, "x.h5", "--weights", "p.safetensors")
    refused = lstm("train", *arguments, "--output", "c")
    assert refused.code == 4
    assert "hint: --set train.normalize=false" in refused.err
    assert lstm("train", *arguments, "--output", "d", "--set", "train.normalize=false").code == 0


# Targets, and inputs as they are


def test_metrics_are_those_of_targets_as_stored(lstm, tmp_path):
    rng = np.random.default_rng(3)
    layers = ({**LSTM, "hidden_size": 8}, {"type": "dense", "units": 1})
    path = write_config(tmp_path / "c.yaml", *layers, train=TRAIN | {"loss": "mse", "epochs": 30})
    x = rng.standard_normal((60, 5, 2))
    y = 1.6e9 + 60 + 5 * x.mean(1)[:, :1]  # between two numbers of float32
    with h5py.File("x.h5", "w") as file:
        file["inputs"], file["targets"] = x.astype("f4"), y
    output = "outputs in float32 cannot tell the targets apart: target 0 (mean 1.6e+09, scale"
    narrow = lstm("train", path, "x.h5", "--output", "a")
    assert output in narrow.err
    assert "--dtype float64, in `train` and in `run`, keeps the digits" in narrow.err
    once = ("train", path, "x.h5", "--set", "train.normalize=false", "--set", "train.epochs=1")
    assert output in lstm(*once, "--output", "c").err
    assert "tell" not in lstm(*once, "--output", "d", "--dtype", "float64").err
    run = lstm("run", "a/model.safetensors", "x.h5", "--output", "o.h5", "--json").json
    with h5py.File("o.h5") as file:
        apart = np.square(file["outputs"][()].astype(np.float64) - y).mean()
    assert run["metrics"]["mse"] == pytest.approx(apart, rel=1e-12)
    assert apart > 100
    wide = ("--dtype", "float64")
    outcome = lstm("train", path, "x.h5", "--output", "b", *wide, "--json")
    assert output not in outcome.err
    run = lstm("run", "b/model.safetensors", "x.h5", *wide, "--json").json
    assert run["metrics"]["mse"] < 0.1 * y.var()
    assert run["metrics"]["mse"] == pytest.approx(outcome.json["metrics"]["mse"], rel=0.5)


def test_inputs_that_a_dtype_cannot_hold_are_named(lstm, offset, tmp_path):
    path = write_config(
        tmp_path / "c.yaml", LSTM, HEAD, train=TRAIN | {"normalize": False, "epochs": 1}
    )
    narrow = "bfloat16" if offset.dtype == np.float32 else "float32"
    told = f"digits of the inputs are lost in {narrow}: feature 0 (mean 1"
    lost = lstm("run", path, "x.h5:/test", "--dtype", narrow)
    assert told in lost.err
    assert "feature 1" not in lost.err
    assert "--dtype float64 keeps them" in lost.err
    for arguments in (("x.h5:/test", "--dtype", "float64"), ("z.h5:/test", "--dtype", narrow)):
        assert "lost" not in lstm("run", path, *arguments).err
    if narrow == "float32":
        arguments = ("train", path, "x.h5:/train", "--output")
        assert "--set train.normalize=true keeps them" in lstm(*arguments, "a").err
        mended = lstm(*arguments, "b", "--set", "train.normalize=true")
        assert mended.code == 0
        assert "lost" not in mended.err


# Files that do not fit, and what is shown


WRONG = {
    "a mean too many": (
        {"inputs.mean": np.zeros(4)},
        "inputs.mean: the means of the inputs are (4,)",
    ),
    "scales in a row": ({"inputs.scale": np.ones((1, 3))}, "the scales of the inputs are (1, 3)"),
    "no scale": ({"inputs.scale": None}, "inputs.scale is missing"),
    "no mean": ({"inputs.mean": None}, "inputs.mean is missing"),
    "a scale of 0": ({"inputs.scale": np.array([1.0, 0, 2])}, "inputs.scale is 0 at [1]"),
    "NaN": ({"inputs.mean": np.array([1.0, 0, np.nan])}, "inputs.mean is not finite: nan at [2]"),
    "infinity": ({"inputs.scale": np.array([np.inf, 1, 2])}, "inputs.scale is not finite"),
    "another name": ({"inputs.std": np.ones(3)}, "inputs.std (3,) belongs to no layer"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_misfits(lstm, fault):
    changes, output = WRONG[fault]
    normalized_model("m.safetensors", {"type": "lstm", "hidden_size": 3})
    file = native.read("m.safetensors")
    changed = {k: v for k, v in {**file.tensors, **changes}.items() if v is not None}
    native.write("w.safetensors", changed, file.config)
    with h5py.File("x.h5", "w") as data:
        data["inputs"] = raw_inputs()
    commands = [("run", "w.safetensors", "x.h5"), ("convert", "w.safetensors", "w.onnx")]
    if "finite" not in output and "is 0" not in output:
        commands += [("inspect-shapes", "w.safetensors")]
    for command in commands:
        refused = lstm(*command)
        assert refused.code == 4, command
        assert output in refused.err
        assert "w.safetensors" in refused.err or "finite" in output or "is 0" in output
    if "the means" in output:
        assert "D = 3 is model.input_size" in refused.err


def test_what_is_shown(lstm):
    normalized_model("m.safetensors", {"type": "lstm", "hidden_size": 3})
    with h5py.File("x.h5", "w") as data:
        data["inputs"] = raw_inputs()
    line = "inputs normalized: (x - mean) / scale, from m.safetensors"
    assert line in lstm("inspect-shapes", "m.safetensors").out
    assert line in lstm("run", "m.safetensors", "x.h5").out
    numbers = {"mean": MEAN.tolist(), "scale": SCALE.tolist()}
    assert lstm("inspect-shapes", "m.safetensors", "--json").json["normalization"] == numbers
    assert lstm("run", "m.safetensors", "x.h5", "--json").json["model"]["normalization"] == numbers
    file = native.read("m.safetensors")
    native.write("bare.safetensors", file.tensors, None)
    assert "inputs.mean" in lstm("inspect-shapes", "bare.safetensors").out
    save_file(dict(file.tensors), "unsigned.safetensors")  # recognized by its names alone
    Path("m.yaml").write_text(file.config)
    told = lstm("run", "m.yaml", "x.h5", "--weights", "unsigned.safetensors")
    assert line.replace("m.safetensors", "unsigned.safetensors") in told.out
    plain = {name: value for name, value in file.tensors.items() if name.startswith("layers")}
    native.write("plain.safetensors", plain, file.config)
    assert "normalized" not in lstm("run", "plain.safetensors", "x.h5").out
    shown = lstm("inspect-shapes", "plain.safetensors", "--json").json
    assert shown["normalization"] is None


# Python


def test_python(tmp_path):
    plain = normalized_model("m.safetensors", {"type": "lstm", "hidden_size": 4}, dtype="float64")
    net = lstm_cli.load("m.safetensors", engine="reference", dtype="float64")
    x, z = raw_inputs(), (raw_inputs() - MEAN) / SCALE
    expected = plain.run(z, LENGTHS).outputs
    padded = x.copy()
    padded[1, 2:] = np.nan
    for given in (x, padded, np.asarray(x, object).astype(float).tolist()):
        found = net.run(given, LENGTHS).outputs
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
    assert set(net.weights) == {*plain.weights, "inputs.mean", "inputs.scale"}
    net.save("again.safetensors")
    for name, value in file_tensors("again.safetensors").items():
        np.testing.assert_array_equal(value, net.weights[name])
    mapping = {"model": {"input_size": 3, "layers": [{"type": "lstm", "hidden_size": 4}]}}
    made = {"engine": "reference", "dtype": "float64"}
    built = lstm_cli.build(mapping, **made, weights=net.weights)
    np.testing.assert_array_equal(built.run(x, LENGTHS).outputs, net.run(x, LENGTHS).outputs)
    assert built.network.parameter_count == plain.network.parameter_count


@pytest.mark.parametrize("options", [{}, {"truncate": 3}])
def test_a_trainer_steps_on_normalized_inputs(options):
    layers = ({"type": "gru", "hidden_size": 4}, DENSE)
    plain = normalized_model("m.safetensors", *layers, dtype="float64")
    net = lstm_cli.load("m.safetensors", engine="reference", dtype="float64")
    x, y = raw_inputs(), np.random.default_rng(5).standard_normal((4, 7, 2))
    z = (x - MEAN) / SCALE
    trainers = [lstm_cli.Trainer(one, "mse", "adam", **options) for one in (net, plain)]
    for _ in range(3):
        losses = [one.step(v, y, LENGTHS) for one, v in zip(trainers, (x, z), strict=True)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, value in plain.weights.items():
        np.testing.assert_allclose(net.weights[name], value, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(net.weights["inputs.mean"], MEAN)
    # Derivatives are for what was given: beside difference quotients.
    _, gradients = trainers[0].gradients(x, y, LENGTHS)
    assert set(gradients) == {*plain.weights, "inputs", "state.0.h"}
    for n, t, d in ((0, 6, 0), (1, 1, 1), (3, 0, 2)):
        step = np.zeros_like(x)
        step[n, t, d] = 1e-2 * SCALE[d]
        above, below = (trainers[0].gradients(x + k * step, y, LENGTHS)[0] for k in (1, -1))
        quotient = (above - below) / (2 * step[n, t, d])
        assert gradients["inputs"][n, t, d] == pytest.approx(quotient, rel=1e-3)
    assert not gradients["inputs"][2].any()
    assert not gradients["inputs"][1, 2:].any()
