"""Random networks for the ONNX writer, and their outputs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from networks import Array, parametrized, random_weights, recurrent

from lstm_cli.cells import FORMULAS, Activation
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec, RecurrentSpec
from lstm_cli.formats.interchange import Export

RECURRENT_ACTIVATIONS = [name for name in FORMULAS if name not in ("symmrelu", "gauss")]
"""Activations of ONNX's recurrent operators, by lstm-cli's names."""
TOLERANCE = 2e-5


def export_of(
    specs: Sequence[LayerSpec], seed: int = 0, dtype: str = "float32", config: str = "model: {}\n"
) -> Export:
    """The layers with `random_weights`, as an `Export`."""
    weights = {name: value.astype(dtype) for name, value in random_weights(specs, seed).items()}
    steps = next((spec.steps for spec in specs if isinstance(spec, FlattenSpec)), None)
    return Export("random", specs[0].input_size, steps, tuple(specs), weights, config)


def random_layers(rng: np.random.Generator, *, projected: bool = True) -> list[LayerSpec]:
    """Network of one to three recurrent layers with random options and a random head."""
    features, index, layers = int(rng.integers(2, 6)), 0, list[LayerSpec]()
    ending = rng.choice(["sequences", "last", "flatten"])
    count = int(rng.integers(1, 4))
    for k in range(count):
        if rng.random() < 0.3:
            layers.append(DropoutSpec(index, features, 0.3))
            index += 1
        last = ending == "last" and k == count - 1
        spec = random_recurrent(rng, features, index, last=last, projected=projected)
        layers.append(spec)
        features, index = spec.output_size, index + 1
    if ending == "flatten":
        layers.append(FlattenSpec(index, features, 6))
        features, index = 6 * features, index + 1
    for _ in range(int(rng.integers(0, 3))):
        units = int(rng.integers(2, 6))
        bias = bool(rng.random() < 0.7)
        layers.append(DenseSpec(index, features, units, _dense_activation(rng), bias))
        features, index = units, index + 1
    return layers


def random_recurrent(
    rng: np.random.Generator, features: int, index: int, *, last: bool, projected: bool
) -> RecurrentSpec:
    """Recurrent layer with random options."""
    kind = str(rng.choice(["lstm", "gru", "rnn"]))
    options: dict[str, Any] = {"activation": _activation(rng)}
    if rng.random() < 0.3:
        options["clip"] = round(float(rng.uniform(0.2, 1)), 2)  # as few digits as people write
    options["bias"] = bool(rng.random() < 0.7)
    if kind == "gru":
        options["reset_after"] = bool(rng.random() < 0.5)
    if kind != "rnn" and rng.random() < 0.4:
        options["recurrent_activation"] = parametrized("hard_sigmoid")
    hidden = int(rng.integers(2, 8))
    if kind == "lstm":
        options |= _lstm_options(rng, hidden, projected)
    return recurrent(
        kind,
        hidden,
        features,
        index=index,
        directions=int(rng.integers(1, 3)),
        return_sequences=not last,
        **options,
    )


def _lstm_options(rng: np.random.Generator, hidden: int, projected: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"cell_activation": _activation(rng)}
    if rng.random() < 0.4:
        options["peepholes"] = True
    if projected and rng.random() < 0.4:
        options["projection_size"] = int(rng.integers(1, hidden + 2))
    if rng.random() < 0.3:
        options["coupled_input_forget"] = True
    return options


def _activation(rng: np.random.Generator) -> Activation:
    if rng.random() < 0.5:
        return Activation("tanh")
    return parametrized(str(rng.choice(["softsign", "elu", "scaled_tanh", "hard_sigmoid"])))


def _dense_activation(rng: np.random.Generator) -> Activation | None:
    name = str(rng.choice(["softmax", *FORMULAS]))
    return None if name == "softmax" else parametrized(name)


def run_model(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """Outputs of ONNX Runtime by name; the model's inputs are float32, lengths int32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    cast = {
        name: value.astype(np.int32 if name == "lengths" else np.float32)
        for name, value in feeds.items()
    }
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, cast), strict=True))


def close(actual: Array, expected: Array) -> None:
    """Compare arrays within `TOLERANCE` of the largest expected value."""
    assert actual.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * scale)


def feeds_of(
    specs: Sequence[LayerSpec], x: Array, lengths: Array | None, states: Sequence[Any] | None
) -> dict[str, Array]:
    """Inputs of a model with these optional inputs; the padding of `x` is NaN."""
    feeds = {"x": x.copy()}
    if lengths is not None:
        feeds["lengths"] = lengths
        feeds["x"][np.arange(x.shape[1]) >= lengths[:, None]] = np.nan
    layers = [spec for spec in specs if isinstance(spec, RecurrentSpec)]
    for spec, (h, c) in zip(layers, states or (), strict=states is not None):
        feeds[f"initial_h.{spec.index}"] = h
        if c is not None:
            feeds[f"initial_c.{spec.index}"] = c
    return feeds
