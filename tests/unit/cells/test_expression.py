"""The expression graph: equal nodes are one object, and a graph computes what NumPy computes."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from lstm_cli.cells import expression as ex
from lstm_cli.cells.expression import Expression, evaluate, symbol, topological

X, Y = symbol("x"), symbol("y")
VALUES = {"x": np.array([-2.5, -0.5, 0.0, 0.7, 3.0]), "y": np.array([0.3, -1.2, 2.0, 0.7, -4.0])}


def value(root: Expression) -> Any:
    return evaluate({"root": root}, VALUES)["root"]


def test_equal_nodes_are_one_object() -> None:
    assert symbol("x") is X
    assert X + Y is symbol("x") + symbol("y")
    assert ex.tanh(X * 2.0) is ex.tanh(X * 2)
    assert ex.lift(0.5) is ex.lift(0.5)


def test_different_nodes_are_not() -> None:
    assert X + Y is not Y + X
    assert X - Y is not Y - X
    assert X < Y is not (X <= Y)
    assert ex.lift(0.0) is not ex.lift(-0.0)
    assert symbol("1.0") is not ex.lift(1.0)


def test_a_node_nobody_holds_is_forgotten() -> None:
    gc.collect()  # what earlier tests left
    before = len(ex._NODES)
    node = symbol("nobody") * symbol("else")
    assert len(ex._NODES) == before + 3
    del node
    gc.collect()
    assert len(ex._NODES) == before


def test_operators() -> None:
    x, y = VALUES["x"], VALUES["y"]
    cases = [
        (X + Y, x + y),
        (X + 2, x + 2),
        (2 + X, 2 + x),
        (X - Y, x - y),
        (X - 2, x - 2),
        (2 - X, 2 - x),
        (X * Y, x * y),
        (X * 3, x * 3),
        (3 * X, 3 * x),
        (X / Y, x / y),
        (X / 4, x / 4),
        (4 / Y, 4 / y),
        (-X, -x),
        (X < Y, x < y),
        (X < 0.5, x < 0.5),
        (X <= Y, x <= y),
        (X <= 0.7, x <= 0.7),
        (ex.exp(X), np.exp(x)),
        (ex.log1p(X * X), np.log1p(x * x)),
        (ex.tanh(X), np.tanh(x)),
        (ex.sigmoid(X), 1 / (1 + np.exp(-x))),
        (ex.select(X < Y, X, Y), np.minimum(x, y)),
        (ex.select(X < 0, 0.0, X), np.maximum(x, 0)),
        (ex.clip(X, -1.0, 0.5), np.minimum(np.maximum(x, -1), 0.5)),
    ]
    for root, expected in cases:
        np.testing.assert_array_equal(value(root), expected, err_msg=repr(root))


def test_an_array_on_the_left_defers() -> None:
    assert np.float64(2.0) * X is 2.0 * X
    assert np.float32(2.0) - X is 2.0 - X
    with pytest.raises(TypeError):
        VALUES["x"] * X


def test_topological_order() -> None:
    a = X + Y
    b = a * a
    order = topological([b, a - b])
    assert len(order) == len(set(order)) == 5
    for node in order:
        assert all(order.index(arg) < order.index(node) for arg in node.args)
    assert topological([]) == []


def test_topological_order_of_a_deep_graph() -> None:
    node = X
    for _ in range(20_000):  # deeper than Python recurses
        node = node + Y
    order = topological([node])
    assert len(order) == 20_002
    # Taken apart from the top, or freeing it would recurse.
    while order:
        order.pop()
        node = node.args[0] if node.args else node


def test_a_shared_node_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    operations = {**ex.OPERATIONS, "tanh": lambda x: calls.append(1) or np.tanh(x)}
    monkeypatch.setattr(ex, "OPERATIONS", operations)
    shared = ex.tanh(X)
    actual = evaluate({"a": shared * shared, "b": 1.0 - shared}, VALUES)
    assert len(calls) == 1
    np.testing.assert_allclose(actual["a"], np.tanh(VALUES["x"]) ** 2)


def test_a_symbol_without_a_value() -> None:
    with pytest.raises(KeyError, match="y"):
        evaluate({"": X + Y}, {"x": 1.0})


def test_repr() -> None:
    assert repr(ex.tanh(X * 2)) == "tanh(multiply(x, 2.0))"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_saturates_without_a_warning(dtype: str) -> None:
    x = np.array([-np.inf, -1e30, -1e4, 0, 1e4, 1e30, np.inf], dtype)
    actual = ex.sigmoid(x)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, [0, 0, 0, 0.5, 1, 1, 1])
