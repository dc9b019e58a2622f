"""What the jit engine says it chose is what it does."""

import numpy as np
import pytest

from lstm_cli.cells import GRU, LSTM, RNN
from lstm_cli.engines.explanation import ExplainingEngine
from lstm_cli.engines.selection import engine_statuses
from lstm_cli.engines.types import RecurrentSpec

if not any(status.engine == "jit" and status.usable for status in engine_statuses()):
    pytest.skip("no jit engine here", allow_module_level=True)

CASES = [(32, 1, 100, 2), (100, 32, 100, 2), (512, 8, 3, 2), (400, 64, 3, 2), (100, 32, 100, 1)]


def layer(H, kind=LSTM):
    return RecurrentSpec(0, 6, (kind(hidden_size=H),))


@pytest.mark.parametrize(("H", "N", "T", "threads"), CASES)
def test_threads_and_groups_are_those_of_a_pass(H, N, T, threads, monkeypatch):
    from lstm_cli.engines.jit import layers
    from lstm_cli.engines.jit.engine import JitEngine

    engine, spec, seen = JitEngine("float32", threads), layer(H), []
    original = layers.batch

    def batch(N, T, lengths, groups):
        seen.append(groups)
        return original(N, T, lengths, groups)

    monkeypatch.setattr(layers, "batch", batch)
    weights = {name: np.zeros(p.shape, np.float32) for name, p in spec.parameters().items()}
    engine.forward(spec, engine.prepare(spec, weights), np.zeros((N, T, 6), np.float32), None)
    found = engine.explain(spec, N, T)
    assert [found.numbers["groups"]] == seen
    assert found.numbers["threads"] == (1 if "1 thread" in found.way else threads)


def test_every_way_is_told_with_its_reasons():
    from lstm_cli.engines.jit.engine import JitEngine

    engine = JitEngine("float32", 2)
    assert isinstance(engine, ExplainingEngine)
    ways = {engine.explain(layer(H), N, T).way for H, N, T, _ in CASES}
    assert ways == {
        "1 thread",
        "2 threads that share the units",
        "2 threads, each with sequences of its own",
    }
    for kind, gates in ((LSTM, 4), (GRU, 3), (RNN, 1)):
        for dtype in ("float32", "float64", "bfloat16"):
            found = JitEngine(dtype, 2).explain(layer(100, kind), 8, 50)
            assert found.numbers["tile_gates"] == gates
            assert found.floor is None
            assert f"{gates} gates" in found.reasons[0]
            assert max(map(len, found.reasons)) < 76
