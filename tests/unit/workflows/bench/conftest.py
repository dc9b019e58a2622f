"""Engines and peers for the tests of the benchmarks: quick fakes that record their calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.network.network import Network
from lstm_cli.workflows.bench import (
    ComputeSetting,
    GridSize,
    PeerNetwork,
    TrainableNetwork,
    TrainingTask,
    Unsupported,
)
from lstm_cli.workflows.bench.workload import LstmCliTrainable


@pytest.fixture
def needs_pytorch_in() -> Callable[[str], None]:
    """Skips where PyTorch's oneDNN cannot train an LSTM of a dtype on this processor."""

    def check(dtype: str) -> None:
        torch = pytest.importorskip("torch")
        if dtype != "bfloat16":
            return
        with torch.autocast("cpu", torch.bfloat16):
            try:
                torch.nn.LSTM(3, 4)(torch.ones(2, 1, 3))
            except RuntimeError as error:
                pytest.skip(f"PyTorch trains no LSTM in bfloat16 here: {error}")

    return check


class FakeTrainable:
    """Learns with the reference engine; `twists` spoil its loss, gradients or weights."""

    def __init__(self, peer: FakePeer, task: TrainingTask) -> None:
        dtype = next(iter(task.weights.values())).dtype.name
        self.peer, self.inner = peer, LstmCliTrainable(task, ReferenceEngine(dtype))
        self.clock = self.inner.clock

    def to_device(self, x: Any, targets: Any) -> Any:
        return x, targets

    def step(self, x: Any, targets: Any) -> Any:
        self.peer.calls.append(self.peer.name)
        return self._spoilt("loss", self.inner.step(x, targets))

    def gradients(self) -> Any:
        return self._spoilt("gradients", dict(self.inner.gradients()))

    def weights(self) -> Any:
        return self._spoilt("weights", dict(self.inner.weights()))

    def _spoilt(self, what: str, value: Any) -> Any:
        twists = self.peer.twist
        return twists[what](value) if isinstance(twists, dict) and what in twists else value


class FakePeer:
    """Computes with the reference engine, then lets `twist` spoil the outputs.

    For training `twist` is a dict: what spoils the ``loss``, the ``gradients``, the ``weights``.
    """

    version = "0.0"

    def __init__(self, name: str = "fake", twist: Any = None, refuses: str | None = None) -> None:
        self.name, self.title, self.versions = name, f"Fake {name}", {name: self.version}
        self.twist, self.refuses = twist, refuses
        self.calls: list[str] = []
        self.asked: list[tuple[GridSize, ComputeSetting]] = []
        self.open = False

    @contextmanager
    def prepare(
        self,
        layers: Any,
        weights: Mapping[str, Any],
        size: GridSize,
        setting: ComputeSetting,
        lengths: Any = None,
    ) -> Iterator[PeerNetwork]:
        if self.refuses:
            raise Unsupported(self.refuses)
        self.asked.append((size, setting))
        dtype = next(iter(weights.values())).dtype.name
        net = Network(layers, weights, ReferenceEngine(dtype))

        def run(x: Any) -> Any:
            self.calls.append(self.name)
            y = net.run(x, lengths).outputs
            return y if self.twist is None else self.twist(y)

        self.open = True
        try:
            yield PeerNetwork(run)
        finally:
            self.open = False

    @contextmanager
    def prepare_training(
        self, task: TrainingTask, size: GridSize, setting: ComputeSetting
    ) -> Iterator[TrainableNetwork]:
        if self.refuses:
            raise Unsupported(self.refuses)
        self.asked.append((size, setting))
        self.open = True
        try:
            yield FakeTrainable(self, task)
        finally:
            self.open = False


@pytest.fixture
def fake_peer() -> type[FakePeer]:
    return FakePeer


@pytest.fixture
def engine() -> ReferenceEngine:
    return ReferenceEngine("float64")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short samples and no pauses: these tests do not look at the clock."""
    monkeypatch.setattr("lstm_cli.workflows.bench.protocol.LONGEST_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("lstm_cli.workflows.bench.protocol.SAMPLE_SECONDS", 1e-6)
