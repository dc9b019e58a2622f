"""Random networks written as ONNX, compared with ONNX Runtime and checked by the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import (
    parametrized,
    random_inputs,
    random_lengths,
    random_states,
    recurrent,
)

import lstm_cli
from lstm_cli.cells import FORMULAS, LSTM, Activation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec, RecurrentSpec
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import WriteOptions
from lstm_cli.network.network import Network

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx_exports import (  # noqa: E402
    RECURRENT_ACTIVATIONS,
    close,
    export_of,
    feeds_of,
    random_layers,
    run_model,
)

N, T, D, H = 5, 6, 4, 5

PLAIN = WriteOptions()
CHOICES = [WriteOptions(a, b) for a in (False, True) for b in (False, True)]


def label(options: WriteOptions) -> str:
    chosen = [name for name in ("lengths", "states") if getattr(options, name)]
    return " and ".join(chosen) or "plain"


def check(
    folder: Path, specs: Sequence[LayerSpec], options: WriteOptions = PLAIN, seed: int = 0
) -> None:
    """Compare ONNX Runtime's outputs of the written model with the network's outputs."""
    export, path = export_of(specs, seed), folder / "model.onnx"
    registry.write(path, "onnx", export, options)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    steps = export.steps or T
    x = random_inputs(N, steps, export.input_size, seed)
    lengths = random_lengths(N, steps, seed) if options.lengths else None
    states = random_states(specs, N, seed) if options.states else None
    outputs = run_model(path, feeds_of(specs, x, lengths, states))
    result = Network(specs, export.tensors, ReferenceEngine("float64")).run(x, lengths, states)
    close(outputs.pop("y"), result.outputs)
    if options.states:
        for spec, (h, c) in zip(recurrent_of(specs), result.state, strict=True):
            close(outputs.pop(f"final_h.{spec.index}"), h)
            if c is not None:
                close(outputs.pop(f"final_c.{spec.index}"), c)
    assert not outputs


def recurrent_of(specs: Sequence[LayerSpec]) -> list[RecurrentSpec]:
    return [spec for spec in specs if isinstance(spec, RecurrentSpec)]


@pytest.mark.parametrize("options", CHOICES, ids=label)
@pytest.mark.parametrize("seed", range(16))
def test_random_networks(seed: int, options: WriteOptions, tmp_path: Path) -> None:
    specs = random_layers(np.random.default_rng(seed), projected=not options.states)
    check(tmp_path, specs, options, seed)


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("lstm", {}),
    "lstm peepholes": ("lstm", {"peepholes": True}),
    "lstm clip": ("lstm", {"clip": 0.3}),
    "lstm peepholes clip": ("lstm", {"peepholes": True, "clip": 0.4}),
    "lstm coupled": ("lstm", {"coupled_input_forget": True}),
    "lstm coupled peepholes clip": (
        "lstm",
        {"coupled_input_forget": True, "peepholes": True, "clip": 0.4},
    ),
    "lstm projection": ("lstm", {"projection_size": 3}),
    "lstm projection peepholes": ("lstm", {"projection_size": 7, "peepholes": True}),
    "lstm of 1997": ("lstm", {"use_forget_gate": False}),
    "lstm of 1997 peepholes projection": (
        "lstm",
        {"use_forget_gate": False, "peepholes": True, "projection_size": 2},
    ),
    "gru after": ("gru", {}),
    "gru after clip": ("gru", {"clip": 0.3}),
    "gru before": ("gru", {"reset_after": False}),
    "gru before clip": ("gru", {"reset_after": False, "clip": 0.3}),
    "rnn": ("rnn", {}),
    "rnn clip": ("rnn", {"clip": 0.3}),
}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("option", OPTIONS)
def test_option(option: str, directions: int, tmp_path: Path) -> None:
    kind, options = OPTIONS[option]
    for sequences in (True, False):
        spec = recurrent(kind, H, D, directions=directions, return_sequences=sequences, **options)
        check(tmp_path, [spec])
        check(tmp_path, [spec], WriteOptions(lengths=True, states="projection" not in option))


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_of_a_dense_layer(name: str, tmp_path: Path) -> None:
    check(tmp_path, [DenseSpec(0, D, 3, parametrized(name)), DenseSpec(1, 3, 4, None)])


@pytest.mark.parametrize("name", RECURRENT_ACTIVATIONS)
def test_activations_differ_by_gate_and_direction(name: str, tmp_path: Path) -> None:
    forward = LSTM(
        hidden_size=H,
        recurrent_activation=parametrized("hard_sigmoid"),
        activation=parametrized(name),
        cell_activation=parametrized("scaled_tanh"),
    )
    reverse = LSTM(hidden_size=H, activation=parametrized("elu"), cell_activation=Activation(name))
    check(tmp_path, [RecurrentSpec(0, D, (forward, reverse))])
    check(tmp_path, [recurrent("rnn", H, D, activation=parametrized(name))])


@pytest.mark.parametrize(
    "function",
    [
        *(Activation(name) for name in ("relu", "tanh", "elu", "identity", "leaky_relu")),
        Activation("hard_sigmoid", 0.2, 0.5),
        Activation("hard_sigmoid", -0.3, 0.4),
        Activation("hard_sigmoid", 0.3, 1.5),
        Activation("affine", 0.5, 0.25),
        Activation("thresholded_relu", 0.2),
    ],
    ids=str,
)
def test_a_forget_gate_held_open(function: Activation, tmp_path: Path) -> None:
    """c adds up over all steps, so that a forget gate slightly below 1 would show."""
    clip = None if function.name == "tanh" else 2.6
    options = {"recurrent_activation": function, "clip": clip, "peepholes": True}
    check(tmp_path, [recurrent("lstm", H, D, directions=2, use_forget_gate=False, **options)])


@pytest.mark.parametrize("options", CHOICES, ids=label)
def test_layers_without_recurrence_around(options: WriteOptions, tmp_path: Path) -> None:
    dense = DenseSpec(0, D, 3, Activation("softplus"))  # not 0 where its input is 0
    check(tmp_path, [dense], options)
    check(tmp_path, [dense, recurrent("gru", H, 3, index=1), FlattenSpec(2, H, T + 2)], options)
    check(tmp_path, [FlattenSpec(0, D, T + 2), DenseSpec(1, (T + 2) * D, 3, None)], options)
    check(tmp_path, [DropoutSpec(0, D, 0.5)], options)


@pytest.mark.parametrize("options", CHOICES, ids=label)
@pytest.mark.parametrize("projected", [False, True], ids=["", "projected"])
def test_read_back(projected: bool, options: WriteOptions, tmp_path: Path) -> None:
    """The network read back is exact, except for a projection, whose product is float32."""
    tolerance = 3e-6 if projected else 1e-12
    for seed in range(100, 112):
        specs = random_layers(np.random.default_rng(seed), projected=projected)
        if projected and options.states:
            specs = [recurrent("lstm", H, D, use_forget_gate=False), FlattenSpec(1, H, T)]
        export, path = export_of(specs, seed), tmp_path / "model.onnx"
        registry.write(path, "onnx", export, options)
        imported = registry.read(path)
        layers = lstm_cli.build(dict(imported.config or {}), engine="reference").network.layers
        x = random_inputs(N, export.steps or T, export.input_size, seed)
        lengths = random_lengths(*x.shape[:2], seed)
        networks = [(specs, export.tensors), (layers, imported.tensors)]
        one, other = (Network(*pair, ReferenceEngine("float64")) for pair in networks)
        expected = one.run(x, lengths).outputs
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        found = other.run(x, lengths).outputs
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
