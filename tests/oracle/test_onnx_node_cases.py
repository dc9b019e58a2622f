"""The onnx package's own test cases of LSTM, GRU and RNN, read from files."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import Array

import lstm_cli
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import RecurrentSpec
from lstm_cli.formats import registry
from lstm_cli.network.network import Network
from lstm_cli.network.results import Result

onnx = pytest.importorskip("onnx")

WEIGHTS = ("W", "R", "B", "P")
OPERATORS = ("lstm", "gru", "rnn")


def node_cases() -> list[Any]:
    """All cases of the three operators; importing a module of cases registers them."""
    package = importlib.import_module("onnx.backend.test.case.node")
    for operator in OPERATORS:
        importlib.import_module(f"{package.__name__}.{operator}")
    cases = [
        case
        for case in package._NodeTestCases
        if case.model.graph.node[0].op_type.lower() in OPERATORS
    ]
    return sorted(cases, key=lambda case: str(case.name))


CASES = node_cases()


def test_there_are_cases_of_every_kind() -> None:
    """The onnx package 1.23 has 18 cases; cases of newer versions run as well."""
    kinds = [case.model.graph.node[0].op_type for case in CASES]
    assert {kind: kinds.count(kind) >= 6 for kind in kinds} == dict.fromkeys(
        ("LSTM", "GRU", "RNN"), True
    )
    directions = {value for case in CASES for value in attributes(case).values()}
    assert {b"reverse", b"bidirectional", 1} <= directions


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_case(case: Any, tmp_path: Path) -> None:
    fed, expected = values(case)
    check(case, fed, expected, tmp_path / "case.onnx")


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_case_with_other_numbers(case: Any, tmp_path: Path) -> None:
    """The cases have constant weights, which any gate order passes; these are random."""
    rng = np.random.default_rng(len(str(case.name)))
    fed = {
        name: value if value.dtype.kind == "i" else rng.uniform(-1, 1, value.shape).astype("f4")
        for name, value in values(case)[0].items()
    }
    check(case, fed, run_elsewhere(case, fed), tmp_path / "case.onnx")


def check(case: Any, fed: dict[str, Array], expected: dict[str, Array], path: Path) -> None:
    path.write_bytes(folded(case.model, fed).SerializeToString())
    result, layer = run(path, fed, batch_first=is_batch_first(case))
    for name, value in expected.items():
        found = as_onnx(name, result, layer, case)
        assert found.shape == value.shape, name
        np.testing.assert_allclose(found, value, rtol=case.rtol, atol=1e-6, err_msg=name)
    if "Y" not in expected:
        last = swapped(expected["Y_h"], not is_batch_first(case))  # (N, directions, H)
        np.testing.assert_allclose(
            result.outputs, last.reshape(len(last), -1), rtol=case.rtol, atol=1e-6
        )


def run_elsewhere(case: Any, fed: dict[str, Array]) -> dict[str, Array]:
    """Outputs of ONNX Runtime, which has no layout 1: axes are swapped before and after."""
    onnxruntime = pytest.importorskip("onnxruntime")
    turned, model = is_batch_first(case), folded(case.model, fed)
    (node,) = model.graph.node
    kept = [entry for entry in node.attribute if entry.name != "layout"]
    del node.attribute[:]
    node.attribute.extend(kept)
    for value in [*model.graph.input, *model.graph.output]:
        if turned:
            value.type.tensor_type.ClearField("shape")
    model.ir_version, model.opset_import[0].version = 8, 14
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {name: value for name, value in fed.items() if name not in WEIGHTS}
    feeds["X"] = swapped(feeds["X"], turned)
    names = [value.name for value in model.graph.output]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    if turned and "Y" in found:
        found["Y"] = found["Y"].transpose(2, 0, 1, 3)
    return {name: value if name == "Y" else swapped(value, turned) for name, value in found.items()}


def swapped(value: Array, turned: bool) -> Array:
    return value.transpose(1, 0, 2) if turned else value


def is_batch_first(case: Any) -> bool:
    return attributes(case).get("layout") == 1


def attributes(case: Any) -> dict[str, Any]:
    node = case.model.graph.node[0]
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def values(case: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and expected outputs of a case, by name."""
    ((fed, expected),) = case.data_sets
    graph = case.model.graph
    inputs = [value.name for value in graph.input]
    outputs = [value.name for value in graph.output]
    return dict(zip(inputs, fed, strict=True)), dict(zip(outputs, expected, strict=True))


def folded(original: Any, fed: dict[str, Array]) -> Any:
    """Model of a case with the weights stored in it."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    kept = [value for value in model.graph.input if value.name not in WEIGHTS]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(fed[name], name) for name in WEIGHTS if name in fed
    )
    return model


def run(path: Path, fed: dict[str, Array], *, batch_first: bool) -> tuple[Result, RecurrentSpec]:
    """Result of the file on the reference engine, and its recurrent layer."""
    imported = registry.read(path)
    layers = lstm_cli.build(dict(imported.config or {}), engine="reference").network.layers
    network = Network(layers, imported.tensors, ReferenceEngine("float64"))
    states = [fed.get(name) for name in ("initial_h", "initial_c")]
    first = [None if s is None else swapped(s, not batch_first) for s in states]
    x = swapped(fed["X"], not batch_first)
    given = None if first[0] is None else [tuple(first)]
    return network.run(x, fed.get("sequence_lens"), given), network.recurrent[0]


def as_onnx(name: str, result: Result, layer: RecurrentSpec, case: Any) -> Array:
    """Output `name` of the operator from a `Result`, in the layout of the case."""
    batch_first = is_batch_first(case)
    if name == "Y":
        N, T, _ = result.outputs.shape
        y = result.outputs.reshape(N, T, -1, layer.hidden_size)
        return y if batch_first else y.transpose(1, 2, 0, 3)
    h, c = result.state[0]
    state = c if name == "Y_c" else h
    if attributes(case).get("direction") == b"reverse":
        state = state[:, 1:]  # read as a layer of two directions, of which one is used
    return swapped(state, not batch_first)
