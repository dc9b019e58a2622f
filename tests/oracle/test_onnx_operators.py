"""Schemas, activation parameters and initial states, compared with onnx and ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import Array, random_inputs

import lstm_cli
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.formats.onnx.ops_constant import RULES
from lstm_cli.formats.onnx.ops_math import ACTIVATION_OPERATORS
from lstm_cli.formats.onnx.reader import read
from lstm_cli.formats.onnx.schemas import ANY_NUMBER, NEWEST, SCHEMAS, schema_of
from lstm_cli.network.network import Network
from lstm_cli.workflows.weights_files import config_of, standing_notes

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402
from onnx_models import runtime_outputs, save_model  # noqa: E402

N, T, D, H = 3, 4, 2, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SETTING = re.compile(r"--set (\S+)")


def test_schemas_are_the_specification_s() -> None:
    newest = min(NEWEST, onnx.defs.onnx_opset_version())
    for op, opset in itertools.product(SCHEMAS, range(7, newest + 1)):
        try:
            theirs = onnx.defs.get_schema(op, opset, "")
        except onnx.defs.SchemaError:
            continue
        ours = schema_of(op, opset)
        assert ours is not None
        assert (ours.min_inputs, ours.max_inputs) == (
            theirs.min_input,
            min(theirs.max_input, ANY_NUMBER),
        ), op
        assert ours.attributes.keys() == theirs.attributes.keys(), (op, opset)
        for name, attribute in theirs.attributes.items():
            kind = ours.attributes[name]
            assert (kind.type.upper(), kind.required) == (attribute.type.name, attribute.required)
            if (op, name) != ("RNN", "activations"):  # its default there is of two directions
                assert _equal(kind.default, attribute.default_value), (op, opset, name)


def _equal(ours: Any, theirs: Any) -> bool:
    if not theirs.name:
        return ours is None
    value = helper.get_attribute_value(theirs)
    return bool(ours == value.decode() if isinstance(value, bytes) else np.float32(ours) == value)


def test_every_operator_that_is_read_has_a_schema() -> None:
    known = {op.lower() for op in SCHEMAS}
    assert {op.lower() for op in RULES} | ACTIVATION_OPERATORS.keys() <= known


def weights(kind: str, directions: int, seed: int, features: int = D, tag: str = "") -> Any:
    rng, G = np.random.default_rng(seed), GATES[kind]
    shapes = {"W": (G * H, features), "R": (G * H, H), "B": (2 * G * H,)}
    return {
        name + tag: (0.5 * rng.standard_normal((directions, *shape))).astype("f4")
        for name, shape in shapes.items()
    }


def run(imported: Imported, x: Array, *overrides: str) -> Array:
    config = config_of(imported, overrides)
    return Network(config.specs, imported.tensors, ReferenceEngine("float32")).run(x).outputs


# Parameters of activations: assignment to activations, and defaults.

NAMES = ["Affine", "ScaledTanh", "ThresholdedRelu", "LeakyRelu", "Elu", "HardSigmoid"]
NAMES += ["Sigmoid", "Tanh", "Relu", "Softsign", "Softplus"]


@pytest.mark.parametrize("seed", range(40))
def test_parameters_of_activations(seed: int, tmp_path: Path) -> None:
    """The --set options of the notes give ONNX Runtime's outputs."""
    rng = np.random.default_rng(seed)
    kind = ["LSTM", "GRU", "RNN"][seed % 3]
    directions = 1 + seed // 3 % 2
    count = {"LSTM": 3, "GRU": 2, "RNN": 1}[kind] * directions
    attributes = {
        "activations": [str(name) for name in rng.choice(NAMES, count)],
        "direction": "bidirectional" if directions == 2 else "forward",
    }
    for letter in ("alpha", "beta"):
        values = rng.uniform(0.1, 0.9, rng.integers(0, count + 2)).round(3)
        attributes |= {f"activation_{letter}": values.tolist()} if values.size else {}
    node = helper.make_node(kind, ["x", "W", "R", "B"], ["y"], hidden_size=H, **attributes)
    path = save_model(
        tmp_path / "m.onnx", [node], weights(kind, directions, seed), {"x": (T, N, D)}
    )
    x = random_inputs(N, T, D, seed)
    expected = (
        runtime_outputs(path, x=x.transpose(1, 0, 2))[0].transpose(2, 0, 1, 3).reshape(N, T, -1)
    )
    imported = read(path, ReadOptions())
    settings = [s for n in imported.notes if "ONNX Runtime" in n for s in SETTING.findall(n)]
    scale = max(1.0, float(np.abs(expected).max()))
    found = run(imported, x, *settings)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * scale)
    config = config_of(imported, settings)
    assert not any("ONNX Runtime" in note for note in standing_notes(imported, config))


