"""ONNX Runtime: one model, made in memory of ONNX's LSTM, GRU and RNN operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from lstm_cli.bench.peers.base import Lesson, Run, Setting, Trainee, Unsupported, load_package
from lstm_cli.bench.sizes import Size
from lstm_cli.engines.types import Array, Layers

_INSTALL = "pip install 'lstm-cli[test]'"
_SILENT = 4  # its log level for fatal errors only: what fails is reported here


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
        """Its own."""
        return {self.name: self.version}

    @contextmanager
    def prepare(
        self,
        layers: Layers,
        weights: Mapping[str, Array],
        size: Size,
        setting: Setting,
        lengths: Array | None = None,
    ) -> Iterator[Run]:
        """See `lstm_cli.bench.peers.base.Peer`."""
        if setting.device != "cpu":
            raise Unsupported(
                f"ONNX Runtime's package here computes on the CPU only, not on {setting.device}"
            )
        if setting.dtype != "float32":
            raise Unsupported(f"ONNX Runtime has no recurrent layers in {setting.dtype}")
        from lstm_cli.bench.peers.onnx_model import build_model

        model = build_model(layers, weights, size, ragged=lengths is not None)
        session = self._session(model, setting.threads)
        given = {} if lengths is None else {"lengths": lengths.astype(np.int32)}

        yield Run(lambda x: np.asarray(session.run(None, {"x": x, **given})[0]))

    def prepare_training(
        self, lesson: Lesson, size: Size, setting: Setting
    ) -> AbstractContextManager[Trainee]:
        """Not in this package: ONNX Runtime runs networks.

        Raises
        ------
        Unsupported
            Always.
        """
        raise Unsupported("ONNX Runtime does not train, it runs networks only")

    def _session(self, model: bytes, threads: int) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        try:
            return self._runtime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its classes share no base of their own
            reason = str(error).rpartition(" : ")[2]
            raise Unsupported(f"ONNX Runtime does not take the network: {reason}") from None
