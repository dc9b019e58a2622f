"""``run`` and ``train`` on the cuda engine, on the host device: timings, overlap, memory limits."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from importlib import import_module

import h5py
import numpy as np
import pytest

from lstm_cli.engines import selection
from lstm_cli.engines.selection import EngineStatus
from lstm_cli.errors import LstmCliError

CONFIG = """\
model:
  input_size: 3
  layers:
    - {type: lstm, hidden_size: 5, stateful: STATEFUL}
    - {type: dense, units: 2}
"""


@pytest.fixture
def gpu(monkeypatch):
    """Lets the cuda engine compute on a host device with this many bytes of memory."""
    from cuda_host.device import HostDevice

    from lstm_cli.engines.cuda.engine import CudaEngine

    def make(memory=1 << 30, kind=HostDevice):
        device = kind(memory=memory)
        status = EngineStatus("cuda", "cuda", True, "host", ("float32",))
        monkeypatch.setitem(selection._STATUSES, "cuda", lambda: status)
        monkeypatch.setattr(selection, "_ordinal", lambda *_: 0)
        monkeypatch.setattr(selection, "_cuda", lambda dtype, _: CudaEngine(dtype, device))
        return device

    return make


@pytest.fixture
def files(tmp_path):
    """Configs and data."""
    rng = np.random.default_rng(3)
    (tmp_path / "net.yaml").write_text(CONFIG.replace("STATEFUL", "false"))
    (tmp_path / "carry.yaml").write_text(CONFIG.replace("STATEFUL", "true"))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["inputs"] = rng.standard_normal((48, 40, 3)).astype(np.float32)
        file["lengths"] = rng.integers(0, 41, 48)
    return tmp_path


def outputs(path):
    with h5py.File(path) as file:
        return file["outputs"][()]


def test_rows_and_results(lstm, gpu, files):
    device = gpu()
    arguments = (files / "net.yaml", files / "x.h5", "--batch-size", "16", "--json")
    result = lstm("run", *arguments, "--device", "cuda", "--output", files / "gpu.h5")
    assert result.code == 0, result.err
    reference = lstm("run", *arguments, "--engine", "reference", "--output", files / "cpu.h5")
    assert reference.code == 0
    assert np.allclose(outputs(files / "gpu.h5"), outputs(files / "cpu.h5"), atol=1e-6)
    rows = {row["name"]: row for row in result.json["timings"]}
    assert {"read", "device to host", "layer 0 lstm", "write", "all"} <= set(rows)
    assert rows["device to host"]["calls"] == 1
    assert rows["beside the next batch"]["calls"] == 2
    copies = [rows[name]["calls"] for name in rows if name.startswith("host to device")]
    assert (sum(copies), device.uploads) == (3, 3)
    whole = sum(row["seconds"] for row in result.json["timings"] if not row["part"])
    assert whole == pytest.approx(2 * rows["all"]["seconds"], rel=1e-6)
    assert "host" in lstm("run", *arguments[:-1], "--device", "cuda").out.splitlines()[2]


def test_the_next_batch_is_sent_before_this_one_computes(gpu):
    from time import sleep
    from types import SimpleNamespace

    from lstm_cli.data import Batch
    from lstm_cli.engines.cuda.runtime.memory import DeviceFeed
    from lstm_cli.workflows.pipeline import ForwardPipeline
    from lstm_cli.workflows.timing import Stopwatch

    engine = SimpleNamespace(feed=lambda: DeviceFeed(gpu()))
    model = SimpleNamespace(network=SimpleNamespace(engine=engine), stateful=False)
    passes = ForwardPipeline(model, Stopwatch(), halve=False)
    xs = [np.full((2, 3, 1), k, np.float32) for k in range(4)]
    batches = []

    def read(room):
        for x in xs:
            own = room(x.shape, x.dtype)
            own[:] = x
            yield Batch(own, None, None, 0, 0, 0)

    for batch, sent in passes.batches(read):
        batches.append((batch.x[0, 0, 0], sent is not None))
        if sent is not None:
            assert np.array_equal(sent.array.values, batch.x)
        sleep(0.1)
    assert batches == [(k, True) for k in range(4)]


def test_results_come_back_while_the_next_batch_computes(lstm, gpu, files):
    from cuda_host.device import HostDevice, HostEvent

    class LateDevice(HostDevice):
        """Copies to the host only when a wait requires it, as late as a GPU may."""

        def copy_to_host_async(self, array, target):
            start, end = super().copy_to_host_async(array, target)
            values, target[:] = target.copy(), 0xFF
            self.log.append((0, "late", target.nbytes))
            device = self

            class DeferredEvent(HostEvent):
                def wait(self):
                    device.log.append((0, "waited", target.nbytes))
                    for other, copied in device.pending:
                        other[:] = copied
                    device.pending.clear()

                def seconds_since(self, earlier):
                    self.wait()
                    return self.at - earlier.at

            self.pending.append((target, values))
            return start, DeferredEvent(end.at)

        def __init__(self, **options):
            super().__init__(**options)
            self.pending = []

    device = gpu(kind=LateDevice)
    arguments = (files / "net.yaml", files / "x.h5", "--batch-size", "16")
    result = lstm("run", *arguments, "--device", "cuda", "--output", files / "gpu.h5")
    assert result.code == 0, result.err
    reference = lstm("run", *arguments, "--engine", "reference", "--output", files / "cpu.h5")
    assert reference.code == 0
    assert np.allclose(outputs(files / "gpu.h5"), outputs(files / "cpu.h5"), atol=1e-6)
    names = [name for _, name, _ in device.log]
    first = names.index("waited")
    late = [k for k, name in enumerate(names) if name == "late"]
    assert sum(k < first for k in late) == 6, "the second batch has started by then"


def test_unused_copies_are_waited_for(gpu):
    from cuda_host.device import HostEvent

    from lstm_cli.engines.cuda.runtime.memory import DeviceDownload, DeviceFeed

    waits = []

    class WatchedEvent(HostEvent):
        def wait(self):
            waits.append(self.at)

    device = gpu()
    device.record_event = lambda: WatchedEvent(0.0)
    DeviceDownload(device, [device.zeros((2, 3), "float32")])
    assert len(waits) == 1, "the download is deleted at once"
    download = DeviceDownload(device, [device.zeros((2, 3), "float32")])
    download.wait()
    del download
    assert len(waits) == 2
    feed = DeviceFeed(device)
    feed.upload_allocated(feed.allocate((2, 3), "float32")).discard()
    assert len(waits) == 3


def test_memory_that_runs_out(lstm, gpu, files):
    whole = gpu()
    arguments = (files / "net.yaml", files / "x.h5", "--device", "cuda")
    lstm("run", *arguments, "--batch-size", "48", "--output", files / "whole.h5")
    gpu(memory=whole.store.peak * 2 // 3)
    refused = lstm("run", *arguments, "--batch-size", "48")
    assert (refused.code, refused.out.count("GFLOP")) == (5, 0)
    assert "a batch of 48 sequences of up to 40 steps needs" in refused.err
    fits = int(refused.err.partition("hint: --batch-size ")[2].partition(",")[0])
    assert 8 <= fits <= 24
    gpu(memory=whole.store.peak * 2 // 3)
    assert lstm("run", *arguments, "--batch-size", str(fits)).code == 0
    gpu(memory=whole.store.peak * 2 // 3)
    auto = lstm("run", *arguments, "--batch-size", "auto", "--output", files / "halves.h5")
    assert auto.code == 0, auto.err
    assert "computed at most" in auto.err
    assert np.array_equal(outputs(files / "halves.h5"), outputs(files / "whole.h5"))


def test_a_stateful_network_is_not_divided(lstm, gpu, files):
    gpu(memory=20_000)
    arguments = (files / "carry.yaml", files / "x.h5", "--device", "cuda", "--batch-size", "auto")
    refused = lstm("run", *arguments)
    assert refused.code == 5
    assert "stateful" in refused.err


def test_training_whose_memory_runs_out(lstm, gpu, files):
    text = (files / "net.yaml").read_text() + "train: {loss: mse, batch_size: 16, epochs: 1}\n"
    (files / "train.yaml").write_text(text)
    with h5py.File(files / "x.h5", "a") as file:
        file["targets"] = np.zeros((48, 40, 2), np.float32)
    gpu(memory=30_000)
    arguments = (
        files / "train.yaml",
        files / "x.h5",
        "--device",
        "cuda",
        "--output",
        files / "run",
    )
    refused = lstm("train", *arguments)
    assert refused.code == 5, refused.err
    assert "hint: --batch-size 8 needs about half" in refused.err


def test_training_that_fails_ends_its_reader(lstm, gpu, lessons, monkeypatch):
    """The thread is ended by its owner, not by a finalizer, however long the error is kept."""
    errors, main = [], import_module("lstm_cli.cli.main")

    def full(*_):
        raise LstmCliError("no space left on device")

    monkeypatch.setattr("lstm_cli.workflows.train.training_folder.TrainingFolder.save", full)
    monkeypatch.setattr(main, "report_failure", lambda error, args: errors.append(error) or 1)
    gpu()
    arguments = (lessons / "train.yaml", lessons / "x.h5", "--output", lessons / "run")
    assert lstm("train", *arguments, "--device", "cuda").code == 1
    assert errors[0].__traceback__ is not None
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("ThreadPoolExecutor")]


@pytest.fixture
def lessons(files):
    """A config to train, with 48 sequences and targets."""
    text = (files / "net.yaml").read_text().replace("units: 2", "units: 2, activation: tanh")
    text += "train: {loss: mse, batch_size: 16, epochs: 2, normalize: true}\n"
    (files / "train.yaml").write_text(text)
    with h5py.File(files / "x.h5", "a") as file:
        file["targets"] = np.random.default_rng(1).uniform(-1, 1, (48, 40, 2)).astype(np.float32)
    return files


def test_the_next_batch_is_sent_while_this_one_is_learned_from(lstm, gpu, lessons, monkeypatch):
    from lstm_cli.workflows import pipeline

    def run(name, *more):
        arguments = (lessons / "train.yaml", lessons / "x.h5", "--output", lessons / name, *more)
        result = lstm("train", *arguments)
        assert result.code == 0, result.err
        return (lessons / name / "metrics.jsonl").read_text(), result

    device = gpu()
    ahead, _ = run("ahead", "--device", "cuda")
    assert device.uploads == 6
    monkeypatch.setattr(pipeline, "PrefetchingSource", lambda source, feed: nullcontext(source))
    alone, _ = run("alone", "--device", "cuda")
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in (ahead, alone)]
    assert losses[0] == losses[1]
    cpu, _ = run("cpu", "--engine", "reference")
    reference = [json.loads(line)["loss"] for line in cpu.splitlines()]
    assert losses[0] == pytest.approx(reference, rel=1e-4)


def test_raw_data_go_to_the_device_in_their_own_type(lstm, gpu, lessons):
    """1.6e9 and a deviation of 5: float32 has a number in 128, so nothing would be left."""
    mean, scale = np.array([1.6e9, -3.0, 0.0]), np.array([5.0, 0.25, 1.0])
    with h5py.File(lessons / "x.h5", "a") as file:
        x = mean + scale * file["inputs"][()].astype(float)
        del file["inputs"]
        file["inputs"] = x
    arguments = (lessons / "train.yaml", lessons / "x.h5", "--set", "train.truncate=11")
    losses = []
    for place in ("cuda", "cpu"):
        gpu()
        more = ("--device", place, "--output", lessons / place, "--json")
        result = lstm("train", *arguments[:2], *more)
        assert result.code == 0, result.err
        truncated = lstm(
            "train", *arguments, *more[:2], "--output", lessons / f"{place} cut", "--json"
        )
        losses.append((result.json["metrics"]["loss"], truncated.json["metrics"]["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    run = ("run", lessons / "cpu" / "model.safetensors", lessons / "x.h5", "--batch-size", "16")
    for place in ("cuda", "cpu"):
        assert lstm(*run, "--device", place, "--output", lessons / f"{place}.h5").code == 0
    np.testing.assert_allclose(
        outputs(lessons / "cuda.h5"), outputs(lessons / "cpu.h5"), rtol=0, atol=1e-6
    )
    assert np.ptp(outputs(lessons / "cpu.h5")) > 1e-2


def test_data_that_are_not_finite_are_named_though_they_are_on_the_device(lstm, gpu, lessons):
    gpu()
    with h5py.File(lessons / "x.h5", "a") as file:
        file["lengths"][17] = 40
        file["inputs"][17, 5, 2] = np.nan
    text = (lessons / "train.yaml").read_text().replace(", normalize: true", "")
    (lessons / "train.yaml").write_text(text)
    arguments = (lessons / "train.yaml", lessons / "x.h5", "--device", "cuda")
    refused = lstm("train", *arguments, "--output", lessons / "run")
    assert refused.code == 3
    assert "sequence 17, step 5, feature 2" in refused.err


def test_weights_larger_than_the_device(lstm, gpu, files):
    gpu(memory=1000)
    refused = lstm("run", files / "net.yaml", files / "x.h5", "--device", "cuda")
    assert refused.code == 5
    assert "this network's weights alone needs" in refused.err


def test_gpus_are_listed(lstm, monkeypatch):
    from lstm_cli.engines.cuda.runtime.status import GpuStatus

    gpus = (
        GpuStatus("cuda:0", "NVIDIA H200", "9.0", 150 << 30, 140 << 30, True),
        GpuStatus("cuda:1", "Tesla T4", "7.5", 16 << 30, None, False, "below 8.0"),
    )
    status = EngineStatus("cuda", "cuda", True, "NVIDIA H200", ("tf32",), gpus=gpus)
    monkeypatch.setitem(selection._STATUSES, "cuda", lambda: status)
    listed = lstm("devices", "--json").json["engines"][0]["gpus"]
    assert listed[0]["memory_free"] == 140 << 30
    shown = lstm("devices").out
    assert "Tesla T4" in shown
    assert max(len(line) for line in shown.splitlines() if "kernels in" not in line) <= 100
