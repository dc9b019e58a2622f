"""Native files that normalize their inputs, and inputs far from 0 for them."""

from __future__ import annotations

import numpy as np
import yaml
from networks import random_weights

import lstm_cli
from lstm_cli.formats import native

LSTM = {"type": "lstm", "hidden_size": 6, "return_sequences": False}
DENSE = {"type": "dense", "units": 2}
MEAN, SCALE = np.array([1.6e9, -3.0, 1e5]), np.array([5.0, 0.25, 50.0])
LENGTHS = [7, 2, 0, 5]


def write_config(path, *layers, train=None, D=2, **more):
    """A config of these layers on D features, written to `path`."""
    document = {"model": {"input_size": D, "layers": list(layers), **more}}
    path.write_text(yaml.safe_dump(document | ({"train": train} if train else {})))
    return path


def file_tensors(path):
    """All tensors of a native file, mean and scale included."""
    return native.read(path, allow_integers=True).tensors


def normalized_model(path, *layers, mean=MEAN, scale=SCALE, dtype="float32", seed=3, **more):
    """Write a native file with random weights, mean and scale; returns the network without them."""
    mapping = {"model": {"input_size": len(mean), "layers": list(layers), **more}}
    specs = lstm_cli.build(mapping, engine="reference").config.specs
    weights = {name: v.astype(dtype) for name, v in random_weights(specs, seed).items()}
    plain = lstm_cli.build(mapping, engine="reference", dtype="float64", weights=weights)
    native.write(
        path, weights | {"inputs.mean": mean, "inputs.scale": scale}, plain.config.to_yaml()
    )
    return plain


def raw_inputs(N=4, T=7, seed=1, mean=MEAN, scale=SCALE):
    """Inputs of the data's range in float64."""
    return mean + scale * np.random.default_rng(seed).standard_normal((N, T, len(mean)))
