"""The ONNX reader: storage, layers, unrolled loops, and graphs that are refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_graphs import (
    LAST,
    LSTM,
    ZERO,
    D,
    H,
    attribute,
    layers,
    load,
    lstm,
    model,
    node,
    stored,
    value,
    weights,
)

from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx import proto as m
from lstm_cli.formats.onnx.proto import (
    OnnxAttribute,
    OnnxGraph,
    OnnxNode,
    OnnxOperatorSet,
    OnnxTensor,
)


def test_config_weights_and_where_they_stood(tmp_path: Path) -> None:
    tensors = weights()
    imported = load(tmp_path, model(LAST, [*tensors, ZERO]))
    assert imported.config == {
        "model": {
            "input_size": D,
            "layers": [{"type": "lstm", "hidden_size": H, "return_sequences": False}],
        }
    }
    W = np.frombuffer(bytes(tensors[0].raw_data or b""), "<f4").reshape(4 * H, D)
    i, o, f, c = np.split(W, 4)
    np.testing.assert_array_equal(
        imported.tensors["layers.0.weight_ih"], np.concatenate([i, f, c, o])
    )
    B = np.frombuffer(bytes(tensors[2].raw_data or b""), "<f4").astype("f8").reshape(2, 4, H)
    np.testing.assert_array_equal(
        imported.tensors["layers.0.bias"], B.sum(0)[[0, 2, 3, 1]].reshape(-1).astype("f4")
    )
    places = {(s.name, s.block, s.native): s.part for s in imported.sources if s.name != "B"}
    assert places[("W", "f", "layers.0.weight_ih")] == "[0, 4:6]"
    assert places[("R", "g", "layers.0.weight_hh")] == "[0, 6:8]"
    biases = [s.part for s in imported.sources if (s.name, s.block) == ("B", "o")]
    assert biases == ["[0, 2:4]", "[0, 10:12]"]
    assert imported.gate_orders == {"lstm": "i o f c"}
    assert imported.format == "onnx"
    assert "opset 17" in imported.title


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (m.FLOAT, {"float_data": [0.5, -2, 3]}),
        (m.DOUBLE, {"double_data": [0.5, -2, 3]}),
        (m.FLOAT16, {"int32_data": np.array([0.5, -2, 3], "f2").view("u2")}),
        (m.FLOAT16, {"raw_data": np.array([0.5, -2, 3], "<f2").tobytes()}),
        (m.BFLOAT16, {"raw_data": (np.array([0.5, -2, 3], "<f4").view("<u4") >> 16).astype("<u2")}),
    ],
)
def test_storage(kind: int, field: dict[str, Any], tmp_path: Path) -> None:
    field = {
        k: v.tobytes() if k == "raw_data" and hasattr(v, "tobytes") else v for k, v in field.items()
    }
    bias = OnnxTensor((3,), kind, name="b", **field)
    nodes = [node("MatMul", "x M", "z"), node("Add", "z b", "y")]
    imported = load(tmp_path, model(nodes, [stored("M", np.eye(3)), bias]))
    np.testing.assert_array_equal(imported.tensors["layers.0.bias"], [0.5, -2, 3])


def external(location: str, **numbers: int) -> OnnxTensor:
    entries = {"location": location, **{k: str(v) for k, v in numbers.items()}}
    data = tuple(m.OnnxProperty(k, v) for k, v in entries.items())
    return OnnxTensor((3,), m.FLOAT, name="b", external_data=data, data_location=m.EXTERNAL)


HEAD = [node("MatMul", "x M", "z"), node("Add", "z b", "y")]


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"skip" + np.array([1, 2, 3], "<f4").tobytes())
    tensor = external("sub/w.bin", offset=4, length=12)
    imported = load(tmp_path, model(HEAD, [stored("M", np.eye(3)), tensor]))
    np.testing.assert_array_equal(imported.tensors["layers.0.bias"], [1, 2, 3])


@pytest.mark.parametrize(
    "tensor",
    [
        external("../outside.bin"),
        external("/etc/passwd"),
        external("sub/../../outside.bin"),
        external("C:\\w.bin"),
        external("link.bin"),
        external("missing.bin"),
        external("."),
        external(""),
        external("w.bin", offset=8),
        external("w.bin", offset=1 << 60),
        external("w.bin", length=4),
    ],
    ids=lambda tensor: "-".join(p.value for p in tensor.external_data),
)
def test_external_data_elsewhere(tensor: OnnxTensor, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(12))
    (folder / "w.bin").write_bytes(bytes(12))
    try:
        os.symlink(tmp_path / "outside.bin", folder / "link.bin")
    except OSError:
        pytest.skip("no symbolic links here")
    with pytest.raises(WeightsError, match="stored outside the model"):
        load(folder, model(HEAD, [stored("M", np.eye(3)), tensor]))


REFUSED: dict[str, tuple[list[OnnxNode], str]] = {
    "unknown activation": (
        lstm(activations=["Sigmoid", "Gauss", "Tanh"]),
        "(?s)activations.*'Gauss'",
    ),
    "clip of 0": (lstm(clip=0.0), "clip"),
    "direction": (lstm(direction="sideways"), "direction"),
    "initial state": (lstm("x W R B - ones"), "initial_h"),
    "lengths": (lstm("x W R B lengths"), "sequence_lens"),
    "hidden size": ([replace(LSTM, attributes=(attribute("hidden_size", 7),)), LAST[1]], "hidden_"),
    "weights missing": (lstm("x W - B"), "W and R"),
    "W computed": (lstm("x x R B"), "its W"),
    "loop": ([node("Loop", "x", "y", "round")], r"node round \(Loop\)"),
    "scan": ([node("Scan", "x", "y", "round")], r"node round \(Scan\)"),
    "mean over time": (
        [LSTM, node("ReduceMean", "Y", "y", "pool", axes=[0])],
        r"node pool \(ReduceMean\)",
    ),
    "custom domain": (
        [replace(node("Mish", "x", "y", "act"), domain="com.example")],
        "domain 'com.example'",
    ),
    "two values multiplied": ([node("Mul", "x x", "y", "square")], "node square"),
    "softmax over time": ([node("Softmax", "x", "y", "soft", axis=0)], "softmax over axis 0"),
    "limited": ([node("Clip", "x low high", "y", "six")], r"\[0\.0, 6\.0\]"),
    "transposed features": (
        [node("Transpose", "x", "xt", perm=[2, 1, 0]), *lstm("xt W R B")],
        "cell",
    ),
    "cycle": (
        [node("Add", "a x", "b"), node("Tanh", "b", "a"), node("Tanh", "b", "y")],
        "no earlier node",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    nodes, pattern = REFUSED[case]
    extra = [
        stored("ones", np.ones((1, 1, H))),
        stored("lengths", np.array([2])),
        stored("low", np.float32(0)),
        stored("high", np.float32(6)),
    ]
    with pytest.raises(WeightsError, match=pattern):
        load(tmp_path, model(nodes, [*weights(), ZERO, *extra]))


def test_weights_fed_at_run_time(tmp_path: Path) -> None:
    onnx_model = model(
        LAST, [*weights()[1:], ZERO], inputs=[value("x", 4, 1, D), value("W", 1, 4 * H, D)]
    )
    with pytest.raises(WeightsError, match=r"node cell \(LSTM\): its W is fed at run time"):
        load(tmp_path, onnx_model)


@pytest.mark.parametrize("steps", [5, "T"])
def test_last_step_of_a_reverse_half(steps: int | str, tmp_path: Path) -> None:
    """The reverse half computes that step first: readable for a fixed T, refused for an open T."""
    nodes = [
        node("LSTM", "x W R B", "Y", "cell", hidden_size=H, direction="bidirectional"),
        node("Transpose", "Y", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t shape", "r"),
        node("Gather", "r last", "y", axis=0),
    ]
    tensors = [*weights(directions=2), stored("shape", [0, 0, -1]), stored("last", np.int64(-1))]
    onnx_model = model(nodes, tensors, inputs=[value("x", steps, "N", D)])
    if steps == "T":
        with pytest.raises(WeightsError, match=r"step -1 \(the last\)"):
            load(tmp_path, onnx_model)
        return
    imported = load(tmp_path, onnx_model)
    assert [layer["type"] for layer in layers(imported)] == ["lstm", "flatten", "dense"]
    assert imported.config is not None
    assert imported.config["model"]["steps"] == steps


def test_several_outputs(tmp_path: Path) -> None:
    tensors = [*weights(), ZERO, stored("one", [1])]
    nodes = [
        node("LSTM", "x W R B", "Y Yh Yc", "cell", hidden_size=H),
        node("Squeeze", "Y one", "y"),
        node("Tanh", "y", "z"),
    ]
    imported = load(tmp_path, model(nodes, tensors, ["y", "Yh", "Yc"]))
    assert any("final states" in note for note in imported.notes)
    assert layers(imported) == [{"type": "lstm", "hidden_size": H}]
    with pytest.raises(WeightsError, match="gives z besides"):
        load(tmp_path, model(nodes, tensors, ["y", "z"]))


def test_a_function_stands_for_its_nodes(tmp_path: Path) -> None:
    inner = replace(
        node("LeakyRelu", "a", "b"),
        attributes=(OnnxAttribute("alpha", type=m.ATTRIBUTE_FLOAT, reference="slope"),),
    )
    function = m.OnnxFunction(
        "Leak", ("a",), ("b",), ("slope",), (inner,), (OnnxOperatorSet("", 17),), "local"
    )
    outer = replace(node("Leak", "x", "y", slope=0.25), domain="local")
    imported = load(tmp_path, model([outer], functions=(function,)))
    assert layers(imported)[0]["activation"] == {"name": "leaky_relu", "alpha": 0.25}
    left_out = replace(outer, attributes=())
    imported = load(tmp_path, model([left_out], functions=(function,)))
    assert layers(imported)[0]["activation"] == "leaky_relu"  # the operator's own slope
    whole = replace(outer, attributes=(attribute("slope", 1),))
    with pytest.raises(WeightsError, match="(?s)alpha.*type FLOAT.*type INT"):
        load(tmp_path, model([whole], functions=(function,)))
    endless = replace(function, nodes=(replace(node("Leak", "a", "b"), domain="local"),))
    with pytest.raises(WeightsError, match="deep"):
        load(tmp_path, model([outer], functions=(endless,)))


def test_a_constant_condition_takes_its_branch(tmp_path: Path) -> None:
    branches = {
        f"{name}_branch": OnnxGraph((node(op, "x", "b"),), name, outputs=(value("b"),))
        for name, op in (("then", "Relu"), ("else", "Tanh"))
    }
    imported = load(
        tmp_path, model([node("If", "no", "y", **branches)], [stored("no", np.array(False))])
    )
    assert layers(imported)[0]["activation"] == "tanh"


def test_opsets_before_7_are_refused(tmp_path: Path) -> None:
    onnx_model = replace(model(LAST, [*weights(), ZERO]), operator_sets=(OnnxOperatorSet("", 6),))
    with pytest.raises(WeightsError, match="opset 6"):
        load(tmp_path, onnx_model)


@pytest.mark.parametrize("rest", ["z", "r"])
def test_a_gru_written_out_keeps_what_its_own_gate_lets(rest: str, tmp_path: Path) -> None:
    """h = z * h + (1 - z) * n is a GRU; with 1 - r for 1 - z it is not a cell."""
    rng = np.random.default_rng(1)
    nodes = [node("Gather", "x zero", "x0", axis=0)]
    tensors = [
        stored("zero", np.int64(0)),
        stored("one", np.float32(1)),
        stored("h", np.zeros((1, H))),
    ]
    for gate in "zrn":
        tensors.append(stored(f"W{gate}", rng.standard_normal((D, H))))
        tensors.append(stored(f"U{gate}", rng.standard_normal((H, H))))
        nodes += [
            node("MatMul", f"x0 W{gate}", f"x{gate}"),
            node("MatMul", f"h U{gate}", f"h{gate}"),
        ]
    for gate in "zr":
        nodes += [node("Add", f"x{gate} h{gate}", f"a{gate}"), node("Sigmoid", f"a{gate}", gate)]
    nodes += [
        node("Mul", "r hn", "rn"),
        node("Add", "xn rn", "an"),
        node("Tanh", "an", "n"),
        node("Mul", "z h", "kept"),
        node("Sub", f"one {rest}", "rest"),
        node("Mul", "rest n", "new"),
        node("Add", "kept new", "y"),
    ]
    onnx_model = model(nodes, tensors, inputs=[value("x", 1, "N", D)])
    if rest == "z":
        assert [layer["type"] for layer in layers(load(tmp_path, onnx_model))] == ["gru"]
        return
    with pytest.raises(WeightsError, match="not a layer that lstm-cli has"):
        load(tmp_path, onnx_model)


@pytest.mark.parametrize("later", ["U", "V"])
def test_steps_of_different_weights_are_no_layer(later: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tensors = [
        stored("first", np.int64(0)),
        stored("second", np.int64(1)),
        stored("W", rng.standard_normal((D, H))),
    ]
    tensors += [stored(name, rng.standard_normal((H, H))) for name in "UV"]
    tensors.append(stored("h", np.zeros((1, H))))
    nodes, before = [], "h"
    for step, matrix in (("first", "U"), ("second", later)):
        nodes += [
            node("Gather", f"x {step}", f"x_{step}", axis=0),
            node("MatMul", f"x_{step} W", f"i_{step}"),
            node("MatMul", f"{before} {matrix}", f"r_{step}"),
            node("Add", f"i_{step} r_{step}", f"a_{step}"),
            node("Tanh", f"a_{step}", f"h_{step}"),
        ]
        before = f"h_{step}"
    onnx_model = model(nodes, tensors, ["h_second"], [value("x", 2, "N", D)])
    if later == "U":
        assert [layer["type"] for layer in layers(load(tmp_path, onnx_model))] == ["rnn"]
        return
    with pytest.raises(WeightsError):
        load(tmp_path, onnx_model)
