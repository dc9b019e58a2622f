"""Schedules compared with those of PyTorch and with numbers computed by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lstm_cli.errors import ConfigError
from lstm_cli.training.schedules import SCHEDULES, RateSchedule, make_schedule

RATE, PER_EPOCH, EPOCHS = 0.3, 4, 11


def rates(schedule: RateSchedule, epochs: int = EPOCHS, full: float = RATE) -> list[float]:
    """The rate of every update of a run."""
    return [
        schedule.rate(full, epoch * PER_EPOCH + k + 1, epoch, PER_EPOCH)
        for epoch in range(epochs)
        for k in range(PER_EPOCH)
    ]


def torch_rates(kind: str, count: int, **options: Any) -> list[float]:
    """PyTorch's rates, its scheduler stepped `count` times."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = getattr(torch.optim.lr_scheduler, kind)(optimizer, **options)
    actual = []
    for _ in range(count):
        actual.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return actual


def made(**options: Any) -> RateSchedule:
    return make_schedule(options, epochs=EPOCHS)


def test_constant() -> None:
    assert rates(made(type="constant")) == [RATE] * PER_EPOCH * EPOCHS


@pytest.mark.parametrize(
    ("options", "kind", "theirs"),
    [
        ({"type": "step", "every": 3, "factor": 0.4}, "StepLR", {"step_size": 3, "gamma": 0.4}),
        ({"type": "exponential", "factor": 0.8}, "ExponentialLR", {"gamma": 0.8}),
    ],
)
def test_courses_by_epoch_equal_pytorchs(options: Any, kind: str, theirs: Any) -> None:
    expected = [rate for rate in torch_rates(kind, EPOCHS, **theirs) for _ in range(PER_EPOCH)]
    assert rates(made(**options)) == pytest.approx(expected, rel=1e-12)


def test_cosine_equals_pytorchs_stepped_by_update() -> None:
    count = EPOCHS * PER_EPOCH
    expected = torch_rates("CosineAnnealingLR", count, T_max=count, eta_min=0.02)
    assert rates(made(type="cosine", minimum=0.02)) == pytest.approx(expected, rel=1e-10)


def test_cosine_stays_at_its_minimum() -> None:
    actual = rates(made(type="cosine", epochs=5, minimum=0.02))
    assert actual[5 * PER_EPOCH :] == [pytest.approx(0.02)] * (6 * PER_EPOCH)
    assert actual[5 * PER_EPOCH // 2] == pytest.approx((RATE + 0.02) / 2)
    assert actual[: 5 * PER_EPOCH + 1] == sorted(actual[: 5 * PER_EPOCH + 1], reverse=True)


def test_cosine_ends_with_the_run_whatever_the_warm_up() -> None:
    actual = rates(made(type="cosine", warmup_steps=6))
    length = EPOCHS * PER_EPOCH - 6
    expected = [RATE * (1 + math.cos(math.pi * k / length)) / 2 for k in range(length)]
    assert actual[6:] == pytest.approx(expected, rel=1e-10)
    assert actual[5] == actual[6] == RATE
    # Nothing of the length is left after the warm-up.
    assert rates(made(type="cosine", warmup_epochs=3, epochs=3))[3 * PER_EPOCH] == 0.0


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warm_up_in_updates(kind: str) -> None:
    actual = rates(made(type=kind, warmup_steps=3))
    assert actual[:3] == pytest.approx([RATE / 3, RATE * 2 / 3, RATE], rel=1e-12)
    assert actual[3] == RATE  # the course starts from the full rate


def test_warm_up_equals_pytorchs() -> None:
    steps = 7
    expected = torch_rates("LinearLR", 12, start_factor=1 / steps, total_iters=steps - 1)
    assert rates(made(type="constant", warmup_steps=steps))[:12] == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warm_up_in_epochs_is_as_many_updates(kind: str) -> None:
    by_steps = rates(made(type=kind, warmup_steps=2 * PER_EPOCH))
    assert rates(made(type=kind, warmup_epochs=2)) == by_steps
    assert by_steps[0] == pytest.approx(RATE / (2 * PER_EPOCH))


def test_epochs_count_from_the_end_of_the_warm_up() -> None:
    actual = rates(made(type="exponential", factor=0.5, warmup_epochs=2), epochs=5)
    after = [RATE] * PER_EPOCH + [RATE / 2] * PER_EPOCH + [RATE / 4] * PER_EPOCH
    assert actual[2 * PER_EPOCH :] == pytest.approx(after)
    # A warm-up that ends within an epoch: changes still stand between epochs.
    actual = rates(made(type="exponential", factor=0.5, warmup_steps=PER_EPOCH + 1), epochs=4)
    assert actual[PER_EPOCH + 1 :] == pytest.approx(
        [RATE] * 3 + [RATE / 2] * PER_EPOCH + [RATE / 4] * PER_EPOCH
    )


LOSSES = [5.0, 4.0, 4.0, 4.5, 4.2, 3.9, 3.9, 4.0, 4.0, 4.0, 4.0, math.nan, 4.0, 4.0, 3.0, 3.5]


def plateau_rates(schedule: RateSchedule, metrics: list[float], larger: bool) -> list[float]:
    actual = []
    for epoch, metric in enumerate(metrics):
        actual.append(schedule.rate(RATE, epoch * PER_EPOCH + 1, epoch, PER_EPOCH))
        schedule.on_epoch_end(metric, larger)
    return actual


@pytest.mark.parametrize("larger", [False, True])
def test_plateau_equals_pytorchs(larger: bool) -> None:
    torch = pytest.importorskip("torch")
    metrics = [-loss if larger else loss for loss in LOSSES]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max" if larger else "min",
        factor=0.3,
        patience=2,
        threshold=0.0,
        min_lr=0.01,
        eps=0.0,
    )
    expected = []
    for metric in metrics:
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step(metric)
    actual = plateau_rates(
        made(type="reduce_on_plateau", factor=0.3, patience=2, minimum=0.01), metrics, larger
    )
    assert actual == pytest.approx(expected, rel=1e-12)
    assert len(set(actual)) == 4  # the full rate, two changes, the minimum


