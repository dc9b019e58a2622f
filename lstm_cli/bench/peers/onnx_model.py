"""An ONNX model of a network: what this package writes as a file, kept in memory."""

from __future__ import annotations

from collections.abc import Mapping

from lstm_cli.bench.peers.base import Unsupported
from lstm_cli.bench.sizes import Size
from lstm_cli.engines.types import Array, FlattenSpec, Layers, LayerSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats.interchange import Export, WriteOptions
from lstm_cli.formats.onnx.writer import build_model as build_file


def build_model(
    layers: Layers, weights: Mapping[str, Array], size: Size, *, ragged: bool = False
) -> bytes:
    """The network as a serialised model from ``x`` (N, T, D) to ``y`` (N, T, F) or (N, F).

    Parameters
    ----------
    ragged
        It has ``lengths`` (N,) as a second input.

    Raises
    ------
    Unsupported
        ONNX has no operator for a layer or an option.
    """
    for spec in layers:
        _check(spec, ragged)
    export = Export("network", layers[0].input_size, size.steps, tuple(layers), weights, "")
    try:
        return build_file(export, WriteOptions(lengths=ragged), size.steps).encode()
    except WeightsError as error:
        raise Unsupported(error.problems[0].what) from None


def _check(spec: LayerSpec, ragged: bool) -> None:
    """Raise `Unsupported` for what a file can hold, but as other work than the network's own."""
    if ragged and isinstance(spec, FlattenSpec):
        raise Unsupported(f"layer {spec.index}: flatten of ragged sequences is not written")
    for cell in getattr(spec, "cells", ()):
        if cell.projects:
            raise Unsupported(f"layer {spec.index}: ONNX has no projection")
        if not getattr(cell, "use_forget_gate", True):
            raise Unsupported(f"layer {spec.index}: ONNX has no LSTM without a forget gate")
