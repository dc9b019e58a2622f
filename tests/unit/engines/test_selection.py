"""Choice of an engine: the requested one or an error with the reason, never a silent fallback."""

from __future__ import annotations

from typing import Any

import pytest

from lstm_cli.engines import selection
from lstm_cli.engines.jit import engine
from lstm_cli.engines.jit.runtime import machine as machines
from lstm_cli.engines.selection import (
    EngineStatus,
    choose_engine,
    create_engine,
    engine_statuses,
)
from lstm_cli.engines.threads import default_threads
from lstm_cli.errors import DeviceError, LstmCliError, UsageError

REASON = "the processor (k6) has neither AVX2 with FMA nor AVX-512"


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that no kernels can be made for."""

    def this_machine() -> machines.Machine:
        raise machines.UnusableMachine(REASON)

    monkeypatch.setattr(machines, "this_machine", this_machine)


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine for which kernels can be compiled, independent of the one of the test."""
    arm = machines.machine_from_features("aarch64-unknown-linux-gnu", "neoverse-n1", {"neon"})
    for module in (machines, engine):
        monkeypatch.setattr(module, "this_machine", lambda: arm)


def test_auto_takes_the_first_usable() -> None:
    first = next(status for status in engine_statuses() if status.usable)
    assert create_engine().name == first.engine


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_auto_is_jit_where_kernels_can_be_made(device: str) -> None:
    choice = choose_engine(device=device)
    assert choice.engine.name == "jit"
    assert choice.passed_over == {}
    assert choice.notes == ()


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_auto_falls_back_and_says_so(device: str) -> None:
    choice = choose_engine(device=device)
    assert choice.engine.name == "reference"
    assert choice.passed_over == {"jit": REASON}
    assert choice.notes == (f"jit cannot be used here: {REASON}; computing with reference",)


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_jit_by_name_does_not_fall_back(device: str) -> None:
    with pytest.raises(DeviceError, match="engine jit cannot be used here") as error:
        create_engine("jit", device)
    assert error.value.exit_code == 5
    assert REASON in str(error.value)
    assert error.value.hints == (
        "--engine auto takes what can be used; lstm-cli devices lists all",
    )


def test_an_engine_by_name_is_all_that_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("cuda", "jit"):
        monkeypatch.setitem(selection._STATUSES, other, pytest.fail)
    choice = choose_engine("reference")
    assert (choice.engine.name, choice.passed_over) == ("reference", {})


@pytest.mark.usefixtures("able")
def test_the_status_of_jit() -> None:
    status = next(status for status in engine_statuses() if status.engine == "jit")
    assert (status.processor, status.vector_bits, status.usable) == ("neoverse-n1", 128, True)
    assert status.threads == default_threads()
    assert status.detail.startswith("neoverse-n1, 128-bit vectors, ")


@pytest.mark.usefixtures("old")
def test_the_status_of_jit_where_it_cannot_be_used() -> None:
    status = next(status for status in engine_statuses() if status.engine == "jit")
    assert (status.usable, status.detail, status.dtypes) == (False, REASON, ())


def test_reference() -> None:
    engine = create_engine("reference", "cpu", "float64", 3)
    assert (engine.name, engine.device, engine.dtype, engine.threads) == (
        "reference", "cpu", "float64", 3,
    )  # fmt: skip
    assert create_engine("reference").threads == default_threads()
    assert create_engine("reference").dtype == "float32"


def test_every_engine_has_a_status_that_says_something() -> None:
    statuses = engine_statuses()
    assert {status.engine for status in statuses} == set(selection.ENGINES) - {"auto"}
    assert all(status.detail for status in statuses)
    assert all(status.dtypes for status in statuses if status.usable)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"engine": "refrence"}, "did you mean `reference`?"),
        ({"engine": "Jit"}, "did you mean `jit`?"),
        ({"dtype": "float23"}, "did you mean `float32`?"),
        ({"dtype": "double"}, None),
        ({"device": "gpu"}, None),
        ({"device": "cuda:"}, None),
        ({"device": "cuda:x"}, None),
        ({"device": "cpu:0"}, None),
        ({"threads": 0}, None),
        ({"threads": -2}, None),
    ],
    ids=str,
)
def test_usage_errors(given: dict[str, Any], hint: str | None) -> None:
    with pytest.raises(UsageError) as error:
        create_engine(**given)
    assert error.value.exit_code == 2
    assert str(*given.values()) in str(error.value)
    if hint is not None:
        assert error.value.hints == (hint,)


def test_an_engine_that_does_not_run_on_the_device() -> None:
    with pytest.raises(DeviceError) as error:
        create_engine("reference", "cuda:1")
    assert error.value.exit_code == 5
    assert "reference engine does not run on cuda:1" in str(error.value)
    assert "expected --device cpu" in str(error.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "tf32", "float16"])
def test_a_dtype_the_reference_does_not_compute_in(dtype: str) -> None:
    with pytest.raises(DeviceError) as error:
        create_engine("reference", dtype=dtype)
    assert error.value.exit_code == 5
    assert dtype in str(error.value)
    assert error.value.hints == ("--dtype float32",)


@pytest.mark.parametrize("asked", [{"device": "cuda"}, {"device": "cuda:0"}, {"engine": "cuda"}])
def test_unusable_says_why_and_does_not_fall_back(
    asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = EngineStatus("cuda", "cuda", False, "the driver is too old")
    monkeypatch.setitem(selection._STATUSES, "cuda", lambda: broken)
    with pytest.raises(LstmCliError, match="the driver is too old") as error:
        create_engine(**asked)
    assert error.value.exit_code == 5
    assert error.value.hints
