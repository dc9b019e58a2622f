"""Weights that normalize, converted: other formats fold mean and scale into the first layer.

The reference is NumPy's (x - mean) / scale in float64, run through a network that knows nothing of
a normalization; ONNX Runtime and PyTorch run the files of other formats.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from normalized_models import (
    DENSE,
    LENGTHS,
    MEAN,
    SCALE,
    file_tensors,
    normalized_model,
    raw_inputs,
)

import lstm_cli
from lstm_cli.formats import native

pytestmark = pytest.mark.usefixtures("in_tmp_path")


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
    plain = normalized_model("m.safetensors", *STACKS[stack], DENSE, **MILD)
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
    x = raw_inputs(**MILD)
    expected = plain.run((x - MILD["mean"]) / MILD["scale"], LENGTHS).outputs
    np.testing.assert_allclose(result.run(x, LENGTHS).outputs, expected, rtol=0, atol=2e-4)
    equal = lstm("compare", "m.safetensors", f"m{suffix}", "--config", "m.yaml")
    assert equal.code == 0, equal.out
    assert "A normalizes its inputs (inputs.mean, inputs.scale), but B does not" in equal.out
    assert lstm("compare", f"m{suffix}", "m.safetensors", "--config", "m.yaml").code == 0


def test_the_fold_in_other_runtimes(lstm):
    """ONNX Runtime and PyTorch compute the native file's outputs from raw inputs."""
    runtime, torch = pytest.importorskip("onnxruntime"), pytest.importorskip("torch")
    plain = normalized_model("m.safetensors", {"type": "lstm", "hidden_size": 5}, **MILD)
    x = raw_inputs(**MILD)
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
    normalized_model("m.safetensors", *layers, mean=mean, scale=scale, steps=4)
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

    normalized_model("m.safetensors", {"type": "gru", "hidden_size": 4}, **MILD)
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

    normalized_model("m.safetensors", {"type": "lstm", "hidden_size": 4}, **MILD)
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
    normalized_model(
        "m.safetensors", {"type": "rnn", "hidden_size": 3}, mean=np.zeros(2), scale=[1e-60, 1.0]
    )
    refused = lstm("convert", "m.safetensors", "m.keras")
    assert refused.code == 4
    assert "layers.0.weight_ih" in refused.err
    assert "hint: --dtype float64" in refused.err
    assert lstm("convert", "m.safetensors", "m.keras", "--dtype", "float64").code == 0


def test_a_reference_is_compared_with_raw_inputs(lstm):
    plain, x = (
        normalized_model("m.safetensors", {"type": "lstm", "hidden_size": 4}, **MILD),
        raw_inputs(**MILD),
    )
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
    plain, x = (
        normalized_model("m.safetensors", {**layer, "return_sequences": False}, DENSE),
        raw_inputs(),
    )
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
    normalized_model("a.safetensors", *layers, **MILD)
    assert lstm("convert", "a.safetensors", "b.onnx").code == 0
    assert lstm("compare", "a.safetensors", "b.onnx", "--json").json["folded"] == "A"
    assert lstm("compare", "b.onnx", "a.safetensors", "--json").json["folded"] == "B"
    assert lstm("convert", "a.safetensors", "wide.keras", "--dtype", "float64").code == 0
    assert lstm("compare", "a.safetensors", "wide.keras").code == 0
    same = lstm("compare", "a.safetensors", "a.safetensors")
    assert (same.code, "inputs.mean" in same.out) == (0, False)
    with h5py.File("x.h5", "w") as file:
        file["inputs"] = raw_inputs(**MILD)
    parted = lstm("compare", "a.safetensors", "b.onnx", "--data", "x.h5", "--json").json
    assert parted["divergence"]["outputs"]["largest"] < 1e-3
    normalized_model("far.safetensors", *layers)
    assert lstm("convert", "far.safetensors", "far.onnx").code == 0
    far = ("compare", "far.safetensors", "far.onnx")
    assert (lstm(*far).code, "warning: the fold loses digits: feature 0" in lstm(*far).out) == (
        0,
        1,
    )
    with h5py.File("far.h5", "w") as file:
        file["inputs"] = raw_inputs()
    assert lstm(*far, "--data", "far.h5").code == 1
    normalized_model(
        "other.safetensors", *layers, mean=MILD["mean"] + [0, 2, 0], scale=MILD["scale"]
    )
    apart = lstm("compare", "a.safetensors", "other.safetensors")
    assert apart.code == 1
    assert "differs: inputs.mean differs by up to 2" in apart.out
    assert lstm("compare", "a.safetensors", "other.safetensors", "--tolerance", 3).code == 0
    plain = {name: value for name, value in file_tensors("a.safetensors").items() if name[0] == "l"}
    native.write("lost.safetensors", plain, native.read("a.safetensors").config)
    lost = lstm("compare", "a.safetensors", "lost.safetensors")
    assert lost.code == 1
    assert "differs: inputs.mean is in A alone" in lost.out
