"""Normalization kept apart: nothing is lost from a stored number to the network, in any command.

The reference is NumPy's (x - mean) / scale in float64, run through a network that knows nothing of
a normalization; other formats are run by ONNX Runtime and PyTorch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from networks import random_weights
from safetensors.numpy import save_file

import lstm_cli
from lstm_cli.formats import native

pytestmark = pytest.mark.usefixtures("in_tmp_path")

DIGITS = {"float32 at 1e5": (1e5, 50.0, "f4"), "float64 at 1.6e9": (1.6e9, 5.0, "f8")}
LSTM = {"type": "lstm", "hidden_size": 6, "return_sequences": False}
HEAD = {"type": "dense", "units": 2, "activation": "softmax"}
DENSE = {"type": "dense", "units": 2}
TRAIN = {
    "loss": "cross_entropy",
    "optimizer": {"type": "adam", "learning_rate": 0.03},
    "epochs": 4,
    "batch_size": 20,
    "normalize": "standard",
}
STILL = ("--set", "train.optimizer={type: sgd, learning_rate: 1e-30}", "--set", "train.epochs=1")
MEAN, SCALE = np.array([1.6e9, -3.0, 1e5]), np.array([5.0, 0.25, 50.0])
LENGTHS = [7, 2, 0, 5]


def config(path, *layers, train=None, D=2, **more):
    document = {"model": {"input_size": D, "layers": list(layers), **more}}
    path.write_text(yaml.safe_dump(document | ({"train": train} if train else {})))
    return path


def tensors(path):
    return native.read(path, allow_integers=True).tensors


def model(path, *layers, mean=MEAN, scale=SCALE, dtype="float32", seed=3, **more):
    """A native file with random weights, and mean and scale of its inputs; the plain twin."""
    mapping = {"model": {"input_size": len(mean), "layers": list(layers), **more}}
    specs = lstm_cli.build(mapping, engine="reference").config.specs
    weights = {name: v.astype(dtype) for name, v in random_weights(specs, seed).items()}
    plain = lstm_cli.build(mapping, engine="reference", dtype="float64", weights=weights)
    native.write(
        path, weights | {"inputs.mean": mean, "inputs.scale": scale}, plain.config.to_yaml()
    )
    return plain


def raw(N=4, T=7, seed=1, mean=MEAN, scale=SCALE):
    """Inputs of the data's range in float64."""
    return mean + scale * np.random.default_rng(seed).standard_normal((N, T, len(mean)))


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
    config(tmp_path / "c.yaml", LSTM, HEAD, train=TRAIN)
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
    stored, rows = tensors("x/model.safetensors"), offset[:120].reshape(-1, 2).astype(np.longdouble)
    assert stored["inputs.mean"].dtype == stored["inputs.scale"].dtype == np.float64
    np.testing.assert_allclose(stored["inputs.mean"], rows.mean(0).astype(float), rtol=1e-13)
    np.testing.assert_allclose(stored["inputs.scale"], rows.std(0).astype(float), rtol=1e-9)
    kept = tensors("x/checkpoint.safetensors")
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
    plain, x = model("m.safetensors", *layers), raw()
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
    plain = model("i.safetensors", *layers, mean=MEAN[[0, 2]], scale=SCALE[[0, 2]])
    for first, second in ((0, 1), (1, 0)):
        files = [("whole.h5", "half.h5")[k] for k in (first, second)]
        assert lstm("run", "i.safetensors", *files, "--output", "out.h5", "--quiet").code == 0
        arguments = np.concatenate([pair[first], pair[second]])
        wanted = plain.run((arguments - MEAN[[0, 2]]) / SCALE[[0, 2]]).outputs
        with h5py.File("out.h5") as file:
            np.testing.assert_allclose(file["outputs"], wanted, rtol=0, atol=2e-5)


