"""Weights files: their configs, layer numbers and notes, and options that contradict a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codec_cases import CASES, FILES, export_of

from lstm_cli.config import Config, from_mapping
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.workflows.config_differences import option_mismatches
from lstm_cli.workflows.model import assemble
from lstm_cli.workflows.weights_files import (
    config_of,
    is_weights,
    read_weights,
    renumbered,
    standing_notes,
)


def config(*layers: dict[str, Any]) -> Config:
    return from_mapping({"model": {"input_size": 2, "layers": list(layers)}})


def test_options_that_differ() -> None:
    lstm, dense = {"type": "lstm", "hidden_size": 3}, {"type": "dense", "units": 2}
    drop = {"type": "dropout", "rate": 0.5}
    base = config({**lstm, "dropout": 0.1, "clip": 2.0}, drop, {**dense, "activation": "softmax"})
    mismatches = option_mismatches(base, config({**lstm, "cell_activation": "tanh"}, dense))
    assert mismatches is not None
    assert [(m.layer, m.file_layer, m.key, m.config_value, m.file_value) for m in mismatches] == [
        (0, 0, "clip", 2.0, None),
        (2, 1, "activation", "softmax", "identity"),
    ]
    assert option_mismatches(base, config(lstm)) is None


def imported(**changes: Any) -> Imported:
    tensors = {f"layers.{k}.{name}": np.zeros(1) for k in (0, 1) for name in ("weight", "bias")}
    given = {"format": "pytorch", "config": None, "tensors": tensors, **changes}
    return Imported(path=Path("a.pt"), title="", sha256="", **given)


def test_layers_without_weights_are_skipped() -> None:
    specs = config({"type": "dense", "units": 2}, {"type": "dropout", "rate": 0.5},
                {"type": "dense", "units": 2}).specs  # fmt: skip
    file = imported(zero_states={(1, "h"): (0,)}, split_biases={"layers.1.bias_ih": np.zeros(1)})
    file = renumbered(file, specs)
    assert {name[:8] for name in file.tensors} == {"layers.0", "layers.2"}
    assert [*file.split_biases] == ["layers.2.bias_ih"]
    assert file.zero_states == {(2, "h"): (0,)}
    for other in (imported(format="native"), imported(tensors={"layers.1.bias": np.zeros(1)})):
        assert renumbered(other, specs) is other


def test_notes_that_a_setting_answers() -> None:
    notes = ("assumed; --set model.layers.0.activation=tanh", "left out")
    file = imported(notes=notes)
    mapping = {"model": {"input_size": 2, "layers": [{"type": "dense", "units": 2}]}}
    assert standing_notes(file, from_mapping(mapping, name="a.pt")) == notes
    answer = ["model.layers.0.activation=relu"]
    assert standing_notes(file, from_mapping(mapping, answer, name="a.pt")) == ("left out",)
    assert standing_notes(file, from_mapping(mapping)) == ("left out",)


def test_files_that_are_weights(tmp_path: Path) -> None:
    for name in ("none.onnx", "A.SAFETENSORS", "b.weights.h5", "c.pt"):
        assert is_weights(name)
    for name in ("a.yaml", "a.yml", "a.json", "none", "none.cfg"):
        assert not is_weights(name)
    texts = {"a.cfg": b'"model": {}\n', "b.cfg": b"run: 1\n", "c": b"", "d.yaml": b"PK\3\4"}
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
        assert not is_weights(tmp_path / name)
    for name, content in {"e": b"PK\3\4", "f": b"<?xml", "g": b"\x08\x08\x12\4"}.items():
        (tmp_path / name).write_bytes(content)
        assert is_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("format", "name"), [(format, name) for format, names in FILES.items() for name in names]
)
def test_a_network_uses_the_arrays_of_its_file(tmp_path: Path, format: str, name: str) -> None:
    layers = [dict(layer) for layer in CASES["classes"].layers]
    registry.write(tmp_path / name, format, export_of(layers, "float32"))
    imported = read_weights(tmp_path / name, ReadOptions(tmva_order="slots"))
    engine = ReferenceEngine("float32")
    network = assemble(config_of(imported), engine, imported).network
    assert network.weights
    for key, value in network.weights.items():
        tensor = imported.tensors[key]
        usable = tensor.dtype == np.float32 and tensor.flags.c_contiguous
        assert np.shares_memory(value, tensor) == usable
