"""ONNX models of other programs, read and compared with ONNX Runtime."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import (
    Array,
    parametrized,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
    recurrent,
)

import lstm_cli
from lstm_cli.config import from_mapping
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Imported, ReadOptions, WriteOptions
from lstm_cli.formats.onnx.reader import read
from lstm_cli.network.network import Network
from lstm_cli.network.results import Result

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx_models
from onnx import helper
from onnx_exports import close, export_of, random_layers
from onnx_models import runtime_outputs, save_model

N, T, D, H = 4, 6, 3, 5
INPUT = {"x": ("N", "T", D)}


def run_here(imported: Imported, x: Array, *args: Any) -> Result:
    assert imported.config is not None
    config = from_mapping(dict(imported.config))
    return Network(config.specs, imported.tensors, ReferenceEngine("float32")).run(x, *args)


def kinds(imported: Imported) -> list[str]:
    assert imported.config is not None
    return [layer["type"] for layer in imported.config["model"]["layers"]]


# One operator, every option: through the bytes that the standard's own helper writes.

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("lstm", {}),
    "lstm peepholes clip": ("lstm", {"peepholes": True, "clip": 0.4}),
    "lstm peepholes": ("lstm", {"peepholes": True}),
    "lstm clip": ("lstm", {"clip": 0.3}),
    "lstm coupled": ("lstm", {"coupled_input_forget": True}),
    "lstm coupled peepholes": ("lstm", {"coupled_input_forget": True, "peepholes": True}),
    "lstm activations": (
        "lstm",
        {
            "recurrent_activation": parametrized("hard_sigmoid"),
            "activation": parametrized("scaled_tanh"),
            "cell_activation": parametrized("softsign"),
        },
    ),
    "gru after": ("gru", {"reset_after": True}),
    "gru before": ("gru", {"reset_after": False}),
    "gru before clip": ("gru", {"reset_after": False, "clip": 0.3}),
    "gru activations": (
        "gru",
        {
            "recurrent_activation": parametrized("hard_sigmoid"),
            "activation": parametrized("scaled_tanh"),
        },
    ),
    "rnn": ("rnn", {}),
    "rnn clip": ("rnn", {"clip": 0.3}),
    "rnn leaky": ("rnn", {"activation": parametrized("leaky_relu")}),
    "rnn elu": ("rnn", {"activation": parametrized("elu")}),
}


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged with states"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("option", OPTIONS)
def test_operators(
    option: str, direction: str, ragged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, options = OPTIONS[option]
    seed = list(OPTIONS).index(option)
    spec = recurrent(kind, H, D, directions=1 if direction == "forward" else 2, **options)
    weights, path = random_weights([spec], seed), tmp_path / "model.onnx"
    monkeypatch.setattr(onnx_models, "_model", _keeping(path))
    x = random_inputs(N, T, D, seed)
    lengths = np.maximum(random_lengths(N, T, seed), 1) if ragged else None
    state = random_states([spec], N, seed)[0] if ragged else None
    alone = "reverse" if direction == "reverse" else None
    y, h, c = onnx_models.run(spec, weights, x, lengths, state, direction=alone)
    imported = read(path, ReadOptions())
    result = run_here(imported, x, lengths, None if state is None else [state])
    close(result.outputs, y)
    which = slice(1, None) if alone else slice(None)
    close(result.state[0][0][:, which], h)
    if c is not None:
        close(result.state[0][1][:, which], c)
    assert ("dense" in kinds(imported)) == (alone is not None)


def _keeping(path: Path) -> Callable[..., bytes]:
    make = onnx_models._model

    def kept(*args: Any) -> bytes:
        data = make(*args)
        path.write_bytes(data)
        return data

    return kept


def test_layout_1_is_layout_0_transposed(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    W, R, B = (
        rng.standard_normal(s).astype("f4") for s in ((2, 4 * H, D), (2, 4 * H, H), (2, 8 * H))
    )
    paths = []
    for layout, perm in ((0, [1, 0, 2]), (1, [0, 1, 2])):
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"], perm=perm),
            helper.make_node(
                "LSTM", ["t", "W", "R", "B"], ["Y", "", ""], direction="bidirectional",
                hidden_size=H, layout=layout,
            ),
        ]  # fmt: skip
        tensors = {"W": W, "R": R, "B": B}
        paths.append(save_model(tmp_path / f"{layout}.onnx", nodes, tensors, INPUT, ["Y"]))
    x = random_inputs(N, T, D)
    read_both = [read(path, ReadOptions()) for path in paths]
    assert not any("reads (T" in note for imported in read_both for note in imported.notes)
    one, other = (run_here(imported, x).outputs for imported in read_both)
    np.testing.assert_array_equal(one, other)
    expected = runtime_outputs(paths[0], x)[0]  # (T, directions, N, H)
    close(other, expected.transpose(2, 0, 1, 3).reshape(N, T, -1))


# PyTorch.


@dataclass(frozen=True)
class Case:
    """A PyTorch network: its modules and its forward pass; the input may be time-first."""

    make: Callable[[], Any]
    forward: Callable[[Any, Any], Any]
    time_first: bool = False


def _cases() -> dict[str, Case]:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def net(kind: str, units: int, head: int, **options: Any) -> Callable[[], Any]:
        options = {"batch_first": True} | options

        def make() -> Any:
            return nn.ModuleDict(
                {"r": getattr(nn, kind)(D, units, **options), "o": nn.Linear(head, 4)}
            )

        return make

    def last(m: Any, x: Any) -> Any:
        return torch.softmax(m["o"](m["r"](x)[0][:, -1]), -1)

    def every(m: Any, x: Any) -> Any:
        return torch.sigmoid(m["o"](nn.functional.dropout(m["r"](x)[0], training=False)))

    def states(m: Any, x: Any) -> Any:
        h = m["r"](x)[1]
        h = h[0] if isinstance(h, tuple) else h
        return nn.functional.elu(m["o"](torch.cat([h[-2], h[-1]], 1)))

    def halves(m: Any, x: Any) -> Any:
        y = m["r"](x)[0]
        return m["o"](y[..., :H] + y[..., H:])

    def flat(m: Any, x: Any) -> Any:
        return nn.functional.leaky_relu(m["o"](m["r"](x)[0].flatten(1)), 0.2)

    def cells(m: Any, x: Any) -> Any:
        h = x.new_zeros(x.shape[0], H)
        for t in range(x.shape[1]):
            h = m["r"](x[:, t], h)
        return m["o"](h)

    def time_last(m: Any, x: Any) -> Any:
        return m["o"](m["r"](x)[0][-1])

    two = {"num_layers": 2, "bidirectional": True}
    return {
        "lstm last": Case(net("LSTM", H, H, num_layers=2, dropout=0.2), last),
        "lstm every": Case(net("LSTM", H, 2 * H, **two), every),
        "lstm states": Case(net("LSTM", H, 2 * H, **two), states),
        "lstm halves": Case(net("LSTM", H, H, bidirectional=True), halves),
        "lstm flat": Case(net("LSTM", H, T * H), flat),
        "lstm last of both": Case(net("LSTM", H, 2 * H, bidirectional=True), last),
        "lstm no bias": Case(net("LSTM", H, H, bias=False), every),
        "lstm time first": Case(net("LSTM", H, H, batch_first=False), time_last, True),
        "gru last": Case(net("GRU", H, H), last),
        "gru every": Case(net("GRU", H, 2 * H, **two), every),
        "gru states": Case(net("GRU", H, 2 * H, bidirectional=True), states),
        "rnn every": Case(net("RNN", H, 2 * H, nonlinearity="relu", **two), every),
        "rnn last": Case(net("RNN", H, H, num_layers=2), last),
        "gru cells": Case(
            lambda: nn.ModuleDict({"r": nn.GRUCell(D, H), "o": nn.Linear(H, 4)}), cells
        ),
    }


NAMES = [
    "lstm last", "lstm every", "lstm states", "lstm halves", "lstm flat", "lstm last of both",
    "lstm no bias", "lstm time first", "gru last", "gru every", "gru states", "rnn every",
    "rnn last", "gru cells",
]  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> Iterator[dict[str, Case]]:
    """The networks, with the exporters' log messages disabled."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield _cases()
    logging.disable(level)


