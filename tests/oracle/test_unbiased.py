"""Layers without biases: frameworks' files are read so, written ones run there, training adds none.

Keras, PyTorch and ONNX Runtime compute the expected values; distinct random weights, D != H.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import random_inputs, random_lengths, random_states, random_weights

import lstm_cli
from lstm_cli.config import from_mapping
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Export, Imported, WriteOptions
from lstm_cli.network.network import Network

N, T, D = 5, 6, 3
LSTM = {"type": "lstm", "hidden_size": 5, "bias": False}
GRU = {"type": "gru", "hidden_size": 4, "bias": False}
RNN = {"type": "rnn", "hidden_size": 6, "bias": False}
DENSE = {"type": "dense", "units": 2, "bias": False}
BOTH = {"bidirectional": True}

NETS: dict[str, list[dict[str, Any]]] = {
    "lstm": [LSTM | BOTH, DENSE],
    "two alike": [LSTM, LSTM, DENSE],
    "gru": [GRU | BOTH, GRU, DENSE],
    "rnn": [RNN | BOTH, DENSE],
    "one of two": [LSTM, LSTM | {"bias": True}, DENSE | {"bias": True}, DENSE],
    "gru before": [GRU | {"reset_after": False}, DENSE],
    "dense alone": [DENSE, {"type": "lstm", "hidden_size": 5}],
    "projection": [LSTM | BOTH | {"projection_size": 2}, DENSE],
    "peepholes": [LSTM | BOTH | {"peepholes": True}, DENSE],
    "coupled": [LSTM | {"coupled_input_forget": True, "clip": 0.7}, DENSE],
}
FOREIGN = {"pytorch": "m.pt", "keras": "m.keras", "onnx": "m.onnx"}
LACKING = {
    "pytorch": {"gru before", "peepholes", "coupled"},
    "keras": {"projection", "peepholes", "coupled"},
}
CASES = [(f, n) for f in FOREIGN for n in NETS if n not in LACKING.get(f, ())]


def export(layers: list[dict[str, Any]], seed: int = 1, **model: Any) -> Export:
    config = from_mapping({"model": {"input_size": D, **model, "layers": layers}})
    weights = {name: v.astype("f4") for name, v in random_weights(config.specs, seed).items()}
    return Export("m", D, model.get("steps"), config.specs, weights, config.to_yaml())


def run(layers: Any, tensors: Any, x: Any, lengths: Any = None, state: Any = None) -> Any:
    return Network(layers, tensors, ReferenceEngine("float64")).run(x, lengths, state)


def outputs_of_file(imported: Imported, x: Any) -> Any:
    """Outputs of a file that was read, by the config that it tells."""
    return run(from_mapping(imported.config).specs, imported.tensors, x).outputs


def flags(imported: Imported) -> list[bool]:
    return [layer.get("bias", True) for layer in imported.config["model"]["layers"]]


def close(found: Any, wanted: Any) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


def torch_modules(layers: list[dict[str, Any]]) -> Any:
    """The modules of a network: recurrent layers that are alike in one."""
    nn, modules, size, before = pytest.importorskip("torch").nn, [], D, None
    for layer in layers:
        bias = layer.get("bias", True)
        if layer["type"] == "dense":
            modules.append(nn.Linear(size, size := layer["units"], bias=bias))
        elif layer == before and layer["type"] == "lstm":
            modules[-1] = nn.LSTM(D, layer["hidden_size"], 2, batch_first=True, bias=bias)
        else:
            projection = layer.get("projection_size", 0)
            both = layer.get("bidirectional", False)
            more = {"proj_size": projection} if projection else {}
            module = getattr(nn, layer["type"].upper())(
                size, layer["hidden_size"], batch_first=True, bidirectional=both, bias=bias, **more
            )
            modules.append(module)
            size = (projection or layer["hidden_size"]) * (1 + both)
        before = layer
    return modules


def in_torch(path: Path, layers: list[dict[str, Any]], tensors: Export) -> None:
    torch = pytest.importorskip("torch")
    modules, state = torch_modules(layers), torch.load(path, weights_only=True)
    for module, name in zip(
        modules, dict.fromkeys(k.rpartition(".")[0] for k in state), strict=True
    ):
        parts = {k.rpartition(".")[2]: v for k, v in state.items() if k.startswith(f"{name}.")}
        module.load_state_dict(parts)  # strict: a bias too many or too few is an error
    lengths, x = np.maximum(random_lengths(N, T), 1), random_inputs(N, T, D)
    states = random_states(tensors.layers, N)
    remaining = [tuple(torch.tensor(p.swapaxes(0, 1)).float() for p in s if p is not None)
            for s in states]  # fmt: skip
    y = torch.tensor(x).float()
    with torch.no_grad():
        for module in modules:
            if isinstance(module, torch.nn.Linear):
                y = module(y)
                continue
            pairs = [remaining.pop(0) for _ in range(module.num_layers)]
            start = tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))
            packed = torch.nn.utils.rnn.pack_padded_sequence(y, lengths, True, False)
            z, _ = module(packed, start if len(start) > 1 else start[0])
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(z, True, total_length=T)
    wanted = run(tensors.layers, tensors.tensors, x, lengths, states).outputs
    valid = np.arange(T) < lengths[:, None]
    close(y.numpy()[valid], wanted[valid])


def in_keras(path: Path, layers: list[dict[str, Any]], original: Export) -> None:
    keras = pytest.importorskip("keras")
    model, x = keras.saving.load_model(path), random_inputs(N, T, D).astype("f4")
    kept = [getattr(layer, "forward_layer", layer).use_bias for layer in model.layers]
    assert kept == [layer.get("bias", True) for layer in layers]
    close(
        np.asarray(model.predict(x, verbose=0)), run(original.layers, original.tensors, x).outputs
    )


def in_onnxruntime(path: Path, layers: list[dict[str, Any]], inputs: Export) -> None:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    lengths, x = random_lengths(N, T), random_inputs(N, T, D)
    states, feeds = None, {"x": x.astype("f4")}
    types = {one.name: one.type for one in session.get_inputs()}
    feeds["lengths"] = lengths.astype("i8" if types["lengths"] == "tensor(int64)" else "i4")
    if any(name.startswith("initial") for name in types):
        states = random_states(inputs.layers, N)
        specs = [spec for spec in inputs.layers if spec.kind != "dense"]
        for spec, state in zip(specs, states, strict=True):
            for letter, value in zip("hc", state, strict=True):
                if value is not None:
                    feeds[f"initial_{letter}.{spec.index}"] = value.astype("f4")
    found = session.run(["y"], feeds)[0]
    close(found, run(inputs.layers, inputs.tensors, x, lengths, states).outputs)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Keras calls its own ``.h5`` legacy, and asks NumPy for what it no longer has."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="keras")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="keras|torch")
        yield


RUN = {"pytorch": in_torch, "keras": in_keras, "onnx": in_onnxruntime}


@pytest.mark.parametrize(("format", "name"), CASES)
def test_written_without_biases(format: str, name: str, tmp_path: Path) -> None:
    """The framework runs it, and what is read back is the same network to the bit."""
    layers, path = NETS[name], tmp_path / FOREIGN[format]
    original = export(layers)
    writing = WriteOptions(lengths=True, states=name != "projection")
    notes = registry.write(path, format, original, writing if format == "onnx" else None)
    assert not any("bias" in note for note in notes)
    RUN[format](path, layers, original)
    back = registry.read(path)
    assert not any("bias" in note for note in back.notes)
    if name != "projection" or format != "onnx":  # there the projection is a layer of its own
        assert flags(back) == [layer.get("bias", True) for layer in layers]
        assert set(back.tensors) == set(original.tensors)
        for key, value in original.tensors.items():
            np.testing.assert_array_equal(back.tensors[key], value, err_msg=key)
    else:
        assert not any(flags(back))


@pytest.mark.parametrize("format", FOREIGN)
def test_biases_of_zeros_stay(format: str, tmp_path: Path) -> None:
    layers = [layer | {"bias": True} for layer in NETS["gru"]]
    given = export(layers)
    tensors = {k: v * ("bias" not in k) for k, v in given.tensors.items()}
    path = tmp_path / FOREIGN[format]
    registry.write(path, format, Export("m", D, None, given.layers, tensors, given.config))
    back = registry.read(path)
    assert all(flags(back))
    assert set(back.tensors) == set(tensors)


@pytest.mark.parametrize("format", FOREIGN)
def test_a_forget_gate_that_stands_in_for_none_has_biases(format: str, tmp_path: Path) -> None:
    layers = [LSTM | {"forget_gate": False}, DENSE]
    original, path = export(layers), tmp_path / FOREIGN[format]
    notes = registry.write(path, format, original)
    assert any("layer 0 has no biases: written with biases of 0" in note for note in notes)
    back, x = registry.read(path), random_inputs(N, T, D)
    assert flags(back) == [True, False]
    close(outputs_of_file(back, x), run(original.layers, original.tensors, x).outputs)


def test_tmva_has_no_layer_without_biases(tmp_path: Path) -> None:
    layers = [GRU | {"reset_after": False, "return_sequences": False}, DENSE]
    original, path = export(layers, steps=T), tmp_path / "m.xml"
    notes = registry.write(path, "tmva", original)
    assert sum("has no biases: written with biases of 0" in note for note in notes) == 2
    back, x = registry.read(path), random_inputs(N, T, D)
    assert all(flags(back))
    assert not any(value.any() for key, value in back.tensors.items() if "bias" in key)
    close(outputs_of_file(back, x), run(original.layers, original.tensors, x).outputs)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("operands", [("", ""), ("B", ""), ("", "B"), ("Z", "Z")], ids=str)
def test_operators_of_onnx_with_and_without_b(kind: str, operands: Any, tmp_path: Path) -> None:
    """One operator a direction; Z is a B of zeros, which is a bias all the same."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    node, rng, H = onnx.helper.make_node, np.random.default_rng(3), 4
    G = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * H
    stored = {name: 0.6 * rng.standard_normal((1, G, size)) for name, size in
              (("W", D), ("R", H), ("W2", D), ("R2", H))}  # fmt: skip
    stored |= {"B": rng.standard_normal((1, 2 * G))} if "B" in operands else {}
    stored |= {"Z": np.zeros((1, 2 * G))} if "Z" in operands else {}
    constants = {name: value.astype("f4") for name, value in stored.items()}
    constants |= {"axis": np.array([1]), "M": rng.standard_normal((2 * H, 2)).astype("f4")}
    nodes = [
        node(kind, ["x", "W", "R", operands[0]], ["a"], hidden_size=H),
        node(kind, ["x", "W2", "R2", operands[1]], ["b"], hidden_size=H, direction="reverse"),
        node("Squeeze", ["a", "axis"], ["c"]),
        node("Squeeze", ["b", "axis"], ["d"]),
        node("Concat", ["c", "d"], ["e"], axis=2),
        node("MatMul", ["e", "M"], ["y"]),
    ]
    values = [onnx.helper.make_tensor_value_info(name, 1, shape)
              for name, shape in (("x", (T, N, D)), ("y", (T, N, 2)))]  # fmt: skip
    held = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], held)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
    model.ir_version = 8
    onnx.save(model, path := tmp_path / "m.onnx")
    x = random_inputs(T, N, D).astype("f4")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    back = registry.read(path)
    assert flags(back) == [operands != ("", ""), False]
    close(outputs_of_file(back, x.swapaxes(0, 1)).swapaxes(0, 1), session.run(None, {"x": x})[0])
    said = [note for note in back.notes if "its bias is read as 0" in note]
    assert len(said) == (len(set(operands)) - 1)


