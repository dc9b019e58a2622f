"""A small config and data to train on, and what a run's folder says about the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lstm_cli.formats import native

CONFIG = """\
model:
  input_size: 3
  layers:
    - {type: lstm, hidden_size: 4, return_sequences: false}
    - {type: dense, units: 3, activation: softmax}
train:
  loss: cross_entropy
  optimizer: {type: adam, learning_rate: 0.02}
  batch_size: 8
  epochs: 3
"""


def write_classes(
    path: Path,
    N: int = 30,
    seed: int = 0,
    group: str = "/",
    targets: Any = None,
    bad: float | None = None,
) -> Path:
    """Ragged sequences of three classes; `bad` is put at sequence 11, step 2, feature 1."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, N)
    x = rng.standard_normal((N, 9, 3)).astype(np.float32)
    kinds = np.minimum(rng.integers(0, 4, N), 2)
    x[np.arange(N), 0, kinds] += 3
    if bad is not None:
        x[11, 2, 1] = bad
    with h5py.File(path, "a") as file:
        place = file.require_group(group)
        place["inputs"], place["lengths"] = x, lengths
        place["targets"] = kinds if targets is None else targets
    return path


def metrics_rows(output: Path) -> list[dict[str, Any]]:
    """Metrics of each epoch of a run."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def checkpoint_progress(output: Path) -> Any:
    """How far the run of a checkpoint is."""
    file = native.read(output / "checkpoint.safetensors", allow_integers=True)
    return json.loads(file.metadata["training"])["progress"]
