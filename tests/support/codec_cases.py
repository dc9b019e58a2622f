"""Networks for the contract suite of codecs, and the independent reading of what codecs wrote.

`raw_tensors` reads a file without the package's codecs, and `ORDERS` has the published gate order
of each format. So a mistake that a writer and a reader share is noticed.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from networks import Array, random_inputs, random_weights

from lstm_cli.config import from_mapping, from_text
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import LayerSpec
from lstm_cli.formats.interchange import Export, Imported
from lstm_cli.network.network import Network

N, T, D = 3, 5, 4
FILES = {
    "native": ("w.safetensors",),
    "pytorch": ("w.pt", "w.safetensors"),
    "keras": ("w.keras", "w.weights.h5"),
    "onnx": ("w.onnx",),
    "tmva": ("w.xml",),
}
"""Names of the kinds of file that each format writes."""
ORDERS: dict[str, dict[str, str]] = {
    "native": {"lstm": "ifgo", "gru": "rzn", "rnn": "h"},
    "pytorch": {"lstm": "ifgo", "gru": "rzn", "rnn": "h"},
    "keras": {"lstm": "ifgo", "gru": "zrn", "rnn": "h"},
    "onnx": {"lstm": "iofg", "gru": "zrn", "rnn": "h"},
    "tmva": {"lstm": "ifgo", "gru": "rzn", "rnn": "h"},
}
"""Published gate order of each format, in native letters."""
NATIVE = ORDERS["native"]


@dataclass(frozen=True)
class Case:
    """Layers of a config, with the formats that refuse them and a part of their errors.

    Attributes
    ----------
    changed
        Formats that hold the layers in another form of equal outputs, so that the config or
        the tensors differ.
    """

    layers: tuple[dict[str, Any], ...]
    refused: Mapping[str, str]
    changed: tuple[str, ...] = ()


def case(
    *layers: dict[str, Any], refused: Mapping[str, str] | None = None, changed: Sequence[str] = ()
) -> Case:
    """A case; by default every format holds the layers."""
    return Case(layers, refused or {}, tuple(changed))


def lstm(size: int = 3, **options: Any) -> dict[str, Any]:
    """An LSTM layer that gives one vector per sequence."""
    return {"type": "lstm", "hidden_size": size, "return_sequences": False, **options}


def gru(size: int = 3, **options: Any) -> dict[str, Any]:
    """A GRU layer that gives one vector per sequence."""
    return {**lstm(size, **options), "type": "gru"}


def rnn(size: int = 3, **options: Any) -> dict[str, Any]:
    """A plain recurrent layer that gives one vector per sequence."""
    return {**lstm(size, **options), "type": "rnn"}


def dense(units: int, activation: Any = "identity", **options: Any) -> dict[str, Any]:
    """A dense layer."""
    return {"type": "dense", "units": units, "activation": activation, **options}


SEQUENCES = {"return_sequences": True}
ONE_DIRECTION = {"tmva": "bidirectional: true"}
TWO_BIASES = {"tmva": "a recurrent bias of its candidate"}
CASES = {
    "lstm": case(lstm()),
    "gru": case(gru(), refused=TWO_BIASES),
    "rnn": case(rnn()),
    "gru, reset before": case(
        gru(reset_after=False), refused={"pytorch": "another reset"}, changed=["keras", "tmva"]
    ),
    "every step": case(lstm(5, **SEQUENCES)),
    "one unit": case(rnn(1, **SEQUENCES), dense(2), refused={"tmva": "every step as its input"}),
    "lstm, two directions": case(lstm(bidirectional=True), refused=ONE_DIRECTION),
    "gru, two directions": case(gru(bidirectional=True), refused=ONE_DIRECTION),
    "rnn, two directions": case(rnn(bidirectional=True), refused=ONE_DIRECTION),
    "lstm without biases": case(lstm(bias=False), changed=["tmva"]),
    "gru without biases": case(gru(bias=False), changed=["tmva"]),
    "rnn without biases": case(rnn(bias=False), changed=["tmva"]),
    "stack of one module": case(lstm(3, **SEQUENCES), lstm(3, **SEQUENCES), lstm(3)),
    "stack of three kinds": case(
        rnn(5, **SEQUENCES), lstm(3, **SEQUENCES), rnn(2), dense(6, "tanh"), dense(2, "softmax")
    ),
    "stack of two directions": case(
        lstm(3, bidirectional=True, **SEQUENCES), gru(2, bidirectional=True), dense(3),
        refused=ONE_DIRECTION,
    ),
    "classes": case(lstm(), dense(6, "relu"), dense(3, "softmax")),
    "one probability": case(rnn(), dense(1, "sigmoid")),
    "flatten": case(lstm(2, **SEQUENCES), {"type": "flatten"}, dense(3, "tanh")),
    "dropout": case(
        lstm(5, **SEQUENCES), {"type": "dropout", "rate": 0.25}, lstm(3), dense(2),
        changed=["pytorch", "onnx", "tmva"],
    ),
    "dense without biases": case(lstm(), dense(2, bias=False), changed=["tmva"]),
    "no forget gate": case(lstm(forget_gate=False), changed=["pytorch", "keras", "onnx", "tmva"]),
    "rnn of relu": case(rnn(activation="relu"), refused={"tmva": "activation: relu"}),
    "peepholes": case(
        lstm(peepholes=True),
        refused={"pytorch": "peepholes", "keras": "peepholes: true", "tmva": "peepholes: true"},
    ),
    "projection": case(
        lstm(5, projection_size=2),
        refused={"keras": "projection_size: 2", "tmva": "projection_size: 2"},
        changed=["onnx"],
    ),
    "coupled gates": case(
        lstm(coupled_input_forget=True),
        refused=dict.fromkeys(("pytorch", "keras", "tmva"), "coupled_input_forget: true"),
    ),
    "clip": case(
        gru(clip=0.75), refused={"pytorch": "a clip", "keras": "clip: 0.75", "tmva": "clip: 0.75"}
    ),
    "hard sigmoid": case(
        lstm(recurrent_activation="hard_sigmoid"),
        refused=dict.fromkeys(("pytorch", "keras", "tmva"), "recurrent_activation: hard_sigmoid"),
    ),
    "cell activation": case(
        lstm(cell_activation="relu"),
        refused=dict.fromkeys(("pytorch", "keras", "tmva"), "cell_activation: relu"),
    ),
    "activations of a gru": case(
        gru(activation="softsign"),
        refused={"pytorch": "activation: softsign", "tmva": "activation: softsign"},
    ),
    "two activations": case(
        rnn(bidirectional=True, activation=["tanh", "relu"]),
        refused={"pytorch": "two activations", **ONE_DIRECTION},
    ),
    "stateful": case(lstm(stateful=True), refused={"keras": "stateful: true"}, changed=["onnx"]),
}  # fmt: skip


def specs_of(layers: Sequence[Mapping[str, Any]]) -> tuple[LayerSpec, ...]:
    """Specifications of the layers of a config of D features and T steps."""
    model = {"input_size": D, "steps": T, "layers": [dict(layer) for layer in layers]}
    return from_mapping({"model": model}).specs


def export_of(layers: Sequence[Mapping[str, Any]], dtype: str = "float64", seed: int = 0) -> Export:
    """The layers with random weights, all distinct and exact in float32."""
    config = from_mapping({"model": {"input_size": D, "steps": T, "layers": list(layers)}})
    weights = random_weights(config.specs, seed)
    tensors = {name: value.astype("float32").astype(dtype) for name, value in weights.items()}
    return Export("a näme/&<", D, T, config.specs, tensors, config.to_yaml())


def outputs(specs: Sequence[LayerSpec], tensors: Mapping[str, Array]) -> Array:
    """Outputs of the reference engine in float64 for random inputs (N, T, D)."""
    network = Network(specs, tensors, ReferenceEngine(dtype="float64"))
    return network.run(random_inputs(N, T, D)).outputs


def imported_outputs(
    imported: Imported,
    x: Array,
    config: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    dtype: str = "float64",
) -> Array:
    """Outputs of the reference engine for a file that was read, by its config or by another."""
    specs = from_mapping(config or imported.config or {}, overrides).specs
    return Network(specs, imported.tensors, ReferenceEngine(dtype)).run(x).outputs


def restored_specs(
    imported: Imported, layers: Sequence[Mapping[str, Any]]
) -> tuple[LayerSpec, ...]:
    """Layers of a file that was read, with options that it cannot state set as a user sets them."""
    if imported.text is not None:
        return from_text(imported.text, "w", None).specs
    assert imported.config is not None
    file_layers = [dict(layer) for layer in imported.config["model"]["layers"]]
    if not imported.describes_layers:
        originals = [layer for layer in layers if layer["type"] != "dropout"]
        restored = [layer for layer in file_layers if layer["type"] != "dropout"]
        for layer, original in zip(restored, originals, strict=True):
            for key in {"activation", "return_sequences"} & original.keys():
                layer[key] = original[key]
    return specs_of(file_layers)


def raw_tensors(path: Path) -> dict[str, Array]:
    """All tensors of a file by their names in it, read without the package's codecs."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    if path.suffix == ".pt":
        torch = pytest.importorskip("torch")
        return {name: value.numpy() for name, value in torch.load(path).items()}
    if path.suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        from onnx import numpy_helper

        return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    if path.suffix == ".xml":
        return _xml_matrices(path)
    data = path.read_bytes()
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            data = archive.read("model.weights.h5")
    datasets: dict[str, Array] = {}
    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(
            lambda name, item: datasets.update({name: item[...]} if hasattr(item, "shape") else {})
        )
    return datasets


