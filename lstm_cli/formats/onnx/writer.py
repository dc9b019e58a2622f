"""Write a network as an ONNX model: batch first outside, time first from layer to layer."""

from __future__ import annotations

from pathlib import Path

from lstm_cli.formats.model import Export, WriteOptions
from lstm_cli.formats.onnx.assembly import Assembly
from lstm_cli.formats.onnx.messages import Model, OperatorSet, Property
from lstm_cli.formats.onnx.remarks import remarks
from lstm_cli.output_files import PRODUCER, write_atomically
from lstm_cli.version import __version__

OPSET = 14
"""The oldest whose recurrent operators are today's but for what no runtime has."""
IR_VERSION = 8
"""What came with that opset's successors; every runtime since 2021 takes it."""
CONFIG = "lstm-cli.config"
"""Under this key the config stands in the file, as YAML."""


def write(path: Path, export: Export, options: WriteOptions | None = None) -> tuple[str, ...]:
    """Write a model with the input ``x`` (N, T, D) and the output ``y`` (N, T, F) or (N, F).

    Raises
    ------
    WeightsError
        ONNX cannot represent it: names the layer, and what about it.
    LstmCliError
        The file cannot be written. An older file stays as it was.
    """
    options = options or WriteOptions()
    write_atomically(path, build_model(export, options).encode(), "the ONNX model")
    return tuple(remarks(export, options))


def build_model(export: Export, options: WriteOptions, steps: int | None = None) -> Model:
    """The network as a model in memory; see `write`.

    Parameters
    ----------
    steps
        Of every sequence, where a model for those alone is wanted.
    """
    name = export.name.encode(errors="replace").decode()  # a file's name may be no Unicode
    graph = Assembly(export.layers, export.tensors, options, steps).graph(name or "network")
    return Model(
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
        producer_version=__version__,
        graph=graph,
        operator_sets=(OperatorSet("", OPSET),),
        metadata=(Property(CONFIG, export.config),),
    )
