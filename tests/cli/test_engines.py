"""Engines as users see them: ``devices``, and notes on a fallback."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from lstm_cli.engines import kernel_cache as cache
from lstm_cli.engines.jit.runtime import machine
from lstm_cli.engines.selection import engine_statuses

needs_jit = pytest.mark.skipif(
    not any(s.usable for s in engine_statuses() if s.engine == "jit"), reason="no jit engine here"
)


@pytest.fixture
def no_jit(monkeypatch):
    """A machine that no kernels can be made for; the reason."""
    reason = "the processor (k6) has neither AVX2 with FMA nor AVX-512"

    def host():
        raise machine.UnusableMachine(reason)

    monkeypatch.setattr(machine, "this_machine", host)
    return reason


def test_devices(lstm):
    document = lstm("devices", "--json").json
    by_name = {engine["engine"]: engine for engine in document["engines"]}
    assert by_name["reference"]["usable"]
    assert not by_name["cuda"]["usable"]
    assert by_name["cuda"]["detail"]
    jit = by_name["jit"]
    assert document["auto"] == ("jit" if jit["usable"] else "reference")
    assert (document["kernel_cache"] is not None) == jit["usable"]
    shown = lstm("devices").out
    for engine in by_name.values():
        assert " ".join(engine["detail"].split()[:3]) in shown
    assert max(len(line) for line in shown.splitlines() if "kernels in" not in line) <= 100


@needs_jit
def test_devices_tells_of_the_kernels_on_disk(lstm, tmp_path, monkeypatch):
    monkeypatch.setenv("LSTM_CLI_CACHE_DIR", str(tmp_path))
    place = tmp_path / "kernels"
    nothing = {"folder": str(place), "usable": True, "reason": None, "files": 0, "bytes": 0}
    assert lstm("devices", "--json").json["kernel_cache"] == nothing
    assert f"compiled kernels in {place}: 0 files, 0 B" in lstm("devices").out
    cache.store("0" * 64, cache.CompiledKernels(("f",), b"code"))
    state = lstm("devices", "--json").json["kernel_cache"]
    assert (state["files"], state["usable"]) == (1, True)
    assert f"compiled kernels in {place}: 1 file, {state['bytes']} B" in lstm("devices").out
    monkeypatch.setenv("LSTM_CLI_CACHE_DIR", "")
    state = lstm("devices", "--json").json["kernel_cache"]
    assert (state["folder"], state["usable"]) == (None, False)
    assert f"compiled kernels are not kept: {state['reason']}" in lstm("devices").out


def test_devices_without_kernels(lstm, no_jit):
    document = lstm("devices", "--json").json
    jit = next(engine for engine in document["engines"] if engine["engine"] == "jit")
    assert not jit["usable"]
    assert jit["detail"] == no_jit
    assert document["auto"] == "reference"
    assert document["kernel_cache"] is None
    shown = lstm("devices").out
    assert "compiled kernels" not in shown
    assert max(map(len, shown.splitlines())) <= 100


TASK = """\
model:
  input_size: 3
  layers:
    - {type: gru, hidden_size: 5, return_sequences: false}
    - {type: dense, units: 2}
train: {loss: mse, optimizer: {type: sgd}, batch_size: 2, epochs: 1}
"""

SIZE = ("--hidden", "5", "--batch", "2", "--steps", "3", "--features", "4", "--rounds", "1")


@pytest.fixture
def task(tmp_path):
    """A config to train, and data for it."""
    rng = np.random.default_rng(8)
    (tmp_path / "net.yaml").write_text(TASK)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["inputs"] = rng.standard_normal((4, 5, 3)).astype(np.float32)
        file["targets"] = rng.standard_normal((4, 2)).astype(np.float32)
    return tmp_path / "net.yaml", tmp_path / "x.h5"


@pytest.mark.parametrize("command", ["run", "train", "bench"])
def test_a_fallback_is_reported(lstm, no_jit, task, tmp_path, command):
    config, data = task
    more = {"run": (config, data), "train": (config, data, "--output"), "bench": SIZE}[command]
    line = f"jit cannot be used here: {no_jit}; computing with reference\n"
    for n, options in enumerate([(), ("--device", "cpu")]):
        folder = (tmp_path / f"run{n}",) if command == "train" else ()
        outcome = lstm(command, *more, *folder, *options, "--json")
        assert outcome.code == 0
        assert outcome.err.count(line) == 1
        assert outcome.json["engine"] == "reference"
        assert outcome.json["passed_over"] == {"jit": no_jit}
    folder = (tmp_path / "none",) if command == "train" else ()
    outcome = lstm(command, *more, *folder, "--engine", "reference", "--json")
    assert "cannot be used" not in outcome.err
    assert outcome.json["passed_over"] == {}
    folder = (tmp_path / "refused",) if command == "train" else ()
    outcome = lstm(command, *more, *folder, "--engine", "jit")
    assert (outcome.code, outcome.out) == (5, "")
    assert no_jit in outcome.err