def _xml_matrices(path: Path) -> dict[str, Array]:
    """Matrices of a TMVA file by tag, index of the layer, and element."""
    weights = ET.parse(path).getroot().find("Weights")
    assert weights is not None
    return {
        f"{layer.tag}[{k}]/{matrix.tag}": np.array((matrix.text or "").split(), float).reshape(
            int(matrix.get("Rows", 0)), int(matrix.get("Columns", 0))
        )
        for k, layer in enumerate(weights)
        for matrix in layer
    }


def raw_blocks(format: str, path: Path, kind: str) -> dict[tuple[str, str], Array]:
    """Gate blocks of the first layer as the file has them, by ``W``, ``U`` and native letter."""
    raw, order = raw_tensors(path), ORDERS[format][kind]
    if format == "tmva":
        return _slot_blocks(raw, order)
    names = {
        "native": ("layers.0.weight_ih", "layers.0.weight_hh"),
        "pytorch": (f"{kind}.weight_ih_l0", f"{kind}.weight_hh_l0"),
        "onnx": ("layers.0.W", "layers.0.R"),
        "keras": tuple(
            f"layers/{'simple_rnn' if kind == 'rnn' else kind}/cell/vars/{k}" for k in (0, 1)
        ),
    }[format]
    blocks = {}
    for matrix, name in zip("WU", names, strict=True):
        values = raw[name].T if format == "keras" else raw[name]
        values = values[0] if format == "onnx" else values
        parts = np.split(values, len(order))
        blocks |= {(matrix, letter): part for letter, part in zip(order, parts, strict=True)}
    return blocks


def _slot_blocks(raw: Mapping[str, Array], order: str) -> dict[tuple[str, str], Array]:
    """Gate blocks of TMVA: all input matrices come before all recurrent ones."""
    matrices = [value for name, value in raw.items() if "Biases" not in name and "Layer[0]" in name]
    keys = [(matrix, letter) for matrix in "WU" for letter in order]
    return dict(zip(keys, matrices, strict=True))
