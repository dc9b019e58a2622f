"""The ONNX reader: storage, what is refused and how it is named, hostile files."""

from __future__ import annotations

import os
import re
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lstm_cli.errors import LstmCliError, WeightsError
from lstm_cli.formats.model import Imported, ReadOptions
from lstm_cli.formats.onnx import proto as m
from lstm_cli.formats.onnx import read
from lstm_cli.formats.onnx.proto import (
    OnnxAttribute,
    OnnxGraph,
    OnnxModel,
    OnnxNode,
    OnnxOperatorSet,
    OnnxTensor,
    PartBudget,
    WireError,
    encode_value,
    encode_varint,
    read_packed_varints,
)
from lstm_cli.formats.onnx.schemas import NEWEST, SCHEMAS
from lstm_cli.formats.onnx.sizes import OpenSize, OpenSizeError, size_equals, size_exceeds

Array = NDArray[Any]
D, H = 3, 2


def value(name: str, *sizes: int | str) -> m.OnnxValueInfo:
    dims = [
        m.OnnxDimension(value=n) if isinstance(n, int) else m.OnnxDimension(name=n) for n in sizes
    ]
    return m.OnnxValueInfo(name, m.OnnxType(m.OnnxTensorType(m.FLOAT, m.OnnxShape(tuple(dims)))))


def stored(name: str, array: Any) -> OnnxTensor:
    array = np.asarray(array)
    kind = {"f": m.FLOAT, "i": m.INT64, "b": m.BOOL}[array.dtype.kind]
    array = array.astype({m.FLOAT: "<f4", m.INT64: "<i8", m.BOOL: "?"}[kind])
    return OnnxTensor(array.shape, kind, name=name, raw_data=array.tobytes())


def attribute(name: str, given: Any) -> OnnxAttribute:
    if isinstance(given, str):
        return OnnxAttribute(name, s=given.encode(), type=m.ATTRIBUTE_STRING)
    if isinstance(given, float):
        return OnnxAttribute(name, f=given, type=m.ATTRIBUTE_FLOAT)
    if isinstance(given, int):
        return OnnxAttribute(name, i=given, type=m.ATTRIBUTE_INT)
    if isinstance(given, OnnxGraph):
        return OnnxAttribute(name, g=given, type=m.ATTRIBUTE_GRAPH)
    if isinstance(given[0], str):
        return OnnxAttribute(
            name, strings=tuple(s.encode() for s in given), type=m.ATTRIBUTE_STRINGS
        )
    return OnnxAttribute(name, ints=tuple(given), type=m.ATTRIBUTE_INTS)


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> OnnxNode:
    """Inputs and outputs by name, ``-`` for one left out."""
    ins, outs = (tuple("" if n == "-" else n for n in s.split()) for s in (inputs, outputs))
    return OnnxNode(
        ins, outs, name or op.lower(), op, tuple(attribute(*a) for a in attributes.items())
    )


def weights(kind: str = "LSTM", directions: int = 1, seed: int = 0) -> list[OnnxTensor]:
    rng, G = np.random.default_rng(seed), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    shapes = {"W": (G * H, D), "R": (G * H, H), "B": (2 * G * H,)}
    return [stored(n, rng.standard_normal((directions, *s))) for n, s in shapes.items()]


def model(
    nodes: Sequence[OnnxNode],
    tensors: Sequence[OnnxTensor] = (),
    outputs: Sequence[str] = ("y",),
    inputs: Sequence[m.OnnxValueInfo] = (value("x", "T", "N", D),),
    **options: Any,
) -> OnnxModel:
    graph = OnnxGraph(
        tuple(nodes), "g", tuple(tensors), tuple(inputs), tuple(value(n) for n in outputs)
    )
    return OnnxModel(8, graph=graph, operator_sets=(OnnxOperatorSet("", 17),), **options)


def load(folder: Path, made: OnnxModel) -> Imported:
    path = folder / "model.onnx"
    path.write_bytes(made.encode())
    return read(path, ReadOptions())


def layers(imported: Imported) -> list[dict[str, Any]]:
    assert imported.config is not None
    return list(imported.config["model"]["layers"])


LSTM = node("LSTM", "x W R B", "Y Yh", "cell", hidden_size=H)
LAST = [LSTM, node("Squeeze", "Yh zero", "y")]
ZERO = stored("zero", [0])


def test_config_weights_and_where_they_stood(tmp_path: Path) -> None:
    tensors = weights()
    found = load(tmp_path, model(LAST, [*tensors, ZERO]))
    assert found.config == {
        "model": {
            "input_size": D,
            "layers": [{"type": "lstm", "hidden_size": H, "return_sequences": False}],
        }
    }
    W = np.frombuffer(bytes(tensors[0].raw_data or b""), "<f4").reshape(4 * H, D)
    i, o, f, c = np.split(W, 4)
    np.testing.assert_array_equal(found.tensors["layers.0.weight_ih"], np.concatenate([i, f, c, o]))
    B = np.frombuffer(bytes(tensors[2].raw_data or b""), "<f4").astype("f8").reshape(2, 4, H)
    np.testing.assert_array_equal(
        found.tensors["layers.0.bias"], B.sum(0)[[0, 2, 3, 1]].reshape(-1).astype("f4")
    )
    places = {(s.name, s.block, s.native): s.part for s in found.stored if s.name != "B"}
    assert places[("W", "f", "layers.0.weight_ih")] == "[0, 4:6]"
    assert places[("R", "g", "layers.0.weight_hh")] == "[0, 6:8]"
    biases = [s.part for s in found.stored if (s.name, s.block) == ("B", "o")]
    assert biases == ["[0, 2:4]", "[0, 10:12]"]
    assert found.order == {"lstm": "i o f c"}
    assert found.format == "onnx"
    assert "opset 17" in found.title


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
    found = load(tmp_path, model(nodes, [stored("M", np.eye(3)), bias]))
    np.testing.assert_array_equal(found.tensors["layers.0.bias"], [0.5, -2, 3])


