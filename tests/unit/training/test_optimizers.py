"""Optimizers compared with PyTorch and with their formulas, and as symbols."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from lstm_cli.cells.expression import evaluate, symbol
from lstm_cli.errors import ConfigError
from lstm_cli.training.optimizers import OPTIMIZERS, Optimizer, make_optimizer

STEPS, SHAPE = 20, (3, 5)

# Our options, PyTorch's class, PyTorch's options.
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "sgd": ({"type": "sgd", "learning_rate": 0.1}, "SGD", {"lr": 0.1}),
    "momentum": (
        {"type": "sgd", "learning_rate": 0.1, "momentum": 0.7},
        "SGD",
        {"lr": 0.1, "momentum": 0.7},
    ),
    "nesterov": (
        {"type": "sgd", "learning_rate": 0.1, "momentum": 0.7, "nesterov": True},
        "SGD",
        {"lr": 0.1, "momentum": 0.7, "nesterov": True},
    ),
    "adam": (
        {"type": "adam", "learning_rate": 0.03, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3},
        "Adam",
        {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3},
    ),
    "adamw": (
        {"type": "adamw", "learning_rate": 0.03, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0},
        "AdamW",
        {"lr": 0.03, "betas": (0.8, 0.95), "weight_decay": 0.0},
    ),
    "rmsprop": (
        {"type": "rmsprop", "learning_rate": 0.02, "rho": 0.8, "epsilon": 1e-3},
        "RMSprop",
        {"lr": 0.02, "alpha": 0.8, "eps": 1e-3},
    ),
    "rmsprop-momentum": (
        {"type": "rmsprop", "learning_rate": 0.02, "rho": 0.8, "momentum": 0.6},
        "RMSprop",
        {"lr": 0.02, "alpha": 0.8, "momentum": 0.6},
    ),
    "adagrad": (
        {"type": "adagrad", "learning_rate": 0.2, "epsilon": 1e-3},
        "Adagrad",
        {"lr": 0.2, "eps": 1e-3},
    ),
    "adadelta": (
        {"type": "adadelta", "learning_rate": 0.5, "rho": 0.9, "epsilon": 1e-4},
        "Adadelta",
        {"lr": 0.5, "rho": 0.9, "eps": 1e-4},
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


def drawn(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def course(optimizer: Optimizer, w: Any, gradients: Any) -> Any:
    """The weight after each update."""
    slots = {slot: np.zeros_like(w) for slot in optimizer.slots}
    actual = []
    for step, g in enumerate(gradients, start=1):
        w, slots = optimizer.update(w, g, slots, optimizer.learning_rate, step)
        actual.append(w)
    return np.stack(actual)


@every_case
def test_equals_pytorch(case: str) -> None:
    torch = pytest.importorskip("torch")
    options, kind, theirs = CASES[case]
    start, gradients = drawn(0, *SHAPE), drawn(1, STEPS, *SHAPE)
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = getattr(torch.optim, kind)([weight], **theirs)
    expected = []
    for g in gradients:
        weight.grad = torch.tensor(g)
        optimizer.step()
        expected.append(weight.detach().numpy().copy())
    actual = course(make_optimizer(options), start, gradients)
    np.testing.assert_allclose(actual, np.stack(expected), rtol=0, atol=1e-12)


# The same formulas for one number, written out as their papers have them.


def sgd(w: float, gradients: list[float], rate: float, momentum: float, nesterov: bool) -> float:
    velocity = 0.0  # as a displacement: Sutskever et al. 2013, equations 1 to 4
    position = w
    for g in gradients:
        velocity = momentum * velocity - rate * g
        position += momentum * velocity - rate * g if nesterov else velocity
    return position


def adam(w: float, gradients: list[float], rate: float, b1: float, b2: float, eps: float) -> float:
    for t in range(1, len(gradients) + 1):
        # The means as closed sums over all gradients so far.
        m = sum((1 - b1) * b1 ** (t - 1 - k) * g for k, g in enumerate(gradients[:t]))
        v = sum((1 - b2) * b2 ** (t - 1 - k) * g**2 for k, g in enumerate(gradients[:t]))
        w -= rate * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
    return w


def rmsprop(w: float, gradients: list[float], rate: float, rho: float, p: float, eps: float) -> Any:
    move = 0.0
    for t in range(1, len(gradients) + 1):
        v = sum((1 - rho) * rho ** (t - 1 - k) * g**2 for k, g in enumerate(gradients[:t]))
        move = p * move + gradients[t - 1] / (math.sqrt(v) + eps)
        w -= rate * move
    return w


def adagrad(w: float, gradients: list[float], rate: float, eps: float) -> float:
    for t, g in enumerate(gradients, start=1):
        w -= rate * g / (math.sqrt(sum(past**2 for past in gradients[:t])) + eps)
    return w


def adadelta(w: float, gradients: list[float], rate: float, rho: float, eps: float) -> float:
    mean_g = mean_d = 0.0
    for g in gradients:
        mean_g = rho * mean_g + (1 - rho) * g**2
        d = -math.sqrt(mean_d + eps) / math.sqrt(mean_g + eps) * g
        mean_d = rho * mean_d + (1 - rho) * d**2
        w += rate * d
    return w


FORMULAS: dict[str, Any] = {
    "sgd": lambda w, g: sgd(w, g, 0.1, 0.0, False),
    "momentum": lambda w, g: sgd(w, g, 0.1, 0.7, False),
    "nesterov": lambda w, g: sgd(w, g, 0.1, 0.7, True),
    "adam": lambda w, g: adam(w, g, 0.03, 0.8, 0.95, 1e-3),
    "adamw": lambda w, g: adam(w, g, 0.03, 0.8, 0.95, 1e-8),
    "rmsprop": lambda w, g: rmsprop(w, g, 0.02, 0.8, 0.0, 1e-3),
    "rmsprop-momentum": lambda w, g: rmsprop(w, g, 0.02, 0.8, 0.6, 1e-8),
    "adagrad": lambda w, g: adagrad(w, g, 0.2, 1e-3),
    "adadelta": lambda w, g: adadelta(w, g, 0.5, 0.9, 1e-4),
}


@every_case
def test_equals_the_formula(case: str) -> None:
    start, gradients = drawn(2, 4), drawn(3, STEPS, 4)
    actual = course(make_optimizer(CASES[case][0]), start, gradients)[-1]
    expected = [FORMULAS[case](w, list(g)) for w, g in zip(start, gradients.T, strict=True)]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert np.all(actual != start)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_case
def test_one_trace_serves_every_update(case: str, dtype: Any) -> None:
    optimizer = make_optimizer(CASES[case][0])
    names = ["w", "g", *optimizer.slots]
    numbers = {name: symbol(name) for name in optimizer.numbers(0.1, 1)}
    slots = {slot: symbol(slot) for slot in optimizer.slots}
    w, kept = optimizer.equation(symbol("w"), symbol("g"), slots, numbers)
    for step in (1, 9):
        arrays = {n: np.abs(drawn(k + step, *SHAPE)).astype(dtype) for k, n in enumerate(names)}
        actual = evaluate({"w": w, **kept}, arrays | optimizer.numbers(0.1, step))
        given = {slot: arrays[slot] for slot in optimizer.slots}
        expected, expected_kept = optimizer.update(arrays["w"], arrays["g"], given, 0.1, step)
        np.testing.assert_array_equal(actual.pop("w"), expected, strict=True)
        assert expected.dtype == dtype
        assert actual.keys() == expected_kept.keys() == set(optimizer.slots)
        for slot, value in actual.items():
            np.testing.assert_array_equal(value, expected_kept[slot], strict=True)


@every_case
def test_an_update_is_pure_and_keeps_the_precision(case: str) -> None:
    optimizer = make_optimizer(CASES[case][0])
    w, g = (drawn(seed, *SHAPE).astype(np.float32) for seed in (4, 5))
    slots = {slot: np.ones(SHAPE, np.float32) for slot in optimizer.slots}
    for array in (w, g, *slots.values()):
        array.flags.writeable = False
    new, kept = optimizer.update(w, g, slots, 0.1, 3)
    assert {array.dtype for array in (new, *kept.values())} == {np.dtype(np.float32)}


@every_case
def test_a_zero_gradient_at_first_changes_nothing(case: str) -> None:
    w = drawn(6, *SHAPE)
    actual = course(make_optimizer(CASES[case][0]), w, np.zeros((2, *SHAPE)))
    np.testing.assert_array_equal(actual, np.stack([w, w]))


def test_slots_are_kept_only_where_they_are_used() -> None:
    assert make_optimizer({"type": "sgd"}).slots == ()
    assert make_optimizer({"type": "sgd", "momentum": 0.5}).slots == ("velocity",)
    assert make_optimizer({"type": "rmsprop"}).slots == ("v",)
    assert make_optimizer({"type": "rmsprop", "momentum": 0.5}).slots == ("v", "velocity")


DEFAULTS = {
    "sgd": {"learning_rate": 0.01, "momentum": 0.0, "nesterov": False},
    "adam": {"learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    "adamw": {"learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    "rmsprop": {"learning_rate": 0.001, "rho": 0.9, "momentum": 0.0, "epsilon": 1e-8},
    "adagrad": {"learning_rate": 0.01, "epsilon": 1e-10},
    "adadelta": {"learning_rate": 1.0, "rho": 0.95, "epsilon": 1e-6},
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_defaults(kind: str) -> None:
    decay = {"weight_decay": 0.01 if kind == "adamw" else 0.0, "l1": 0.0, "l2": 0.0}
    assert asdict(make_optimizer({"type": kind})) == {**DEFAULTS[kind], **decay}


def test_the_config_has_the_same_types_and_defaults() -> None:
    from lstm_cli.config import schema

    assert schema.OPTIMIZERS.keys() == OPTIMIZERS.keys()
    for kind, section in schema.OPTIMIZERS.items():
        options = section(type=kind).model_dump()
        assert make_optimizer(options) == make_optimizer({"type": kind})


def test_numpy_numbers_do_not_raise_the_precision() -> None:
    optimizer = make_optimizer({"type": "sgd", "momentum": np.float64(0.5)})
    w = np.ones(3, np.float32)
    new, _ = optimizer.update(w, w, {"velocity": w}, 0.1, 1)
    assert new.dtype == np.float32


def test_an_unknown_type_or_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"not a kind of optimizer(?s:.)*did you mean `adam`"):
        make_optimizer({"type": "adma"})
    with pytest.raises(ConfigError, match=r"optimizer has no type(?s:.)*adam, adamw"):
        make_optimizer({"learning_rate": 0.1})
    with pytest.raises(ConfigError, match=r"rmsprop(?s:.)*did you mean `momentum`"):
        make_optimizer({"type": "rmsprop", "momentun": 0.1})
