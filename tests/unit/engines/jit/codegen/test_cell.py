"""Expression graphs as instructions, against the same graphs on NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from compiled_ir import COUNTS, Array, VectorFunction, expression_function
from networks import PARAMETERS

from lstm_cli.cells import GRU, LSTM, RNN, Activation, Cell
from lstm_cli.cells.activations import FORMULAS
from lstm_cli.cells.cell import trace
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
from lstm_cli.engines.jit.codegen import cell
from lstm_cli.engines.jit.codegen.ir import Module, Value, VectorType

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
    """Every expression graph in the kernels of a cell."""
    graph_ = trace(cell)
    back = backward(graph_)
    graphs: dict[str, Mapping[str, Expression]] = {
        "states": graph_.states,
        "gates and states": {**{f"gate {k}": v for k, v in graph_.gates.items()}, **graph_.states},
        "backwards": back.states,
    }
    for k, stage in enumerate(graph_.stages):
        graphs[f"reads {k}"] = {"reads": stage.reads}
    for k, stage in enumerate(back.stages):
        graphs[f"reads {k} backwards"] = stage.gradients
    return graphs


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
    """Special values of one or two symbols; the others are so small that no gate rounds to 1."""
    values = np.array(SPECIAL, DTYPES[element])
    inputs = random(names, element, len(names) ** 2 * len(values) ** 2)
    columns = np.stack([inputs[name].reshape(-1, len(values), len(values)) / 6 for name in names])
    for k in range(len(names)):
        for n in range(len(names)):
            columns[k, k * len(names) + n] = values[:, None]
            columns[n, k * len(names) + n] = values if n != k else values[:, None]
    return {
        name: np.resize(column, (column.size + 15) // 16 * 16)
        for name, column in zip(names, columns, strict=True)
    }


def assert_close(actual: Mapping[str, Array], reference: Mapping[str, Array], element: str) -> None:
    assert actual.keys() == reference.keys()
    for name, value in actual.items():
        tolerance = TOLERANCES[element]
        expected = np.broadcast_to(reference[name], value.shape)
        np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance, err_msg=name)


def test_every_operation_is_in_some_graph() -> None:
    actual = {n.op for g in GRAPHS.values() for n in topological(g.values())}
    assert actual >= OPERATIONS.keys()


@pytest.mark.parametrize("element", COUNTS)
@pytest.mark.parametrize("name", GRAPHS)
def test_as_numpy(name: str, element: str) -> None:
    roots = GRAPHS[name]
    inputs = random(symbols(roots), element)
    actual = expression_function(element, COUNTS[element][-1], roots)(inputs)
    assert_close(actual, Program(roots)(inputs), element)


@pytest.mark.parametrize("element", COUNTS)
@pytest.mark.parametrize("name", GRAPHS)
def test_special_values(name: str, element: str) -> None:
    """A NaN stays a NaN, and no NaN appears without one in NumPy's result."""
    roots = GRAPHS[name]
    inputs = specials(symbols(roots), element)
    actual, reference = expression_function(element, 4, roots)(inputs), Program(roots)(inputs)
    poisoned = np.any([np.isnan(value) for value in inputs.values()], axis=0)
    for key, value in actual.items():
        expected = np.broadcast_to(reference[key], value.shape)
        new = np.isnan(value) & ~np.isnan(expected)
        assert not new.any(), {k: v[new][0] for k, v in inputs.items()}
        lost = ~np.isnan(value) & np.isnan(expected) & poisoned
        assert not lost.any(), {k: v[lost][0] for k, v in inputs.items()}


@pytest.mark.parametrize("element", COUNTS)
@pytest.mark.parametrize("name", [n for n in GRAPHS if "states" in n or "backwards" in n])
def test_equal_bits_for_every_vector_length(name: str, element: str) -> None:
    roots = GRAPHS[name]
    inputs = random(symbols(roots), element)
    first, *others = (
        expression_function(element, lanes, roots)(inputs) for lanes in COUNTS[element]
    )
    for other in others:
        for key, value in first.items():
            np.testing.assert_array_equal(value.view(np.uint8), other[key].view(np.uint8))


def compiled(**roots: Expression) -> VectorFunction:
    return expression_function("double", 4, roots)