def external(location: str, **given: int) -> OnnxTensor:
    entries = {"location": location, **{k: str(v) for k, v in given.items()}}
    data = tuple(m.OnnxProperty(k, v) for k, v in entries.items())
    return OnnxTensor((3,), m.FLOAT, name="b", external_data=data, data_location=m.EXTERNAL)


HEAD = [node("MatMul", "x M", "z"), node("Add", "z b", "y")]


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"skip" + np.array([1, 2, 3], "<f4").tobytes())
    tensor = external("sub/w.bin", offset=4, length=12)
    found = load(tmp_path, model(HEAD, [stored("M", np.eye(3)), tensor]))
    np.testing.assert_array_equal(found.tensors["layers.0.bias"], [1, 2, 3])


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


def lstm(inputs: str = "x W R B", outputs: str = "Y Yh", **attributes: Any) -> list[OnnxNode]:
    cell = node("LSTM", inputs, outputs, "cell", hidden_size=H, **attributes)
    return [cell, node("Squeeze", "Yh zero", "y")]


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
    made = model(
        LAST, [*weights()[1:], ZERO], inputs=[value("x", 4, 1, D), value("W", 1, 4 * H, D)]
    )
    with pytest.raises(WeightsError, match=r"node cell \(LSTM\): its W is fed at run time"):
        load(tmp_path, made)


@pytest.mark.parametrize("steps", [5, "T"])
def test_last_step_of_a_reverse_half(steps: int | str, tmp_path: Path) -> None:
    """It is that half's first computed one: exact where T is fixed, refused where it is open."""
    nodes = [
        node("LSTM", "x W R B", "Y", "cell", hidden_size=H, direction="bidirectional"),
        node("Transpose", "Y", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t shape", "r"),
        node("Gather", "r last", "y", axis=0),
    ]
    tensors = [*weights(directions=2), stored("shape", [0, 0, -1]), stored("last", np.int64(-1))]
    made = model(nodes, tensors, inputs=[value("x", steps, "N", D)])
    if steps == "T":
        with pytest.raises(WeightsError, match=r"step -1 \(the last\)"):
            load(tmp_path, made)
        return
    found = load(tmp_path, made)
    assert [layer["type"] for layer in layers(found)] == ["lstm", "flatten", "dense"]
    assert found.config is not None
    assert found.config["model"]["steps"] == steps


def test_several_outputs(tmp_path: Path) -> None:
    tensors = [*weights(), ZERO, stored("one", [1])]
    nodes = [
        node("LSTM", "x W R B", "Y Yh Yc", "cell", hidden_size=H),
        node("Squeeze", "Y one", "y"),
        node("Tanh", "y", "z"),
    ]
    found = load(tmp_path, model(nodes, tensors, ["y", "Yh", "Yc"]))
    assert any("final states" in note for note in found.notes)
    assert layers(found) == [{"type": "lstm", "hidden_size": H}]
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
    found = load(tmp_path, model([outer], functions=(function,)))
    assert layers(found)[0]["activation"] == {"name": "leaky_relu", "alpha": 0.25}
    left_out = replace(outer, attributes=())
    found = load(tmp_path, model([left_out], functions=(function,)))
    assert layers(found)[0]["activation"] == "leaky_relu"  # the operator's own slope
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
    found = load(
        tmp_path, model([node("If", "no", "y", **branches)], [stored("no", np.array(False))])
    )
    assert layers(found)[0]["activation"] == "tanh"


def test_what_came_before_opset_7_is_refused(tmp_path: Path) -> None:
    made = replace(model(LAST, [*weights(), ZERO]), operator_sets=(OnnxOperatorSet("", 6),))
    with pytest.raises(WeightsError, match="opset 6"):
        load(tmp_path, made)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Concat", f"v{k} v{k}", f"v{k + 1}", axis=2) for k in range(80)],
        [node("Add", f"v{k} v{k}", f"v{k + 1}") for k in range(80)],
        [node("Mul", f"v{k} v{k}", f"v{k + 1}") for k in range(5000)],
        [node("Tanh", f"v{k}", f"v{k + 1}") for k in range(20000)],
    ],
    ids=["doubled features", "doubled terms", "powers", "chain"],
)
def test_out_of_proportion(nodes: list[OnnxNode], tmp_path: Path) -> None:
    start, final = node("Identity", "x", "v0"), node("Identity", f"v{len(nodes)}", "y")
    began = time.process_time()
    with pytest.raises(WeightsError):
        load(tmp_path, model([start, *nodes, final]))
    assert time.process_time() - began < 20