def keras_model(seed: int = 0, **options: Any) -> Any:
    keras = pytest.importorskip("keras")
    L = keras.layers
    layers = [
        L.Bidirectional(L.LSTM(5, return_sequences=True, use_bias=False)),
        L.GRU(4, return_sequences=True, use_bias=False),
        L.Dense(2, use_bias=False),
    ]
    model = keras.Sequential([keras.Input((T, D)), *layers])
    rng = np.random.default_rng(seed)
    model.set_weights([0.6 * rng.standard_normal(v.shape) for v in model.get_weights()])
    return model


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
def test_keras_files_without_biases(name: str, tmp_path: Path) -> None:
    model, x = keras_model(), random_inputs(N, T, D).astype("f4")
    path = tmp_path / name
    (model.save_weights if "weights" in name else model.save)(path)
    back = registry.read(path)
    assert flags(back) == [False] * 3
    assert not any("bias" in key for key in back.tensors)
    close(outputs_of_file(back, x), np.asarray(model.predict(x, verbose=0)))


def test_a_direction_with_biases_beside_one_without(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    L = keras.layers
    one = L.LSTM(5, return_sequences=True, use_bias=False)
    other = L.LSTM(5, return_sequences=True, go_backwards=True)
    model = keras.Sequential([keras.Input((T, D)), L.Bidirectional(one, backward_layer=other)])
    rng = np.random.default_rng(0)
    model.set_weights([0.6 * rng.standard_normal(v.shape) for v in model.get_weights()])
    model.save(tmp_path / "m.keras")
    back, x = registry.read(tmp_path / "m.keras"), random_inputs(N, T, D).astype("f4")
    assert flags(back) == [True]
    assert not back.tensors["layers.0.bias"].any()
    assert back.tensors["layers.0.reverse.bias"].any()
    assert any("has no forward bias: there it is 0" in note for note in back.notes)
    close(outputs_of_file(back, x), np.asarray(model.predict(x, verbose=0)))


def test_training_adds_no_bias_to_a_model_of_keras(tmp_path: Path) -> None:
    """Read, trained, written back: Keras has the trained network, without biases."""
    keras = pytest.importorskip("keras")
    keras_model().save(tmp_path / "m.keras")
    net = lstm_cli.load(tmp_path / "m.keras", engine="reference")
    before = {name: np.array(value) for name, value in net.weights.items()}
    trainer = lstm_cli.Trainer(
        net, loss="mse", optimizer={"type": "adamw", "learning_rate": 0.01, "weight_decay": 0.1}
    )
    x, y = random_inputs(N, T, D).astype("f4"), random_inputs(N, T, 2, seed=1).astype("f4")
    lengths = random_lengths(N, T)
    losses = [trainer.step(x, y, lengths=lengths) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert before.keys() == net.weights.keys()
    assert all((before[name] != net.weights[name]).any() for name in before)
    net.save(tmp_path / "t.safetensors")
    back = registry.read(tmp_path / "t.safetensors")
    assert not any("bias" in name for name in back.tensors)
    config = from_mapping(registry.read(tmp_path / "m.keras").config)
    given = Export("t", D, None, config.specs, dict(net.weights), config.to_yaml())
    registry.write(tmp_path / "t.keras", "keras", given)
    model = keras.saving.load_model(tmp_path / "t.keras")
    assert len(model.get_weights()) == len(before)
    close(np.asarray(model.predict(x, verbose=0)), net.run(x).outputs)


def test_a_state_dict_of_layers_of_which_one_lacks_biases(tmp_path: Path) -> None:
    """PyTorch's modules have all or none; other code's need not."""
    torch = pytest.importorskip("torch")
    module = torch.nn.LSTM(D, 5, 2, batch_first=True)
    state = {k: v for k, v in module.state_dict().items() if k not in ("bias_ih_l1", "bias_hh_l1")}
    torch.save(state, tmp_path / "m.pt")
    back, x = registry.read(tmp_path / "m.pt"), torch.tensor(random_inputs(N, T, D)).float()
    assert flags(back) == [True, False]
    with torch.no_grad():
        module.bias_ih_l1.zero_()
        module.bias_hh_l1.zero_()
        close(outputs_of_file(back, x.numpy()), module(x)[0].numpy())
    both = torch.nn.LSTM(D, 5, batch_first=True, bidirectional=True)
    left = {k: v for k, v in both.state_dict().items() if "bias" not in k or "reverse" in k}
    torch.save(left, tmp_path / "b.pt")
    half = registry.read(tmp_path / "b.pt")
    assert flags(half) == [True]
    assert any("no forward bias is stored" in note for note in half.notes)
    with torch.no_grad():
        both.bias_ih_l0.zero_()
        both.bias_hh_l0.zero_()
        close(outputs_of_file(half, x.numpy()), both(x)[0].numpy())
    del state["bias_hh_l0"]
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(WeightsError, match="one bias of two"):
        registry.read(tmp_path / "m.pt")