@pytest.mark.parametrize("name", ["Affine", "ScaledTanh", "ThresholdedRelu"])
def test_left_out_parameters_are_said(name: str, tmp_path: Path) -> None:
    x = np.array([-2, 0.5, 3], "f4").reshape(1, 3, 1)
    node = helper.make_node("RNN", ["x", "W", "R"], ["y"], hidden_size=1, activations=[name])
    stored = {"W": np.ones((1, 1, 1), "f4"), "R": np.zeros((1, 1, 1), "f4")}
    path = save_model(tmp_path / "m.onnx", [node], stored, {"x": (1, 3, 1)})
    imported = read(path, ReadOptions())
    standard = {"Affine": x, "ScaledTanh": np.tanh(x), "ThresholdedRelu": np.where(x > 1, x, 0)}
    np.testing.assert_allclose(run(imported, x.reshape(3, 1, 1))[:, 0, 0], standard[name][0, :, 0])
    settings = [s for note in imported.notes for s in SETTING.findall(note)]
    assert settings
    found = run(imported, x.reshape(3, 1, 1), *settings)
    np.testing.assert_allclose(found[:, 0, 0], runtime_outputs(path, x=x)[0].reshape(-1))


def test_as_many_values_as_activations_are_read_in_order_and_said(tmp_path: Path) -> None:
    node = helper.make_node(
        "LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=H,
        activations=["Sigmoid", "LeakyRelu", "Tanh"], activation_alpha=[0.5, 0.25, 0.75],
    )  # fmt: skip
    path = save_model(tmp_path / "m.onnx", [node], weights("LSTM", 1, 0), {"x": (T, N, D)})
    x, imported = random_inputs(N, T, D), read(path, ReadOptions())
    close = {"rtol": 0, "atol": 1e-5}
    expected = runtime_outputs(path, x=x.transpose(1, 0, 2))[0][:, 0].transpose(1, 0, 2)
    np.testing.assert_allclose(run(imported, x), expected, **close)
    (note,) = (note for note in imported.notes if "counted by activations" in note)
    (setting,) = SETTING.findall(note)
    next(a for a in node.attribute if a.name == "activation_alpha").floats[:] = [0.25]
    path = save_model(tmp_path / "n.onnx", [node], weights("LSTM", 1, 0), {"x": (T, N, D)})
    expected = runtime_outputs(path, x=x.transpose(1, 0, 2))[0][:, 0].transpose(1, 0, 2)
    np.testing.assert_allclose(run(imported, x, setting), expected, **close)


# Initial states: inputs of the graph, and states fixed at 0.


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("kind", "fed"), [("LSTM", "h"), ("LSTM", "c"), ("LSTM", "hc"), ("GRU", "h"), ("RNN", "h")]
)
def test_states_that_are_fed(kind: str, fed: str, direction: str, tmp_path: Path) -> None:
    rng, directions = np.random.default_rng(5), 1 + (direction == "bidirectional")
    letters = "hc" if kind == "LSTM" else "h"
    slots = [f"initial_{letter}" if letter in fed else "" for letter in letters]
    node = helper.make_node(
        kind, ["x", "W", "R", "B", "", *slots], ["y"], hidden_size=H, direction=direction
    )
    inputs = {"x": (T, N, D)} | {slot: (directions, N, H) for slot in slots if slot}
    path = save_model(tmp_path / "m.onnx", [node], weights(kind, directions, 1), inputs)
    x = random_inputs(N, T, D)
    states = {letter: rng.standard_normal((N, directions, H)) for letter in "hc"}
    feeds = {f"initial_{letter}": states[letter].transpose(1, 0, 2) for letter in fed}
    expected = runtime_outputs(path, x=x.transpose(1, 0, 2), **feeds)[0]
    net = lstm_cli.load(path, engine="reference")
    alone = states
    if direction == "reverse":  # of a layer of two directions, whose forward one is not used
        states = {k: np.concatenate([v + 7, v], axis=1) for k, v in states.items()}
    c = states["c"] if kind == "LSTM" else None
    expected = expected.transpose(2, 0, 1, 3).reshape(N, T, -1)
    unfed = [letter for letter in "hc" if letter not in fed and kind == "LSTM"]
    givens = [[(states["h"], c)], [tuple(None if s in unfed else states[s] for s in "hc")]]
    givens += [[(alone["h"], None if c is None else alone["c"])]]
    for given in givens:
        if kind == "LSTM" or given[0][1] is None:
            found = net.run(x, state=given).outputs
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for letter in unfed:
        assert any(f"no input initial_{letter}:" in note for note in net.notes)
    assert bool(unfed) == any("whatever --state holds" in note for note in net.notes)