def test_divisions_of_an_lstm_step() -> None:
    graph_ = trace(LSTM(hidden_size=3))
    assert compiled(**graph_.states).count("fdiv") == 3
    assert compiled(**graph_.states, **graph_.gates).count("fdiv") == 5


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
    function = compiled(y=root)
    inputs = random(symbols({"y": root}), "double")
    assert function.count("fdiv") == divisions
    assert_close(function(inputs), Program({"y": root})(inputs), "double")


@pytest.mark.parametrize(
    "root",
    [a * b + c, c + a * b, a * b - c, c - a * b, a * b + c * d, a * b - c * d, 1.0 - a * a],
    ids=str,
)
def test_one_product_is_fused(root: Expression) -> None:
    function = compiled(y=root)
    products = sum(n.op == "multiply" for n in topological([root]))
    assert function.count("fma") == 1
    assert function.count("fmul") == products - 1
    inputs = random(symbols({"y": root}), "double")
    assert_close(function(inputs), Program({"y": root})(inputs), "double")


def test_fused_product_is_rounded_once() -> None:
    x = np.full(4, 1 + 2.0**-30)
    exact = 2.0**-60
    function = compiled(y=a * a - b)
    np.testing.assert_array_equal(function({"a": x, "b": x * x})["y"], exact)


def test_shared_product_is_computed_once() -> None:
    product = a * b
    for function in (compiled(x=product, y=product + c), compiled(x=product + c, y=product - d)):
        assert (function.count("fmul"), function.count("fma")) == (1, 0)


def test_root_that_is_a_symbol_or_a_constant() -> None:
    values = random(["a"], "double")
    actual = compiled(x=a, y=Expression("constant", payload=-0.0), z=a + 0.25)(values)
    np.testing.assert_array_equal(actual["x"], values["a"])
    np.testing.assert_array_equal(actual["z"], values["a"] + 0.25)
    assert np.signbit(actual["y"]).all()


@pytest.mark.parametrize("element", COUNTS)
def test_large_factors_do_not_spoil_a_merged_division(element: str) -> None:
    """Finite results are exact, but a product of gates below 1e-30 may be 0."""
    high = float(np.finfo(DTYPES[element]).max)
    x = np.linspace(-1, 1, 4096) * np.log(high)
    inputs = {"a": x, "b": np.roll(x, 1234), "c": np.full(4096, high)}
    inputs = {key: value.astype(DTYPES[element]) for key, value in inputs.items()}
    gate, candidate = sigmoid(a), tanh(b)
    roots = {
        "two gates": gate * sigmoid(b),
        "gate and candidate": gate * candidate,
        "scaled gate": gate * c,
        "scaled twice": (c * gate) * candidate,
    }
    wide = {key: value.astype(np.longdouble) for key, value in inputs.items()}
    for key, root in roots.items():
        actual = expression_function(element, 4, {"y": root})(
            {k: inputs[k] for k in symbols({"y": root})}
        )["y"]
        reference = Program({"y": root})(wide)["y"].astype(actual.dtype)
        # A gate itself does not fall below 1 / high, which is not 0 when it is scaled by high.
        least = 4.0 if "scaled" in key else 1e-30
        np.testing.assert_allclose(actual, reference, rtol=1e-6, atol=least, err_msg=key)


@pytest.mark.parametrize("root", [clip(a, -0.5, 0.5), select(a < b, a, b), exp(a)], ids=str)
def test_nan_takes_the_branch_that_keeps_it(root: Expression) -> None:
    inputs = {"a": np.array([np.nan, 1, np.nan, -1]), "b": np.array([1.0, np.nan, np.nan, 2])}
    inputs = {key: inputs[key] for key in symbols({"y": root})}
    np.testing.assert_allclose(compiled(y=root)(inputs)["y"], Program({"y": root})(inputs)["y"])


def test_symbol_without_a_value() -> None:
    vector, f = VectorType("float", 4), Module().function("f", {})
    with pytest.raises(KeyError, match="b"):
        cell.emit(f, vector, {"y": a + b}, {"a": Value(vector.type, "%a")})


def test_comparisons_of_equal_numbers() -> None:
    inputs = {"a": np.array([0.0, -0.0, 2.5, np.inf]), "b": np.array([0.0, 0.0, 2.5, np.inf])}
    roots = {"<": select(a < b, 1.0, 2.0), "<=": select(a <= b, 1.0, 2.0)}
    actual = compiled(**roots)(inputs)
    np.testing.assert_array_equal(actual["<"], 2)
    np.testing.assert_array_equal(actual["<="], 1)
