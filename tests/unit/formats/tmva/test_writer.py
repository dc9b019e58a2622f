"""TMVA files that lstm-cli writes, against what it reads back and a file written by hand."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tmva_files as tmva
from codec_cases import imported_outputs
from networks import random_inputs, random_weights

from lstm_cli.config import from_mapping
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Export, Imported
from lstm_cli.network.network import Network

STACK = [
    {"type": "gru", "hidden_size": 3, "reset_after": False, "stateful": True},
    {"type": "dropout", "rate": 0.5},
    {"type": "lstm", "hidden_size": 3, "dropout": 0.1},
    {"type": "rnn", "hidden_size": 5, "return_sequences": False},
    {"type": "dense", "units": 4, "activation": "gauss"},
    {"type": "dense", "units": 3, "activation": "softmax"},
]


def export(layers: Any, D: int = 2, steps: int | None = 5, dtype: str = "float32") -> Export:
    model = {"input_size": D, "layers": layers} | ({} if steps is None else {"steps": steps})
    config = from_mapping({"model": model})
    weights = random_weights(config.specs, seed=3)
    for name in weights:
        if name.endswith("bias_hh"):  # TMVA's candidate has one bias
            weights[name][-len(weights[name]) // 3 :] = 0
    tensors = {name: value.astype(dtype) for name, value in weights.items()}
    return Export("a näme/&<", D, steps, config.specs, tensors, config.to_yaml())


def round_trip(export: Export, path: Path) -> Imported:
    """Write, read, and compare what both give."""
    registry.write(path, "tmva", export)
    imported = registry.read(path)
    x = random_inputs(4, export.steps or 5, export.input_size)
    actual = imported_outputs(imported, x)
    single = any(value.dtype == np.float32 for value in export.tensors.values())
    bound = 1e-8 if single else 1e-13  # a gru's biases are added, and rounded
    expected = Network(export.layers, export.tensors, ReferenceEngine("float64")).run(x).outputs
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)
    return imported


@pytest.mark.parametrize("seed", range(15))
def test_random_networks(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng([7, seed])
    D, steps = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    layers: list[dict[str, Any]] = []
    H = D
    for _ in range(rng.integers(0, 4)):
        kind = ("lstm", "gru", "rnn")[rng.integers(3)]
        H += int(rng.integers(3))
        layer: dict[str, Any] = {"type": kind, "hidden_size": H}
        if kind == "gru":
            layer["reset_after"] = bool(rng.integers(2))
        if kind == "lstm":
            layer["forget_gate"] = bool(rng.integers(2))
        layers.append(layer)
    if layers and rng.integers(2):
        layers[-1]["return_sequences"] = False
    elif not layers or rng.integers(2):
        layers.append({"type": "flatten"})
    if layers[-1]["type"] == "flatten" or not layers[-1].get("return_sequences", True):
        names = ["identity", "relu", "sigmoid", "tanh", "symmrelu", "softsign", "gauss"]
        for _ in range(rng.integers(1, 4)):
            name = names[rng.integers(7)]
            layers.append({"type": "dense", "units": int(rng.integers(1, 6)), "activation": name})
        if rng.integers(2):
            layers[-1]["activation"] = ("sigmoid", "softmax")[rng.integers(2)]
    round_trip(export(layers, D, steps, "float64"), tmp_path / "w.xml")


def test_a_written_file_is_what_the_writer_by_hand_makes(tmp_path: Path) -> None:
    """The elements, in order, with the same attributes and values."""
    rng = np.random.default_rng(5)
    layers = [
        tmva.recurrent("LSTMLayer", 2, 3, 4, rng),
        tmva.recurrent("GRULayer", 3, 5, 4, rng, RememberState=1),
        tmva.recurrent("RNNLayer", 5, 2, 4, rng, ReturnSequence=0),
        tmva.flat(2),
        tmva.dense(2, 3, 4, rng),
        tmva.dense(3, 2, 0, rng),
    ]
    hand = tmva.write(tmp_path / "hand.xml", layers, shape=(4, 2), output="M")
    read = registry.read(hand)
    assert read.config is not None
    config = from_mapping(read.config)
    given = Export("x", 2, 4, config.specs, read.tensors, config.to_yaml())
    registry.write(tmp_path / "ours.xml", "tmva", given)
    ours, theirs = (ET.parse(tmp_path / name).getroot() for name in ("ours.xml", "hand.xml"))
    assert ours.attrib == {"Method": "DL::x"}
    ours, theirs = ours.find("Weights"), theirs.find("Weights")  # type: ignore[assignment]
    assert set(ours.attrib) == set(theirs.attrib)
    for key in ("NetDepth", "InputDepth", "InputHeight", "InputWidth", "OutputFunction"):
        assert ours.get(key) == theirs.get(key)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.tag, one.attrib) == (other.tag, other.attrib)
        for left, right in zip(one, other, strict=True):
            assert (left.tag, left.attrib) == (right.tag, right.attrib)
            assert [float(v) for v in (left.text or "").split()] == [
                float(v) for v in (right.text or "").split()
            ]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_our_own_files_are_never_ambiguous(kind: str, tmp_path: Path) -> None:
    """A layer of another writer, as wide as its input, is refused."""
    path = tmp_path / "w.xml"
    round_trip(export([{"type": kind, "hidden_size": 2, "return_sequences": False}]), path)
    path.write_text(path.read_text().replace("lstm-cli", "somebody"))
    with pytest.raises(WeightsError, match="can be read in two ways"):
        registry.read(path)


def test_the_name_and_the_header(tmp_path: Path) -> None:
    notes = registry.write(tmp_path / "w.xml", "tmva", export(STACK))
    root = ET.parse(tmp_path / "w.xml").getroot()
    assert re.fullmatch(r"DL::[A-Za-z0-9_.-]+", root.attrib["Method"])
    layout = "GRU|3|2|5|1|1|0,LSTM|3|3|5|0|1,RNN|5|3|5|0|0,RESHAPE|FLAT,DENSE|4|GAUSS"
    options = {option.get("name"): option.text for option in root.findall("Options/Option")}
    assert options["Layout"] == layout + ",DENSE|3|LINEAR"
    assert len(root.findall("Variables/Variable")) == 10
    assert [e.get("Name") for e in root.findall("Classes/Class")] == ["Class0", "Class1", "Class2"]
    assert len(notes) == 3
    assert "dropout" in notes[0]
    assert "dropout" in notes[1]
    assert "exactly 5 steps" in notes[2]


LSTM = {"type": "lstm", "hidden_size": 3, "return_sequences": False}
REFUSED = {
    "activation: elu": [LSTM, {"type": "dense", "units": 2, "activation": "elu"}],
    "activation: softmax": [LSTM, *([{"type": "dense", "units": 2, "activation": "softmax"}] * 2)],
}


@pytest.mark.parametrize("what", REFUSED)
def test_options_that_tmva_lacks_are_named(what: str, tmp_path: Path) -> None:
    path = tmp_path / "w.xml"
    with pytest.raises(WeightsError, match=rf"layer \d \(\w+\): it has .*{what}"):
        registry.write(path, "tmva", export(REFUSED[what]))
    assert not path.exists()


def test_a_candidate_with_a_bias_inside_the_reset_gate(tmp_path: Path) -> None:
    given = export([{"type": "gru", "hidden_size": 3, "return_sequences": False}])
    given.tensors["layers.0.bias_hh"][-1] = 1e-9
    with pytest.raises(WeightsError, match="reset_after: true and a recurrent bias"):
        registry.write(tmp_path / "w.xml", "tmva", given)
    before = export(
        [{"type": "gru", "hidden_size": 3, "return_sequences": False, "reset_after": False}],
        dtype="float64",
    )
    before.tensors["layers.0.bias_hh"][-1] = 0.7  # added where the product has no gate of its own
    round_trip(before, tmp_path / "w.xml")


def test_steps_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="how many steps") as caught:
        registry.write(tmp_path / "w.xml", "tmva", export([LSTM], steps=None))
    assert "--set model.steps=T" in str(caught.value)