def test_the_reverse_direction_takes_a_state_of_one_direction(tmp_path: Path) -> None:
    node = helper.make_node("GRU", ["x", "W", "R", "B", "", "h"], ["y"], hidden_size=H,
                            direction="reverse")  # fmt: skip
    inputs = {"x": (T, N, D), "h": (1, N, H)}
    path = save_model(tmp_path / "m.onnx", [node], weights("GRU", 1, 1), inputs)
    net, x = lstm_cli.load(path, engine="reference"), random_inputs(N, T, D)
    either = re.escape(f"({N}, 2, {H}), that is (N, directions, features), or ({N}, 1, {H}) of the")
    with pytest.raises(lstm_cli.LstmCliError, match=f"{either} reverse direction, the only one"):
        net.run(x, state=[(np.zeros((N, 3, H)), None)])
    path = save_model(tmp_path / "m.onnx", [helper.make_node(
        "GRU", ["x", "W", "R", "B", "", "h"], ["y"], hidden_size=H, direction="bidirectional"
    )], weights("GRU", 2, 1), {**inputs, "h": (2, N, H)})  # fmt: skip
    with pytest.raises(lstm_cli.LstmCliError, match="does not fit"):
        lstm_cli.load(path, engine="reference").run(x, state=[(np.zeros((N, 1, H)), None)])


@pytest.mark.parametrize("zeros", ["constant", "left out"])
def test_states_of_a_stack(zeros: str, tmp_path: Path) -> None:
    """One direction of the first layer takes h, the other takes c; the second layer takes none."""
    make, rng = helper.make_node, np.random.default_rng(2)
    none = "zeros" if zeros == "constant" else ""
    nodes = [
        make("LSTM", ["x", "Wf", "Rf", "Bf", "", "h", none], ["f"], hidden_size=H),
        make("LSTM", ["x", "Wr", "Rr", "Br", "", none, "c"], ["r"], hidden_size=H,
             direction="reverse"),
        make("Concat", ["f", "r"], ["t"], axis=3),
        make("Squeeze", ["t", "one"], ["u"]),
        make("GRU", ["u", "Wg", "Rg", "Bg"], ["y"], hidden_size=H),
    ]  # fmt: skip
    stored = weights("LSTM", 1, 1, tag="f") | weights("LSTM", 1, 2, tag="r")
    stored |= weights("GRU", 1, 3, 2 * H, "g") | {"one": np.array([1])}
    stored |= {"zeros": np.zeros((1, N, H), "f4")} if none else {}
    state = {"h": (1, N, H), "c": (1, N, H)}
    path = save_model(tmp_path / "m.onnx", nodes, stored, {"x": (T, N, D), **state})
    x, h, c = random_inputs(N, T, D), *(rng.standard_normal((N, 1, H)) for _ in "hc")
    feeds = {"h": h.transpose(1, 0, 2), "c": c.transpose(1, 0, 2)}
    expected = runtime_outputs(path, x=x.transpose(1, 0, 2), **feeds)[0][:, 0].transpose(1, 0, 2)
    net = lstm_cli.load(path, engine="reference")
    noise = rng.standard_normal((N, 1, H))
    given = [(np.concatenate(pair, axis=1) for pair in ((h, noise), (noise, c)))]
    given = [tuple(given[0]), (noise, None)]
    np.testing.assert_allclose(net.run(x, state=given).outputs, expected, rtol=0, atol=1e-5)
    assert sum("whatever --state holds" in note for note in net.notes) == 3


