"""The timing protocol, against a clock that only the candidates move."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from lstm_cli.workflows.bench import protocol
from lstm_cli.workflows.bench.peers import ComputeSetting
from lstm_cli.workflows.bench.peers.torch_device import TorchClock, TorchDevice
from lstm_cli.workflows.bench.protocol import DeviceClock, interleave


class Clock:
    """Stands still but for what candidates and pauses add.

    In a pause, threads of this process may go on working: `spinning` pauses long.
    """

    def __init__(self):
        self.now, self.worked, self.spinning, self.log = 0.0, 0.0, 0, []

    def candidate(self, name, *costs):
        """A call that takes `costs` one after the other, the last of them for ever."""
        costs_left = list(costs)

        def call():
            self.log.append(name)
            self.now += costs_left.pop(0) if len(costs_left) > 1 else costs_left[0]

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
    monkeypatch.setattr(protocol, "LONGEST_SETTLE_SECONDS", 0.199)
    monkeypatch.setattr(protocol, "SAMPLE_SECONDS", 1e-3)
    monkeypatch.setattr(protocol, "SETTLE_SECONDS", 2e-3)
    return clock


def test_rounds_are_interleaved_and_the_order_rotates(clock):
    calls = [clock.candidate(name, 1.0) for name in "ABC"]
    samples = interleave(calls, rounds=4, seconds=0.1)
    warm_up, turns = clock.log[:6], clock.log[6:]
    assert warm_up == list("AABBCC")
    order = "".join(turns).replace("pause", ".")
    # A pause, a call that is not timed, and the timed one.
    assert order == ".AA.BB.CC" + ".BB.CC.AA" + ".CC.AA.BB" + ".AA.BB.CC"
    assert samples.seconds.shape == (4, 3)


@pytest.mark.parametrize(("spinning", "pauses"), [(0, 1), (3, 4), (1000, 100)])
def test_a_turn_begins_when_threads_are_idle_or_after_the_longest_pause(clock, spinning, pauses):
    clock.spinning = spinning
    samples = interleave([clock.candidate("A", 1.0)], rounds=1, seconds=0.1)
    assert clock.log == ["A", "A", *["pause"] * pauses, "A", "A"]
    np.testing.assert_allclose(samples.seconds, 1.0)


def test_a_sample_belongs_to_its_candidate_in_any_order(clock):
    calls = [clock.candidate(name, cost) for name, cost in (("A", 1.0), ("B", 3.0), ("C", 7.0))]
    samples = interleave(calls, rounds=5, seconds=0.1)
    np.testing.assert_allclose(samples.seconds, np.tile([1.0, 3.0, 7.0], (5, 1)))


def test_short_calls_are_repeated_within_a_sample_and_reported_by_call(clock):
    samples = interleave([clock.candidate("A", 0.0003)], rounds=2, seconds=0.1)
    assert samples.repeats == (4,)
    np.testing.assert_allclose(samples.seconds, 0.0003)
    assert clock.log[2:] == (["pause"] + ["A"] * 5) * 2


def test_the_untimed_call_is_not_in_the_sample(clock):
    calls = [clock.candidate("A", 1.0, 1.0, 50.0, 1.0)]  # warm-up takes two
    assert interleave(calls, rounds=1, seconds=0.1).seconds == pytest.approx(1.0)


def test_warm_up_goes_on_until_calls_agree(clock):
    calls = [clock.candidate("A", 9.0, 4.0, 2.0, 1.0, 1.1, 1.0)]
    samples = interleave(calls, rounds=1, seconds=100.0)
    assert clock.log.index("pause") == 5
    assert samples.seconds == pytest.approx(1.0)


def test_warm_up_ends_though_calls_never_agree(clock):
    wild = [clock.candidate("A", *([1.0, 3.0] * 200))]
    interleave(wild, rounds=1, seconds=1e9)
    assert clock.log.index("pause") == protocol.WARM_UP_CALLS + 1


def test_warm_up_ends_when_the_time_is_up(clock):
    wild = [clock.candidate("A", *([1.0, 3.0] * 200))]
    interleave(wild, rounds=1, seconds=5.0)
    assert clock.log.index("pause") == 4


@pytest.mark.parametrize(("cost", "count"), [(1.0, 5), (0.1, 9), (1e-3, 50)])
def test_as_many_rounds_as_the_slowest_can_afford_within_bounds(clock, cost, count):
    calls = [clock.candidate("A", cost), clock.candidate("B", cost / 2)]
    assert len(interleave(calls, None, seconds=2.0).seconds) == count


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_off_while_timing_and_then_as_it_was(enabled):
    states = []
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        interleave([lambda: states.append(gc.isenabled())], rounds=2, seconds=0.01)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert states
    assert not any(states)


def test_garbage_collection_comes_back_after_a_failure():
    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        interleave([fails], rounds=1, seconds=0.01)
    assert gc.isenabled()


class Queue:
    """A device that works behind what was started: each piece of work takes its time."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def work(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds

        return call

    def record_event(self):
        self.log.append("mark")
        moment = SimpleNamespace(at=self.now)
        moment.seconds_since = lambda earlier: moment.at - earlier.at
        return moment

    def wait(self):
        self.log.append("wait")


