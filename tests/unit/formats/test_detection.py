"""Detection of native and PyTorch files in safetensors, by names and metadata."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from lstm_cli.formats.detection import detect_format_name

CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
HEAD = ("layers.1.weight", "layers.1.bias")


@pytest.mark.parametrize(
    ("names", "metadata", "format"),
    [
        ([f"layers.0.{name}" for name in CELL], {"format": "pt"}, "pytorch"),
        ([f"layers.0.{name}" for name in CELL], None, "native"),
        ([f"layers.0.{name}" for name in CELL], {"format": "pt", "config": "model:"}, "native"),
        ([f"layers.0.{name}" for name in CELL], {"format": "lstm-cli"}, "native"),
        (["layers.0.weight_ih", "layers.0.weight_hh", "layers.0.bias"], {"format": "pt"}, "native"),
        ([f"layers.0.reverse.{name}" for name in CELL], {"format": "pt"}, "native"),
        (["layers.0.weight_hr"], {"format": "pt"}, "native"),
        (["rnn.weight_ih_l0", "rnn.weight_hh_l0"], None, "pytorch"),
        (["layers.0.weight_ih_l0"], {"format": "pt"}, "pytorch"),
    ],
)
def test_names_and_signature(tmp_path, names, metadata, format):
    tensors = {name: np.zeros(2, np.float32) for name in (*names, *HEAD)}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    assert detect_format_name(tmp_path / "x.safetensors") == format