@pytest.mark.parametrize("fed", [True, False])
def test_a_state_with_a_default_may_be_fed(fed: bool, tmp_path: Path) -> None:
    node = helper.make_node("LSTM", ["x", "W", "R", "B", "", "h", "c"], ["y"], hidden_size=H)
    stored = weights("LSTM", 1, 1) | {"h": np.zeros((1, N, H), "f4")}
    inputs = {"x": (T, N, D), "c": (1, N, H)} | ({"h": (1, N, H)} if fed else {})
    path = save_model(tmp_path / "m.onnx", [node], stored, inputs)
    x, state = random_inputs(N, T, D), np.random.default_rng(1).standard_normal((2, N, 1, H))
    feeds = {name: value.transpose(1, 0, 2) for name, value in zip("hc", state, strict=True)}
    feeds = feeds if fed else {"c": feeds["c"]}
    expected = runtime_outputs(path, x=x.transpose(1, 0, 2), **feeds)[0][:, 0].transpose(1, 0, 2)
    net = lstm_cli.load(path, engine="reference")
    found = net.run(x, state=[tuple(state)]).outputs
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert fed != any("whatever --state holds" in note for note in net.notes)


def test_a_model_that_is_fed_no_states_goes_on_from_those_given(tmp_path: Path) -> None:
    node = helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=H)
    path = save_model(tmp_path / "m.onnx", [node], weights("LSTM", 1, 1), {"x": (T, N, D)})
    x, net = random_inputs(N, T, D), lstm_cli.load(path, engine="reference")
    whole, first = net.run(x).outputs, net.run(x[:, :2])
    np.testing.assert_allclose(net.run(x[:, 2:], state=first.state).outputs, whole[:, 2:])


# Operators whose meaning depends on an attribute.

HEADS: dict[str, tuple[int, list[Any], dict[str, Array]]] = {
    "ThresholdedRelu": (10, [helper.make_node("ThresholdedRelu", ["a"], ["y"])], {}),
    "ThresholdedRelu of old": (9, [helper.make_node("ThresholdedRelu", ["a"], ["y"])], {}),
    "HardSigmoid": (13, [helper.make_node("HardSigmoid", ["a"], ["y"])], {}),
    "Elu": (13, [helper.make_node("Elu", ["a"], ["y"])], {}),
    "Selu": (13, [helper.make_node("Selu", ["a"], ["y"])], {}),
    "Clip of old": (10, [helper.make_node("Clip", ["a"], ["y"], min=0.0)], {}),
    "Softmax of old": (
        11,
        [
            helper.make_node("Unsqueeze", ["a"], ["b"], axes=[2]),
            helper.make_node("Softmax", ["b"], ["c"], axis=-1),
            helper.make_node("Squeeze", ["c"], ["y"], axes=[2]),
        ],
        {},
    ),
    "no axes to squeeze": (
        13,
        [
            helper.make_node("Unsqueeze", ["a", "two"], ["b"]),
            helper.make_node("Squeeze", ["b", "none"], ["y"]),
        ],
        {"two": np.array([2]), "none": np.zeros(0, "i8")},
    ),
    "sum of two products": (
        13,
        [
            helper.make_node("Reshape", ["a", "rows"], ["b"]),
            helper.make_node("Gemm", ["b", "K", "b"], ["y"], alpha=0.5, beta=0.25),
        ],
        {"rows": np.array([-1, 4]), "K": np.random.default_rng(3).standard_normal((4, 4))},
    ),
    "remainders": (
        13,
        [
            helper.make_node("Mod", ["odd", "three"], ["r"], fmod=1),
            helper.make_node("Mul", ["a", "r"], ["y"]),
        ],
        {"odd": np.array([-5.0, 5.0, -4.0, 2.0]), "three": np.array([3.0])},
    ),
    "sums over no axes": (
        13,
        [
            helper.make_node("ReduceSum", ["odd", "none"], ["r"], keepdims=0),
            helper.make_node("ReduceSum", ["odd", "none"], ["s"], noop_with_empty_axes=1),
            helper.make_node("Mul", ["a", "r"], ["b"]),
            helper.make_node("Add", ["b", "s"], ["y"]),
        ],
        {"odd": np.array([-5.0, 5.0, -4.0, 2.0]), "none": np.zeros(0, "i8")},
    ),
}


