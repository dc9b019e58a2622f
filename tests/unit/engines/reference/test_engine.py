"""The reference engine: profiling by gate, chunks of input projections, threads, dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import (
    assert_close,
    assert_states_close,
    network,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
    recurrent,
)
from twin import twin

from lstm_cli.cells import Activation
from lstm_cli.engines.reference import forward as forward_pass
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, LayerSpec
from lstm_cli.errors import DeviceError

N, T, D, H = 5, 9, 4, 7

LAYERS: dict[str, LayerSpec] = {
    "lstm": recurrent("lstm", H, D, directions=2, peepholes=True, projection_size=3),
    "coupled": recurrent("lstm", H, D, coupled_input_forget=True),
    "gru": recurrent("gru", H, D, directions=2),
    "gru before": recurrent("gru", H, D, directions=2, reset_after=False),
    "rnn": recurrent("rnn", H, D, directions=2),
}


@pytest.fixture(params=LAYERS)
def spec(request: pytest.FixtureRequest) -> Any:
    return LAYERS[request.param]


@pytest.mark.parametrize("by_gate", [True, False], ids=["by gate", "whole"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_run_of_steps_may_be_short(
    steps: int, by_gate: bool, spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = len(spec.cells[0].gates) * H
    monkeypatch.setattr(forward_pass, "PROJECTION_BYTES", steps * N * rows * 8)
    x, lengths, state = random_inputs(N, T, D), random_lengths(N, T), random_states([spec], N)
    engine = ReferenceEngine("float64", by_gate=by_gate)
    actual = network([spec], engine).run(x, lengths, state, keep=True)
    expected = twin([spec], random_weights([spec]), x, lengths, state)
    assert_close(actual.outputs, expected.outputs, "float64")
    assert_states_close(actual.state, expected.state, "float64")


def test_times_by_gate(spec: Any) -> None:
    actual = network([spec], ReferenceEngine(by_gate=True)).run(random_inputs(N, T, D))
    letters = spec.cells[0].letters
    parts = {f"{gate} input" for gate in letters} | {f"{gate} recurrent" for gate in letters}
    parts |= {f"{gate} function" for gate in letters}
    parts |= {"states", "input projection", "recurrence"}
    assert set(actual.seconds[0]) == parts
    assert all(seconds >= 0 for seconds in actual.seconds[0].values())


def test_times(spec: Any) -> None:
    actual = network([spec, DenseSpec(1, spec.output_size, 2, None)], ReferenceEngine()).run(
        random_inputs(N, T, D)
    )
    assert set(actual.seconds[0]) == {"input projection", "recurrence"}
    assert set(actual.seconds[1]) == {"product"}


def test_threads_limit_blas_while_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_info

    def blas_threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    def watched(activation: Activation, x: Any) -> Any:
        threads_seen.append(blas_threads())
        return original(activation, x)

    threads_seen: list[list[int]] = []
    original = Activation.__call__
    monkeypatch.setattr(Activation, "__call__", watched)
    before = blas_threads()
    specs = [DenseSpec(0, D, 2, Activation("tanh"))]
    network(specs, ReferenceEngine(threads=1)).run(random_inputs(N, T, D))
    assert threads_seen == [[1] * len(before)]
    assert blas_threads() == before


def test_the_result_is_in_the_engines_dtype_whatever_comes_in(spec: Any) -> None:
    for dtype in ("float32", "float64"):
        net = network([spec], ReferenceEngine(dtype))
        for given in ("float16", "float32", "float64", "int8"):
            x = np.round(2 * random_inputs(N, T, D)).astype(given)
            actual = net.run(x)
            assert actual.outputs.dtype == dtype
            assert all(s.dtype == dtype for pair in actual.state for s in pair if s is not None)
            expected = twin([spec], random_weights([spec]), x.astype(float)).outputs
            assert_close(actual.outputs, expected, dtype)


def test_an_unknown_dtype() -> None:
    with pytest.raises(DeviceError, match="does not compute in bfloat16"):
        ReferenceEngine("bfloat16")