def test_plateau_waits_its_patience() -> None:
    actual = plateau_rates(
        made(type="reduce_on_plateau", factor=0.5, patience=2), [1.0] * 8, larger=False
    )
    assert actual == [RATE] * 4 + [RATE / 2] * 3 + [RATE / 4]


@pytest.mark.parametrize("cut", range(len(LOSSES)))
def test_plateau_goes_on_from_its_state(cut: int) -> None:
    options = {"type": "reduce_on_plateau", "factor": 0.3, "patience": 1}
    whole = plateau_rates(made(**options), LOSSES, larger=False)
    first, second = made(**options), made(**options)
    plateau_rates(first, LOSSES[:cut], larger=False)
    state = json.loads(json.dumps(first.state()))
    assert all(type(value) in (int, float) for value in state.values())
    second.load_state(state)
    assert plateau_rates(second, LOSSES[cut:], larger=False) == whole[cut:]
    assert len(set(whole)) > 2


def test_plateaus_do_not_share_their_state() -> None:
    first, second = made(type="reduce_on_plateau"), made(type="reduce_on_plateau")
    first.on_epoch_end(1.0, larger_is_better=False)
    assert math.isnan(second.state()["best"])


@pytest.mark.parametrize("kind", ["cosine", "reduce_on_plateau"])
def test_a_minimum_above_the_full_rate_raises_nothing(kind: str) -> None:
    schedule = made(type=kind, minimum=0.5)
    assert rates(schedule) == pytest.approx([RATE] * PER_EPOCH * EPOCHS)


@pytest.mark.parametrize("kind", ["constant", "step", "exponential", "cosine"])
def test_other_schedules_have_no_state(kind: str) -> None:
    schedule = made(type=kind)
    before = rates(schedule)
    schedule.on_epoch_end(1.0, larger_is_better=True)
    schedule.load_state({})
    assert schedule.state() == {}
    assert rates(schedule) == before


DEFAULTS: dict[str, dict[str, Any]] = {
    "constant": {},
    "step": {"every": 10, "factor": 0.1},
    "exponential": {"factor": 0.95},
    "cosine": {"epochs": EPOCHS, "minimum": 0.0},
    "reduce_on_plateau": {"factor": 0.1, "patience": 5, "minimum": 0.0},
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_defaults(kind: str) -> None:
    schedule = made(type=kind)
    for key, value in {**DEFAULTS[kind], "warmup_steps": 0, "warmup_epochs": 0}.items():
        assert getattr(schedule, key) == value


def test_the_config_has_the_same_types_and_defaults() -> None:
    from lstm_cli.config import schema

    assert SCHEDULES.keys() == schema.SCHEDULES.keys()
    for kind, section in schema.SCHEDULES.items():
        options = section(type=kind).model_dump()
        assert made(**options) == made(type=kind)


def test_an_unknown_type_or_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"not a kind of schedule(?s:.)*did you mean `cosine`"):
        made(type="cosin")
    with pytest.raises(ConfigError, match=r"schedule.facter is not(?s:.)*did you mean `factor`"):
        made(type="step", facter=0.5)
    with pytest.raises(ConfigError, match=r"schedule\._watch is not"):
        made(type="reduce_on_plateau", _watch=1)