def test_windows_of_a_series_and_gates(lstm, tmp_path):
    plain = model(
        "m.safetensors", {"type": "lstm", "hidden_size": 4}, {"type": "dense", "units": 3}
    )
    x = raw(1, 30)[0]
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
    path = config(tmp_path / "c.yaml", LSTM, HEAD, train=TRAIN)
    assert lstm("train", path, "x.h5:/train", "--output", "a").code == 0
    before = tensors("a/model.safetensors")
    for normalize in ("standard", "false"):
        more = ("--weights", "a/model.safetensors", *STILL, "--set", f"train.normalize={normalize}")
        outcome = lstm("train", path, "x.h5:/test", "--output", normalize, *more, "--json")
        assert outcome.code == 0, outcome.err
        assert ("train.normalize keeps these" in outcome.err) == (normalize == "standard")
        for name, value in tensors(f"{normalize}/model.safetensors").items():
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
    path = config(tmp_path / "c.yaml", first, DENSE, train=train)
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
    path = config(tmp_path / "c.yaml", *bare, train=TRAIN | {"loss": "mse"})
    with h5py.File("x.h5", "w") as file:
        file["inputs"] = rng.standard_normal((30, 6, 2)) * [3, 0.2] + [7, -1]
        file["targets"] = rng.standard_normal((30, 6, 2)) + 3
    outcome = lstm("train", path, "x.h5", "--output", "a")
    assert outcome.code == 0, outcome.err
    assert not [name for name in tensors("a/model.safetensors") if "bias" in name]
    unscaled = "the targets are not scaled: layer 1 (dense) has no bias to take their mean in"
    assert f"{unscaled}; --set model.layers.1.bias=true scales them" in " ".join(
        outcome.err.split()
    )
    mended = lstm("train", path, "x.h5", "--output", "b", "--set", "model.layers.1.bias=true")
    assert "not scaled" not in mended.err
    mean = tensors("b/model.safetensors")["layers.1.bias"]
    np.testing.assert_allclose(mean, 3, atol=0.5)  # the targets' own, but for what was learned
    assert [name for name in tensors("b/model.safetensors") if "bias" in name] == ["layers.1.bias"]
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
    path = config(tmp_path / "c.yaml", *layers, train=TRAIN | {"loss": "mse"}, D=3, steps=7)
    x, y = raw(), np.random.default_rng(4).standard_normal((4, 2))
    with h5py.File("x.h5", "w") as file:
        file["inputs"], file["lengths"], file["targets"] = x, [7, 2, 3, 5], y
    assert lstm("train", path, "x.h5", "--output", "a").code == 0
    stored = tensors("a/model.safetensors")
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
    np.testing.assert_array_equal(tensors("b.safetensors")["inputs.scale"], stored["inputs.scale"])
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
    path = config(tmp_path / "c.yaml", *layers, train=TRAIN | {"loss": "mse", "epochs": 30})
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
    path = config(tmp_path / "c.yaml", LSTM, HEAD, train=TRAIN | {"normalize": False, "epochs": 1})
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


# Other formats


