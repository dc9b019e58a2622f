"""Gates and states of every step, and the logits, on every engine, against the loop twin."""

from __future__ import annotations

import numpy as np
import pytest
from networks import (
    assert_close,
    network,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
    recurrent,
)
from twin import twin

from lstm_cli.cells import Activation
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, LayerSpec

N, T, D = 5, 6, 4

LAYERS: dict[str, LayerSpec] = {
    "lstm": recurrent("lstm", 5, D, directions=2, peepholes=True),
    "projected": recurrent("lstm", 5, D, directions=2, projection_size=3),
    "coupled": recurrent("lstm", 5, D, coupled_input_forget=True),
    "gru": recurrent("gru", 5, D, directions=2),
    "gru before": recurrent("gru", 5, D, directions=2, reset_after=False),
    "rnn": recurrent("rnn", 5, D, directions=2),
}


@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
@pytest.mark.parametrize("name", LAYERS)
def test_gates(name: str, sequences: bool, engine: Engine) -> None:
    spec = LAYERS[name]
    lengths, state = random_lengths(N, T), random_states([spec], N)
    x = random_inputs(N, T, D)
    expected = twin([spec], random_weights([spec]), x, lengths, state)
    layer = type(spec)(**{**vars(spec), "return_sequences": sequences})
    actual = network([layer], engine).run(x, lengths, state, keep=True)
    gates_of_cell = {key for gates in expected.gates for key in gates}
    returned = {(0, d, name) for d, values in actual.kept[0].items() for name in values}
    states = {(0, d, name) for d in actual.kept[0] for name in spec.cells[0].states}
    assert returned == gates_of_cell | states
    for k, direction, gate in gates_of_cell:
        values = np.zeros((N, T, 5))
        for n, gates in enumerate(expected.gates):
            values[n, : lengths[n]] = gates.get((k, direction, gate), np.zeros((0, 5)))
        assert_close(actual.kept[k][direction][gate], values, engine.dtype, f"{direction} {gate}")


@pytest.mark.parametrize("name", LAYERS)
def test_states(name: str, engine: Engine) -> None:
    spec = LAYERS[name]
    lengths = random_lengths(N, T)
    x = random_inputs(N, T, D)
    actual = network([spec], engine).run(x, lengths, keep=True)
    expected = twin([spec], random_weights([spec]), x, lengths)
    h = np.concatenate([gates["h"] for gates in actual.kept[0].values()], axis=-1)
    assert_close(h, expected.outputs, engine.dtype)
    if spec.kind == "lstm":
        ends = np.flatnonzero(lengths)
        last = actual.kept[0]["forward"]["c"][ends, lengths[ends] - 1]
        assert_close(last, expected.state[0][1][ends, 0], engine.dtype)


def test_gates_are_returned_only_on_request(engine: Engine) -> None:
    specs = [LAYERS["lstm"], DenseSpec(1, 10, 3, None)]
    actual = network(specs, engine).run(random_inputs(N, T, D))
    assert not actual.kept


@pytest.mark.parametrize("activation", [None, Activation("sigmoid")], ids=["softmax", "sigmoid"])
def test_logits(activation: Activation | None, engine: Engine) -> None:
    specs = [LAYERS["gru"], DenseSpec(1, 10, 3, activation)]
    x, lengths = random_inputs(N, T, D), random_lengths(N, T)
    actual = network(specs, engine).run(x, lengths, keep=True)
    plain = [specs[0], DenseSpec(1, 10, 3, Activation("identity"))]
    expected = twin(plain, random_weights(plain), x, lengths)
    assert actual.logits is not None
    valid = np.arange(T) < lengths[:, None]
    assert_close(actual.logits[valid], expected.outputs[valid], engine.dtype)
    assert_close(
        actual.outputs, twin(specs, random_weights(specs), x, lengths).outputs, engine.dtype
    )


def test_logits_below_a_dropout_layer(engine: Engine) -> None:
    specs = [LAYERS["gru"], DenseSpec(1, 10, 3, None), DropoutSpec(2, 3, 0.5)]
    x = random_inputs(N, T, D)
    actual = network(specs, engine).run(x, keep=True)
    plain = [specs[0], DenseSpec(1, 10, 3, Activation("identity"))]
    assert actual.logits is not None
    assert_close(actual.logits, twin(plain, random_weights(plain), x).outputs, engine.dtype)
