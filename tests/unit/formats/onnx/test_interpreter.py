"""ONNX graphs: attributes, opsets, names, unsupported operators and open sizes."""

from __future__ import annotations

import re
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
    OnnxModel,
    OnnxNode,
    OnnxOperatorSet,
)
from lstm_cli.formats.onnx.schemas import NEWEST, SCHEMAS

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
    """A model of one operator with `least` inputs."""
    inputs = ("x", *["one"] * (least - 1))[:least]
    onnx_model = model(
        [OnnxNode(inputs, ("y",), "it", op, attributes)], [stored("one", np.ones(1))]
    )
    return replace(onnx_model, operator_sets=(OnnxOperatorSet("", opset),))


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
    """A zero that the writer omits, a name reserved for runtimes, and an infinite clip."""
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
    onnx_model = model(nodes, [*weights(), ZERO, stored("one", np.ones((1, D)))], [output])
    with pytest.raises(WeightsError, match=f"(?s){pattern}"):
        load(tmp_path, replace(onnx_model, operator_sets=(OnnxOperatorSet("", opset),)))


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
    onnx_model = model([node("Relu", "x", "y")])
    imported = load(tmp_path, replace(onnx_model, operator_sets=(OnnxOperatorSet("", NEWEST + 1),)))
    assert any(f"newer than {NEWEST}" in note for note in imported.notes)
    two = replace(
        onnx_model, operator_sets=(OnnxOperatorSet("", 11), OnnxOperatorSet("ai.onnx", 13))
    )
    with pytest.raises(WeightsError, match="two versions"):
        load(tmp_path, two)


def test_a_function_has_an_opset_of_its_own(tmp_path: Path) -> None:
    inner = node("Clip", "a", "b", min=0.0)
    function = m.OnnxFunction(
        "F", ("a",), ("b",), (), (inner,), (OnnxOperatorSet("", 10),), "local"
    )
    outer, after = replace(node("F", "x", "t"), domain="local"), node("Clip", "t zero", "y")
    tensors = [stored("zero", np.float32(0))]
    imported = load(tmp_path, model([outer, after], tensors, functions=(function,)))
    assert [layer.get("activation") for layer in layers(imported)] == ["relu", "relu"]
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
def test_invalid_values_of_operators(case: str, tmp_path: Path) -> None:
    nodes, pattern = VALUES[case]
    extra = {"one": np.ones(1), "axis": [2], "half": np.float32(0.5), "yes": np.array(True)}
    extra |= {"Wi": np.ones((1, 4 * H, D), int), "inf": np.full(2, np.inf)}
    tensors = [*weights(), ZERO, *(stored(k, v) for k, v in extra.items())]
    inputs = [value("x", "T", "N", D), value("n", "N"), value("s", 1, "N", H)]
    onnx_model = model(nodes, tensors, inputs=inputs)
    with pytest.raises(WeightsError, match=pattern):
        load(tmp_path, replace(onnx_model, operator_sets=(OnnxOperatorSet("", 18),)))


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
    onnx_model = model([*nodes, *turned, *lstm("t W R B")], tensors, inputs=shape)
    with pytest.raises(WeightsError, match=rf"(?s)node front \({op}\).*{FRONT[op]}") as caught:
        load(tmp_path, onnx_model)
    if "found" in str(
        caught.value
    ):  # the hint: the part after the node is read as a separate model
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


PYTHON = re.compile(
    r"argument|object|NoneType|operand|not supported between|bad |'Size'|numpy|NumPy|iterable|"
    r"unpack|has no attribute|index out|invalid literal|expected str|dtype"
)


@pytest.mark.parametrize("op", sorted(SCHEMAS))
def test_open_sizes_in_every_operator(op: str, tmp_path: Path) -> None:
    """The model is read, or the message names the node and the axis."""
    least = min(schema.min_inputs for _, schema in SCHEMAS[op])
    most = min(max(schema.max_inputs for _, schema in SCHEMAS[op]), 5)
    branch = OnnxGraph((node("Identity", "x", "b"),), outputs=(value("b"),))
    own = {"axis": 0, "to": m.FLOAT, "hidden_size": H}
    own |= {"then_branch": branch, "else_branch": branch}
    attributes = {name: v for name, v in own.items() if name in SCHEMAS[op][-1][1].attributes}
    tensors = [*weights(), ZERO, stored("three", [1, 2, 3]), stored("real", np.ones(3)),
               stored("one", [1]), stored("zeros", np.zeros((1, 1, H)))]  # fmt: skip
    start = [node("Shape", "x", "s"), node("Gather", "s one", "n", "size", axis=0)]
    refusals = 0
    for other in ("three", "real", "n", "x"):
        for count in {max(least, 1), max(most, 1)}:
            for place in range(count):
                names = [other] * count
                names[place] = "n" if other != "n" else "s"
                nodes = [*start, node(op, " ".join(names), "v", "odd", **attributes)]
                ends = [node("Add", "x v", "y"), node("ConstantOfShape", "v", "h0")]
                for end in ends:
                    cell = [] if end.outputs == ("y",) else lstm("x W R B - h0")
                    try:
                        load(tmp_path, model([*nodes, end, *cell], tensors))
                    except WeightsError as error:
                        refusals += 1
                        message = str(error).split("hint:")[0]
                        assert not PYTHON.search(message), (names, message)
    assert refusals
