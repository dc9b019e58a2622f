"""The proof of a conversion: what it sees, what it forgives, and how much it computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import random_weights, recurrent

from lstm_cli.api.config_differences import option_mismatches
from lstm_cli.api.equivalence import (
    ComparedNetwork,
    check_equivalence,
    largest_difference,
    random_input,
    same_bits,
    tolerance,
)
from lstm_cli.api.weights_files import is_weights, standing_notes, tensors_for
from lstm_cli.cells import Activation
from lstm_cli.config import from_mapping
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, RecurrentSpec
from lstm_cli.formats.model import Imported

NAN = math.nan


def sided(layers: Any, seed: int = 0, dtype: str = "float32") -> ComparedNetwork:
    weights = {name: value.astype(dtype) for name, value in random_weights(layers, seed).items()}
    return ComparedNetwork(tuple(layers), weights)


def test_every_number_of_every_tensor_counts() -> None:
    layers = [recurrent("lstm", 3, 2, directions=2, peepholes=True), DenseSpec(1, 6, 2, None)]
    one = sided(layers)
    assert check_equivalence(one, one, None, "float32").same_bits
    assert check_equivalence(one, one, None, "float32").largest_difference == 0
    for name, value in one.tensors.items():
        changed = value.copy()
        changed.flat[-1] += 0.01
        other = ComparedNetwork(one.layers, {**one.tensors, name: changed})
        proof = check_equivalence(one, other, None, "float32")
        assert not proof.holds, name
        assert not proof.same_bits, name


def test_states_that_no_output_shows_count() -> None:
    one = sided([recurrent("lstm", 3, 2)], dtype="float64")
    bias = one.tensors["layers.0.bias"].copy()
    bias[-3:] = -1000  # the output gate is shut
    shut, other = {**one.tensors, "layers.0.bias": bias}, bias.copy()
    other[6] += 0.1
    sides = [ComparedNetwork(one.layers, {**shut, "layers.0.bias": b}) for b in (bias, other)]
    proof = check_equivalence(sides[0], sides[1], None, "float32")
    assert not proof.holds
    assert proof.place.startswith("c of recurrent layer 0, sequence ")


def test_rounding_is_forgiven_and_no_more() -> None:
    layers = [recurrent("gru", 4, 3)]
    wide = sided(layers, dtype="float64")
    narrow = ComparedNetwork(
        wide.layers, {k: v.astype(np.float32) for k, v in wide.tensors.items()}
    )
    assert check_equivalence(wide, narrow, None, "float32").holds
    assert not check_equivalence(wide, narrow, None, "float64").holds
    assert not same_bits(wide, narrow)
    assert tolerance([recurrent("rnn", 1024, 2)], "float32") == pytest.approx(2e-5)


def test_other_layers_are_compared_by_outputs_alone() -> None:
    layers = [recurrent("lstm", 3, 2)]
    one = sided(layers)
    shifted = (RecurrentSpec(1, 2, layers[0].cells),)
    tensors = {name.replace("layers.0", "layers.1"): v for name, v in one.tensors.items()}
    other = ComparedNetwork((DropoutSpec(0, 2, 0.5), *shifted), tensors)
    proof = check_equivalence(one, other, None, "float32")
    assert (proof.holds, proof.states, proof.same_bits) == (True, True, True)
    last = ComparedNetwork((recurrent("lstm", 3, 2, return_sequences=False),), one.tensors)
    proof = check_equivalence(one, last, None, "float32")
    assert not proof.holds
    assert "shape" in proof.place


def test_what_is_drawn() -> None:
    layers = [recurrent("rnn", 3, 2)]
    trial = random_input(layers, None, states=True)
    assert trial.lengths is not None
    assert {7, 1} <= set(trial.lengths.tolist())
    assert trial.state is not None
    assert np.all(trial.state[0][0] != 0)
    fixed = random_input([*layers, FlattenSpec(1, 3, 5)], 5, states=False)
    assert (fixed.x.shape, fixed.lengths, fixed.state) == ((4, 5, 2), None, None)


@pytest.mark.parametrize(
    ("expected", "found", "absolute", "relative"),
    [
        ([[1.0, -4.0]], [[1.0, -3.0]], 1.0, 0.25),
        ([[0.0, 0.0]], [[0.0, 0.5]], 0.5, 0.5),
        ([[NAN, 2.0]], [[NAN, 2.0]], 0.0, 0.0),
        ([[NAN, 2.0]], [[1.0, 2.0]], math.inf, math.inf),
        ([[1.0, 2.0]], [[1.0, NAN]], math.inf, math.inf),
        ([[math.inf, 2.0]], [[math.inf, 2.0]], 0.0, 0.0),
        ([[math.inf, 2.0]], [[-math.inf, 2.0]], math.inf, math.inf),
    ],
)
def test_difference(expected: Any, found: Any, absolute: float, relative: float) -> None:
    told = largest_difference(np.array(expected), np.array(found), "the outputs")
    assert (told.absolute, told.relative) == (absolute, relative)


def net(*layers: dict[str, Any]) -> Any:
    return from_mapping({"model": {"input_size": 2, "layers": list(layers)}})


def test_gaps() -> None:
    lstm, dense = {"type": "lstm", "hidden_size": 3}, {"type": "dense", "units": 2}
    drop = {"type": "dropout", "rate": 0.5}
    meant = net({**lstm, "dropout": 0.1, "clip": 2.0}, drop, {**dense, "activation": "softmax"})
    found = option_mismatches(meant, net({**lstm, "cell_activation": "tanh"}, dense))
    assert found is not None
    assert [(g.layer, g.number, g.key, g.meant, g.read) for g in found] == [
        (0, 0, "clip", 2.0, None),
        (2, 1, "activation", "softmax", "identity"),
    ]
    assert option_mismatches(meant, net(lstm)) is None


def imported(**changes: Any) -> Imported:
    tensors = {f"layers.{k}.{name}": np.zeros(1) for k in (0, 1) for name in ("weight", "bias")}
    given = {"format": "pytorch", "config": None, "tensors": tensors, **changes}
    return Imported(path=Path("a.pt"), title="", sha256="", **given)


def test_layers_without_weights_are_passed_over() -> None:
    specs = net({"type": "dense", "units": 2}, {"type": "dropout", "rate": 0.5},
                {"type": "dense", "units": 2}).specs  # fmt: skip
    assert {name[:8] for name in tensors_for(specs, imported())} == {"layers.0", "layers.2"}
    for other in (imported(format="native"), imported(tensors={"layers.1.bias": np.zeros(1)})):
        assert tensors_for(specs, other) == other.tensors


def test_notes_that_were_answered() -> None:
    notes = ("assumed; --set model.layers.0.activation=tanh", "left out")
    file = imported(notes=notes)
    mapping = {"model": {"input_size": 2, "layers": [{"type": "dense", "units": 2}]}}
    assert standing_notes(file, from_mapping(mapping, name="a.pt")) == notes
    answer = ["model.layers.0.activation=relu"]
    assert standing_notes(file, from_mapping(mapping, answer, name="a.pt")) == ("left out",)
    assert standing_notes(file, from_mapping(mapping)) == ("left out",)


def test_what_counts_as_weights(tmp_path: Path) -> None:
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


def test_a_projection_to_as_many_features_has_states_of_its_own() -> None:
    projected = sided([recurrent("lstm", 3, 2, projection_size=3)], dtype="float64")
    W = projected.tensors["layers.0.weight_hr"]
    merged = dict(projected.tensors)
    merged["layers.0.weight_hh"] = merged["layers.0.weight_hh"] @ merged.pop("layers.0.weight_hr")
    head = {"layers.1.weight": W, "layers.1.bias": np.zeros(3)}
    layers = (recurrent("lstm", 3, 2), DenseSpec(1, 3, 3, Activation("identity")))
    proof = check_equivalence(projected, ComparedNetwork(layers, merged | head), None, "float64")
    assert proof.holds
    assert not proof.states
