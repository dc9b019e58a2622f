"""Expression graphs as instructions, against the same graphs on NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from compiled_ir import COUNTS, Array, Vectorised, graph
from networks import PARAMETERS

from lstm_cli.cells import GRU, LSTM, RNN, Activation, Cell
from lstm_cli.cells.activations import FORMULAS
from lstm_cli.cells.expression import (
    OPERATIONS,
    Expression,
    Program,
    clip,
    exp,
    select,
    sigmoid,
    symbol,
    tanh,
    topological,
)
from lstm_cli.cells.gradient import backward
from lstm_cli.cells.tracing import trace
from lstm_cli.engines.jit.codegen import cell
from lstm_cli.engines.jit.codegen.ir import Lanes, Module, Value

DTYPES = {"float": np.dtype("f4"), "double": np.dtype("f8")}
TOLERANCES = {"float": 2e-6, "double": 5e-15}
CELLS: dict[str, Cell] = {
    "lstm": LSTM(hidden_size=3),
    "lstm_peepholes": LSTM(hidden_size=3, peepholes=True, clip=0.8),
    "lstm_coupled": LSTM(hidden_size=3, coupled_input_forget=True),
    "lstm_no_forget": LSTM(hidden_size=3, use_forget_gate=False),
    "lstm_projected": LSTM(hidden_size=3, projection_size=2),
    "lstm_softsign": LSTM(
        hidden_size=3,
        activation=Activation("softsign"),
        cell_activation=Activation("sigmoid"),
        recurrent_activation=Activation("hard_sigmoid"),
    ),
    "gru": GRU(hidden_size=3),
    "gru_reset_before": GRU(hidden_size=3, reset_after=False),
    "rnn": RNN(hidden_size=3),
    "rnn_softplus": RNN(hidden_size=3, activation=Activation("softplus")),
}
SPECIAL = [
    np.nan,
    np.inf,
    -np.inf,
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-30,
    -80.0,
    80.0,
    -3e3,
    3e3,
    1e30,
    -1e30,
]

a, b, c, d = map(symbol, "abcd")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def parts(cell: Cell) -> dict[str, Mapping[str, Expression]]:
    """Every graph that a kernel of a cell is made of."""
    graph_ = trace(cell)
    back = backward(graph_)
    found: dict[str, Mapping[str, Expression]] = {
        "states": graph_.states,
        "gates and states": {**{f"gate {k}": v for k, v in graph_.gates.items()}, **graph_.states},
        "backwards": back.states,
    }
    for k, stage in enumerate(graph_.stages):
        found[f"reads {k}"] = {"reads": stage.reads}
    for k, stage in enumerate(back.stages):
        found[f"reads {k} backwards"] = stage.gradients
    return found


GRAPHS = {f"{name}: {part}": g for name, cell in CELLS.items() for part, g in parts(cell).items()}
GRAPHS |= {
    name: {
        "y": Activation(name, **PARAMETERS.get(name, {}))(a),
        "with default": Activation(name)(a),
    }
    for name in FORMULAS
}
GRAPHS["square root"] = {"y": Expression("sqrt", (a,)) / (b - 0.3)}


def symbols(roots: Mapping[str, Expression]) -> list[str]:
    return [str(n.payload) for n in topological(roots.values()) if n.op == "symbol"]


def random(names: list[str], element: str, count: int = 480) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    return {name: rng.normal(size=count).astype(DTYPES[element]) * 3 for name in names}


def specials(names: list[str], element: str) -> dict[str, Array]:
    """Special values of one symbol or two, the others so small that no gate rounds to 1."""
    values = np.array(SPECIAL, DTYPES[element])
    given = random(names, element, len(names) ** 2 * len(values) ** 2)
    columns = np.stack([given[name].reshape(-1, len(values), len(values)) / 6 for name in names])
    for k in range(len(names)):
        for n in range(len(names)):
            columns[k, k * len(names) + n] = values[:, None]
            columns[n, k * len(names) + n] = values if n != k else values[:, None]
    return {
        name: np.resize(column, (column.size + 15) // 16 * 16)
        for name, column in zip(names, columns, strict=True)
    }


def assert_close(found: Mapping[str, Array], wanted: Mapping[str, Array], element: str) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        tolerance = TOLERANCES[element]
        expected = np.broadcast_to(wanted[name], value.shape)
        np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance, err_msg=name)


def test_every_operation_is_in_some_graph() -> None:
    found = {n.op for g in GRAPHS.values() for n in topological(g.values())}
    assert found >= OPERATIONS.keys()


@pytest.mark.parametrize("element", COUNTS)
@pytest.mark.parametrize("name", GRAPHS)
def test_as_numpy(name: str, element: str) -> None:
    roots = GRAPHS[name]
    given = random(symbols(roots), element)
    found = graph(element, COUNTS[element][-1], roots)(given)
    assert_close(found, Program(roots)(given), element)


@pytest.mark.parametrize("element", COUNTS)
@pytest.mark.parametrize("name", GRAPHS)
def test_special_values(name: str, element: str) -> None:
    """NaN stays, and comes only where NumPy has it."""
    roots = GRAPHS[name]
    given = specials(symbols(roots), element)
    found, wanted = graph(element, 4, roots)(given), Program(roots)(given)
    poisoned = np.any([np.isnan(value) for value in given.values()], axis=0)
    for key, value in found.items():
        expected = np.broadcast_to(wanted[key], value.shape)
        new = np.isnan(value) & ~np.isnan(expected)
        assert not new.any(), {k: v[new][0] for k, v in given.items()}
        lost = ~np.isnan(value) & np.isnan(expected) & poisoned
        assert not lost.any(), {k: v[lost][0] for k, v in given.items()}


@pytest.mark.parametrize("element", COUNTS)
@pytest.mark.parametrize("name", [n for n in GRAPHS if "states" in n or "backwards" in n])
def test_equal_bits_for_every_number_of_lanes(name: str, element: str) -> None:
    roots = GRAPHS[name]
    given = random(symbols(roots), element)
    first, *others = (graph(element, lanes, roots)(given) for lanes in COUNTS[element])
    for other in others:
        for key, value in first.items():
            np.testing.assert_array_equal(value.view(np.uint8), other[key].view(np.uint8))


def made(**roots: Expression) -> Vectorised:
    return graph("double", 4, roots)


def test_divisions_of_an_lstm_step() -> None:
    graph_ = trace(LSTM(hidden_size=3))
    assert made(**graph_.states).count("fdiv") == 3
    assert made(**graph_.states, **graph_.gates).count("fdiv") == 5


@pytest.mark.parametrize(
    ("root", "divisions"),
    [
        (sigmoid(a) * tanh(b), 1),
        (sigmoid(a) * sigmoid(b), 1),
        (tanh(a) * tanh(b), 1),
        (a * sigmoid(b), 1),
        (sigmoid(a) * sigmoid(b) * tanh(c), 2),
        (sigmoid(a) * b * tanh(c), 2),
        (sigmoid(a) * (b / c), 2),
        (tanh(a) * sigmoid(b) + tanh(a), 2),
        (sigmoid(a) * sigmoid(a), 1),
        (sigmoid(tanh(a)), 2),
    ],
    ids=str,
)
def test_merged_divisions(root: Expression, divisions: int) -> None:
    function = made(y=root)
    given = random(symbols({"y": root}), "double")
    assert function.count("fdiv") == divisions
    assert_close(function(given), Program({"y": root})(given), "double")


@pytest.mark.parametrize(
    "root",
    [a * b + c, c + a * b, a * b - c, c - a * b, a * b + c * d, a * b - c * d, 1.0 - a * a],
    ids=str,
)
def test_one_product_is_fused(root: Expression) -> None:
    function = made(y=root)
    products = sum(n.op == "multiply" for n in topological([root]))
    assert function.count("fma") == 1
    assert function.count("fmul") == products - 1
    given = random(symbols({"y": root}), "double")
    assert_close(function(given), Program({"y": root})(given), "double")


def test_fused_product_is_rounded_once() -> None:
    x = np.full(4, 1 + 2.0**-30)
    exact = 2.0**-60
    function = made(y=a * a - b)
    np.testing.assert_array_equal(function({"a": x, "b": x * x})["y"], exact)


def test_shared_product_is_computed_once() -> None:
    product = a * b
    for function in (made(x=product, y=product + c), made(x=product + c, y=product - d)):
        assert (function.count("fmul"), function.count("fma")) == (1, 0)


def test_root_that_is_a_symbol_or_a_constant() -> None:
    values = random(["a"], "double")
    found = made(x=a, y=Expression("constant", payload=-0.0), z=a + 0.25)(values)
    np.testing.assert_array_equal(found["x"], values["a"])
    np.testing.assert_array_equal(found["z"], values["a"] + 0.25)
    assert np.signbit(found["y"]).all()


@pytest.mark.parametrize("element", COUNTS)
def test_large_factors_do_not_spoil_a_merged_division(element: str) -> None:
    """What is finite is right; only a product of gates may be 0 where it was below 1e-30."""
    high = float(np.finfo(DTYPES[element]).max)
    x = np.linspace(-1, 1, 4096) * np.log(high)
    given = {"a": x, "b": np.roll(x, 1234), "c": np.full(4096, high)}
    given = {key: value.astype(DTYPES[element]) for key, value in given.items()}
    gate, candidate = sigmoid(a), tanh(b)
    roots = {
        "two gates": gate * sigmoid(b),
        "gate and candidate": gate * candidate,
        "scaled gate": gate * c,
        "scaled twice": (c * gate) * candidate,
    }
    wide = {key: value.astype(np.longdouble) for key, value in given.items()}
    for key, root in roots.items():
        found = graph(element, 4, {"y": root})({k: given[k] for k in symbols({"y": root})})["y"]
        wanted = Program({"y": root})(wide)["y"].astype(found.dtype)
        # A gate itself does not fall below 1 / high, which is not 0 when it is scaled by high.
        least = 4.0 if "scaled" in key else 1e-30
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=least, err_msg=key)


@pytest.mark.parametrize("root", [clip(a, -0.5, 0.5), select(a < b, a, b), exp(a)], ids=str)
def test_nan_takes_the_branch_that_keeps_it(root: Expression) -> None:
    given = {"a": np.array([np.nan, 1, np.nan, -1]), "b": np.array([1.0, np.nan, np.nan, 2])}
    given = {key: given[key] for key in symbols({"y": root})}
    np.testing.assert_allclose(made(y=root)(given)["y"], Program({"y": root})(given)["y"])


def test_symbol_without_a_value() -> None:
    lanes, f = Lanes("float", 4), Module().function("f", {})
    with pytest.raises(KeyError, match="b"):
        cell.emit(f, lanes, {"y": a + b}, {"a": Value(lanes.type, "%a")})


def test_comparisons_of_equal_numbers() -> None:
    given = {"a": np.array([0.0, -0.0, 2.5, np.inf]), "b": np.array([0.0, 0.0, 2.5, np.inf])}
    roots = {"<": select(a < b, 1.0, 2.0), "<=": select(a <= b, 1.0, 2.0)}
    found = made(**roots)(given)
    np.testing.assert_array_equal(found["<"], 2)
    np.testing.assert_array_equal(found["<="], 1)
