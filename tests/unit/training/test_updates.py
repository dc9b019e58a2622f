"""Updates: order of operations, unchanged values, state of a resumed run, and penalties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lstm_cli.cells.expression import evaluate, symbol
from lstm_cli.engines.protocols import Engine
from lstm_cli.errors import WeightsError
from lstm_cli.training.optimizers import OPTIMIZERS, make_optimizer
from lstm_cli.training.schedules import make_schedule
from lstm_cli.training.updates import (
    Updates,
    clipped,
    decayed,
    exceeds,
    global_norm,
    norm_factor,
    penalized,
)

SHAPES = {"layers.0.weight_ih": (8, 3), "layers.0.bias": (8,), "layers.1.weight": (5, 2)}
MATRIX, BIAS = "layers.0.weight_ih", "layers.0.bias"


def random_weights(seed: int, dtype: Any = np.float64) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def updates_with(optimizer: Any = None, schedule: Any = None, **options: Any) -> Updates:
    optimizer = make_optimizer(optimizer or {"type": "sgd", "learning_rate": 0.1})
    return Updates(optimizer, make_schedule(schedule or {"type": "constant"}, epochs=6), **options)


def flat(arrays: dict[str, Any]) -> Any:
    return np.concatenate([arrays[name].ravel() for name in SHAPES])


def test_weights_change_in_place_and_gradients_do_not() -> None:
    weights, gradients = random_weights(0), random_weights(1)
    arrays = dict(weights)
    for g in gradients.values():
        g.flags.writeable = False
    updates = updates_with(clip_value=0.5, clip_norm=0.7)
    report = updates.apply(weights, {**gradients, "inputs": np.ones((2, 2))})
    assert all(weights[name] is array for name, array in arrays.items())
    assert report.clipped
    assert updates.count == 1
    assert np.all(flat(weights) != flat(random_weights(0)))
    assert report.norm == pytest.approx(float(np.linalg.norm(flat(gradients))))
    assert (report.rate, report.finite) == (0.1, True)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_penalties_and_decay_concern_matrices_only(kind: str) -> None:
    rate, l1, l2, decay = 0.2, 0.03, 0.05, 0.07
    options = {"type": kind, "learning_rate": rate, "l1": l1, "l2": l2, "weight_decay": decay}
    plain = make_optimizer({"type": kind, "learning_rate": rate})
    weights, gradients = random_weights(0), random_weights(1)
    updates_with(options).apply(weights, gradients)
    for name, w in random_weights(0).items():
        g, shrunk = gradients[name], w
        if w.ndim == 2:
            g = g + l2 * w + l1 * np.sign(w)
            shrunk = w - rate * decay * w
        slots = {slot: np.zeros_like(w) for slot in plain.slots}
        expected, _ = plain.update(shrunk, g, slots, rate, 1)
        np.testing.assert_allclose(weights[name], expected, rtol=0, atol=1e-14)


def test_decoupled_decay_equals_pytorchs_adamw() -> None:
    torch = pytest.importorskip("torch")
    start = random_weights(0)[MATRIX]
    theirs = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.AdamW([theirs], lr=0.05, weight_decay=0.3)
    updates = updates_with({"type": "adamw", "learning_rate": 0.05, "weight_decay": 0.3})
    weights = {MATRIX: start.copy()}
    for seed in range(20):
        g = random_weights(seed + 1)[MATRIX]
        theirs.grad = torch.tensor(g)
        optimizer.step()
        updates.apply(weights, {MATRIX: g})
    np.testing.assert_allclose(weights[MATRIX], theirs.detach().numpy(), rtol=0, atol=1e-12)


def test_values_are_clipped_before_the_norm() -> None:
    weights, gradients = random_weights(0), random_weights(1)
    gradients[MATRIX][0, 0] = 50.0
    report = updates_with(clip_value=0.8, clip_norm=1.5).apply(weights, gradients)
    limited = np.clip(flat(gradients), -0.8, 0.8)
    limited *= 1.5 / np.linalg.norm(limited)
    np.testing.assert_allclose(
        flat(weights), flat(random_weights(0)) - 0.1 * limited, rtol=0, atol=1e-14
    )
    assert report.norm > 50.0


@pytest.mark.parametrize("kind", ["clip_value", "clip_norm"])
@pytest.mark.parametrize(("limit", "clipped"), [(1e3, False), (0.5, True)])
def test_the_report_says_whether_gradients_were_clipped(
    kind: str, limit: float, clipped: bool
) -> None:
    assert (
        updates_with(**{kind: limit}).apply(random_weights(0), random_weights(1)).clipped is clipped
    )


def test_penalties_are_not_clipped() -> None:
    weights = random_weights(0)
    zeros = {name: np.zeros_like(w) for name, w in weights.items()}
    report = updates_with({"type": "sgd", "learning_rate": 0.1, "l2": 3.0}, clip_norm=1e-3).apply(
        weights, zeros
    )
    np.testing.assert_allclose(weights[MATRIX], 0.7 * random_weights(0)[MATRIX], rtol=1e-14)
    assert (report.norm, report.clipped) == (0.0, False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("limits", [{}, {"clip_value": 1.0, "clip_norm": 1.0}])
def test_gradients_that_are_not_finite_change_nothing(bad: float, limits: Any) -> None:
    updates, weights = updates_with({"type": "adam"}, **limits), random_weights(0)
    updates.apply(weights, random_weights(1))
    before = {name: w.copy() for name, w in weights.items()}
    state = {name: value.copy() for name, value in updates.state_arrays().items()}
    gradients = random_weights(2)
    gradients[BIAS][3] = bad
    report = updates.apply(weights, gradients)
    assert not report.finite
    for name, w in weights.items():
        np.testing.assert_array_equal(w, before[name])
    for name, value in updates.state_arrays().items():
        np.testing.assert_array_equal(value, state[name])
    assert updates.count == 1


def test_a_gradient_beyond_the_weights_precision_is_not_finite() -> None:
    weights = random_weights(0, np.float32)
    assert (
        not updates_with()
        .apply(weights, {name: 1e60 * g for name, g in random_weights(1).items()})
        .finite
    )
    np.testing.assert_array_equal(flat(weights), flat(random_weights(0, np.float32)))


def test_gradients_whose_squares_overflow_count_as_infinite_unless_clipped() -> None:
    gradients = {name: g * np.float32(1e25) for name, g in random_weights(1, np.float32).items()}
    weights = random_weights(0, np.float32)
    assert updates_with({"type": "adam"}).apply(weights, gradients).norm == math.inf
    np.testing.assert_array_equal(flat(weights), flat(random_weights(0, np.float32)))
    report = updates_with(clip_norm=1.0).apply(weights, gradients)
    assert report.finite
    assert report.norm == pytest.approx(
        1e25 * float(np.linalg.norm(flat(random_weights(1)))), rel=1e-6
    )
    moved = (flat(weights) - flat(random_weights(0, np.float32))) / -0.1
    assert np.linalg.norm(moved) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_single_precision_stays_single(kind: str) -> None:
    options = {"type": kind, "learning_rate": np.float64(0.1), "l1": 0.1, "l2": 0.1}
    updates = updates_with(
        {**options, "weight_decay": 0.1},
        {"type": "cosine", "minimum": 0.01},
        clip_norm=np.float64(0.5),
        clip_value=np.float64(0.5),
    )
    weights = random_weights(0, np.float32)
    for seed in range(3):
        updates.apply(weights, random_weights(seed + 1))  # gradients in double precision
    kept = [value for name, value in updates.state_arrays().items() if "/" in name]
    assert {array.dtype for array in [*weights.values(), *kept]} == {np.dtype(np.float32)}


def test_single_precision_is_near_double() -> None:
    results = []
    for dtype in (np.float32, np.float64):
        updates, weights = (
            updates_with({"type": "adam", "learning_rate": 0.05}),
            random_weights(0, dtype),
        )
        for seed in range(20):
            updates.apply(weights, random_weights(seed + 1, np.float32))
        results.append(flat(weights))
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-5)
    assert np.any(results[0] != results[1])


@pytest.mark.parametrize("limits", [{}, {"clip_norm": 1.5}, {"clip_value": 0.5, "clip_norm": 0.9}])
@pytest.mark.parametrize("penalties", [{}, {"l1": 0.03, "l2": 0.05, "weight_decay": 0.07}])
@pytest.mark.parametrize(
    "options",
    [
        *({"type": kind} for kind in OPTIMIZERS),
        {"type": "sgd", "momentum": 0.9, "nesterov": True},
        {"type": "rmsprop", "momentum": 0.5},
    ],
    ids=str,
)
def test_every_engine_makes_the_same_updates(
    engine: Engine, options: Any, penalties: Any, limits: Any
) -> None:
    dtype = np.dtype(engine.dtype)
    theirs, ours = (
        updates_with({**options, **penalties}, {"type": "cosine"}, **limits) for _ in range(2)
    )
    expected, weights = random_weights(0, dtype), random_weights(0, dtype)
    for seed in range(5):
        gradients = random_weights(seed + 1, dtype)
        report = ours.apply(weights, gradients, engine)
        wanted = theirs.apply(expected, gradients)
        assert (report.rate, report.clipped) == (wanted.rate, wanted.clipped)
        assert report.norm == pytest.approx(wanted.norm, rel=1e-12)
    tolerance = 5e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(flat(weights), flat(expected), rtol=tolerance, atol=tolerance)
    state = ours.state_arrays()
    for name, value in theirs.state_arrays().items():
        np.testing.assert_allclose(state[name], value, rtol=tolerance, atol=tolerance)


def test_the_rate_follows_the_schedule() -> None:
    updates = updates_with(
        schedule={"type": "exponential", "factor": 0.5, "warmup_steps": 2}, steps_per_epoch=3
    )
    rates = []
    for _ in range(2):
        rates += [updates.apply(random_weights(0), random_weights(1)).rate for _ in range(3)]
        updates.on_epoch_end(1.0, larger_is_better=False)
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.05, 0.05, 0.05])
    assert updates.rate == pytest.approx(0.025)


CASES = [
    ({"type": "sgd"}, {"type": "cosine"}),
    ({"type": "sgd", "momentum": 0.9, "nesterov": True}, {"type": "step", "every": 2}),
    ({"type": "adam", "l2": 0.01}, {"type": "reduce_on_plateau", "patience": 1, "factor": 0.5}),
    ({"type": "adamw"}, {"type": "constant", "warmup_steps": 7}),
    ({"type": "rmsprop", "momentum": 0.5}, {"type": "exponential", "warmup_epochs": 1}),
    ({"type": "adagrad", "l1": 0.01}, {"type": "reduce_on_plateau", "patience": 1}),
    ({"type": "adadelta"}, {"type": "cosine", "warmup_steps": 5}),
]
METRICS = [3.0, 3.5, 3.2, 3.1, 2.0, 2.5]


def train(updates: Updates, weights: Any, epochs: Any) -> list[float]:
    """Four updates an epoch; the rate and norm of each."""
    actual = []
    for epoch in epochs:
        for k in range(4):
            report = updates.apply(weights, random_weights(100 * epoch + k, np.float32))
            actual += [report.rate, report.norm]
        updates.on_epoch_end(METRICS[epoch], larger_is_better=False)
    return actual


@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize(("optimizer", "schedule"), CASES)
def test_a_resumed_run_is_the_same_to_the_bit(optimizer: Any, schedule: Any, cut: int) -> None:
    options = {"clip_norm": 2.0, "steps_per_epoch": 4}
    whole, weights = updates_with(optimizer, schedule, **options), random_weights(0, np.float32)
    expected = train(whole, weights, range(6))

    first, stopped = updates_with(optimizer, schedule, **options), random_weights(0, np.float32)
    train(first, stopped, range(cut))
    saved = {name: (v.dtype, v.shape, v.tobytes()) for name, v in first.state_arrays().items()}
    train(first, random_weights(7, np.float32), range(cut, 6))  # the snapshot is its own

    second = updates_with(optimizer, schedule, **options)
    second.load_state(
        # Read-only and in another order, as files give them.
        {
            name: np.frombuffer(raw, dtype).reshape(shape)
            for name, (dtype, shape, raw) in sorted(saved.items(), reverse=True)
        }
    )
    backwards = {name: stopped[name] for name in reversed(SHAPES)}
    assert train(second, backwards, range(cut, 6)) == expected[8 * cut :]
    assert flat(backwards).tobytes() == flat(weights).tobytes()
    for name, value in whole.state_arrays().items():
        assert second.state_arrays()[name].tobytes() == value.tobytes()


def test_a_snapshot_does_not_follow_later_updates() -> None:
    updates, weights = updates_with({"type": "adam"}), random_weights(0)
    updates.apply(weights, random_weights(1))
    state = updates.state_arrays()
    before = {name: value.copy() for name, value in state.items()}
    updates.apply(weights, random_weights(2))
    for name, value in state.items():
        np.testing.assert_array_equal(value, before[name])


def test_state_names() -> None:
    updates = updates_with({"type": "adam"}, {"type": "reduce_on_plateau"})
    names = {"step", "epoch"} | {
        f"reduce_on_plateau.{name}" for name in ("best", "bad_epochs", "reductions")
    }
    assert updates.state_arrays().keys() == names
    updates.apply(random_weights(0), random_weights(1))
    slots = {f"adam.{slot}/{name}" for slot in "mv" for name in SHAPES}
    assert updates.state_arrays().keys() == names | slots
    assert updates.state_arrays()["step"] == 1


def saved_adam() -> dict[str, Any]:
    updates = updates_with({"type": "adam"})
    updates.apply(random_weights(0), random_weights(1))
    return updates.state_arrays()


def test_state_of_another_optimizer_is_refused_by_name() -> None:
    updates = updates_with({"type": "rmsprop"})
    with pytest.raises(WeightsError) as caught:
        updates.load_state(saved_adam())
    assert f"rmsprop.v/{MATRIX} is missing" in str(caught.value)
    assert f"adam.m/{BIAS} belongs to no state of rmsprop and constant" in str(caught.value)
    assert updates.count == 0


def test_state_of_another_schedule_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match=r"reduce_on_plateau\.best is missing"):
        updates_with({"type": "adam"}, {"type": "reduce_on_plateau"}).load_state(saved_adam())


@pytest.mark.parametrize("value", [np.array(-1), np.array([1]), np.array(1.0), np.zeros((2, 2))])
def test_a_damaged_count_is_refused(value: Any) -> None:
    with pytest.raises(WeightsError, match=r"step is not a count(?s:.)*whole number"):
        updates_with({"type": "adam"}).load_state({**saved_adam(), "step": value})


def test_a_state_without_one_of_its_arrays_is_refused() -> None:
    state = saved_adam()
    del state[f"adam.v/{BIAS}"]
    with pytest.raises(WeightsError, match=f"adam.v/{BIAS} is missing"):
        updates_with({"type": "adam"}).load_state(state)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"other": np.ones(3)}, "after 1 update lacks other"),
        ({MATRIX: np.ones((3, 1))}, rf"adam.m does not fit {MATRIX}(?s:.)*\(3, 1\)"),
        ({MATRIX: np.ones((8, 3), np.float32)}, rf"does not fit {MATRIX}(?s:.)*float32"),
    ],
)
def test_a_state_of_other_weights_is_refused(weights: Any, message: str) -> None:
    updates = updates_with({"type": "adam"})
    updates.load_state(saved_adam())
    with pytest.raises(WeightsError, match=message):
        updates.apply(weights, {name: np.ones_like(w) for name, w in weights.items()})


def test_a_weight_without_its_gradient_is_refused_before_any_changes() -> None:
    weights, gradients = random_weights(0), random_weights(1)
    gradients["layers.1.weight"] = np.ones((2, 5))
    with pytest.raises(WeightsError, match=r"layers.1.weight has another shape(?s:.)*\(5, 2\)"):
        updates_with().apply(weights, gradients)
    del gradients["layers.1.weight"]
    with pytest.raises(WeightsError, match=r"gradient of layers.1.weight is missing"):
        updates_with().apply(weights, gradients)
    np.testing.assert_array_equal(flat(weights), flat(random_weights(0)))


def test_gradient_descent_finds_a_minimum() -> None:
    """Every optimizer, on the squared distance to a point."""
    target = random_weights(9)
    rates = {"sgd": 0.1, "adam": 0.1, "adamw": 0.1, "rmsprop": 0.02, "adagrad": 1.0}
    for kind in OPTIMIZERS:
        options = {"type": kind, "learning_rate": rates.get(kind, 20.0), "weight_decay": 0.0}
        updates, weights = updates_with(options), random_weights(0)
        start = float(np.linalg.norm(flat(weights) - flat(target)))
        for _ in range(400):
            updates.apply(weights, {name: w - target[name] for name, w in weights.items()})
        assert np.linalg.norm(flat(weights) - flat(target)) < 0.05 * start, kind


# Penalties and clipping

W = np.array([[-2.0, 0.0, 3.0], [0.5, -0.25, 1.5]])
G = np.array([[0.1, 0.2, -0.3], [0.4, -0.5, 0.6]])


def gradients() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5), "c": np.zeros((0, 2))}


def test_penalties_are_the_derivatives_of_their_sums() -> None:
    l1, l2, step = 0.3, 0.7, 1e-6

    def penalty(w: Any) -> float:
        return float(l1 * np.abs(w).sum() + l2 / 2 * (w**2).sum())

    actual = penalized(W, G, l1, l2)
    for place in np.ndindex(W.shape):
        shift = np.zeros_like(W)
        shift[place] = step
        slope = (penalty(W + shift) - penalty(W - shift)) / (2 * step)
        assert actual[place] - G[place] == pytest.approx(slope, abs=1e-8)


def test_without_penalties_nothing_is_computed() -> None:
    assert penalized(W, G, 0.0, 0.0) is G
    assert decayed(W, 0.1, 0.0) is W


def test_decay() -> None:
    np.testing.assert_allclose(decayed(W, 0.1, 0.5), 0.95 * W, rtol=1e-15)


def test_symbols_give_what_arrays_give_in_their_precision() -> None:
    w, g, rate = symbol("w"), symbol("g"), symbol("rate")
    roots = {"penalized": penalized(w, g, 0.3, 0.7), "decayed": decayed(w, rate, 0.5)}
    single = {"w": W.astype(np.float32), "g": G.astype(np.float32)}
    actual = evaluate(roots, {**single, "rate": 0.1})
    np.testing.assert_array_equal(
        actual["penalized"], penalized(single["w"], single["g"], 0.3, 0.7)
    )
    np.testing.assert_array_equal(actual["decayed"], decayed(single["w"], 0.1, 0.5))
    assert {value.dtype for value in actual.values()} == {np.dtype(np.float32)}


def test_norm_is_that_of_all_numbers_in_a_row() -> None:
    actual = gradients()
    row = np.concatenate([g.ravel() for g in actual.values()])
    assert global_norm(actual) == pytest.approx(float(np.linalg.norm(row)), rel=1e-14)
    assert global_norm({}) == 0.0


def test_norm_is_summed_in_double_precision_in_any_order() -> None:
    # In single precision the ones would vanish beside 1e8.
    parts = {"large": np.full(1, 1e4, np.float32), "ones": np.ones(10_000, np.float32)}
    assert global_norm(parts) == math.sqrt(1e8 + 1e4)
    rng = np.random.default_rng(1)
    many = {str(k): rng.standard_normal(7) * 10.0**k for k in range(-8, 8)}
    orders = [rng.permutation(list(many)) for _ in range(20)]
    assert len({global_norm({name: many[name] for name in order}) for order in orders}) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_norm_of_what_is_not_finite_is_not_finite(bad: float) -> None:
    actual = gradients()
    actual["b"][2] = bad
    assert not math.isfinite(global_norm(actual))
    assert global_norm({"huge": np.array([1e200])}) == math.inf


def test_clipping_by_value() -> None:
    for g in gradients().values():
        expected = [min(max(float(x), -0.6), 0.6) for x in g.ravel()]
        assert clipped(g, 0.6).ravel().tolist() == expected
        assert clipped(g, None) is g
    limited = {name: clipped(g, 0.6) for name, g in gradients().items()}
    assert global_norm(gradients(), limit=0.6) == pytest.approx(global_norm(limited), rel=1e-14)


def test_a_number_outside_the_limits_is_found_on_either_side() -> None:
    largest = max(float(np.abs(g).max(initial=0)) for g in gradients().values())
    for sign in (1, -1):
        actual = {name: sign * g for name, g in gradients().items()}
        assert exceeds(actual, 0.99 * largest)
        assert not exceeds(actual, largest)


def test_clipping_by_norm() -> None:
    norm = global_norm(gradients())
    assert norm_factor(norm, 0.5) == 0.5 / norm
    assert norm_factor(norm, norm) == 1.0
    assert norm_factor(0.0, norm) == 1.0
