"""Public callables return a result or raise `LstmCliError` for any arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstm_cli
from lstm_cli.errors import LstmCliError
from lstm_cli.network.stream import Stream
from lstm_cli.workflows.train.trainer import OPTIONS

ml_dtypes = pytest.importorskip("ml_dtypes")

CONFIG = {
    "model": {
        "input_size": 3,
        "layers": [{"type": "lstm", "hidden_size": 4}, {"type": "dense", "units": 2}],
    }
}
STATEFUL = {
    "model": {
        "input_size": 3,
        "layers": [
            {"type": "gru", "hidden_size": 4, "stateful": True},
            {"type": "dense", "units": 2},
        ],
    }
}
X, Y = np.ones((2, 5, 3)), np.ones((2, 5, 2))


class Stubborn:
    """An object that refuses every conversion."""

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("no array")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def values() -> list[Any]:
    holds_itself: list[Any] = []
    holds_itself.append(holds_itself)
    masked = np.ma.masked_array(X, X > 0)
    return [
        *(None, True, 3, -1, 0, 1.5, np.nan, 10**30, 1j, "x", "", "a\0b", b"x", [], {}, (), set()),
        *(object(), Stubborn, Stubborn(), len, np.float64, np.dtype("float32"), np.int64(2)),
        *(np.array(3), np.array([1, 2]), np.array([-1, 2]), np.array([2**63, 2], np.uint64)),
        *(np.array("a"), np.array([None]), np.array([np.nan, 1]), np.array(["2020"], "M8[D]")),
        *(X, X.astype(complex), X.astype(object), np.full(X.shape, "a"), X.astype(">f4"), X[::-1]),
        *(X.astype(ml_dtypes.bfloat16), X.astype("f2"), X > 0, masked, X.tolist(), [[1, 2], [3]]),
        *(np.zeros(X.shape, [("a", "f4")]), np.zeros((2, 0, 3)), np.zeros((0, 5, 3)), range(2)),
        *(Path("/nonexistent/a"), Path("/"), {"a": 1}, {1: 2}, {"layers.0.weight_ih": "x"}),
        *([None], [(1, 2)], [(None, None)], holds_itself, ml_dtypes.bfloat16, {"type": []}),
    ]


def usual(folder: Path) -> dict[str, dict[str, Any]]:
    """Arguments that every public callable takes, by its name."""
    net = lstm_cli.build(CONFIG, engine="reference")
    net.save(folder / "n.safetensors")
    engine = {"engine": "reference"}
    trainer = lstm_cli.Trainer(net)
    carried = lstm_cli.build(STATEFUL, **engine)
    return {
        "build": {"config": CONFIG, **engine},
        "load": {"path": folder / "n.safetensors", **engine},
        "Model": {"network": net.network, "config": net.config, "weights_name": "w"},
        "Model.run": {"self": net, "x": X},
        "Model.run, stateful": {"self": carried, "x": X},
        "Model.save": {"self": net, "path": folder / "m.safetensors"},
        "Model.reset_state": {"self": net},
        "Model.stream": {"self": net},
        "Stream.step": {"self": net.stream(), "x": X[0, 0]},
        "Trainer": {"net": net},
        "Trainer.step": {"self": trainer, "x": X, "y": Y},
        "Trainer.gradients": {"self": trainer, "x": X, "y": Y},
        "Trainer.reset_state": {"self": trainer},
    }


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, classes and their methods of the package's public names."""
    for name in lstm_cli.__all__:
        found = getattr(lstm_cli, name)
        if inspect.isclass(found) and not issubclass(found, Exception):
            for method, function in inspect.getmembers(found, inspect.isfunction):
                if not method.startswith("_"):
                    yield f"{name}.{method}", function
        if callable(found) and name != "LstmCliError":
            yield name, found
    yield "Model.run, stateful", lstm_cli.Model.run
    yield "Stream.step", Stream.step


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return usual(tmp_path_factory.mktemp("arguments"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", list(dict(public())))
def test_wrong_arguments(
    name: str,
    arguments: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)  # a text may well be a file's name
    function = dict(public())[name]
    parameters = set(inspect.signature(function).parameters) - {"self", "options"}
    parameters |= set(OPTIONS) if name == "Trainer" else set()
    refused = 0
    for parameter in sorted(parameters):
        for value in values():
            try:
                function(**{**arguments[name], parameter: value})
            except LstmCliError:
                refused += 1
    assert refused > 20 * len(parameters) or name in ("Model", "Model.save") or not parameters


@pytest.mark.parametrize(
    "dtype",
    [np.float64, np.dtype("float64"), np.dtype(">f8"), float, "float64", np.double],
    ids=str,
)
def test_types_of_numpy_are_understood(dtype: Any) -> None:
    net = lstm_cli.build(CONFIG, engine="reference", dtype=dtype)
    assert net.run(X).outputs.dtype == np.float64


def test_other_names_of_types() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (np.float32, torch.float32, np.dtype("float32")):
        assert (
            lstm_cli.build(CONFIG, engine="reference", dtype=dtype).network.engine.dtype
            == "float32"
        )
    with pytest.raises(LstmCliError, match="does not compute in bfloat16"):
        lstm_cli.build(CONFIG, engine="reference", dtype=ml_dtypes.bfloat16)
    with pytest.raises(LstmCliError, match="dtype cannot be used as given") as caught:
        lstm_cli.build(CONFIG, dtype=None)
    assert "float32, float64" in str(caught.value)
    assert "found None" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected", "found"),
    [
        ({"device": 3}, "auto, cpu, cuda or cuda:N", "3 (int)"),
        ({"threads": "x"}, "a whole number from 1 to 1,024", "'x' (str)"),
        ({"threads": 0}, "a whole number from 1 to 1,024", "0 (int)"),
        ({"threads": 1.0}, "a whole number from 1 to 1,024", "1.0 (float)"),
        ({"threads": 99999999999999999999}, "1 to 1,024", "99999999999999999999 (int)"),
        ({"engine": 1}, "auto, reference, jit, cuda", "1 (int)"),
        ({"config": None}, "a path, or the config as a mapping", "None"),
        ({"seed": -1}, "a whole number, at least 0", "-1 (int)"),
        ({"weights": {"layers.0.bias": np.array(["a"])}}, "real numbers", "shape (1,)"),
    ],
    ids=str,
)
def test_what_was_expected_and_found_is_said(
    given: dict[str, Any], expected: str, found: str
) -> None:
    with pytest.raises(LstmCliError) as caught:
        lstm_cli.build(**{"config": CONFIG, **given})
    assert expected in str(caught.value)
    assert found in str(caught.value)


def test_masked_values_are_not_taken_for_numbers() -> None:
    net = lstm_cli.build(CONFIG, engine="reference")
    masked = np.ma.masked_array(X, np.arange(X.size).reshape(X.shape) == 4)
    with pytest.raises(LstmCliError, match="masked") as caught:
        net.run(masked)
    assert "array.filled(0)" in str(caught.value)
    expected = X.copy()
    expected.ravel()[4] = 0
    np.testing.assert_array_equal(net.run(masked.filled(0)).outputs, net.run(expected).outputs)
    unmasked = np.ma.masked_array(X, False)
    np.testing.assert_array_equal(net.run(unmasked).outputs, net.run(X).outputs)


def test_arrays_of_any_form_give_the_same() -> None:
    net = lstm_cli.build(CONFIG, engine="reference", dtype="float64")
    x = np.random.default_rng(0).integers(-3, 4, (2, 5, 3))
    expected = net.run(x.astype(float), np.array([5, 2])).outputs
    frozen = x.astype(float)
    frozen.setflags(write=False)
    for form in (x, x.tolist(), x.astype("f2"), x.astype(">f8"), np.asfortranarray(x), frozen):
        for lengths in ([5, 2], (np.int8(5), np.int8(2)), np.array([5, 2], ">u2")):
            np.testing.assert_array_equal(net.run(form, lengths).outputs, expected)