def _export(case: Case, path: Path, *, dynamo: bool = False, open_sizes: bool = False) -> Any:
    """Export a network to `path`; return its PyTorch module."""
    import torch

    forward = case.forward

    class Wrapped(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = case.make()

        def forward(self, x: Any) -> Any:
            return forward(self.inner, x)

    module = Wrapped().eval()
    axes = {"dynamic_axes": {"x": {0: "N", 1: "T"}}} if open_sizes else {}
    options = {"verbose": False} if dynamo else {"input_names": ["x"], **axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        torch.onnx.export(module, (_inputs(case),), path, dynamo=dynamo, **options)
    return module


def _inputs(case: Case) -> Any:
    import torch

    x = torch.from_numpy(random_inputs(N, T, D).astype("f4"))
    return x.transpose(0, 1) if case.time_first else x


@pytest.mark.parametrize("name", NAMES)
def test_pytorch_by_tracing(name: str, cases: dict[str, Case], tmp_path: Path) -> None:
    _check_pytorch(cases[name], tmp_path / "model.onnx", dynamo=False)


@pytest.mark.parametrize("name", ["lstm states", "gru every", "rnn last"])
def test_pytorch_by_dynamo(name: str, cases: dict[str, Case], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    _check_pytorch(cases[name], tmp_path / "model.onnx", dynamo=True)


def _check_pytorch(case: Case, path: Path, *, dynamo: bool) -> None:
    module, x = _export(case, path, dynamo=dynamo), _inputs(case)
    (expected, *_) = runtime_outputs(path, x.numpy())
    ours = x.transpose(0, 1).numpy() if case.time_first else x.numpy()
    found = run_here(read(path, ReadOptions()), ours).outputs
    close(found, expected)
    close(found, module(x).detach().numpy())


def test_any_batch_and_length(cases: dict[str, Case], tmp_path: Path) -> None:
    """Open sizes stay open: batch sizes and lengths may differ from those at export."""
    path = tmp_path / "model.onnx"
    _export(cases["lstm every"], path, open_sizes=True)
    imported = read(path, ReadOptions())
    for batch, steps in ((1, 1), (3, 9)):
        x = random_inputs(batch, steps, D).astype("f4")
        close(run_here(imported, x).outputs, runtime_outputs(path, x)[0])


# Keras, which writes every step out.


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("torch")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("keras")
    if module.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend")
    return module


KERAS: dict[str, tuple[list[str], Callable[[Any], list[Any]]]] = {
    "lstm": (["lstm", "dense"], lambda L: [L.LSTM(H), L.Dense(3, "softmax")]),
    "gru": (["gru", "gru"], lambda L: [L.GRU(H, return_sequences=True), L.GRU(4)]),
    "rnn": (
        ["rnn", "flatten", "dense"],
        lambda L: [L.SimpleRNN(H, return_sequences=True), L.Flatten(), L.Dense(2, "elu")],
    ),
    "bidirectional": (
        ["lstm", "gru", "dense"],
        lambda L: [
            L.Bidirectional(L.LSTM(H, return_sequences=True)),
            L.Dropout(0.3),
            L.Bidirectional(L.GRU(4)),
            L.Dense(2, "softsign"),
        ],
    ),
    "summed": (
        ["lstm", "dense", "dense"],
        lambda L: [
            L.Bidirectional(L.LSTM(H, return_sequences=True), merge_mode="sum"),
            L.TimeDistributed(L.Dense(3, activation="hard_sigmoid")),
        ],
    ),
    "options": (
        ["lstm", "dense"],
        lambda L: [
            L.LSTM(
                H,
                activation="softsign",
                recurrent_activation="hard_sigmoid",
                use_bias=False,
                return_sequences=True,
            ),
            L.TimeDistributed(L.Dense(3, activation="tanh")),
        ],
    ),
    "backwards": (["lstm", "dense"], lambda L: [L.LSTM(H, go_backwards=True), L.Dense(2)]),
    "reset before": (
        ["gru", "dense"],
        lambda L: [L.GRU(H, reset_after=False, return_sequences=True), L.Dense(2, "relu")],
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_keras(name: str, keras: Any, tmp_path: Path) -> None:
    expected_kinds, layers = KERAS[name]
    model = keras.Sequential([keras.Input((T, D)), *layers(keras.layers)])
    rng, path = np.random.default_rng(7), tmp_path / "model.onnx"
    model(np.zeros((1, T, D), "f4"))
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(0.5 * rng.standard_normal(weight.shape).astype("f4"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(str(path), format="onnx", verbose=False)
    imported = read(path, ReadOptions())
    assert kinds(imported) == expected_kinds
    x = random_inputs(N, T, D).astype("f4")
    found = run_here(imported, x).outputs
    close(found, np.asarray(model(x).detach() if hasattr(model(x), "detach") else model(x)))
    close(found, runtime_outputs(path, x)[0])


# tf2onnx, by hand: Transpose, one operator a direction, Squeeze, Concat, MatMul and Add.


@pytest.mark.parametrize("ending", ["sequences", "last"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_tf2onnx(kind: str, ending: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    G = 4 if kind == "LSTM" else 3
    stored = {"M": rng.standard_normal((2 * H, 3)), "m": rng.standard_normal(3)}
    for side in "fb":
        stored |= {
            f"W{side}": rng.standard_normal((1, G * H, D)),
            f"R{side}": rng.standard_normal((1, G * H, H)) / 2,
            f"B{side}": rng.standard_normal((1, 2 * G * H)),
        }
    stored = {name: value.astype("f4") for name, value in stored.items()}
    stored |= {"one": np.array([1]), "zero": np.array([0])}
    make = helper.make_node
    nodes = [make("Transpose", ["x"], ["t"], perm=[1, 0, 2])]
    for side, direction in (("f", "forward"), ("b", "reverse")):
        nodes += [
            make(kind, ["t", *(n + side for n in "WRB")], [f"y{side}", f"h{side}"], f"{kind}{side}",
                 direction=direction, hidden_size=H),
            make("Squeeze", [f"y{side}", "one"], [f"s{side}"]),
            make("Squeeze", [f"h{side}", "zero"], [f"l{side}"]),
        ]  # fmt: skip
    picked = ["sf", "sb"] if ending == "sequences" else ["lf", "lb"]
    nodes.append(make("Concat", picked, ["c"], axis=-1))
    if ending == "sequences":
        nodes.append(make("Transpose", ["c"], ["d"], perm=[1, 0, 2]))
    nodes += [
        make("MatMul", ["d" if ending == "sequences" else "c", "M"], ["e"]),
        make("Add", ["m", "e"], ["g"]),
        make("Identity", ["g"], ["y"]),
    ]
    path = save_model(tmp_path / "model.onnx", nodes, stored, INPUT)
    imported = read(path, ReadOptions())
    assert kinds(imported) == [kind.lower(), "dense"]
    x = random_inputs(N, T, D).astype("f4")
    close(run_here(imported, x).outputs, runtime_outputs(path, x)[0])


ORDERS: dict[str, list[Any]] = {
    "directions innermost": [
        helper.make_node("Transpose", ["Y"], ["a"], perm=[2, 0, 3, 1]),  # (N, T, H, directions)
        helper.make_node("Reshape", ["a", "rows"], ["b"]),
        helper.make_node("MatMul", ["b", "M"], ["y"]),
    ],
    "features before steps": [
        helper.make_node("Transpose", ["Y"], ["a"], perm=[2, 1, 3, 0]),  # (N, directions, H, T)
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "L"], ["y"]),
    ],
    "part of a layer": [
        helper.make_node("Transpose", ["Y"], ["a"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["a", "rows"], ["b"]),
        helper.make_node("MatMul", ["b", "M"], ["c"]),
        helper.make_node("Tanh", ["c"], ["d"]),
        helper.make_node("Slice", ["d", "one", "three", "two"], ["e"]),
        helper.make_node("MatMul", ["e", "S"], ["y"]),
    ],
}


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_features(order: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    shapes = {"W": (2, 4 * H, D), "R": (2, 4 * H, H), "B": (2, 8 * H)}
    shapes |= {"M": (2 * H, 4), "L": (2 * H * T, 3), "S": (2, 5)}
    stored: dict[str, Array] = {k: rng.standard_normal(v).astype("f4") for k, v in shapes.items()}
    stored |= {"rows": np.array([0, 0, 2 * H])}
    stored |= {name: np.array([n]) for name, n in (("one", 1), ("two", 2), ("three", 3))}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM", ["t", "W", "R", "B"], ["Y"], direction="bidirectional", hidden_size=H
        ),
        *ORDERS[order],
    ]
    read_by = {name for each in nodes for name in each.input}
    stored = {name: array for name, array in stored.items() if name in read_by}
    path = save_model(tmp_path / "model.onnx", nodes, stored, {"x": ("N", T, D)})
    x = random_inputs(N, T, D).astype("f4")
    close(run_here(read(path, ReadOptions()), x).outputs, runtime_outputs(path, x)[0])


HEADS: dict[str, dict[str, Any]] = {
    "Relu": {}, "Sigmoid": {}, "Tanh": {}, "Softplus": {}, "Softsign": {}, "Abs": {}, "Selu": {},
    "HardSigmoid": {"alpha": 0.3}, "LeakyRelu": {}, "Elu": {"alpha": 0.7}, "PRelu": {},
    "ThresholdedRelu": {"alpha": 0.4}, "Clip": {}, "Max": {}, "Softmax": {"axis": 2},
}  # fmt: skip


@pytest.mark.parametrize("op", HEADS)
def test_activations_of_a_head(op: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    stored = {"M": rng.standard_normal((D, 4)).astype("f4"), "two": np.float32(2)}
    inputs = {"PRelu": ["slope"], "Clip": ["null"], "Max": ["null"]}.get(op, [])
    values = {"slope": np.full(4, 0.3, "f4"), "null": np.float32(0)}
    nodes = [
        helper.make_node("MatMul", ["x", "M"], ["a"]),
        helper.make_node(op, ["a", *inputs], ["b"], **HEADS[op]),
        helper.make_node("Mul", ["b", "two"], ["y"]),
    ]
    stored |= {name: values[name] for name in inputs}
    path = save_model(tmp_path / "model.onnx", nodes, stored, INPUT)
    x = random_inputs(N, T, D).astype("f4")
    close(run_here(read(path, ReadOptions()), x).outputs, runtime_outputs(path, x)[0])


# What the standard's node cases look like, their inputs stored.

_CASES = list(itertools.product(("LSTM", "GRU", "RNN"), (0, 1), (True, False)))


@pytest.mark.parametrize(("kind", "layout", "whole"), _CASES)
def test_single_nodes(kind: str, layout: int, whole: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    G = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    stored = {
        "W": rng.standard_normal((1, G * H, D)).astype("f4"),
        "R": rng.standard_normal((1, G * H, H)).astype("f4"),
    }
    outputs = ["Y", "Y_h"] if whole else ["", "Y_h"]
    shape = [1, T, D] if layout else [T, 1, D]
    node = helper.make_node(kind, ["x", "W", "R"], outputs, hidden_size=H, layout=layout)
    path = save_model(tmp_path / "m.onnx", [node], stored, {"x": shape}, [o for o in outputs if o])
    x = random_inputs(1, T, D).astype("f4")
    imported = read(path, ReadOptions())
    result = run_here(imported, x)
    node = helper.make_node(kind, ["x", "W", "R"], ["Y", "Y_h"], hidden_size=H)
    plain = save_model(tmp_path / "p.onnx", [node], stored, {"x": (T, 1, D)}, ["Y", "Y_h"])
    y, h = runtime_outputs(plain, x.transpose(1, 0, 2))
    close(result.outputs, y[:, 0].transpose(1, 0, 2) if whole else h[0])
    assert any("laid out" in note for note in imported.notes)


# This package's own models, with lengths and states as inputs or without.


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_own_models(seed: int, lengths: bool, tmp_path: Path) -> None:
    states = bool(seed % 2)
    specs = random_layers(np.random.default_rng(seed), projected=not states)
    export, path = export_of(specs, seed), tmp_path / "model.onnx"
    registry.write(path, "onnx", export, WriteOptions(lengths, states))
    x = random_inputs(N, export.steps or T, export.input_size, seed)
    valid = random_lengths(N, x.shape[1], seed) if lengths else None
    state = random_states(specs, N, seed) if states else None
    expected = Network(specs, export.tensors, ReferenceEngine("float32")).run(x, valid, state)
    found = run_here(read(path, ReadOptions()), x, valid, state)
    close(found.outputs, expected.outputs)
    if states:
        for one, other in zip(found.state, expected.state, strict=True):
            close(one[0], other[0])


@pytest.mark.parametrize("open_axes", [("T", "N"), ("T", 2)])
def test_open_steps_that_the_exporter_wrote_as_a_number(tmp_path, open_axes):
    rng = np.random.default_rng(3)
    T, N, D, H = 6, 2, 3, 4
    W, R = (rng.standard_normal((1, 4 * H, n)).astype(np.float32) for n in (D, H))
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=H),
        helper.make_node("Transpose", ["y"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "target"], ["out"]),
    ]
    tensors = {"W": W, "R": R, "target": np.array([T, -1, H])}
    path = save_model(tmp_path / "m.onnx", nodes, tensors, {"x": (*open_axes, D)}, ["out"])
    x = rng.standard_normal((T, N, D)).astype(np.float32)
    (expected,) = runtime_outputs(path, x)
    net = lstm_cli.load(path, engine="reference")
    assert any("declares an axis open and computes with 6 there" in note for note in net.notes)
    found = net.run(x.swapaxes(0, 1)).outputs.swapaxes(0, 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