STACKS = {
    "lstm": [{"type": "lstm", "hidden_size": 5, "bidirectional": True}],
    "gru": [{"type": "dropout", "rate": 0.2}, {"type": "gru", "hidden_size": 4}],
    "rnn": [{"type": "rnn", "hidden_size": 4, "return_sequences": False}],
    "dense": [
        {"type": "dense", "units": 4, "activation": "tanh"},
        {"type": "lstm", "hidden_size": 3},
    ],
    "no biases": [{"type": "gru", "hidden_size": 4, "bidirectional": True, "bias": False}],
    "dense without a bias": [{"type": "dense", "units": 4, "bias": False, "activation": "tanh"}],
}
MILD = {"mean": np.array([293.0, 1013.0, 0.5]), "scale": np.array([5.0, 8.0, 0.1])}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("suffix", [".onnx", ".keras", ".pt"])
def test_formats_without_a_place_get_the_fold(lstm, stack, suffix):
    plain = model("m.safetensors", *STACKS[stack], DENSE, **MILD)
    outcome = lstm("convert", "m.safetensors", f"m{suffix}", "--json")
    assert outcome.code == 0, outcome.err
    unbiased = ", which has no biases and gets them for the fold" if "bias" in stack else ""
    assert (
        f"inputs.mean and inputs.scale are folded into the first layer{unbiased}: " in outcome.err
    )
    assert outcome.json["warnings"] == []
    assert outcome.json["parameters"] == plain.network.parameter_count
    assert outcome.json["proof"]["relative_difference"] < 1e-5
    text = plain.config.to_yaml()
    Path("m.yaml").write_text(text)
    Path("biased.yaml").write_text(text.replace("bias: false", "bias: true"))
    result = lstm_cli.build(
        "biased.yaml", engine="reference", dtype="float64", weights=f"m{suffix}"
    )
    assert "inputs.mean" not in result.weights
    x = raw(**MILD)
    expected = plain.run((x - MILD["mean"]) / MILD["scale"], LENGTHS).outputs
    np.testing.assert_allclose(result.run(x, LENGTHS).outputs, expected, rtol=0, atol=2e-4)
    equal = lstm("compare", "m.safetensors", f"m{suffix}", "--config", "m.yaml")
    assert equal.code == 0, equal.out
    assert "A normalizes its inputs (inputs.mean, inputs.scale), but B does not" in equal.out
    assert lstm("compare", f"m{suffix}", "m.safetensors", "--config", "m.yaml").code == 0


