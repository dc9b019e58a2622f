"""The protocol, with a clock that only the contestants move."""

import gc

import numpy as np
import pytest

from lstm_cli.bench import protocol
from lstm_cli.bench.protocol import interleave


class Clock:
    """Stands still but for what contestants and pauses add.

    In a pause, threads of this process may go on working: `spinning` pauses long.
    """

    def __init__(self):
        self.now, self.worked, self.spinning, self.log = 0.0, 0.0, 0, []

    def contestant(self, name, *costs):
        """A call that takes `costs` one after the other, the last of them for ever."""
        left = list(costs)

        def call():
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call

    def sleep(self, seconds):
        self.log.append("pause")
        self.now += seconds
        if self.spinning:
            self.spinning -= 1
            self.worked += 2 * seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(protocol, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(protocol, "process_time", lambda: clock.worked)
    monkeypatch.setattr(protocol, "sleep", clock.sleep)
    monkeypatch.setattr(protocol, "LONGEST_SETTLING", 0.199)
    monkeypatch.setattr(protocol, "SAMPLE_SECONDS", 1e-3)
    monkeypatch.setattr(protocol, "SETTLE_SECONDS", 2e-3)
    return clock


def test_rounds_are_interleaved_and_the_order_rotates(clock):
    calls = [clock.contestant(name, 1.0) for name in "ABC"]
    samples = interleave(calls, rounds=4, seconds=0.1)
    warm_up, turns = clock.log[:6], clock.log[6:]
    assert warm_up == list("AABBCC")
    order = "".join(turns).replace("pause", ".")
    # A pause, a call that is not timed, and the timed one.
    assert order == ".AA.BB.CC" + ".BB.CC.AA" + ".CC.AA.BB" + ".AA.BB.CC"
    assert samples.seconds.shape == (4, 3)


@pytest.mark.parametrize(("spinning", "pauses"), [(0, 1), (3, 4), (1000, 100)])
def test_a_turn_begins_when_nobody_works_any_more_or_never_will_stop(clock, spinning, pauses):
    clock.spinning = spinning
    samples = interleave([clock.contestant("A", 1.0)], rounds=1, seconds=0.1)
    assert clock.log == ["A", "A", *["pause"] * pauses, "A", "A"]
    np.testing.assert_allclose(samples.seconds, 1.0)


def test_a_sample_belongs_to_its_contestant_whatever_its_turn(clock):
    calls = [clock.contestant(name, cost) for name, cost in (("A", 1.0), ("B", 3.0), ("C", 7.0))]
    samples = interleave(calls, rounds=5, seconds=0.1)
    np.testing.assert_allclose(samples.seconds, np.tile([1.0, 3.0, 7.0], (5, 1)))


def test_short_calls_are_repeated_within_a_sample_and_reported_by_call(clock):
    samples = interleave([clock.contestant("A", 0.0003)], rounds=2, seconds=0.1)
    assert samples.repeats == (4,)
    np.testing.assert_allclose(samples.seconds, 0.0003)
    assert clock.log[2:] == (["pause"] + ["A"] * 5) * 2


def test_the_untimed_call_is_not_in_the_sample(clock):
    calls = [clock.contestant("A", 1.0, 1.0, 50.0, 1.0)]  # warm-up takes two
    assert interleave(calls, rounds=1, seconds=0.1).seconds == pytest.approx(1.0)


def test_warm_up_goes_on_until_calls_agree(clock):
    calls = [clock.contestant("A", 9.0, 4.0, 2.0, 1.0, 1.1, 1.0)]
    samples = interleave(calls, rounds=1, seconds=100.0)
    assert clock.log.index("pause") == 5
    assert samples.seconds == pytest.approx(1.0)


def test_warm_up_ends_though_calls_never_agree(clock):
    wild = [clock.contestant("A", *([1.0, 3.0] * 200))]
    interleave(wild, rounds=1, seconds=1e9)
    assert clock.log.index("pause") == protocol.WARM_UP_CALLS + 1


def test_warm_up_ends_when_the_time_is_up(clock):
    wild = [clock.contestant("A", *([1.0, 3.0] * 200))]
    interleave(wild, rounds=1, seconds=5.0)
    assert clock.log.index("pause") == 4


@pytest.mark.parametrize(("cost", "count"), [(1.0, 5), (0.1, 9), (1e-3, 50)])
def test_as_many_rounds_as_the_slowest_can_afford_within_bounds(clock, cost, count):
    calls = [clock.contestant("A", cost), clock.contestant("B", cost / 2)]
    assert len(interleave(calls, None, seconds=2.0).seconds) == count


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_off_while_timing_and_then_as_it_was(enabled):
    seen = []
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        interleave([lambda: seen.append(gc.isenabled())], rounds=2, seconds=0.01)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert seen
    assert not any(seen)


def test_garbage_collection_comes_back_after_a_failure():
    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        interleave([fails], rounds=1, seconds=0.01)
    assert gc.isenabled()
