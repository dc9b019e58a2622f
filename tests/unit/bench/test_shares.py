"""How near a timing comes to the machine's limits."""

import pytest

from lstm_cli.bench import GridSize, Timing, measure, one_lstm
from lstm_cli.bench.measurement import limits_of, roofline_shares
from lstm_cli.bench.sizes import recurrent_reads
from lstm_cli.bench.workload import ForwardWorkload, TrainingWorkload
from lstm_cli.cells import GRU, LSTM
from lstm_cli.engines.limits import Limits, Reads
from lstm_cli.engines.reference import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, RecurrentSpec

SIZE = GridSize(hidden=5, batch=3, steps=4, features=2)
U = 4 * 5 * 5
"""Recurrent weights at that size."""


class Measured(ReferenceEngine):
    """Knows its machine, which is slow at first."""

    workspace_bytes = 77

    def __init__(self):
        super().__init__("float64")
        self.asked = []

    def limits(self, sizes=()):
        self.asked.append(tuple(sizes))
        count = len(self.asked)
        return Limits(1e-9 * count, tuple(Reads(size, 1e-9 * count) for size in sizes))


def timing(seconds, gflops):
    return Timing("lstm-cli", "", seconds, seconds, 1, gflops)


def test_recurrent_weights_are_read_once_a_step_by_each_direction():
    layers = (
        RecurrentSpec(0, 2, (LSTM(hidden_size=5),) * 2),
        RecurrentSpec(1, 10, (LSTM(hidden_size=5),)),
        RecurrentSpec(2, 5, (GRU(hidden_size=6),)),
        RecurrentSpec(3, 6, (LSTM(hidden_size=3, projection_size=2),)),
        DenseSpec(4, 2, 9, None),
    )
    assert recurrent_reads(layers, 7, 4) == {
        4 * U: 3 * 7,
        4 * 3 * 6 * 6: 7,
        4 * (4 * 3 * 2 + 2 * 3): 7,
    }
    assert recurrent_reads(layers[-1:], 7, 4) == {}


def test_training_reads_them_forwards_and_backwards_and_ragged_as_long_as_any_runs():
    engine = ReferenceEngine("float64")
    assert ForwardWorkload(one_lstm(SIZE), SIZE, engine, 0).reads == {8 * U: 4}
    assert TrainingWorkload(one_lstm(SIZE), SIZE, engine, 0).reads == {8 * U: 8}
    ragged = ForwardWorkload(one_lstm(SIZE), SIZE, engine, 0, ragged=True)
    assert ragged.reads == {8 * U: ragged.batch.lengths.max()}


def test_shares_by_hand():
    # 3 readings of 100 bytes at 1000 bytes/s and 1 of 400 at 500: 0.3 s and 0.8 s of 2.2 s.
    limits = Limits(200.0, (Reads(400, 500e-9), Reads(100, 1000e-9), Reads(7, 1.0)))
    found = roofline_shares(timing(2.2, 50.0), {100: 3, 400: 1}, limits)
    assert (found.peak_gflops, found.of_peak, found.read_bytes) == (200.0, 0.25, 700)
    assert found.read_gbytes == pytest.approx(700 / 1.1 * 1e-9)
    assert found.of_reads == pytest.approx(0.5)
    assert (found.bound, found.largest) == ("reads", found.of_reads)
    large = roofline_shares(timing(2.2, 150.0), {100: 3, 400: 1}, limits)
    assert (large.bound, large.largest) == ("peak", 0.75)


def test_without_recurrent_weights_there_is_the_peak_alone():
    found = roofline_shares(timing(1.0, 50.0), {}, Limits(200.0, (Reads(100, 1.0),)))
    assert (found.of_peak, found.read_bytes, found.of_reads, found.bound) == (0.25, 0, 0.0, "peak")


def test_limits_are_measured_around_every_size_and_the_best_hold_for_all():
    engine, other = Measured(), GridSize(3, 1, 2, 3)
    results = measure([SIZE, other], one_lstm, engine, rounds=1, seconds=0.001)
    first, second = 8 * U, 8 * 4 * 3 * 3
    assert engine.asked == [(first,), (first,), (second,), (second,)]
    for result, speed, bytes_ in zip(results, (2e-9, 4e-9), (4 * first, 2 * second), strict=True):
        assert result.shares.peak_gflops == 4e-9
        assert result.shares.of_peak == pytest.approx(result.ours.gflops / 4e-9)
        assert result.shares.read_gbytes == pytest.approx(speed)
        assert result.shares.read_bytes == bytes_
        expected = bytes_ / (speed * 1e9) / result.ours.median
        assert result.shares.of_reads == pytest.approx(expected)


def test_an_engine_that_does_not_know_its_machine_has_no_shares(engine):
    assert limits_of(engine, {8: 1}) == ()
    (result,) = measure([SIZE], one_lstm, engine, rounds=1, seconds=0.001)
    assert result.shares is None
