"""Measurements with fake peers: who is timed or skipped, and what the results state."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

from lstm_cli.cells import GRU, LSTM
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, MachinePeaks, ReadBandwidth, RecurrentSpec
from lstm_cli.errors import UsageError
from lstm_cli.workflows.bench import (
    ComputeSetting,
    GridSize,
    PeerAgreement,
    SizeResult,
    Timing,
    geometric_mean,
    measure,
    measurement,
    one_lstm,
    peer,
)
from lstm_cli.workflows.bench.agreement import output_agreement
from lstm_cli.workflows.bench.measurement import roofline_limits, roofline_shares
from lstm_cli.workflows.bench.protocol import Samples
from lstm_cli.workflows.bench.sizes import random_weights, recurrent_reads
from lstm_cli.workflows.bench.workload import ForwardWorkload, TrainingWorkload

SIZE = GridSize(hidden=5, batch=3, steps=4, features=2)


def run(engine, *peers, **options):
    (result,) = measure([SIZE], one_lstm, engine, peers, rounds=3, seconds=0.01, **options)
    return result


def test_a_peer_that_agrees_is_timed_and_has_a_ratio(engine, fake_peer):
    peer = fake_peer("twin")
    result = run(engine, peer)
    assert [t.name for t in result.timings] == ["lstm-cli", "twin"]
    assert result.timings[0].title == "lstm-cli (reference, float64)"
    assert result.timings[1].title == "Fake twin"
    assert result.agreements == {"twin": PeerAgreement(0.0, 1e-10, True)}
    assert result.ratios["twin"] > 0
    assert result.ahead_of_best == result.ratios["twin"]
    assert result.skipped == {}
    assert result.layers == "lstm 2 → 5"
    assert all(t.calls >= 3 and 0 < t.median <= t.p95 for t in result.timings)


@pytest.mark.parametrize(
    ("twist", "difference"),
    [
        (lambda y: y + 1e-3, pytest.approx(1e-3)),
        (lambda y: y[:, ::-1], None),
        (lambda y: y[:, -1], float("inf")),
        (lambda y: np.where(y == y.max(), np.nan, y), pytest.approx(np.nan, nan_ok=True)),
    ],
    ids=["shifted", "reversed", "another shape", "NaN"],
)
def test_a_peer_that_disagrees_has_a_difference_and_no_ratio(engine, fake_peer, twist, difference):
    wrong, right = fake_peer("wrong", twist), fake_peer("right")
    result = run(engine, wrong, right)
    assert [t.name for t in result.timings] == ["lstm-cli", "right"]
    assert list(result.ratios) == ["right"]
    assert not result.agreements["wrong"].ok
    assert difference is None or result.agreements["wrong"].difference == difference
    assert wrong.calls == ["wrong"], "it was called again after it had disagreed"


def test_a_peer_that_cannot_is_skipped_with_its_reason(engine, fake_peer):
    result = run(engine, fake_peer("poor", refuses="layer 0: no peepholes"))
    assert result.skipped == {"poor": "layer 0: no peepholes"}
    assert result.agreements == {}
    assert result.ahead_of_best is None


def test_a_peer_that_breaks_is_skipped_with_the_first_line_of_its_error(engine, fake_peer):
    def breaks(_):
        raise RuntimeError("out of memory\nat 0x1234")

    result = run(engine, fake_peer("frail", breaks))
    assert result.skipped == {"frail": "it failed: out of memory"}
    assert [t.name for t in result.timings] == ["lstm-cli"]


def test_a_peer_that_breaks_while_it_is_prepared_is_skipped_too(engine, fake_peer):
    class Frail(fake_peer):
        @contextmanager
        def prepare(self, *_):
            raise MemoryError
            yield

    assert run(engine, Frail("frail")).skipped == {"frail": "it failed: MemoryError"}


def test_peers_get_the_engines_threads_and_are_closed(fake_peer):
    peer = fake_peer()
    run(ReferenceEngine("float32", threads=1), peer)
    assert peer.asked == [(SIZE, ComputeSetting(1, "cpu", "float32"))]
    assert not peer.open


def test_a_peer_asked_for_twice_runs_once(engine, fake_peer):
    assert len(run(engine, fake_peer(), fake_peer()).timings) == 2


def test_peers_are_asked_to_compute_where_the_engine_does(engine, fake_peer):
    engine.device, peer = "cuda:0", fake_peer()
    run(engine, peer)
    assert [setting.device for _, setting in peer.asked] == ["cuda:0"]


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_a_peer_that_cannot_use_a_gpu_is_not_compared(engine, name, mode):
    pytest.importorskip(name)
    engine.device = "cuda:7"  # the reference engine does not mind
    result = run(engine, peer(name), mode=mode)
    assert list(result.skipped) == [name]
    assert "cuda:7" in result.skipped[name] or "does not train" in result.skipped[name]
    assert len(result.timings) == 1


def test_without_peers_there_are_only_own_timings(engine):
    result = run(engine)
    assert [t.name for t in result.timings] == ["lstm-cli"]
    assert result.ratios == {}


def test_ratios_are_taken_within_rounds(engine, fake_peer, monkeypatch):
    # Ours and theirs slow down together: medians of the columns would say 4.
    seconds = np.array([[1.0, 3.0], [2.0, 8.0], [10.0, 30.0], [4.0, 12.0], [2.0, 6.0]])
    monkeypatch.setattr(measurement, "interleave", lambda *_: Samples(seconds, (2, 1)))
    result = run(engine, fake_peer("twin"))
    ours, theirs = result.timings
    assert result.ratios == {"twin": 3.0}
    assert (ours.median, ours.calls, theirs.median, theirs.calls) == (2.0, 10, 8.0, 5)
    assert ours.p95 == pytest.approx(8.8)  # between 4 and 10, at 0.8 of the way
    work = 4 * 5 * (2 + 5) * 2 * 12
    assert ours.gflops == pytest.approx(work / 2.0 / 1e9)
    assert theirs.gflops == pytest.approx(work / 8.0 / 1e9)


def test_progress_is_reported_before_each_size(engine):
    reports = []
    other = GridSize(3, 1, 2, 3)
    results = measure(
        [SIZE, other],
        one_lstm,
        engine,
        rounds=1,
        seconds=0.001,
        progress=lambda *news: reports.append(news),
    )
    assert reports == [(0, 2, SIZE), (1, 2, other)]
    assert [result.size for result in results] == [SIZE, other]


def test_the_size_does_not_overrule_the_layers_own_features(engine):
    layers = (RecurrentSpec(0, 7, (LSTM(hidden_size=3),)),)
    (result,) = measure([SIZE], lambda _: layers, engine, rounds=1, seconds=0.001)
    assert result.layers == "lstm 7 → 3"


@pytest.mark.parametrize(("mode", "guess"), [("trian", "train"), ("forwards", "forward")])
def test_an_unknown_mode_names_the_nearest(engine, mode, guess):
    with pytest.raises(UsageError, match=f"did you mean `{guess}`"):
        measure([SIZE], one_lstm, engine, mode=mode)


def test_no_rounds_are_refused(engine):
    with pytest.raises(UsageError, match="at least 1 round"):
        measure([SIZE], one_lstm, engine, rounds=0)


def test_weights_repeat_with_the_seed_and_hide_nothing():
    layers = (RecurrentSpec(0, 2, (LSTM(hidden_size=3, peepholes=True),) * 2),)
    first, again = (random_weights(layers, 5, "float32") for _ in range(2))
    other = random_weights(layers, 6, "float32")
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        assert len(np.unique(value)) == value.size
        assert not np.array_equal(value, other[name])


def test_a_difference_is_absolute_up_to_one_and_relative_above():
    assert output_agreement([0.5, 0.1], [0.5, 0.1003], 1e-3) == PeerAgreement(
        pytest.approx(3e-4), 1e-3, True
    )
    assert output_agreement([100.0], [100.05], 1e-3).difference == pytest.approx(5e-4)
    assert not output_agreement([0.0], [0.0011], 1e-3).ok


def result_with(**ratios):
    return SizeResult(SIZE, "", (Timing("lstm-cli", "", 1.0, 1.0, 1, 1.0),), ratios)


def test_the_geometric_mean_is_over_the_best_peers_of_the_sizes_that_have_one():
    results = [result_with(a=2.0, b=5.0), result_with(), result_with(a=9.0, b=0.5)]
    assert geometric_mean(results) == pytest.approx(1.0)
    assert geometric_mean([result_with(a=2.0), result_with(a=8.0)]) == pytest.approx(4.0)
    assert geometric_mean([result_with()]) is None


U = 4 * 5 * 5
"""Recurrent weights at that size."""


class Measured(ReferenceEngine):
    """Knows its machine, which is slow at first."""

    workspace_bytes = 77

    def __init__(self):
        super().__init__("float64")
        self.asked = []

    def measure_peaks(self, sizes=()):
        self.asked.append(tuple(sizes))
        count = len(self.asked)
        return MachinePeaks(
            1e-9 * count, tuple(ReadBandwidth(size, 1e-9 * count) for size in sizes)
        )


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
    limits = MachinePeaks(
        200.0, (ReadBandwidth(400, 500e-9), ReadBandwidth(100, 1000e-9), ReadBandwidth(7, 1.0))
    )
    shares = roofline_shares(timing(2.2, 50.0), {100: 3, 400: 1}, limits)
    assert (shares.peak_gflops, shares.of_peak, shares.read_bytes) == (200.0, 0.25, 700)
    assert shares.read_gbytes == pytest.approx(700 / 1.1 * 1e-9)
    assert shares.of_reads == pytest.approx(0.5)
    assert (shares.bound, shares.largest) == ("reads", shares.of_reads)
    large = roofline_shares(timing(2.2, 150.0), {100: 3, 400: 1}, limits)
    assert (large.bound, large.largest) == ("peak", 0.75)


def test_without_recurrent_weights_there_is_only_the_peak():
    found = roofline_shares(timing(1.0, 50.0), {}, MachinePeaks(200.0, (ReadBandwidth(100, 1.0),)))
    assert (found.of_peak, found.read_bytes, found.of_reads, found.bound) == (0.25, 0, 0.0, "peak")


def test_limits_are_measured_before_and_after_every_size_and_the_best_are_used():
    engine, other = Measured(), GridSize(3, 1, 2, 3)
    results = measure([SIZE, other], one_lstm, engine, rounds=1, seconds=0.001)
    first, second = 8 * U, 8 * 4 * 3 * 3
    assert engine.asked == [(first,), (first,), (second,), (second,)]
    for result, speed, bytes_ in zip(results, (2e-9, 4e-9), (4 * first, 2 * second), strict=True):
        assert result.shares.peak_gflops == 4e-9
        assert result.shares.of_peak == pytest.approx(result.lstm_cli_timing.gflops / 4e-9)
        assert result.shares.read_gbytes == pytest.approx(speed)
        assert result.shares.read_bytes == bytes_
        expected = bytes_ / (speed * 1e9) / result.lstm_cli_timing.median
        assert result.shares.of_reads == pytest.approx(expected)


def test_an_engine_that_does_not_know_its_machine_has_no_shares(engine):
    assert roofline_limits(engine, {8: 1}) == ()
    (result,) = measure([SIZE], one_lstm, engine, rounds=1, seconds=0.001)
    assert result.shares is None