@pytest.mark.parametrize("case", HEADS)
def test_operators_by_their_attributes(case: str, tmp_path: Path) -> None:
    opset, nodes, stored = HEADS[case]
    stored = {k: v.astype("f4") if v.dtype.kind == "f" else v for k, v in stored.items()}
    stored |= {"M": np.random.default_rng(2).standard_normal((D, 4)).astype("f4")}
    if case == "sum of two products":
        inputs, x = {"x": ("N", D)}, 2 * random_inputs(1, 5, D)[0]
    else:
        inputs, x = {"x": ("N", "T", D)}, 2 * random_inputs(N, T, D)
    head = helper.make_node("MatMul", ["x", "M"], ["a"])
    path = save_model(tmp_path / "m.onnx", [head, *nodes], stored, inputs, opset=opset)
    found = run(read(path, ReadOptions()), x.reshape(-1, *x.shape[-2:]))
    expected = runtime_outputs(path, x=x)[0]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=1e-5)


# The last step T - 1, and the last valid step of each sequence.


@pytest.mark.parametrize("output", ["Y", "Y_h"])
def test_the_last_step_where_lengths_are_fed(output: str, tmp_path: Path) -> None:
    """Y is 0 past the end of a sequence: a note says so if the model reads its last step."""
    make = helper.make_node
    nodes = [
        make("LSTM", ["x", "W", "R", "B", "n"], ["Y", "Y_h"], hidden_size=H),
        make("Squeeze", ["Y", "one"], ["u"]),
        make("Gather", ["u", "last"], ["y"], axis=0),
    ]
    if output == "Y_h":
        nodes = [nodes[0], make("Squeeze", ["Y_h", "zero"], ["y"])]
    stored = weights("LSTM", 1, 1)
    stored |= {"one": np.array([1]), "zero": np.array([0]), "last": np.array(-1)}
    path = save_model(tmp_path / "m.onnx", nodes, stored, {"x": ("T", N, D)})
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT32, (N,)))
    onnx.save(model, path)
    x, lengths = random_inputs(N, T, D).astype("f4"), np.array([T, 2, 1], "i4")
    (expected,) = runtime_outputs(path, x=x.transpose(1, 0, 2), n=lengths)
    net = lstm_cli.load(path, engine="reference")
    outputs = net.run(x, lengths).outputs
    has_note = any("last step of node" in note and "gives as 0" in note for note in net.notes)
    assert has_note == (output == "Y")
    np.testing.assert_allclose(outputs[0], expected[0], rtol=0, atol=1e-5)
    assert np.allclose(outputs, expected, atol=1e-5) != has_note
    assert not has_note or not expected[1:].any()


@pytest.mark.parametrize("lengths", [None, [4, 2, 1]])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_last_step_of_both_directions(kind: str, lengths: Any, tmp_path: Path) -> None:
    """With a fixed T it is not Y_h, and equals ONNX Runtime's output."""
    make = helper.make_node
    slots = ["x", "W", "R", "B"] + ([] if lengths is None else ["n"])
    nodes = [
        make(kind, slots, ["Y", "Y_h"], hidden_size=H, direction="bidirectional"),
        make("Slice", ["Y", "end", "far", "zero"], ["a"]),
        make("Transpose", ["a"], ["b"], perm=[2, 0, 1, 3]),
        make("Reshape", ["b", "rows"], ["c"]),
        make("MatMul", ["c", "M"], ["y"]),
    ]
    stored = weights(kind, 2, 1) | {"M": np.random.default_rng(9).standard_normal((2 * H, 2))}
    stored["M"] = stored["M"].astype("f4")
    stored |= {"end": np.array([-1]), "far": np.array([1 << 40]), "zero": np.array([0])}
    stored |= {"rows": np.array([0, 2 * H])}
    path = save_model(tmp_path / "m.onnx", nodes, stored, {"x": (T, N, D)})
    model, feeds = onnx.load(path), {}
    if lengths is not None:
        model.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT32, (N,)))
        onnx.save(model, path)
        feeds["n"] = np.array(lengths, "i4")
    x = random_inputs(N, T, D).astype("f4")
    (expected,) = runtime_outputs(path, x=x.transpose(1, 0, 2), **feeds)
    net = lstm_cli.load(path, engine="reference")
    found = net.run(x, lengths).outputs
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    finals = np.concatenate([*net.run(x, lengths).state[0][0].transpose(1, 0, 2)], axis=1)
    assert np.abs(finals @ stored["M"] - expected).max() > 0.05


