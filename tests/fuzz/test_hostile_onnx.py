"""Hostile ONNX files: bounded work and memory, damaged and extreme fields."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
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

from lstm_cli.errors import LstmCliError, WeightsError
from lstm_cli.formats.interchange import ReadOptions
from lstm_cli.formats.onnx import proto as m
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
from lstm_cli.formats.onnx.reader import read
from lstm_cli.formats.onnx.schemas import SCHEMAS


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


def local(name: str, inputs: str, outputs: str) -> OnnxNode:
    return replace(node(name, inputs, outputs), domain="local")


def functions(*bodies: tuple[str, list[OnnxNode]]) -> tuple[m.OnnxFunction, ...]:
    return tuple(
        m.OnnxFunction(name, ("a",), ("b",), (), tuple(nodes), (OnnxOperatorSet("", 17),), "local")
        for name, nodes in bodies
    )


def doubling(start: OnnxNode, calls: int) -> OnnxModel:
    """`calls` functions, each of which calls the previous one twice, within the allowed depth."""
    bodies = [("f0", [start])]
    for k in range(1, calls):
        before = f"f{k - 1}"
        bodies.append((f"f{k}", [local(before, "a", "t"), local(before, "t", "b")]))
    return model([local(f"f{calls - 1}", "x", "y")], functions=functions(*bodies))


def filled(*nodes: OnnxNode, **sizes: list[int]) -> OnnxModel:
    """A model with the constants c (floats) and d (integers) of the shape s."""
    start = [node("ConstantOfShape", "s", "c"), node("Cast", "c", "d", to=m.INT64)]
    tensors = [stored(name, shape) for name, shape in sizes.items()]
    tensors += [stored("one", [1]), stored("o", np.float32(1)), stored("three", np.ones(3))]
    return model([*start, *nodes, node("Mul", "x last", "y")], tensors)


def repeated(op: str, first: str, second: str, count: int, **attributes: Any) -> list[OnnxNode]:
    nodes = [node(op, f"{first} {second}", "v0", **attributes)]
    nodes += [node(op, f"v{k} {second}", f"v{k + 1}", **attributes) for k in range(count)]
    return [*nodes, node("Identity", f"v{count}", "last")]


def many(op: str, inputs: str, count: int, **attributes: Any) -> list[OnnxNode]:
    nodes = [node(op, inputs, f"v{k}", **attributes) for k in range(count)]
    return [*nodes, node("Identity", "v0", "last")]


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
    assert time.process_time() - began < 6  # 2 s on a quiet machine


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
        sequences = m.OnnxValueInfo("x", m.OnnxType(**{name: b""}))
        with pytest.raises(WeightsError, match=f"input x is of the type {word}"):
            load(tmp_path, model(LAST, [*weights(), ZERO], inputs=[sequences]))


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("text", ["-1", "99999999999999999999999", "1e3", "9999999999999"])
def test_external_data_of_impossible_places(key: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(96))
    entries = {"location": "w.bin", key: text}
    external = tuple(m.OnnxProperty(k, v) for k, v in entries.items())
    tensor = OnnxTensor((1, 8, 3), m.FLOAT, name="W", data_location=1, external_data=external)
    onnx_model = model(LAST, [tensor, *weights()[1:], ZERO])
    if (key, text) == ("length", "9999999999999"):
        assert load(tmp_path, onnx_model).config is not None  # more than is needed is not read
        return
    with pytest.raises(WeightsError):
        load(tmp_path, onnx_model)


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


def test_large_matrices_of_the_file_are_read(tmp_path: Path) -> None:
    """Weights of the file itself do not count as work: here 33 million."""
    matrix = OnnxTensor(
        (1 << 13, (1 << 12) + 8), m.FLOAT, name="M", raw_data=bytes(4 * (1 << 13) * 4104)
    )
    onnx_model = model(
        [node("MatMul", "x M", "y")], [matrix], inputs=[value("x", "N", "T", 1 << 13)]
    )
    assert layers(load(tmp_path, onnx_model)) == [{"type": "dense", "units": 4104, "bias": False}]
