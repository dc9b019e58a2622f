"""PyTorch files that lstm-cli writes: what they cannot hold, and notes for the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from networks import random_weights, recurrent

from lstm_cli.cells import Activation
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import Export


def written(layers: list[LayerSpec], path: Path, steps: int | None = None) -> tuple[str, ...]:
    weights = random_weights(layers)
    size = layers[0].input_size
    return registry.write(path, "pytorch", Export("w", size, steps, tuple(layers), weights, ""))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("lstm", {"projection_size": 4}, "projection_size: 4"),
        ("rnn", {"activation": Activation("softsign")}, "tanh or relu"),
    ],
)
def test_what_modules_cannot_hold(
    kind: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=message):
        written([recurrent(kind, 4, 3, **options)], tmp_path / "w.pt")
    assert not (tmp_path / "w.pt").exists()


def test_what_a_state_dict_cannot_say(tmp_path: Path) -> None:
    layers: list[LayerSpec] = [
        recurrent("rnn", 4, 3, activation=Activation("relu")),
        DropoutSpec(1, 4, 0.5),
        recurrent("rnn", 4, 4, index=2, activation=Activation("relu"), stateful=True),
        recurrent("lstm", 2, 4, index=3, use_forget_gate=False),
        FlattenSpec(4, 2, 6),
        DenseSpec(5, 12, 3, None),
    ]
    notes = "\n".join(written(layers, tmp_path / "w.pt", 6))
    for text in (
        "layer 0 (0): nn.RNN needs nonlinearity='relu'",
        "layer 1: dropout",
        "layer 2 (0): stateful",
        "layer 3 (1): forget_gate: false",
        "layer 4: flatten",
        "layer 5 (2): its activation softmax",
    ):
        assert text in notes
    found = registry.read(tmp_path / "w.pt")
    assert found.config is not None
    assert [layer["type"] for layer in found.config["model"]["layers"]] == [
        "rnn", "rnn", "lstm", "flatten", "dense",
    ]  # fmt: skip
    plain: list[LayerSpec] = [recurrent("gru", 4, 3, return_sequences=False), DenseSpec(
        1, 4, 2, Activation("identity"))]  # fmt: skip
    notes = "\n".join(written(plain, tmp_path / "w.pt"))
    assert notes == "layer 0 (gru): return_sequences: false is not stored: take the last valid step"
