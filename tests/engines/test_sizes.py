"""Sizes of 1, and sizes that fill no vector, on every engine, compared with the loop twin."""

from __future__ import annotations

import pytest
from networks import (
    assert_states_close,
    network,
    random_inputs,
    random_lengths,
    random_states,
    recurrent,
)
from twin import check_forward

from lstm_cli.engines.protocols import Engine


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("H", [1, 3, 5, 16, 17, 33])
def test_units(H: int, kind: str, engine: Engine) -> None:
    check_forward([recurrent(kind, H, 6, directions=2)], engine, 4, 5)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("D", [1, 2, 9, 31, 65])
def test_features(D: int, kind: str, engine: Engine) -> None:
    check_forward([recurrent(kind, 5, D, directions=2)], engine, 4, 5)


@pytest.mark.parametrize("P", [1, 3, 17])
@pytest.mark.parametrize("H", [1, 5, 19])
def test_projections(H: int, P: int, engine: Engine) -> None:
    check_forward([recurrent("lstm", H, 6, directions=2, projection_size=P)], engine, 4, 5)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("N", [1, 2, 3, 7, 8, 9, 37])
def test_sequences(N: int, kind: str, engine: Engine) -> None:
    check_forward([recurrent(kind, 5, 3, directions=2)], engine, N, 4)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("T", [1, 2, 3, 41])
@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
def test_steps(T: int, sequences: bool, kind: str, engine: Engine) -> None:
    check_forward([recurrent(kind, 5, 3, directions=2, return_sequences=sequences)], engine, 4, T)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
def test_no_steps_leave_the_states_alone(sequences: bool, kind: str, engine: Engine) -> None:
    spec = recurrent(kind, 5, 3, directions=2, return_sequences=sequences)
    state = random_states([spec], 4)
    actual = network([spec], engine).run(random_inputs(4, 0, 3), None, state)
    assert actual.outputs.shape == ((4, 0, 10) if sequences else (4, 10))
    assert not actual.outputs.any()
    assert_states_close(
        actual.state,
        [tuple(None if s is None else s.astype(engine.dtype) for s in pair) for pair in state],
        engine.dtype,
    )


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_no_sequences(kind: str, engine: Engine) -> None:
    spec = recurrent(kind, 5, 3, directions=2)
    actual = network([spec], engine).run(random_inputs(0, 4, 3), random_lengths(0, 4))
    assert actual.outputs.shape == (0, 4, 10)
    assert actual.state[0][0].shape == (0, 2, 5)
