"""Times are taken in the queue of the device that works, and turns do not overlap."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from lstm_cli.bench.peers import ComputeSetting
from lstm_cli.bench.peers.torch_device import TorchClock, TorchDevice
from lstm_cli.bench.protocol import DeviceClock, interleave


class Queue:
    """A device that works behind what was started: each piece of work takes its time."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def work(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds

        return call

    def mark(self):
        self.log.append("mark")
        moment = SimpleNamespace(at=self.now)
        moment.seconds_since = lambda earlier: moment.at - earlier.at
        return moment

    def wait(self):
        self.log.append("wait")


def test_marks_stand_around_the_calls_alone():
    device = Queue()
    clock = DeviceClock(device)
    assert clock.seconds(device.work("A", 0.5), 3) == pytest.approx(1.5)
    assert device.log == ["mark", "A", "A", "A", "mark"]


def test_a_device_is_waited_for_before_a_turn_and_short_calls_are_repeated():
    ours, theirs = Queue(), Queue()
    calls = [ours.work("A", 1e-3), theirs.work("B", 3e-3)]
    samples = interleave(calls, 3, 0.1, [DeviceClock(ours), DeviceClock(theirs)])
    assert samples.seconds[:, 0] == pytest.approx(1e-3)
    assert samples.seconds[:, 1] == pytest.approx(3e-3)
    assert samples.repeats == (4, 2)
    turn = ["wait", "A", "mark", "A", "A", "A", "A", "mark"]
    assert ours.log[-24:] == turn * 3


class Cuda:
    """What `TorchClock` asks of ``torch.cuda``; events give milliseconds."""

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
    assert not place.plain
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
