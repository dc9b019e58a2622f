"""ONNX Runtime as a peer: runs an ONNX model that this package's writer builds in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, assert_never

import numpy as np

from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    Layers,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.errors import WeightsError
from lstm_cli.formats.capabilities import storable_layer
from lstm_cli.formats.gates import lacks_forget_gate
from lstm_cli.formats.interchange import Export, WriteOptions
from lstm_cli.formats.onnx.writer import build_model as build_file
from lstm_cli.workflows.bench.peers.base import (
    ComputeSetting,
    PeerNetwork,
    TrainableNetwork,
    TrainingTask,
    Unsupported,
    load_package,
)
from lstm_cli.workflows.bench.sizes import GridSize

_INSTALL = "pip install 'lstm-cli[test]'"
_FATAL_ONLY = 4  # log level of ONNX Runtime; this module reports its errors


class OnnxRuntimePeer:
    """ONNX Runtime on the CPU.

    Raises
    ------
    DeviceError
        ``onnxruntime`` is not installed.
    """

    name = "onnxruntime"

    def __init__(self) -> None:
        self._runtime = load_package("onnxruntime", self.name, _INSTALL)
        self.version = str(self._runtime.__version__)
        self.title = f"ONNX Runtime {self.version}"

    @property
    def versions(self) -> Mapping[str, str]:
        """Version of ONNX Runtime."""
        return {self.name: self.version}

    @contextmanager
    def prepare(
        self,
        layers: Layers,
        weights: Mapping[str, Array],
        size: GridSize,
        setting: ComputeSetting,
        lengths: Array | None = None,
    ) -> Iterator[PeerNetwork]:
        """See `lstm_cli.workflows.bench.peers.base.Peer`."""
        if setting.device != "cpu":
            raise Unsupported(f"ONNX Runtime is measured on the CPU only, not on {setting.device}")
        if setting.dtype != "float32":
            raise Unsupported(f"ONNX Runtime has no recurrent layers in {setting.dtype}")

        model = build_model(layers, weights, size, ragged=lengths is not None)
        session = self._session(model, setting.threads)
        more = {} if lengths is None else {"lengths": lengths.astype(np.int32)}

        yield PeerNetwork(lambda x: np.asarray(session.run(None, {"x": x, **more})[0]))

    def prepare_training(
        self, task: TrainingTask, size: GridSize, setting: ComputeSetting
    ) -> AbstractContextManager[TrainableNetwork]:
        """Refuse to train, which ONNX Runtime's package cannot do.

        Raises
        ------
        Unsupported
            Always.
        """
        raise Unsupported("ONNX Runtime does not train networks, it only runs them")

    def _session(self, model: bytes, threads: int) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        try:
            return self._runtime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its error classes share no base class
            reason = str(error).rpartition(" : ")[2]
            raise Unsupported(f"ONNX Runtime does not take the network: {reason}") from None


def build_model(
    layers: Layers, weights: Mapping[str, Array], size: GridSize, *, ragged: bool = False
) -> bytes:
    """The network as a serialized model from ``x`` (N, T, D) to ``y`` (N, T, F) or (N, F).

    Parameters
    ----------
    ragged
        The model has ``lengths`` (N,) as a second input.

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
    """Raise `Unsupported` for layers that an ONNX file would compute with other work."""
    layer = storable_layer(spec)
    match layer:
        case RecurrentSpec():
            if layer.cells[0].projects:
                raise Unsupported(f"layer {layer.index}: ONNX has no projection")
            if lacks_forget_gate(layer.cells[0]):
                raise Unsupported(f"layer {layer.index}: ONNX has no LSTM without a forget gate")
        case FlattenSpec():
            if ragged:
                raise Unsupported(
                    f"layer {layer.index}: flatten of ragged sequences is not written"
                )
        case DenseSpec() | DropoutSpec():
            pass
        case _:
            assert_never(layer)
