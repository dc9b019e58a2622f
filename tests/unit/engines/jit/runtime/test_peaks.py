"""Work of the kernels that measure peak rates, against the operations counted."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from compiled_ir import usable_machine

from lstm_cli.cells import LSTM
from lstm_cli.engines.jit.engine import JitEngine
from lstm_cli.engines.jit.runtime import peaks
from lstm_cli.engines.jit.runtime.compiler import compile_object
from lstm_cli.engines.jit.runtime.machine import machine_from_features
from lstm_cli.engines.jit.runtime.memory import ALIGNMENT, address, aligned
from lstm_cli.engines.types import RecurrentSpec
from lstm_cli.network.initializers import initialize
from lstm_cli.network.network import Network

DTYPES = {"float": np.float32, "double": np.float64, "bfloat": np.float32}
PARTS = 3


def stored_results(monkeypatch, element, kernel, times, **entries):
    """Bytes that every thread stores at its end, (PARTS, bytes of a vector)."""
    arrays = []

    def recorded(size, dtype):
        arrays.append(aligned(size, dtype))
        return arrays[-1]

    monkeypatch.setattr(peaks, "aligned", recorded)
    here = usable_machine()
    assert peaks._call(here, PARTS, element, kernel, times, **entries) == PARTS
    return arrays[-1].reshape(PARTS, ALIGNMENT)[:, : here.vector_bits // 8]


def test_a_kernels_arguments_live_until_it_returns(monkeypatch):
    words = []

    def run(function, block, parts):
        others = [np.full(4, -1) for _ in range(100)]  # reuses the memory of freed objects
        words.extend((ctypes.c_int64 * 3).from_address(block))
        return len(others)

    monkeypatch.setattr(peaks.thread_pool, "run", run)
    peaks._call(usable_machine(), PARTS, "float", "read", 5, vectors=24, data=64)
    assert words == [5, 24, 64]


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("times", [0, 1, 5])
def test_every_chain_is_multiplied_as_often_as_counted(monkeypatch, element, times):
    x = 2.0 + np.arange(peaks.chains(usable_machine()))
    for _ in range(times):
        x = x + 2 if element == "bfloat" and usable_machine().dot_bfloat16 else x / 2 + 1
    result = stored_results(monkeypatch, element, "multiply", times).view(DTYPES[element])
    np.testing.assert_allclose(result, np.full(result.shape, x.sum()), rtol=1e-6)


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("vectors", [8, 24])
def test_every_vector_of_a_share_is_read_and_no_other(monkeypatch, element, vectors):
    size = usable_machine().vector_bits // 8
    data = aligned(PARTS * vectors * size, "uint8")
    shares = data.reshape(PARTS, vectors, size)
    for place in range(vectors):
        data[:] = 0
        for part in range(PARTS):
            shares[part, place, -1] = 16 << part  # a bit outside of the iteration counter
        result = stored_results(
            monkeypatch, element, "read", 2, vectors=vectors, data=address(data)
        )
        assert result[:, -1].tolist() == [16, 32, 64], place


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_an_engine_measures_each_requested_size(dtype):
    usable_machine()
    engine = JitEngine(dtype, threads=2)
    result = engine.measure_peaks((1000, 1 << 20))
    assert [one.bytes for one in result.reads] == [1000, 1 << 20]
    assert result.gflops > 0
    assert all(one.gbytes > 0 for one in result.reads)
    cache = engine.machine.cache
    assert [one.bytes for one in engine.measure_peaks().reads] == [cache, 8 * cache]


@pytest.mark.parametrize("costs", [[1.0, 9.0, 2.0, 3.0, 2.0], [9.0, 3.0, 3.0, 2.0, 5.0]])
def test_the_best_trial_counts(monkeypatch, costs):
    durations, now = (
        [50.0, 2.0, *costs],
        [0.0],
    )  # the first call compiles; the second is long enough
    monkeypatch.setattr(peaks, "perf_counter", lambda: now[0])

    def work(times):
        assert times == 1
        now[0] += durations.pop(0)
        return 12.0

    assert peaks._rate(work) == 12.0 / min(costs)
    assert not durations


def test_a_trial_is_long_enough_for_the_clock(monkeypatch):
    now, iterations = [0.0], []
    monkeypatch.setattr(peaks, "perf_counter", lambda: now[0])

    def work(times):
        iterations.append(times)
        now[0] += times * 1e-6
        return float(times)

    assert peaks._rate(work) == pytest.approx(1e6)
    assert iterations[-1] * 1e-6 >= peaks.TRIAL_SECONDS
    assert len(iterations) < 12


NEON = machine_from_features("aarch64-apple-darwin23", "apple-m1", {"neon"}, "+neon")


@pytest.mark.parametrize("element", DTYPES)
def test_the_kernels_are_made_for_other_machines_too(element):
    narrow = replace(usable_machine(), vector_bits=256, registers=16)
    plain = replace(usable_machine(), dot_bfloat16=False)
    targets = [NEON, narrow, plain] if usable_machine().x86 else [NEON]
    for target in targets:
        assert compile_object(peaks.build(target, element), target)


def test_an_engine_counts_its_workspaces():
    usable_machine()
    engine = JitEngine("float32", threads=1)
    assert engine.workspace_bytes == 0
    layers = (RecurrentSpec(0, 3, (LSTM(hidden_size=40),)),)
    net = Network(layers, initialize(layers, seed=0), engine)
    net.run(np.zeros((5, 2, 3)))
    small = engine.workspace_bytes
    assert small > 5 * 40 * 4
    net.run(np.zeros((5000, 2, 3)))
    assert engine.workspace_bytes > small + 5000 * 40 * 4
