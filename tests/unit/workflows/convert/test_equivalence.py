"""Equivalence of two networks: differences that count, rounding that does not, random inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from networks import random_weights, recurrent

from lstm_cli.cells import Activation
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, RecurrentSpec
from lstm_cli.workflows.convert.equivalence import (
    ComparedNetwork,
    array_difference,
    check_equivalence,
    random_input,
    same_bits,
    tolerance,
)

NAN = math.nan


def network(layers: Any, seed: int = 0, dtype: str = "float32") -> ComparedNetwork:
    weights = {name: value.astype(dtype) for name, value in random_weights(layers, seed).items()}
    return ComparedNetwork(tuple(layers), weights)


def test_every_number_of_every_tensor_counts() -> None:
    layers = [recurrent("lstm", 3, 2, directions=2, peepholes=True), DenseSpec(1, 6, 2, None)]
    one = network(layers)
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
    one = network([recurrent("lstm", 3, 2)], dtype="float64")
    bias = one.tensors["layers.0.bias"].copy()
    bias[-3:] = -1000  # the output gate is shut
    shut, other = {**one.tensors, "layers.0.bias": bias}, bias.copy()
    other[6] += 0.1
    networks = [ComparedNetwork(one.layers, {**shut, "layers.0.bias": b}) for b in (bias, other)]
    proof = check_equivalence(networks[0], networks[1], None, "float32")
    assert not proof.holds
    assert proof.place.startswith("c of recurrent layer 0, sequence ")


def test_rounding_is_allowed_and_no_more() -> None:
    layers = [recurrent("gru", 4, 3)]
    wide = network(layers, dtype="float64")
    narrow = ComparedNetwork(
        wide.layers, {k: v.astype(np.float32) for k, v in wide.tensors.items()}
    )
    assert check_equivalence(wide, narrow, None, "float32").holds
    assert not check_equivalence(wide, narrow, None, "float64").holds
    assert not same_bits(wide, narrow)
    assert tolerance([recurrent("rnn", 1024, 2)], "float32") == pytest.approx(2e-5)


def test_other_layers_are_compared_by_outputs_alone() -> None:
    layers = [recurrent("lstm", 3, 2)]
    one = network(layers)
    shifted = (RecurrentSpec(1, 2, layers[0].cells),)
    tensors = {name.replace("layers.0", "layers.1"): v for name, v in one.tensors.items()}
    other = ComparedNetwork((DropoutSpec(0, 2, 0.5), *shifted), tensors)
    proof = check_equivalence(one, other, None, "float32")
    assert (proof.holds, proof.states, proof.same_bits) == (True, True, True)
    last = ComparedNetwork((recurrent("lstm", 3, 2, return_sequences=False),), one.tensors)
    proof = check_equivalence(one, last, None, "float32")
    assert not proof.holds
    assert "shape" in proof.place


def test_random_inputs() -> None:
    layers = [recurrent("rnn", 3, 2)]
    inputs = random_input(layers, None, states=True)
    assert inputs.lengths is not None
    assert {7, 1} <= set(inputs.lengths.tolist())
    assert inputs.state is not None
    assert np.all(inputs.state[0][0] != 0)
    fixed = random_input([*layers, FlattenSpec(1, 3, 5)], 5, states=False)
    assert (fixed.x.shape, fixed.lengths, fixed.state) == ((4, 5, 2), None, None)


@pytest.mark.parametrize(
    ("expected", "actual", "absolute", "relative"),
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
def test_largest_difference(expected: Any, actual: Any, absolute: float, relative: float) -> None:
    found = array_difference(np.array(expected), np.array(actual), "the outputs")
    assert found[:2] == (relative, absolute)


def test_a_projection_to_as_many_features_has_states_of_its_own() -> None:
    projected = network([recurrent("lstm", 3, 2, projection_size=3)], dtype="float64")
    W = projected.tensors["layers.0.weight_hr"]
    merged = dict(projected.tensors)
    merged["layers.0.weight_hh"] = merged["layers.0.weight_hh"] @ merged.pop("layers.0.weight_hr")
    head = {"layers.1.weight": W, "layers.1.bias": np.zeros(3)}
    layers = (recurrent("lstm", 3, 2), DenseSpec(1, 3, 3, Activation("identity")))
    proof = check_equivalence(projected, ComparedNetwork(layers, merged | head), None, "float64")
    assert proof.holds
    assert not proof.states
