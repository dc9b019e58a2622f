"""Peers: other frameworks to measure against, each imported only when it is used.

`base` has the interfaces, `torch_peer` and `onnxruntime_peer` implement them.
"""

from __future__ import annotations

from lstm_cli.errors import UsageError, nearest
from lstm_cli.workflows.bench.peers.base import (
    ComputeSetting,
    Peer,
    PeerNetwork,
    TrainableNetwork,
    TrainingTask,
    Unsupported,
)

__all__ = [
    "PEERS",
    "ComputeSetting",
    "Peer",
    "PeerNetwork",
    "TrainableNetwork",
    "TrainingTask",
    "Unsupported",
    "peer",
]

PEERS = ("torch", "onnxruntime")
"""Names of all peers."""

_SYNONYMS = {"pytorch": "torch", "onnx": "onnxruntime", "ort": "onnxruntime"}


def peer(name: str) -> Peer:
    """The peer of a name.

    Raises
    ------
    UsageError
        No peer has that name.
    DeviceError
        The peer's package is not installed, or cannot be loaded.
    """
    if name == "torch":
        from lstm_cli.workflows.bench.peers.torch_peer import TorchPeer

        return TorchPeer()
    if name == "onnxruntime":
        from lstm_cli.workflows.bench.peers.onnxruntime_peer import OnnxRuntimePeer

        return OnnxRuntimePeer()
    guess = _SYNONYMS.get(name.lower()) or nearest(name, PEERS)
    raise UsageError(
        f"{name!r} is not a peer to measure against",
        expected=" or ".join(PEERS),
        hint=f"did you mean `{guess}`?" if guess else None,
    )
