"""Choosing an engine: what is asked for or an error that says why not; never a silent fallback."""

from __future__ import annotations

from typing import Any

import pytest

from lstm_cli.engines import selection
from lstm_cli.engines.selection import EngineStatus, create_engine, engine_statuses
from lstm_cli.engines.threads import default_threads
from lstm_cli.errors import DeviceError, LstmCliError, UsageError


def test_auto_takes_the_first_usable() -> None:
    first = next(status for status in engine_statuses() if status.usable)
    assert create_engine().name == first.engine


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
    reference = next(status for status in engine_statuses() if status.engine == "reference")
    monkeypatch.setattr(selection, "engine_statuses", lambda: (broken, reference))
    with pytest.raises(LstmCliError, match="the driver is too old") as error:
        create_engine(**asked)
    assert error.value.exit_code == 5
    assert error.value.hints
