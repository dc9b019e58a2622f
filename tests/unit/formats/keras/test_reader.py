"""Keras's files without Keras: older files written by hand, descriptions, dtypes, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras_files as kf
import numpy as np
import pytest
from codec_cases import imported_outputs
from networks import random_inputs, random_weights, recurrent

from lstm_cli.cells import Activation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Export, Imported, ReadOptions
from lstm_cli.network.network import Network

N, T, D, H = 3, 5, 4, 3


def check(path: Path, x: Any, expected: Any) -> Imported:
    imported = registry.read(path)
    np.testing.assert_allclose(imported_outputs(imported, x), expected, rtol=0, atol=1e-12)
    return imported


@pytest.mark.parametrize("whole", [True, False], ids=["model", "weights"])
@pytest.mark.parametrize("two", [False, True], ids=["one bias", "two biases"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_files_of_keras_2(kind: str, two: bool, whole: bool, tmp_path: Path) -> None:
    """Files by hand against the equations: hard sigmoid 0.2 x + 0.5, two directions, a head."""
    rng, x = np.random.default_rng(3), random_inputs(N, T, D)
    two = two and kind == "GRU"
    forward, back = (kf.drawn(kind, D, H, rng, two=two) for _ in range(2))
    W, b = rng.standard_normal((2 * H, 2)), rng.standard_normal(2)
    gate = kf.hard_sigmoid if whole else kf.sigmoid
    y = [kf.recurrence(kind, x, w, gate, back=k == 1) for k, w in enumerate((forward, back))]
    expected = np.concatenate(y, axis=2) @ W + b
    names = {
        **kf.cell_names(f"bi/forward_{kind.lower()}/cell", forward),
        **kf.cell_names(f"bi/backward_{kind.lower()}/cell_1", back),
    }
    inner = kf.entry(
        kind, "r", units=H, activation="tanh", recurrent_activation="hard_sigmoid",
        use_bias=True, return_sequences=True, **({"reset_after": True} if two else {}),
    )  # fmt: skip
    model = {
        "class_name": "Sequential",
        "config": [
            kf.entry("Masking", "mask", batch_input_shape=[None, T, D], mask_value=0.0),
            kf.entry("Bidirectional", "bi", layer=inner, merge_mode="concat"),
            kf.entry("Dense", "out", units=2, activation="linear", use_bias=True),
        ],
    }
    layers = {"mask": {}, "bi": names, "out": {"out/kernel:0": W, "out/bias:0": b}}
    path = kf.legacy(tmp_path / "w.h5", layers, model if whole else None)
    imported = check(path, x, expected)
    assert ("2.4.0" in imported.title) == whole
    assert {s.name for s in imported.sources} == {
        ("model_weights/" if whole else "") + f"{layer}/{name}"
        for layer, variables in layers.items()
        for name in variables
    }


@pytest.mark.parametrize("version", ["2.11.0", "3.4.1", None])
def test_functional_by_version(version: str | None, tmp_path: Path) -> None:
    rng, x = np.random.default_rng(4), random_inputs(N, T, D)
    weights = kf.drawn("GRU", D, H, rng)
    layers = [
        kf.entry("GRU", "g", units=H, recurrent_activation="hard_sigmoid"),
        kf.entry("InputLayer", "in", batch_input_shape=[None, None, D]),
    ]
    for layer in layers:
        layer["name"] = layer["config"]["name"]
    layers[0]["inbound_nodes"] = [[["in", 0, 0, {"training": False}]]]
    layers[1]["inbound_nodes"] = []
    config = {"layers": layers, "input_layers": [["in", 0, 0]], "output_layers": [["g", 0, 0]]}
    model = {"class_name": "Functional", "config": config}
    kf.legacy(tmp_path / "w.h5", {"in": {}, "g": kf.cell_names("g", weights)}, model, version)

    def gate(a: Any) -> Any:
        return kf.hard_sigmoid(a, 3 if version == "3.4.1" else 2)

    imported = check(tmp_path / "w.h5", x, kf.recurrence("GRU", x, weights, gate)[:, -1])
    assert any("no version" in note for note in imported.notes) == (version is None)
    layers[0]["inbound_nodes"][0].append(["in", 0, 0, {}])
    kf.legacy(tmp_path / "w.h5", {"in": {}, "g": kf.cell_names("g", weights)}, model, version)
    with pytest.raises(WeightsError, match=r"g \(GRU\) reads 2 tensors: in, in"):
        registry.read(tmp_path / "w.h5")


def exported(dtype: str = "float32", **changes: Any) -> Export:
    specs: list[Any] = [
        recurrent("gru", H, D, directions=2, reset_after=False),
        DropoutSpec(1, 2 * H, 0.2),
        recurrent("lstm", 2, 2 * H, index=2, **changes),
        FlattenSpec(3, 2, T),
        DenseSpec(4, 2 * T, 6, Activation("leaky_relu", alpha=0.3)),
        DenseSpec(5, 6, 3, None),
    ]
    tensors = {name: v.astype(dtype) for name, v in random_weights(specs, 2).items()}
    return Export("net", D, T, tuple(specs), tensors, "")


def test_the_model_holds_the_weights_file(tmp_path: Path) -> None:
    path, weights = tmp_path / "m.keras", tmp_path / "m.weights.h5"
    notes = registry.write(path, "keras", exported())
    assert any("different lengths" in note for note in notes)
    registry.write(weights, "keras", exported())
    assert kf.members(path)["model.weights.h5"] == weights.read_bytes()


LACKS = {
    "gauss": ({"activation": Activation("gauss")}, "activation: gauss"),
    "open": (
        {"use_forget_gate": False, "recurrent_activation": Activation("softsign")},
        "forget_gate: false",
    ),
}


@pytest.mark.parametrize("case", LACKS)
def test_what_keras_lacks(case: str, tmp_path: Path) -> None:
    changes, text = LACKS[case]
    with pytest.raises(WeightsError) as caught:
        registry.write(tmp_path / "m.keras", "keras", exported(**changes))
    assert text in str(caught.value)
    assert "layer 2 (lstm)" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_names_that_keras_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"\.keras"):
        registry.write(tmp_path / "m.h5", "keras", exported())


def rewritten(tmp_path: Path, change: Any = None, **how: Any) -> Imported:
    """Read a ``.keras`` file whose HDF5 file is rewritten."""
    registry.write(tmp_path / "m.keras", "keras", exported())
    parts = kf.members(tmp_path / "m.keras")
    parts["model.weights.h5"] = kf.copied(parts["model.weights.h5"], change, **how)
    return registry.read(kf.packed(tmp_path / "n.keras", parts))


@pytest.mark.parametrize(
    "how",
    [
        {"chunks": True},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
    ],
    ids=["chunks", "filters"],
)
def test_chunks_and_compression(how: dict[str, Any], tmp_path: Path) -> None:
    tensors = rewritten(tmp_path, **how).tensors
    original = registry.read(tmp_path / "m.keras").tensors
    assert tensors.keys() == original.keys()
    for name, value in original.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_other_types(tmp_path: Path) -> None:
    def bfloat16(values: Any) -> Any:
        return (values.view(np.uint32) >> 16).astype("<u2").view("V2")

    original = {}
    for name, change in {
        "float16": lambda v: v.astype("f2"),
        "bfloat16": bfloat16,
        ">f8": lambda v: v.astype(">f8"),
    }.items():
        imported = rewritten(tmp_path, change)
        original = original or registry.read(tmp_path / "m.keras").tensors
        for native, value in original.items():
            kept = 2.0**-7 if name == "bfloat16" else 2.0**-10 if name == "float16" else 0
            np.testing.assert_allclose(imported.tensors[native], value, rtol=kept, atol=1e-6 * kept)
            assert imported.tensors[native].dtype == ("f8" if name == ">f8" else "f4")
        assert {s.dtype for s in imported.sources} == {"float64" if name == ">f8" else name}
    with pytest.raises(WeightsError, match="no floating-point numbers"):
        rewritten(tmp_path, lambda v: v.astype("i4"))


def stack(*sizes: int) -> Export:
    """LSTM, GRU, dense: their classes are not in the order of the alphabet."""
    a, b, c = sizes
    specs = (recurrent("lstm", a, D), recurrent("gru", b, a, index=1), DenseSpec(2, b, c, None))
    return Export("net", D, None, specs, random_weights(specs, 1), "")


def test_order_of_weights_without_a_description(tmp_path: Path) -> None:
    """A file of lstm-cli states its order, also in a copy; otherwise sizes or a config decide."""
    path = tmp_path / "m.weights.h5"
    for sizes, unique in (((7, 6, 5), True), ((D, D, D), False)):
        export = stack(*sizes)
        registry.write(path, "keras", export)
        for order in (True, False):
            path.write_bytes(kf.copied(path.read_bytes(), attributes=order))
            if not unique and not order:
                with pytest.raises(WeightsError, match="several fit: layers/dense -> ") as caught:
                    registry.read(path)
                assert "model.save('model.keras')" in str(caught.value)
                assert "--weights FILE" in str(caught.value)
            options = ReadOptions(layers=None if unique or order else export.layers)
            imported = registry.read(path, options)
            told = "the file's own list" if order else "the only one that fits"
            assert told in "".join(imported.notes)
            for name, value in export.tensors.items():
                np.testing.assert_array_equal(imported.tensors[name], value)


def test_order_of_very_many_layers(tmp_path: Path) -> None:
    """More names than one attribute of HDF5 holds."""
    specs = tuple(DenseSpec(k, 1, 1, None) for k in range(501))
    export = Export("net", 1, None, specs, random_weights(specs, 1), "")
    registry.write(tmp_path / "m.weights.h5", "keras", export)
    found = registry.read(tmp_path / "m.weights.h5").tensors
    assert [found[f"layers.{k}.bias"] for k in range(501)] == [
        export.tensors[f"layers.{k}.bias"] for k in range(501)
    ]


@pytest.mark.parametrize("old", ["_layer_checkpoint_dependencies", "\\"])
def test_older_paths(old: str, tmp_path: Path) -> None:
    import h5py

    registry.write(tmp_path / "m.keras", "keras", exported())
    parts = kf.members(tmp_path / "m.keras")
    (tmp_path / "new.h5").write_bytes(parts["model.weights.h5"])
    with h5py.File(tmp_path / "new.h5") as new, h5py.File(tmp_path / "old.h5", "w") as file:
        for name in registry.read(tmp_path / "m.keras").sources:
            path, number = name.name.rsplit("/", 2)[0], name.name.rsplit("/", 1)[1]
            path = path.replace("/", "\\") if old == "\\" else path.replace("layers", old)
            group = file.require_group(path).require_group("vars")
            if number not in group:
                group[number] = new[name.name][...]
    parts["model.weights.h5"] = (tmp_path / "old.h5").read_bytes()
    found = registry.read(kf.packed(tmp_path / "n.keras", parts)).tensors
    for name, value in registry.read(tmp_path / "m.keras").tensors.items():
        np.testing.assert_array_equal(found[name], value)


def described(tmp_path: Path, change: Any) -> Imported:
    """Read a written model whose description is changed."""
    registry.write(tmp_path / "m.keras", "keras", exported())
    parts = kf.members(tmp_path / "m.keras")
    model = json.loads(parts["config.json"])
    change(model["config"]["layers"])
    parts["config.json"] = json.dumps(model).encode()
    return registry.read(kf.packed(tmp_path / "n.keras", parts))


def test_activations_of_their_own(tmp_path: Path) -> None:
    """After a dense layer without one they become its own; after others, an identity matrix."""

    def change(layers: list[Any]) -> None:
        relu = {"module": "keras.layers", "class_name": "ReLU", "config": {"name": "r"}}
        layers.insert(2, relu)
        layers[-1]["config"]["activation"] = {
            "module": "builtins", "class_name": "function", "config": "linear",
            "registered_name": "function",
        }  # fmt: skip
        layers.append({**relu, "class_name": "Softmax", "config": {"name": "s", "axis": -1}})

    imported = described(tmp_path, change)
    assert imported.config is not None
    layers = imported.config["model"]["layers"]
    assert layers[1] == {"type": "dense", "units": 2 * H, "bias": False, "activation": "relu"}
    assert layers[-1] == {"type": "dense", "units": 3, "activation": "softmax"}
    np.testing.assert_array_equal(imported.tensors["layers.1.weight"], np.eye(2 * H))
    assert "the layer r (ReLU) became a dense layer" in "".join(imported.notes)
    export, x = exported(), random_inputs(N, T, D)
    parts: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for name, value in export.tensors.items():
        parts[name.startswith("layers.0.")][name] = value
    engine = ReferenceEngine(dtype="float64")
    first = Network(export.layers[:1], parts[True], engine).run(x).outputs
    wanted = Network(export.layers[2:], parts[False], engine).run(np.maximum(first, 0)).outputs
    np.testing.assert_allclose(imported_outputs(imported, x), wanted, rtol=0, atol=1e-6)


CHANGES: dict[str, tuple[Any, str]] = {
    "own class": (lambda e: e.update(module="mine", class_name="Gate"), "of a user-defined class"),
    "registered": (lambda e: e.update(registered_name="Pack>LSTM"), "of a user-defined class"),
    "unknown": (lambda e: e.update(class_name="Conv1D"), "lstm (Conv1D) has no counterpart"),
    "units": (lambda e: e["config"].update(units=9), "does not fit its 9 units"),
    "no units": (lambda e: e["config"].update(units="9"), "units: 9"),
    "activation": (lambda e: e["config"].update(activation="gelu"), "activation: gelu"),
    "function": (
        lambda e: e["config"].update(activation={"class_name": "function", "config": "f"}),
        "activation: an object of class function",
    ),
    "backwards": (lambda e: e["config"].update(go_backwards=True), "go_backwards: True"),
    "time": (lambda e: e["config"].update(time_major=True), "time_major: True"),
    "flag": (lambda e: e["config"].update(use_bias="no"), "use_bias: no"),
    "rate": (lambda e: e["config"].update(dropout=1.5), "dropout: 1.5"),
    "nan": (lambda e: e["config"].update(dropout=float("nan")), "dropout: nan"),
    "name": (lambda e: e["config"].update(name="a\x1b[31m", units=[]), r"'a\x1b[31m'"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_unsupported_descriptions_are_named(case: str, tmp_path: Path) -> None:
    change, text = CHANGES[case]
    with pytest.raises(WeightsError) as caught:
        described(tmp_path, lambda layers: change(layers[3]))
    assert text in str(caught.value)
    assert str(tmp_path / "n.keras") in str(caught.value)
