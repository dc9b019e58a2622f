"""Ragged batches in PyTorch."""

from __future__ import annotations

from typing import Any

from lstm_cli.bench.peers.base import Unsupported
from lstm_cli.engines.types import Array, FlattenSpec, Layers


class Packing:
    """Ragged batches as PyTorch has them: packed sequences, which its recurrent layers take.

    Sequences come in any order, as they do in a file, and the first layer to the last share one
    packing, as in the layers of one ``torch.nn.LSTM``.
    """

    def __init__(self, torch: Any, lengths: Array | None) -> None:
        self._tools = torch.nn.utils.rnn
        self._lengths = None if lengths is None else torch.from_numpy(lengths)

    def packed(self, x: Any) -> Any:
        """(N, T, ...) packed; as it is where every sequence has all steps."""
        if self._lengths is None:
            return x
        pack = self._tools.pack_padded_sequence
        return pack(x, self._lengths, batch_first=True, enforce_sorted=False)

    def is_packed(self, y: Any) -> bool:
        """Whether it is a packed sequence."""
        return isinstance(y, self._tools.PackedSequence)

    def unpacked(self, y: Any, steps: int) -> Any:
        """(N, T, F) with 0 past the ends; a tensor as it is."""
        if not self.is_packed(y):
            return y
        return self._tools.pad_packed_sequence(y, batch_first=True, total_length=steps)[0]


def packing_of(torch: Any, layers: Layers, lengths: Array | None) -> Packing:
    """The packing of a batch of these lengths.

    Raises
    ------
    Unsupported
        A layer that takes no packed sequences.
    """
    if lengths is not None:
        for spec in layers:
            if isinstance(spec, FlattenSpec):
                raise Unsupported(f"layer {spec.index}: flatten does not take packed sequences")
    return Packing(torch, lengths)
