"""Stacked layers on every engine, compared with the loop twin."""

from __future__ import annotations

import pytest
from networks import (
    assert_close,
    network,
    parametrized,
    random_inputs,
    random_lengths,
    random_weights,
    recurrent,
)
from twin import check_forward, twin

from lstm_cli.cells import FORMULAS, Activation
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec

N, T, D = 5, 6, 4
TANH = Activation("tanh")

STACKS: dict[str, list[LayerSpec]] = {
    "lstm gru rnn": [
        recurrent("lstm", 5, D, directions=2, projection_size=3),
        recurrent("gru", 7, 6, index=1),
        recurrent("rnn", 3, 7, index=2, directions=2),
    ],
    "two lstms, the last step, softmax": [
        recurrent("lstm", 5, D, directions=2),
        recurrent("lstm", 3, 10, index=1, directions=2, return_sequences=False),
        DenseSpec(2, 6, 4, None),
    ],
    "softmax on every step": [recurrent("gru", 5, D), DenseSpec(1, 5, 3, None)],
    "dropout is the identity": [
        DropoutSpec(0, D, 0.5),
        recurrent("lstm", 5, D, index=1, dropout=0.3, recurrent_dropout=0.3),
        DropoutSpec(2, 5, 0.9),
        DenseSpec(3, 5, 3, TANH),
        DropoutSpec(4, 3, 0.1),
    ],
    "tmva": [
        recurrent("lstm", 5, D),
        FlattenSpec(1, 5, T),
        DenseSpec(2, 5 * T, 6, TANH),
        DenseSpec(3, 6, 1, Activation("identity")),
    ],
    "flatten pads": [recurrent("rnn", 5, D), FlattenSpec(1, 5, T + 3), DenseSpec(2, 45, 2, TANH)],
    "flatten after dense": [DenseSpec(0, D, 3, Activation("sigmoid")), FlattenSpec(1, 3, T)],
    "dense first": [DenseSpec(0, D, 3, TANH), recurrent("gru", 5, 3, index=1, directions=2)],
    "dense alone": [DenseSpec(0, D, 3, None)],
}


@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "full"])
@pytest.mark.parametrize("name", STACKS)
def test_stack(name: str, ragged: bool, engine: Engine) -> None:
    check_forward(STACKS[name], engine, N, T, ragged=ragged)


@pytest.mark.parametrize("name", FORMULAS)
def test_dense_activation(name: str, engine: Engine) -> None:
    specs = [recurrent("gru", 5, D), DenseSpec(1, 5, 3, parametrized(name))]
    check_forward(specs, engine, N, T)


def test_flatten_takes_fewer_steps_than_its_size(engine: Engine) -> None:
    specs = STACKS["flatten pads"]
    x = random_inputs(N, 2, D)
    expected = twin(specs, random_weights(specs), x)
    assert_close(network(specs, engine).run(x).outputs, expected.outputs, engine.dtype)


def test_flatten_takes_a_batch_padded_beyond_its_steps(engine: Engine) -> None:
    specs = [recurrent("rnn", 5, D), FlattenSpec(1, 5, 4)]
    x, lengths = random_inputs(3, 9, D), random_lengths(3, 4)
    expected = twin(specs, random_weights(specs), x, lengths)
    assert_close(network(specs, engine).run(x, lengths).outputs, expected.outputs, engine.dtype)