def test_events_enclose_only_the_calls():
    device = Queue()
    clock = DeviceClock(device)
    assert clock.seconds(device.work("A", 0.5), 3) == pytest.approx(1.5)
    assert device.log == ["mark", "A", "A", "A", "mark"]


def test_a_turn_waits_for_the_device_and_short_calls_are_repeated():
    ours, theirs = Queue(), Queue()
    calls = [ours.work("A", 1e-3), theirs.work("B", 3e-3)]
    samples = interleave(calls, 3, 0.1, [DeviceClock(ours), DeviceClock(theirs)])
    assert samples.seconds[:, 0] == pytest.approx(1e-3)
    assert samples.seconds[:, 1] == pytest.approx(3e-3)
    assert samples.repeats == (4, 2)
    turn = ["wait", "A", "mark", "A", "A", "A", "A", "mark"]
    assert ours.log[-24:] == turn * 3


class Cuda:
    """The part of ``torch.cuda`` that `TorchClock` uses; events give milliseconds."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def synchronize(self, device):
        self.log.append(f"synchronize {device}")

    def current_stream(self, device):
        return f"stream of {device}"

    def Event(self, *, enable_timing):  # noqa: N802 - PyTorch's name
        assert enable_timing
        event = SimpleNamespace(at=None)

        def record(stream):
            assert stream == "stream of cuda:1"
            self.log.append("event")
            event.at = self.now

        def elapsed_time(later):
            assert "waited" in self.log, "the event may not have happened yet"
            return (later.at - event.at) * 1e3

        event.record, event.elapsed_time = record, elapsed_time
        event.synchronize = lambda: self.log.append("waited")
        return event


def test_pytorch_is_timed_by_its_own_events():
    cuda = Cuda()
    clock = TorchClock(SimpleNamespace(cuda=cuda), "cuda:1")

    def call():
        cuda.log.append("call")
        cuda.now += 0.25

    clock.settle()
    assert clock.seconds(call, 2) == pytest.approx(0.5)
    assert cuda.log == ["synchronize cuda:1", "event", "call", "call", "event", "waited"]


@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16"])
def test_on_a_gpu_pytorch_is_set_for_the_dtype_and_then_put_back(dtype):
    log = []

    @contextmanager
    def device(which):
        log.append(f"enter {which}")
        yield
        log.append(f"leave {which}")

    cudnn, matmul = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=False)
    torch = SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: True, device=device, empty_cache=lambda: log.append("emptied")
        ),
        backends=SimpleNamespace(cudnn=cudnn, cuda=SimpleNamespace(matmul=matmul)),
        device=lambda name: SimpleNamespace(type=name.partition(":")[0], __str__=name),
        get_num_threads=lambda: 5,
        set_num_threads=log.append,
        float32="float32",
        float64="float64",
        float16="float16",
    )
    setting = ComputeSetting(3, "cuda:1", dtype)
    place = TorchDevice.of(torch, setting)
    assert not place.uses_numpy_memory
    assert isinstance(place.clock, TorchClock)
    with place.settings(setting):
        seen = cudnn.allow_tf32, matmul.allow_tf32
    expected = {"float32": (False, False), "tf32": (True, True), "float16": (True, False)}
    assert seen == expected[dtype]
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, False)
    assert log[0] == 3
    assert log[1].startswith("enter")
    assert log[2] == "emptied"
    assert log[3].startswith("leave")
    assert log[4] == 5