# The hints on operators work.


def test_states_that_are_constants_become_inputs(tmp_path: Path) -> None:
    """Constants are refused; the hint makes them inputs, which --state sets."""
    node = helper.make_node("GRU", ["x", "W", "R", "B", "", "h"], ["y"], hidden_size=H)
    h = np.random.default_rng(3).standard_normal((1, N, H)).astype("f4")
    stored = weights("GRU", 1, 1)
    path = save_model(tmp_path / "m.onnx", [node], stored | {"h": h}, {"x": (T, N, D)})
    with pytest.raises(lstm_cli.LstmCliError, match="make it an input of the graph"):
        lstm_cli.load(path)
    x = random_inputs(N, T, D)
    expected = runtime_outputs(path, x=x.transpose(1, 0, 2))[0][:, 0].transpose(1, 0, 2)
    path = save_model(tmp_path / "n.onnx", [node], stored, {"x": (T, N, D), "h": (1, N, H)})
    net = lstm_cli.load(path, engine="reference")
    found = net.run(x, state=[h.transpose(1, 0, 2)]).outputs
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_number_of_features_is_not_taken_for_one_of_steps(tmp_path: Path) -> None:
    """Step 2 of an open number of steps is not the last step, although a Reshape has a 3."""
    make, stored = helper.make_node, weights("GRU", 1, 1)
    nodes = [
        make("GRU", ["x", "W", "R", "B"], ["Y"], hidden_size=H),
        make("Squeeze", ["Y", "one"], ["a"]),
        make("Gather", ["a", "at"], ["b"], axis=0),
        make("Reshape", ["b", "rows"], ["y"]),
    ]
    stored |= {"at": np.array(H - 1), "rows": np.array([2, H]), "one": np.array([1])}
    path = save_model(tmp_path / "m.onnx", nodes, stored, {"x": ("T", 2, D)})
    assert runtime_outputs(path, x=random_inputs(T, 2, D))[0].shape == (2, H)
    with pytest.raises(lstm_cli.LstmCliError, match=r"step 2"):
        lstm_cli.load(path)


