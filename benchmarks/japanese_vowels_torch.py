"""The computation of `lstm-cli run configs/japanese-vowels.yaml FILE:/test` as a PyTorch script.

    cd data
    python ../benchmarks/japanese_vowels_torch.py japanese-vowels.h5 japanese-vowels.safetensors

It runs the same network with the same weights, on packed sequences in batches of 64 utterances,
and prints accuracy and cross-entropy.
"""

from __future__ import annotations

import sys

import h5py
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pack_sequence

BATCH = 64


def network(path: str) -> tuple[torch.nn.LSTM, torch.nn.Linear]:
    """A bidirectional LSTM and a dense layer; PyTorch's second bias stays 0."""
    stored = load_file(path)
    lstm, dense = torch.nn.LSTM(12, 100, bidirectional=True), torch.nn.Linear(200, 9)
    for ours, theirs in ("layers.0.", "_l0"), ("layers.0.reverse.", "_l0_reverse"):
        getattr(lstm, f"weight_ih{theirs}").data = stored[f"{ours}weight_ih"]
        getattr(lstm, f"weight_hh{theirs}").data = stored[f"{ours}weight_hh"]
        getattr(lstm, f"bias_ih{theirs}").data = stored[f"{ours}bias"]
        getattr(lstm, f"bias_hh{theirs}").data.zero_()
    index = next(name.split(".")[1] for name in stored if stored[name].shape == (9, 200))
    dense.weight.data = stored[f"layers.{index}.weight"]
    dense.bias.data = stored[f"layers.{index}.bias"]
    return lstm, dense


def main(data: str, weights: str) -> None:
    """Read, compute, print."""
    with h5py.File(data, "r") as file:
        group = file["test"]
        frames = torch.from_numpy(group["inputs"][:].astype("float32"))
        lengths, targets = group["lengths"][:].tolist(), torch.from_numpy(group["targets"][:])
    lstm, dense = network(weights)
    utterances = frames.split(lengths)
    logits = []
    with torch.inference_mode():
        for first in range(0, len(utterances), BATCH):
            packed = pack_sequence(utterances[first : first + BATCH], enforce_sorted=False)
            _, (h, _) = lstm(packed)
            logits.append(dense(h.transpose(0, 1).flatten(1)))
        found = torch.cat(logits)
        loss = torch.nn.functional.cross_entropy(found, targets.long())
        accuracy = (found.argmax(1) == targets).float().mean()
    print(f"accuracy {accuracy.item():.6f} cross-entropy {loss.item():.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
