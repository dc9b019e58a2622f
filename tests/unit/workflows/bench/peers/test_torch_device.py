"""The cuda engine on the host device and PyTorch: results compared, then timed by events."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cuda_host import build
from cuda_host.device import HostDevice

from lstm_cli.cells import GRU, RNN
from lstm_cli.engines.cuda.engine import CudaEngine
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.types import DenseSpec, RecurrentSpec
from lstm_cli.workflows.bench import (
    GridSize,
    explain,
    machine,
    measure,
    one_lstm,
    peer,
)
from lstm_cli.workflows.bench.workload import peer_setting

if build.COMPILER is None:
    pytest.skip("there is no C++ compiler", allow_module_level=True)

SIZE = GridSize(hidden=6, batch=5, steps=7, features=3)
GPU_PEER = pytest.importorskip("torch") and peer("torch")


def run(dtype, layers_of=one_lstm, **options):
    engine = CudaEngine(dtype, HostDevice())
    how = {"rounds": 1, "seconds": 0.001, **options}
    (result,) = measure([SIZE], layers_of, engine, [GPU_PEER], **how)
    return result


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_forward_passes_agree_with_pytorch_in_every_dtype(dtype, ragged):
    result = run(dtype, ragged=ragged)
    assert result.skipped == {}
    assert result.agreements["torch"].ok, result.agreements
    assert result.agreements["torch"].difference > 0
    assert result.ratios["torch"] > 0
    assert (result.padded is not None) is ragged


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("dtype", [name for name in PRECISIONS if name != "float16"])
def test_training_steps_agree_with_pytorch(dtype, ragged, needs_pytorch_in):
    # PyTorch has no such float16 on a CPU.
    needs_pytorch_in(dtype)
    result = run(dtype, mode="train", ragged=ragged)
    assert result.skipped == {}
    assert result.agreements["torch"].ok, result.agreements
    assert result.ratios["torch"] > 0


def test_whole_stacks_are_compared():
    layers = (
        RecurrentSpec(0, 3, (GRU(hidden_size=6),) * 2),
        RecurrentSpec(1, 12, (RNN(hidden_size=5),), return_sequences=False),
        DenseSpec(2, 5, 4, None),
    )
    for mode in ("forward", "train"):
        assert run("float32", lambda _: layers, mode=mode).agreements["torch"].ok


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_mistake_is_detected_in_every_dtype(dtype, monkeypatch):
    original = CudaEngine.layer

    def swapped(self, spec, weights):
        wrong = dict(weights)
        name = "layers.0.weight_hh"
        i, f, g, o = np.split(np.asarray(self.to_host(weights[name])), 4)
        wrong[name] = np.concatenate([f, i, g, o])
        return original(self, spec, wrong)

    monkeypatch.setattr(CudaEngine, "layer", swapped)
    result = run(dtype)
    assert not result.agreements["torch"].ok
    assert result.ratios == {}


def test_inputs_and_outputs_stay_on_the_device():
    """Calls that are timed move nothing over."""
    device, moved = HostDevice(), []
    engine = CudaEngine("float32", device)
    upload, download = device.upload, device.download
    device.upload = lambda a: moved.append(np.size(a)) or upload(a)
    device.download = lambda a: moved.append(a.size) or download(a)
    from lstm_cli.workflows.bench.workload import ForwardWorkload

    ours = ForwardWorkload(one_lstm(SIZE), SIZE, engine, 0).lstm_cli_candidate()
    moved.clear()
    ours.call()
    assert sum(moved) < 5 * SIZE.batch + SIZE.steps, "more than a batch's lengths was moved"
    ours.compute()
    assert SIZE.batch * SIZE.steps * SIZE.hidden in moved


def test_the_machine_names_the_device_and_where_peers_compute():
    engine = CudaEngine("tf32", HostDevice())
    assert machine(None, [GPU_PEER], engine).accelerator == "host"
    setting = peer_setting(engine)
    assert (setting.device, setting.dtype) == ("cpu", "tf32")


def test_a_step_is_reported_with_the_modeled_floor():
    engine = CudaEngine("tf32", HostDevice())
    (result,) = results = measure([SIZE], one_lstm, engine, rounds=1, seconds=0.001)
    (found,) = explain(results, one_lstm, engine)
    assert found.step == pytest.approx(result.lstm_cli_timing.median / SIZE.steps)
    for layer in found.layers:
        assert layer.layer == "0 lstm"
        assert layer.explanation.way
        assert max(map(len, layer.explanation.reasons), default=0) <= 76
        json.dumps(dict(layer.explanation.numbers))