def test_deep_graphs(tmp_path: Path) -> None:
    graph = OnnxGraph((node("Relu", "x", "b"),), outputs=(value("b"),))
    for _ in range(60):
        graph = OnnxGraph((node("If", "no", "b", then_branch=graph),), outputs=(value("b"),))
    with pytest.raises(WeightsError, match="deep"):
        load(tmp_path, model(graph.nodes))


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x3a\x02\x0b\x00",
        b"\x08\x08\x3a\x00",
        b"\x12\x02\xff\xfe\x3a\x00",
    ],
    ids=["cut", "long number", "long message", "group", "no graph", "no UTF-8"],
)
def test_damaged(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(LstmCliError):
        read(path, ReadOptions())


def test_many_parts() -> None:
    with pytest.raises(WireError, match="parts"):
        OnnxGraph.decode(memoryview(b"\x0a\x00" * 100), PartBudget(90))


def test_packed_numbers() -> None:
    numbers = [0, 1, 127, 128, -1, 1 << 62, -(1 << 63)]
    data = memoryview(b"".join(encode_varint(n) for n in numbers))
    assert read_packed_varints(data).tolist() == numbers
    with pytest.raises(WireError):
        read_packed_varints(data[:-1])


def test_open_sizes() -> None:
    n, t = OpenSize.of("N"), OpenSize.of("T")
    assert (n * t * 4 - t * n * 3) == n * t
    assert (n * 6).divided(n) == 6
    assert (t - 1 + 1) == t
    assert size_exceeds(t, 0)
    assert not size_exceeds(0, t)
    assert not size_equals(n, -1)
    with pytest.raises(OpenSizeError):
        size_exceeds(t, 3)
    with pytest.raises(OpenSizeError):
        n.divided(t)


@pytest.mark.parametrize("rest", ["z", "r"])
def test_a_gru_written_out_keeps_what_its_own_gate_lets(rest: str, tmp_path: Path) -> None:
    """h = z h + (1 - z) n is one; with another gate's rest it is no cell, and refused."""
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
    made = model(nodes, tensors, inputs=[value("x", 1, "N", D)])
    if rest == "z":
        assert [layer["type"] for layer in layers(load(tmp_path, made))] == ["gru"]
        return
    with pytest.raises(WeightsError, match="not a layer that lstm-cli has"):
        load(tmp_path, made)


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
    made = model(nodes, tensors, ["h_second"], [value("x", 2, "N", D)])
    if later == "U":
        assert [layer["type"] for layer in layers(load(tmp_path, made))] == ["rnn"]
        return
    with pytest.raises(WeightsError):
        load(tmp_path, made)


# Attributes, inputs and versions of operators.


TYPES = {
    "float": {"f": 1.0, "type": m.ATTRIBUTE_FLOAT},
    "int": {"i": 1, "type": m.ATTRIBUTE_INT},
    "string": {"s": b"forward", "type": m.ATTRIBUTE_STRING},
    "tensor": {"t": stored("", [1.0]), "type": m.ATTRIBUTE_TENSOR},
    "graph": {"g": OnnxGraph((), "g"), "type": m.ATTRIBUTE_GRAPH},
    "floats": {"floats": (1.0,), "type": m.ATTRIBUTE_FLOATS},
    "ints": {"ints": (1,), "type": m.ATTRIBUTE_INTS},
    "strings": {"strings": (b"Tanh",), "type": m.ATTRIBUTE_STRINGS},
    "sparse_tensor": {"sparse": b"", "type": 11},
}


def with_attributes(op: str, least: int, opset: int, *attributes: OnnxAttribute) -> OnnxModel:
    """A model of one operator with so many inputs."""
    inputs = ("x", *["one"] * (least - 1))[:least]
    made = model([OnnxNode(inputs, ("y",), "it", op, attributes)], [stored("one", np.ones(1))])
    return replace(made, operator_sets=(OnnxOperatorSet("", opset),))


@pytest.mark.parametrize("op", [op for op in SCHEMAS if any(s.attributes for _, s in SCHEMAS[op])])
def test_attributes_of_every_operator_must_have_their_type(op: str, tmp_path: Path) -> None:
    for opset, schema in SCHEMAS[op]:
        for name, kind in schema.attributes.items():
            for type_name, fields in TYPES.items():
                if type_name == kind.type:
                    continue
                wrong = OnnxAttribute(name, **fields)  # type: ignore[arg-type]
                expected = rf"(?s)node it \({op}\): its attribute {name} .*"
                expected += f"type {kind.type.upper()}.*found type {type_name.upper()}"
                with pytest.raises(WeightsError, match=expected):
                    load(tmp_path, with_attributes(op, schema.min_inputs, opset, wrong))
            if kind.required:
                with pytest.raises(WeightsError, match="(?s)its attribute .*found none"):
                    load(tmp_path, with_attributes(op, schema.min_inputs, opset))


CLIP = OnnxAttribute("clip", f=0.5, type=m.ATTRIBUTE_FLOAT)
ATTRIBUTES: dict[str, tuple[tuple[OnnxAttribute, ...], str]] = {
    "twice": ((CLIP, replace(CLIP, f=0.25)), "clip.*one attribute of this name.*two"),
    "unknown": ((replace(CLIP, name="clop"),), "clop.*one of this operator's attributes: .*clip"),
    "of another opset": (
        (OnnxAttribute("output_sequence", i=1, type=m.ATTRIBUTE_INT),),
        "output_sequence",
    ),
    "no type": ((replace(CLIP, type=0),), "type FLOAT.*type UNDEFINED"),
    "another field": (
        (OnnxAttribute("clip", i=1, type=m.ATTRIBUTE_FLOAT),),
        "of type FLOAT.*of type INT",
    ),
    "two fields": ((replace(CLIP, i=1),), "of type FLOAT.*of type INT"),
    "reference outside": (
        (OnnxAttribute("clip", type=m.ATTRIBUTE_FLOAT, reference="c"),),
        "function",
    ),
    "no UTF-8": ((OnnxAttribute("direction", s=b"\xff", type=m.ATTRIBUTE_STRING),), "UTF-8"),
    "capitals": ((attribute("direction", "FORWARD"),), "direction.*'FORWARD'"),
    "layout": ((attribute("layout", 2),), "layout is 2, not 0 or 1"),
    "input_forget": ((attribute("input_forget", 2),), "input_forget is 2, not 0 or 1"),
    "clip below 0": ((replace(CLIP, f=-1.0),), "clip"),
    "clip no number": ((replace(CLIP, f=float("nan")),), "clip"),
    "hidden_size of 0": ((attribute("hidden_size", 0),), "hidden_size"),
}


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_attributes_of_a_recurrent_operator(case: str, tmp_path: Path) -> None:
    attributes, pattern = ATTRIBUTES[case]
    nodes = [replace(node("LSTM", "x W R B", "Y Yh", "cell"), attributes=attributes), LAST[1]]
    with pytest.raises(WeightsError, match=f"(?s){pattern}"):
        load(tmp_path, model(nodes, [*weights(), ZERO]))


def test_a_gru_whose_gate_is_neither_before_nor_after(tmp_path: Path) -> None:
    nodes = [node("GRU", "x W R B", "Y Yh", "cell", linear_before_reset=2), LAST[1]]
    with pytest.raises(WeightsError, match="linear_before_reset is 2"):
        load(tmp_path, model(nodes, [*weights("GRU"), ZERO]))


def test_attributes_that_are_taken(tmp_path: Path) -> None:
    """A zero that its writer left out, a runtime's own names, and a clip at nothing."""
    attributes = (
        OnnxAttribute("input_forget", type=m.ATTRIBUTE_INT),
        OnnxAttribute("__stream", i=3, type=m.ATTRIBUTE_INT),
        replace(CLIP, f=float("inf")),
    )
    nodes = [replace(node("LSTM", "x W R B", "Y Yh", "cell"), attributes=attributes), LAST[1]]
    assert layers(load(tmp_path, model(nodes, [*weights(), ZERO])))[0] == {
        "type": "lstm",
        "hidden_size": H,
        "return_sequences": False,
    }
    relu = replace(
        node("LeakyRelu", "x", "y"), attributes=(OnnxAttribute("alpha", type=m.ATTRIBUTE_FLOAT),)
    )
    assert layers(load(tmp_path, model([relu])))[0]["activation"]["alpha"] == 0


OTHER_OPSETS: dict[str, tuple[int, list[OnnxNode], str]] = {
    "limits as inputs": (10, [node("Clip", "x zero", "y")], r"1 input\b.*found 2"),
    "limits as attributes": (11, [node("Clip", "x", "y", min=0.0)], "attribute min"),
    "axes as input": (12, [node("Squeeze", "x zero", "y")], "1 input"),
    "axes as attribute": (13, [node("Squeeze", "x", "y", axes=[0])], "attribute axes"),
    "too few": (10, [node("Gemm", "x one", "y")], "3 inputs.*found 2"),
    "too new": (9, [node("Where", "x x x", "y"), node("Mod", "y one", "z")], "opset 9 has no"),
    "allowzero": (13, [node("Reshape", "x zero", "y", allowzero=0)], "attribute allowzero"),
    "layout": (13, lstm(layout=0), "attribute layout"),
    "broadcast": (7, [node("Add", "x one", "y", broadcast=1)], "attribute broadcast"),
}


@pytest.mark.parametrize("case", OTHER_OPSETS)
def test_operators_of_another_opset(case: str, tmp_path: Path) -> None:
    opset, nodes, pattern = OTHER_OPSETS[case]
    output = "z" if case == "too new" else "y"
    made = model(nodes, [*weights(), ZERO, stored("one", np.ones((1, D)))], [output])
    with pytest.raises(WeightsError, match=f"(?s){pattern}"):
        load(tmp_path, replace(made, operator_sets=(OnnxOperatorSet("", opset),)))


NAMES: dict[str, OnnxModel] = {
    "results": model([node("Relu", "x", "y"), node("Tanh", "x", "y")]),
    "parts": model([node("Split", "x", "y y", axis=2)]),
    "a result and an input": model([node("Relu", "x", "x"), node("Tanh", "x", "y")]),
    "a result and a tensor": model([node("Relu", "x", "y")], [stored("y", [1.0])]),
    "tensors": model([node("Mul", "x a", "y")], [stored("a", [1.0]), stored("a", [2.0])]),
    "inputs": model([node("Relu", "x", "y")], inputs=[value("x", "T", "N", D)] * 2),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_stand_for_two_values(case: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="stands for two values"):
        load(tmp_path, NAMES[case])


def test_opsets_of_a_model(tmp_path: Path) -> None:
    made = model([node("Relu", "x", "y")])
    found = load(tmp_path, replace(made, operator_sets=(OnnxOperatorSet("", NEWEST + 1),)))
    assert any(f"newer than {NEWEST}" in note for note in found.notes)
    two = replace(made, operator_sets=(OnnxOperatorSet("", 11), OnnxOperatorSet("ai.onnx", 13)))
    with pytest.raises(WeightsError, match="two versions"):
        load(tmp_path, two)


def test_a_function_has_an_opset_of_its_own(tmp_path: Path) -> None:
    inner = node("Clip", "a", "b", min=0.0)
    function = m.OnnxFunction(
        "F", ("a",), ("b",), (), (inner,), (OnnxOperatorSet("", 10),), "local"
    )
    outer, after = replace(node("F", "x", "t"), domain="local"), node("Clip", "t zero", "y")
    tensors = [stored("zero", np.float32(0))]
    found = load(tmp_path, model([outer, after], tensors, functions=(function,)))
    assert [layer.get("activation") for layer in layers(found)] == ["relu", "relu"]
    wrong = replace(outer, attributes=(CLIP,))
    with pytest.raises(WeightsError, match="no attribute clip"):
        load(tmp_path, model([wrong, after], tensors, functions=(function,)))


VALUES: dict[str, tuple[list[OnnxNode], str]] = {
    "shape of reals": ([node("Reshape", "x one", "y")], "input 1 holds float32"),
    "shape without end": ([node("Reshape", "x inf", "y")], "input 1 holds float"),
    "indices of reals": ([node("Gather", "x one", "y")], "input 1 holds float32"),
    "axes of reals": ([node("Squeeze", "x one", "y")], "input 1 holds float32"),
    "two values": ([node("Constant", "", "c", value_float=1.0, value_int=1),
                    node("Mul", "x c", "y")], "2 values instead of one"),
    "keepdims": ([node("ReduceSum", "x axis", "y", keepdims=2)], "keepdims is 2"),
    "transB": ([node("Gemm", "x one", "y", transB=2)], "transB is 2"),
    "time and batch": (
        [node("ReverseSequence", "x axis", "y", time_axis=0, batch_axis=2)], "batch_axis 2"
    ),
    "dropout in training": ([node("Dropout", "x half yes", "y")], "at random"),
    "parts": ([node("Split", "x", "y z", axis=2, num_outputs=3)], "into 3 parts"),
    "weights of integers": (lstm("x Wi R B"), "W cannot be represented"),
    "lengths that are computed": (
        [node("Add", "n axis", "n1"), *lstm("x W R B n1")], "sequence_lens"
    ),
    "a state that is computed": (
        [node("Mul", "s one", "s1"), *lstm("x W R B - s1")], "initial_h"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_values_that_mean_something_else(case: str, tmp_path: Path) -> None:
    nodes, pattern = VALUES[case]
    extra = {"one": np.ones(1), "axis": [2], "half": np.float32(0.5), "yes": np.array(True)}
    extra |= {"Wi": np.ones((1, 4 * H, D), int), "inf": np.full(2, np.inf)}
    tensors = [*weights(), ZERO, *(stored(k, v) for k, v in extra.items())]
    inputs = [value("x", "T", "N", D), value("n", "N"), value("s", 1, "N", H)]
    made = model(nodes, tensors, inputs=inputs)
    with pytest.raises(WeightsError, match=pattern):
        load(tmp_path, replace(made, operator_sets=(OnnxOperatorSet("", 18),)))


# Work: what a file of some kilobytes may cost.


def local(name: str, inputs: str, outputs: str) -> OnnxNode:
    return replace(node(name, inputs, outputs), domain="local")


def functions(*bodies: tuple[str, list[OnnxNode]]) -> tuple[m.OnnxFunction, ...]:
    return tuple(
        m.OnnxFunction(name, ("a",), ("b",), (), tuple(nodes), (OnnxOperatorSet("", 17),), "local")
        for name, nodes in bodies
    )


def doubling(start: OnnxNode, calls: int) -> OnnxModel:
    """Functions that call the one before twice; `calls` of them, within the depth allowed."""
    bodies = [("f0", [start])]
    for k in range(1, calls):
        before = f"f{k - 1}"
        bodies.append((f"f{k}", [local(before, "a", "t"), local(before, "t", "b")]))
    return model([local(f"f{calls - 1}", "x", "y")], functions=functions(*bodies))


def filled(*nodes: OnnxNode, **sizes: list[int]) -> OnnxModel:
    """Constants made of a shape: c of floats and d of integers."""
    start = [node("ConstantOfShape", "s", "c"), node("Cast", "c", "d", to=m.INT64)]
    tensors = [stored(name, given) for name, given in sizes.items()]
    tensors += [stored("one", [1]), stored("o", np.float32(1)), stored("three", np.ones(3))]
    return model([*start, *nodes, node("Mul", "x last", "y")], tensors)


def repeated(op: str, first: str, second: str, count: int, **attributes: Any) -> list[OnnxNode]:
    made = [node(op, f"{first} {second}", "v0", **attributes)]
    made += [node(op, f"v{k} {second}", f"v{k + 1}", **attributes) for k in range(count)]
    return [*made, node("Identity", f"v{count}", "last")]


def many(op: str, inputs: str, count: int, **attributes: Any) -> list[OnnxNode]:
    made = [node(op, inputs, f"v{k}", **attributes) for k in range(count)]
    return [*made, node("Identity", "v0", "last")]


STEPS_OF_8 = [value("x", 8, "N", D)]
CHAIN = [
    node("Gather", "x first", "h0", axis=0),
    *[node("Tanh", f"h{k}", f"h{k + 1}") for k in range(1500)],
    node("Unsqueeze", "h1500 zero", "u"),
    *[node("Concat", "u u u u u u u u", f"q{k}", axis=0) for k in range(2000)],
]
BOMBS: dict[str, Callable[[], OnnxModel]] = {
    "functions that double": lambda: doubling(node("Tanh", "a", "b"), 19),
    "functions of long lists": lambda: doubling(
        replace(
            node("Constant", "", "b"),
            attributes=(attribute("value_ints", range(20_000)),),
        ),
        19,
    ),
    "functions in a circle": lambda: model(
        [local("f", "x", "y")],
        functions=functions(
            ("f", [local("g", "a", "t"), local("g", "t", "b")]), ("g", [local("f", "a", "b")])
        ),
    ),
    "concatenated again and again": lambda: filled(
        *[node("Concat", f"{p} {p}", f"v{k}", axis=0)
          for k, p in enumerate(["c", *(f"v{k}" for k in range(59))])],
        node("Identity", "v59", "last"), s=[3],
    ),
    "sums of large constants": lambda: filled(*repeated("Add", "c", "c", 400), s=[1 << 20]),
    "powers": lambda: filled(*repeated("Pow", "c", "c", 400), s=[1 << 20]),
    "quotients of integers": lambda: filled(*repeated("Div", "d", "one", 400), s=[1 << 20]),
    "products of matrices": lambda: filled(*many("MatMul", "d d", 50), s=[1500, 1500]),
    "tiles": lambda: filled(*many("Tile", "c k", 200), s=[1 << 10], k=[1 << 12]),
    "too large": lambda: filled(*many("Expand", "o k", 1), s=[1], k=[1 << 40]),
    "an overflow": lambda: filled(*many("Expand", "o k", 1), s=[1], k=[1 << 62, 1 << 62]),
    "a range": lambda: filled(*many("Range", "one k one", 1), s=[1], k=[1 << 60]),
    "gathered": lambda: filled(*many("Gather", "three d", 400, axis=0), s=[1 << 20]),
    "steps without end": lambda: filled(*many("Gather", "x d", 400, axis=0), s=[4096]),
    "all steps but one": lambda: model(
        [node("Slice", "x one far", "t"), *lstm("t W R B")],
        [*weights(), ZERO, stored("one", [1]), stored("far", [1 << 61])],
        inputs=[value("x", 1 << 62, "N", D)],
    ),
    "some of open steps": lambda: model(
        [node("Slice", "x one far", "t"), *lstm("t W R B")],
        [*weights(), ZERO, stored("one", [1]), stored("far", [1 << 29])],
    ),
    "features": lambda: model(
        [node("Tanh", f"{p}", f"v{k}")
         for k, p in enumerate(["x", *(f"v{k}" for k in range(299))])],
        outputs=["v299"], inputs=[value("x", "T", "N", 1 << 22)],
    ),
    "summands": lambda: model(
        [node("Mul", "x two", "v0"), *[node("Add", f"v{k} x", f"v{k + 1}") for k in range(200)],
         *[node("Add", "v200 x", f"w{k}") for k in range(4000)]],
        [stored("two", np.float32(2))], outputs=["v200"],
    ),
    "steps that are no loop": lambda: model(
        CHAIN, [stored("first", np.int64(0)), ZERO], ["q9"], STEPS_OF_8
    ),
    "sizes multiplied": lambda: model(
        [node("Shape", "x", "v0"), *[node("Mul", f"v{k} big", f"v{k + 1}") for k in range(3000)],
         node("Reshape", "x v3000", "y")],
        [stored("big", [1 << 62] * 3)],
    ),
    "a branch's stored halves": lambda: model(
        [node("If", "no", f"b{k}", then_branch=HALVES, else_branch=HALVES) for k in range(200)],
        [stored("no", np.array(False))], outputs=["b9"],
    ),
}  # fmt: skip
HALVES = OnnxGraph(
    (node("Identity", "h", "b"),),
    "g",
    (OnnxTensor((1 << 15,), m.FLOAT16, name="h", raw_data=bytes(1 << 16)),),
    outputs=(value("b"),),
)


@pytest.mark.parametrize("kind", BOMBS)
def test_work_is_bounded(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(BOMBS[kind]().encode())
    began = time.process_time()
    with pytest.raises(WeightsError):
        read(path, ReadOptions())
    assert time.process_time() - began < 6  # two seconds on a quiet machine


def test_memory_is_bounded(tmp_path: Path) -> None:
    for kind in ("sums of large constants", "tiles", "features", "gathered"):
        path = tmp_path / "model.onnx"
        path.write_bytes(BOMBS[kind]().encode())
        tracemalloc.start()
        with pytest.raises(WeightsError):
            read(path, ReadOptions())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 800 << 20


FIELDS = {
    "nodes": lambda n: encode_value(7, 2, b"\x0a\x00" * n),
    "unknown fields": lambda n: encode_value(7, 2, b"\x98\x06\x01" * n),
    "names": lambda n: encode_value(7, 2, encode_value(1, 2, encode_value(1, 2, b"a") * n)),
    "graphs": lambda n: encode_value(7, 2, b"") * n,
    "functions": lambda n: encode_value(25, 2, b"") * n,
    "numbers of a list": lambda n: encode_value(
        7, 2, encode_value(1, 2, encode_value(5, 2, encode_value(8, 2, b"\x01" * n)))
    ),
    "numbers of a tensor, one by one": lambda n: encode_value(
        7, 2, encode_value(5, 2, b"\x38\x01" * n)
    ),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_without_end(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(FIELDS[kind](1_100_000))
    began = time.process_time()
    with pytest.raises(WeightsError, match="more than 1,000,000 parts"):
        read(path, ReadOptions())
    assert time.process_time() - began < 6


def test_packed_numbers_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lstm_cli.formats.onnx.proto._CHUNK_BYTES", 7)
    rng = np.random.default_rng(0)
    numbers = [int(n) >> int(k) for n, k in zip(rng.integers(-(2**63), 2**63, 500, np.int64),
                                                rng.integers(0, 63, 500), strict=True)]  # fmt: skip
    data = memoryview(b"".join(encode_varint(n) for n in numbers))
    assert read_packed_varints(data).tolist() == numbers
    with pytest.raises(WireError, match="longer than 64 bits"):
        read_packed_varints(memoryview(b"\xff" * 30 + b"\x01"))


# What a file may lack or overdo.


def test_a_node_without_outputs_or_inputs(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no node computes"):
        load(tmp_path, model([replace(LSTM, outputs=())], weights()))
    for op in sorted(SCHEMAS):
        for bare in (node(op, "", ""), node(op, "x", ""), node(op, "q", ""), node(op, "", "y")):
            with pytest.raises(WeightsError):
                load(tmp_path, model([bare], weights()))
    nameless = OnnxNode(("", ""), ("", "y"), "", "", ())
    with pytest.raises(WeightsError):
        load(tmp_path, model([nameless], weights()))


@pytest.mark.parametrize(
    "dims",
    [(0, 1 << 62, 1 << 62), (1 << 62, 1 << 62), (-1, 3), (3, -1), (1 << 40,), (1,) * 40],
    ids=str,
)
def test_dims(dims: tuple[int, ...], tmp_path: Path) -> None:
    for data in (b"", bytes(12)):
        tensor = OnnxTensor(dims, m.FLOAT, name="W", raw_data=data)
        with pytest.raises(WeightsError, match="tensor W"):
            load(tmp_path, model(LAST, [tensor, *weights()[1:], ZERO]))
        constant = replace(
            node("Constant", "", "W"),
            attributes=(OnnxAttribute("value", t=tensor, type=m.ATTRIBUTE_TENSOR),),
        )
        with pytest.raises(WeightsError, match="tensor W"):
            load(tmp_path, model([constant, *LAST], [*weights()[1:], ZERO]))


@pytest.mark.parametrize(
    ("number", "name"),
    [(8, "string"), (14, "complex64"), (17, "float8e4m3fn"), (22, "int4"), (99, "99")],
)
def test_types_that_are_not_read_are_named(number: int, name: str, tmp_path: Path) -> None:
    tensor = OnnxTensor((1, 8, 3), number, name="W", raw_data=bytes(24))
    with pytest.raises(WeightsError, match=f"(?s)tensor W.*{name}"):
        load(tmp_path, model(LAST, [tensor, *weights()[1:], ZERO]))


def test_inputs_that_are_no_tensors(tmp_path: Path) -> None:
    for name, word in (("sequence", "sequence"), ("optional", "optional"), ("map", "map")):
        given = m.OnnxValueInfo("x", m.OnnxType(**{name: b""}))
        with pytest.raises(WeightsError, match=f"input x is of the type {word}"):
            load(tmp_path, model(LAST, [*weights(), ZERO], inputs=[given]))


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("text", ["-1", "99999999999999999999999", "1e3", "9999999999999"])
def test_external_data_of_impossible_places(key: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(96))
    entries = {"location": "w.bin", key: text}
    external = tuple(m.OnnxProperty(k, v) for k, v in entries.items())
    tensor = OnnxTensor((1, 8, 3), m.FLOAT, name="W", data_location=1, external_data=external)
    made = model(LAST, [tensor, *weights()[1:], ZERO])
    if (key, text) == ("length", "9999999999999"):
        assert load(tmp_path, made).config is not None  # more than is needed is not read
        return
    with pytest.raises(WeightsError):
        load(tmp_path, made)


def test_external_data_read_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(1 << 22))
    entries = (m.OnnxProperty("location", "w.bin"),)
    tensors = [
        OnnxTensor((1 << 20,), m.FLOAT, name=f"t{k}", data_location=1, external_data=entries)
        for k in range(100)
    ]
    nodes = [node("Identity", f"t{k}", f"v{k}") for k in range(100)]
    with pytest.raises(WeightsError, match="computes more"):
        load(tmp_path, model([*nodes, node("Tanh", "x", "y")], tensors))


# Operators that no layer stands for, wherever they are.

FRONT = {
    "Conv": "a convolution", "MaxPool": "pooling", "Attention": "attention",
    "LayerNormalization": "normalization", "Loop": "a loop", "MatMulInteger": "quantized",
    "TopK": "does not know",
}  # fmt: skip


@pytest.mark.parametrize("op", FRONT)
@pytest.mark.parametrize("sizes", [("N", D, "T"), ("T", "N", "D"), ("N", 1, "T", D), ("N",), None])
def test_an_operator_in_front_is_named(op: str, sizes: Any, tmp_path: Path) -> None:
    shape = (
        [m.OnnxValueInfo("x", m.OnnxType(m.OnnxTensorType(m.FLOAT)))]
        if sizes is None
        else [value("x", *sizes)]
    )
    nodes = [node("Relu", "x", "r"), node(op, "r", "c", "front"),
             node("Transpose", "c", "t", perm=[2, 0, 1])]  # fmt: skip
    turned = [node("Transpose", "V", "W", perm=[0, 2, 1])]  # so that W says nothing of D
    tensors = [stored("V", np.ones((1, D, 4 * H))), *weights()[1:], ZERO]
    made = model([*nodes, *turned, *lstm("t W R B")], tensors, inputs=shape)
    with pytest.raises(WeightsError, match=rf"(?s)node front \({op}\).*{FRONT[op]}") as caught:
        load(tmp_path, made)
    if "found" in str(caught.value):  # the hint: what follows is read on its own
        rest = model([*turned, *lstm("x W R B")], tensors)
        assert [layer["type"] for layer in layers(load(tmp_path, rest))] == ["lstm"]


@pytest.mark.parametrize("op", FRONT)
def test_an_operator_between_or_behind_is_named(op: str, tmp_path: Path) -> None:
    tensors = [*weights(), ZERO, stored("one", [1]), stored("W2", np.ones((1, 4 * H, H)))]
    before = [LSTM, node("Squeeze", "Y one", "h"), node(op, "h", "c", "odd")]
    behind = [node("LSTM", "c W2 R B", "Y2 Yh2", "cell2"), node("Squeeze", "Yh2 zero", "y")]
    for nodes in (before + behind, [*before, node("Identity", "c", "y")]):
        with pytest.raises(WeightsError, match=rf"node odd \({op}\).*{FRONT[op]}"):
            load(tmp_path, model(nodes, tensors))


@pytest.mark.parametrize("cast", [True, False])
def test_an_embedding_is_named(cast: bool, tmp_path: Path) -> None:
    kind = m.FLOAT if cast else m.INT64
    dims = m.OnnxShape((m.OnnxDimension(name="T"), m.OnnxDimension(name="N")))
    ids = m.OnnxValueInfo("x", m.OnnxType(m.OnnxTensorType(kind, dims)))
    table = stored("E", np.ones((9, D)))
    nodes = [node("Cast", "x", "i", "ids", to=m.INT64)] if cast else []
    nodes += [node("Gather", "E i" if cast else "E x", "t", "look"), *lstm("t W R B")]
    with pytest.raises(WeightsError, match=r"node (ids \(Cast\)|look \(Gather\)).*embedding"):
        load(tmp_path, model(nodes, [*weights(), ZERO, table], inputs=[ids]))


# Sizes that the file leaves open, in every operator.

PYTHON = re.compile(
    r"argument|object|NoneType|operand|not supported between|bad |'Size'|numpy|NumPy|iterable|"
    r"unpack|has no attribute|index out|invalid literal|expected str|dtype"
)


@pytest.mark.parametrize("op", sorted(SCHEMAS))
def test_open_sizes_in_every_operator(op: str, tmp_path: Path) -> None:
    """Whatever an operator makes of them: it is read, or the message names node and axis."""
    least = min(schema.min_inputs for _, schema in SCHEMAS[op])
    most = min(max(schema.max_inputs for _, schema in SCHEMAS[op]), 5)
    branch = OnnxGraph((node("Identity", "x", "b"),), outputs=(value("b"),))
    own = {"axis": 0, "to": m.FLOAT, "hidden_size": H}
    own |= {"then_branch": branch, "else_branch": branch}
    given = {name: v for name, v in own.items() if name in SCHEMAS[op][-1][1].attributes}
    tensors = [*weights(), ZERO, stored("three", [1, 2, 3]), stored("real", np.ones(3)),
               stored("one", [1]), stored("zeros", np.zeros((1, 1, H)))]  # fmt: skip
    start = [node("Shape", "x", "s"), node("Gather", "s one", "n", "size", axis=0)]
    seen = 0
    for other in ("three", "real", "n", "x"):
        for count in {max(least, 1), max(most, 1)}:
            for place in range(count):
                names = [other] * count
                names[place] = "n" if other != "n" else "s"
                nodes = [*start, node(op, " ".join(names), "v", "odd", **given)]
                ends = [node("Add", "x v", "y"), node("ConstantOfShape", "v", "h0")]
                for end in ends:
                    cell = [] if end.outputs == ("y",) else lstm("x W R B - h0")
                    try:
                        load(tmp_path, model([*nodes, end, *cell], tensors))
                    except WeightsError as error:
                        seen += 1
                        said = str(error).split("hint:")[0]
                        assert not PYTHON.search(said), (names, said)
    assert seen


def test_large_matrices_of_the_file_are_read(tmp_path: Path) -> None:
    """What stands in the file is no work beyond it: 33 million weights."""
    matrix = OnnxTensor(
        (1 << 13, (1 << 12) + 8), m.FLOAT, name="M", raw_data=bytes(4 * (1 << 13) * 4104)
    )
    made = model([node("MatMul", "x M", "y")], [matrix], inputs=[value("x", "N", "T", 1 << 13)])
    assert layers(load(tmp_path, made)) == [{"type": "dense", "units": 4104, "bias": False}]
