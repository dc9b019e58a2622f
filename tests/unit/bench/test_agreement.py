"""What counts as the same training step, and what does not."""

import numpy as np
import pytest

from lstm_cli.bench.agreement import (
    NOISE,
    FirstStep,
    gradient_agreement,
    update_agreement,
    worst,
)
from lstm_cli.bench.results import PeerAgreement
from lstm_cli.training.optimisers import Adam

ADAM = Adam(learning_rate=0.01)


@pytest.fixture
def gradients(rng):
    return {"w": rng.standard_normal((5, 3)) * 1e-5, "b": rng.standard_normal(4) * 3e-5}


def adam_by_hand(w, g, rate=0.01, epsilon=1e-8):
    """The first step: both corrected means are those of the one gradient."""
    return w - rate * g / (np.sqrt(g * g) + epsilon)


def test_gradients_are_held_against_the_largest_of_their_tensor(gradients):
    found = {name: g.copy() for name, g in gradients.items()}
    found["b"][2] += 0.01 * np.abs(gradients["b"]).max()
    one = gradient_agreement(gradients, found, 2e-4)
    largest = max(np.abs(found["b"]).max(), np.abs(gradients["b"]).max())
    expected = 0.01 * np.abs(gradients["b"]).max() / largest
    assert (one.what, one.ok) == ("gradient of b", False)
    assert one.difference == pytest.approx(expected)


@pytest.mark.parametrize(
    "spoil",
    [np.zeros_like, np.negative, lambda g: g[::-1].copy(), lambda g: g * 1.01],
    ids=["zero", "other sign", "reversed", "scaled"],
)
def test_gradients_far_below_the_tolerance_do_not_hide_a_mistake(gradients, spoil):
    found = gradients | {"w": spoil(gradients["w"])}
    assert np.abs(found["w"] - gradients["w"]).max() < 2e-4
    one = gradient_agreement(gradients, found, 2e-4)
    assert not one.ok
    assert one.what == "gradient of w"


def test_rounding_of_what_cancels_is_held_against_the_largest_of_all(rng):
    gradients = {"w": rng.standard_normal((5, 3)), "b": np.array([1e-9, -2e-9])}
    found = gradients | {"b": np.array([-1e-9, 1e-9])}
    one = gradient_agreement(gradients, found, 2e-4)
    assert one.ok
    assert one.difference == pytest.approx(3e-9 / (NOISE * np.abs(gradients["w"]).max()))


def test_gradients_that_are_all_zero_are_equal_and_nothing_else_is():
    zero = {"w": np.zeros(3)}
    assert gradient_agreement(zero, zero, 1e-10) == PeerAgreement(0.0, 1e-10, True, "gradient of w")
    assert gradient_agreement(zero, {"w": np.full(3, 1e-30)}, 1e-10).difference == 1.0


def without(gradients, name):
    return {k: v for k, v in gradients.items() if k != name}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda g: without(g, "b"), "b"),
        (lambda g: g | {"extra": g["b"]}, "extra"),
        (lambda g: g | {"w": g["w"].T}, "w"),
    ],
    ids=["missing", "one more", "transposed"],
)
def test_gradients_of_other_names_or_shapes_do_not_agree(gradients, change, name):
    one = gradient_agreement(gradients, change(gradients), 2e-4)
    assert one == PeerAgreement(float("inf"), 2e-4, False, f"gradient of {name}")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_does_not_agree(gradients, which, value):
    spoilt = gradients | {"w": np.where(gradients["w"] > 0, value, gradients["w"])}
    pair = (spoilt, gradients)
    assert not gradient_agreement(pair[which], pair[1 - which], 2e-4).ok
    assert not gradient_agreement(spoilt, spoilt, 2e-4).ok


def step(before, gradients, change=lambda name, w: w):
    after = {name: change(name, adam_by_hand(w, gradients[name])) for name, w in before.items()}
    return FirstStep(0.5, gradients, after)


@pytest.fixture
def before(gradients, rng):
    return {name: rng.standard_normal(g.shape) for name, g in gradients.items()}


def test_an_update_that_follows_the_equation_agrees(before, gradients):
    one = update_agreement(before, step(before, gradients), ADAM, 1e-12)
    assert one.ok
    assert one.difference < 1e-15


@pytest.mark.parametrize(
    "change",
    [
        lambda before, name, w: before[name],
        lambda before, name, w: 2 * before[name] - w,
        lambda before, name, w: before[name] + 1.1 * (w - before[name]),
        lambda before, name, w: w - 0.01 * 0.01 * before[name],
        lambda before, name, w: np.where(w == w.max(), np.nan, w),
    ],
    ids=["none", "uphill", "another rate", "weight decay", "NaN"],
)
def test_another_update_is_found(before, gradients, change):
    after = step(before, gradients, lambda name, w: change(before, name, w) if name == "b" else w)
    one = update_agreement(before, after, ADAM, 1e-6)
    assert not one.ok
    assert one.what == "b after a step"


def test_a_weight_that_is_not_given_is_named(before, gradients):
    found = step(before, gradients)
    bare = FirstStep(found.loss, gradients, without(found.weights, "w"))
    assert update_agreement(before, bare, ADAM, 1e-6).what == "w after a step"


def test_signs_of_gradients_that_are_rounding_do_not_matter(before, gradients):
    # Two frameworks: one gradient is 3e-9 here and -3e-9 there, next to 1 elsewhere.
    here = gradients | {"w": np.ones((5, 3)), "b": np.array([3e-9, 1.0, 0.5, 0.25])}
    there = here | {"b": np.array([-3e-9, 1.0, 0.5, 0.25])}
    ours, theirs = step(before, here), step(before, there)
    assert np.abs(ours.weights["b"] - theirs.weights["b"]).max() > 0.4 * ADAM.learning_rate
    assert gradient_agreement(here, there, 2e-4).ok
    assert update_agreement(before, ours, ADAM, 1e-12).ok
    assert update_agreement(before, theirs, ADAM, 1e-12).ok


def test_the_worst_is_what_is_wrong_else_what_differs_most():
    fine, further = PeerAgreement(1e-9, 1e-6, True, "a"), PeerAgreement(1e-8, 1e-6, True, "b")
    wrong = PeerAgreement(float("nan"), 1e-6, False, "c")
    assert worst([fine, further]) is further
    assert worst([further, wrong, fine]) is wrong