def test_an_open_last_step_of_both_directions_becomes_a_fixed_one(tmp_path: Path) -> None:
    make, stored = helper.make_node, weights("LSTM", 2, 1)
    nodes = [
        make("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=H, direction="bidirectional"),
        make("Gather", ["Y", "last"], ["a"], axis=0),
        make("Transpose", ["a"], ["b"], perm=[1, 0, 2]),
        make("Reshape", ["b", "rows"], ["y"]),
    ]
    stored |= {"last": np.array(-1), "rows": np.array([0, 2 * H])}
    path = save_model(tmp_path / "m.onnx", nodes, stored, {"x": ("T", N, D)})
    with pytest.raises(lstm_cli.LstmCliError, match="with a fixed number of steps"):
        lstm_cli.load(path)
    path, x = save_model(path, nodes, stored, {"x": (T, N, D)}), random_inputs(N, T, D)
    found = lstm_cli.load(path, engine="reference").run(x).outputs
    expected = runtime_outputs(path, x=x.transpose(1, 0, 2))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


# Initial states of zeros whose shape is computed from an open size.

SIZED = {
    "Tile": ["Concat one n one rep axis=0", "Tile z rep h"],
    "Equal": ["Concat one n two t axis=0", "Equal t neg e", "Where e ones t u", "Expand z u h"],
    "Less": ["Concat one n two t axis=0", "Less t neg e", "Where e ones t u", "Expand z u h"],
    **{
        op: [f"{op} n {other} k", "Concat one k two t axis=0", "ConstantOfShape t h"]
        for op, other in (("Max", "one"), ("Min", "big"), ("Mod", "big"), ("Div", "one"))
    },
    "Abs": ["Abs n k", "Concat one k two t axis=0", "ConstantOfShape t h"],
    "Pow": ["Pow n one k", "Concat one k two t axis=0", "ConstantOfShape t h"],
    "ReduceMax": ["ReduceMax n k axes=[0]", "Concat one k two t axis=0", "ConstantOfShape t h"],
}
READ = {"Equal", "Less", "Div", "ReduceMax"}
"""Operators whose result does not depend on the size."""


@pytest.mark.parametrize("op", SIZED)
def test_states_whose_size_is_calculated(op: str, tmp_path: Path) -> None:
    """The size is followed, or the error names it; a fixed size, as in the hint, is read."""
    make = helper.make_node
    nodes = [make("Shape", ["x"], ["s"]), make("Gather", ["s", "one"], ["n"])]
    for line in SIZED[op]:
        name, *values = line.split()
        given = {k: json.loads(v) for k, v in (w.split("=") for w in values if "=" in w)}
        plain = [word for word in values if "=" not in word]
        nodes.append(helper.make_node(name, plain[:-1], plain[-1:], **given))
    nodes.append(helper.make_node("GRU", ["x", "W", "R", "B", "", "h"], ["y"], hidden_size=2))
    rng = np.random.default_rng(3)
    shapes = {"W": (1, 6, D), "R": (1, 6, 2), "B": (1, 12)}
    stored = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    stored |= {"z": np.zeros((1, 1, 2), "f4"), "one": np.array([1]), "two": np.array([2])}
    stored |= {"neg": np.array([-1] * 3), "ones": np.array([1] * 3), "big": np.array([999])}
    x = random_inputs(N, T, D)
    path = save_model(tmp_path / "m.onnx", nodes, stored, {"x": ("steps", "people", D)})
    expected = runtime_outputs(path, x=x.transpose(1, 0, 2))[0][:, 0].transpose(1, 0, 2)
    if op in READ:
        found = lstm_cli.load(path, engine="reference").run(x).outputs
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        return
    pattern = (
        rf"(?s)\({op}\) calculates with a size that the model leaves open.*"
        "people, axis 1 of the input x.*hint: export the model with this size fixed"
    )
    with pytest.raises(lstm_cli.LstmCliError, match=pattern):
        lstm_cli.load(path, engine="reference")
    path = save_model(tmp_path / "m.onnx", nodes, stored, {"x": ("steps", N, D)})
    net = lstm_cli.load(path, engine="reference")
    np.testing.assert_allclose(net.run(x).outputs, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(net.run(x[:2]).outputs, expected[:2], rtol=0, atol=1e-5)


# Unrolled loops.


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("cell", ["GRUCell", "LSTMCell", "RNNCell"])
def test_a_step_of_other_weights_is_named(cell: str, last: bool, tmp_path: Path) -> None:
    path, _, _ = exported(tmp_path, cell, last=last, odd=True, dynamo=False)
    kind = cell[:-4].lower()
    with pytest.raises(
        lstm_cli.LstmCliError,
        match=rf"(?s)loop of {kind} steps that ends at node /c_2/.*other weights.* at node /d/",
    ):
        lstm_cli.load(path, engine="reference")


def test_a_first_step_that_was_folded_is_named_and_an_open_batch_is_read(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    path, _, _ = exported(tmp_path, "GRUCell", last=False, odd=False, dynamo=True)
    with pytest.raises(lstm_cli.LstmCliError, match="(?s)folded the.*dynamic_shapes"):
        lstm_cli.load(path, engine="reference")
    import torch

    shapes = ({0: torch.export.Dim("N")},)
    path, x, expected = exported(
        tmp_path, "GRUCell", last=False, odd=False, dynamo=True, dynamic_shapes=shapes
    )
    found = lstm_cli.load(path, engine="reference").run(x).outputs
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def exported(
    folder: Path, cell: str, *, last: bool, odd: bool, **options: Any
) -> tuple[Path, Array, Array]:
    """Export a loop over one or two PyTorch cells; return path, inputs and outputs."""
    torch = pytest.importorskip("torch")
    make = getattr(torch.nn, cell)

    class Loop(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.c, self.d, self.head = make(3, 4), make(3, 4), torch.nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            zeros = torch.zeros(x.shape[0], 4)
            state, steps = (zeros, zeros), []
            for t in range(4):
                step = self.d if odd and t == 1 else self.c
                made = step(x[:, t], state if cell == "LSTMCell" else state[0])
                state = made if cell == "LSTMCell" else (made, zeros)
                steps.append(state[0])
            return self.head(state[0] if last else torch.stack(steps, 1))

    x, net, path = torch.randn(2, 4, 3), Loop().eval(), folder / "loop.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), **options)
        return path, x.numpy(), net(x).numpy()