def test_the_fold_in_other_runtimes(lstm):
    """ONNX Runtime and PyTorch compute the native file's outputs from raw inputs."""
    runtime, torch = pytest.importorskip("onnxruntime"), pytest.importorskip("torch")
    plain = model("m.safetensors", {"type": "lstm", "hidden_size": 5}, **MILD)
    x = raw(**MILD)
    expected = plain.run((x - MILD["mean"]) / MILD["scale"]).outputs
    assert lstm("convert", "m.safetensors", "m.onnx").code == 0
    session = runtime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.astype("f4")})[:1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)
    assert lstm("convert", "m.safetensors", "m.pt", "--dtype", "float64").code == 0
    state = torch.load("m.pt", weights_only=True)
    module = torch.nn.LSTM(3, 5, batch_first=True, dtype=torch.float64)
    prefix = next(iter(state)).removesuffix("weight_ih_l0")
    module.load_state_dict({name.removeprefix(prefix): value for name, value in state.items()})
    outputs = module(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("suffix", [".onnx", ".keras", ".pt", ".xml"])
def test_digits_that_a_fold_loses_are_named(lstm, suffix):
    layers = (
        {"type": "lstm", "hidden_size": 5},
        {"type": "flatten"},
        DENSE,
    )
    mean, scale = np.array([1e5, 1.0, 83.0]), np.array([50.0, 1.0, 0.1])
    model("m.safetensors", *layers, mean=mean, scale=scale, steps=4)
    done = lstm("convert", "m.safetensors", f"m{suffix}", "--json")
    assert done.code == 0, done.err
    (warning,) = done.json["warnings"]
    assert f"warning: {warning}" in done.err
    steps = 2000 * 2.0**-23
    assert f"feature 0 (mean 100000, scale 50) is rounded in steps of {steps:.2g}" in warning
    assert "feature 1" not in warning
    assert "feature 2" not in warning  # 830 times its scale: just below what is told
    if suffix == ".onnx":
        assert "only a native file keeps them" in warning
        again = lstm("convert", "m.safetensors", "again.safetensors")
    else:
        assert "--dtype float64 keeps them" in warning
        again = lstm("convert", "m.safetensors", f"n{suffix}", "--dtype", "float64")
    assert again.code == 0, again.err
    assert "warning" not in again.err


def test_a_fold_that_is_wrong_is_not_written(lstm, monkeypatch):
    from lstm_cli.network import normalization

    model("m.safetensors", {"type": "gru", "hidden_size": 4}, **MILD)
    original = normalization.Normalization.apply
    monkeypatch.setattr(  # the network that normalizes forgets one feature's mean
        normalization.Normalization,
        "apply",
        lambda self, x, *rest: original(self, np.add(x, [0, 3, 0]), *rest),
    )
    refused = lstm("convert", "m.safetensors", "m.onnx")
    assert refused.code == 1
    assert "do not compute what the normalization and the weights do" in refused.err
    assert "hint: nothing was written; a native file keeps the normalization" in refused.err
    assert not Path("m.onnx").exists()
    monkeypatch.undo()


def test_a_file_is_proven_on_inputs_of_the_range_of_the_data(lstm, monkeypatch):
    """A weight off by a hundredth: inputs near 0 would leave every gate saturated, and hide it."""
    from lstm_cli.formats import registry

    model("m.safetensors", {"type": "lstm", "hidden_size": 4}, **MILD)
    original = registry.write

    def damaged(path, format, export, options):
        weight = export.tensors["layers.0.weight_ih"].copy()
        weight[:, 2] *= 1.01
        tensors = {**export.tensors, "layers.0.weight_ih": weight}
        return original(path, format, replace(export, tensors=tensors), options)

    monkeypatch.setattr(registry, "write", damaged)
    for name in ("m.onnx", "m.keras", "n.safetensors"):
        refused = lstm("convert", "m.safetensors", name)
        assert refused.code == 1
        assert "does not compute what" in refused.err
        assert not Path(name).exists()


def test_numbers_that_a_fold_cannot_hold(lstm):
    model("m.safetensors", {"type": "rnn", "hidden_size": 3}, mean=np.zeros(2), scale=[1e-60, 1.0])
    refused = lstm("convert", "m.safetensors", "m.keras")
    assert refused.code == 4
    assert "layers.0.weight_ih" in refused.err
    assert "hint: --dtype float64" in refused.err
    assert lstm("convert", "m.safetensors", "m.keras", "--dtype", "float64").code == 0


def test_a_reference_is_compared_with_raw_inputs(lstm):
    plain, x = model("m.safetensors", {"type": "lstm", "hidden_size": 4}, **MILD), raw(**MILD)
    outputs = plain.run((x - MILD["mean"]) / MILD["scale"]).outputs
    np.savez("good.npz", inputs=x, outputs=outputs)
    np.savez("bad.npz", inputs=x + 1, outputs=outputs)
    assert lstm("convert", "m.safetensors", "m.onnx", "--check", "good.npz").code == 0
    assert lstm("convert", "m.safetensors", "m.onnx", "--check", "bad.npz").code == 1


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("hidden_size", [3, 4])  # as many as inputs, or more
def test_readings_of_a_reference(lstm, kind, hidden_size):
    """The layers behind the recurrent ones are tried on its outputs as they are."""
    layer = {"type": kind, "hidden_size": hidden_size, "bidirectional": hidden_size == 4}
    plain, x = model("m.safetensors", {**layer, "return_sequences": False}, DENSE), raw()
    mapping = {"model": {"input_size": 3, "layers": [layer]}}
    own = {name: v for name, v in plain.weights.items() if name.startswith("layers.0.")}
    net = lstm_cli.build(mapping, engine="reference", dtype="float64", weights=own)
    steps = net.run((x - MEAN) / SCALE).outputs
    weight, bias = plain.weights["layers.1.weight"], plain.weights["layers.1.bias"]
    readings = {"mean over": steps.mean(1), "first step": steps[:, 0]}
    for name, taken in readings.items():
        np.savez("r.npz", inputs=x, outputs=taken @ weight.T + bias)
        done = lstm("convert", "m.safetensors", "m.onnx", "--check", "r.npz")
        assert (done.code, f"they are the {name}" in " ".join(done.err.split())) == (1, True)


def test_compare(lstm):
    layers = ({"type": "gru", "hidden_size": 4}, DENSE)
    model("a.safetensors", *layers, **MILD)
    assert lstm("convert", "a.safetensors", "b.onnx").code == 0
    assert lstm("compare", "a.safetensors", "b.onnx", "--json").json["folded"] == "A"
    assert lstm("compare", "b.onnx", "a.safetensors", "--json").json["folded"] == "B"
    assert lstm("convert", "a.safetensors", "wide.keras", "--dtype", "float64").code == 0
    assert lstm("compare", "a.safetensors", "wide.keras").code == 0
    same = lstm("compare", "a.safetensors", "a.safetensors")
    assert (same.code, "inputs.mean" in same.out) == (0, False)
    with h5py.File("x.h5", "w") as file:
        file["inputs"] = raw(**MILD)
    parted = lstm("compare", "a.safetensors", "b.onnx", "--data", "x.h5", "--json").json
    assert parted["divergence"]["outputs"]["largest"] < 1e-3
    model("far.safetensors", *layers)
    assert lstm("convert", "far.safetensors", "far.onnx").code == 0
    far = ("compare", "far.safetensors", "far.onnx")
    assert (lstm(*far).code, "warning: the fold loses digits: feature 0" in lstm(*far).out) == (
        0,
        1,
    )
    with h5py.File("far.h5", "w") as file:
        file["inputs"] = raw()
    assert lstm(*far, "--data", "far.h5").code == 1
    model("other.safetensors", *layers, mean=MILD["mean"] + [0, 2, 0], scale=MILD["scale"])
    apart = lstm("compare", "a.safetensors", "other.safetensors")
    assert apart.code == 1
    assert "differs: inputs.mean differs by up to 2" in apart.out
    assert lstm("compare", "a.safetensors", "other.safetensors", "--tolerance", 3).code == 0
    plain = {name: value for name, value in tensors("a.safetensors").items() if name[0] == "l"}
    native.write("lost.safetensors", plain, native.read("a.safetensors").config)
    lost = lstm("compare", "a.safetensors", "lost.safetensors")
    assert lost.code == 1
    assert "differs: inputs.mean is in A alone" in lost.out


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
    model("m.safetensors", {"type": "lstm", "hidden_size": 3})
    file = native.read("m.safetensors")
    changed = {k: v for k, v in {**file.tensors, **changes}.items() if v is not None}
    native.write("w.safetensors", changed, file.config)
    with h5py.File("x.h5", "w") as data:
        data["inputs"] = raw()
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
    model("m.safetensors", {"type": "lstm", "hidden_size": 3})
    with h5py.File("x.h5", "w") as data:
        data["inputs"] = raw()
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
    plain = model("m.safetensors", {"type": "lstm", "hidden_size": 4}, dtype="float64")
    net = lstm_cli.load("m.safetensors", engine="reference", dtype="float64")
    x, z = raw(), (raw() - MEAN) / SCALE
    expected = plain.run(z, LENGTHS).outputs
    padded = x.copy()
    padded[1, 2:] = np.nan
    for given in (x, padded, np.asarray(x, object).astype(float).tolist()):
        found = net.run(given, LENGTHS).outputs
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
    assert set(net.weights) == {*plain.weights, "inputs.mean", "inputs.scale"}
    net.save("again.safetensors")
    for name, value in tensors("again.safetensors").items():
        np.testing.assert_array_equal(value, net.weights[name])
    mapping = {"model": {"input_size": 3, "layers": [{"type": "lstm", "hidden_size": 4}]}}
    made = {"engine": "reference", "dtype": "float64"}
    built = lstm_cli.build(mapping, **made, weights=net.weights)
    np.testing.assert_array_equal(built.run(x, LENGTHS).outputs, net.run(x, LENGTHS).outputs)
    assert built.network.parameter_count == plain.network.parameter_count


@pytest.mark.parametrize("options", [{}, {"truncate": 3}])
def test_a_trainer_steps_on_normalized_inputs(options):
    layers = ({"type": "gru", "hidden_size": 4}, DENSE)
    plain = model("m.safetensors", *layers, dtype="float64")
    net = lstm_cli.load("m.safetensors", engine="reference", dtype="float64")
    x, y = raw(), np.random.default_rng(5).standard_normal((4, 7, 2))
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
