"""Data files of every layout with the same random sequences, written by plain h5py."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lstm_cli.data import DataOptions, open_data

LAYOUTS = ("dense", "mask", "concatenated", "offsets", "vlen", "groups")
"""Layouts that `layout_writer` knows."""

Write = Callable[..., str]


@dataclass
class Truth:
    """Sequences as a list of (T, D) arrays, with targets of each kind."""

    sequences: list[np.ndarray]
    classes: np.ndarray = field(init=False)
    values: np.ndarray = field(init=False)
    steps: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(11)
        N = len(self.sequences)
        self.classes = rng.integers(0, 4, N)
        self.values = rng.normal(size=(N, 3))
        self.steps = [rng.normal(size=(len(s), 2)) for s in self.sequences]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(s) for s in self.sequences])

    @property
    def flat(self) -> np.ndarray:
        return np.concatenate(self.sequences)

    def padded(self, T: int, filler: float = 0.0) -> np.ndarray:
        x = np.full((len(self.sequences), T, self.sequences[0].shape[1]), filler)
        for row, sequence in zip(x, self.sequences, strict=True):
            row[: len(sequence)] = sequence
        return x


def random_truth() -> Truth:
    """Eleven sequences of 0 to 8 steps and 5 features."""
    rng = np.random.default_rng(5)
    return Truth([rng.normal(size=(T, 5)) for T in (3, 7, 0, 1, 6, 7, 2, 5, 4, 3, 8)])


def file_writer(folder: Path) -> Write:
    """A function that writes datasets, and ``attrs`` of the file, and returns the path.

    Two underscores in a name stand for a slash. An existing file is extended.
    """

    def write(name: str = "x.h5", attrs: dict[str, object] | None = None, **data: object) -> str:
        path = folder / name
        with h5py.File(path, "a") as file:
            for key, values in data.items():
                file[key.replace("__", "/")] = values
            file.attrs.update(attrs or {})
        return str(path)

    return write


def write_vlen(path: str, name: str, rows: list[np.ndarray], dtype: type = np.float64) -> None:
    """Write rows of variable length."""
    with h5py.File(path, "a") as file:
        dataset = file.create_dataset(name, (len(rows),), h5py.vlen_dtype(dtype))
        for n, row in enumerate(rows):
            dataset[n] = row.ravel()


def window_starts(T: int, length: int, stride: int) -> list[int]:
    """First steps of the windows of a sequence, written apart from the package."""
    starts = [s for s in range(0, T, stride) if s + length <= T]
    return [*starts, T - length] if starts and starts[-1] + length < T else starts


def layout_writer(truth: Truth, write: Write) -> Callable[[str], str]:
    """A function that writes `truth` in a layout, and returns the path."""

    def make(layout: str) -> str:
        name = f"{layout}.h5"
        if layout == "dense":
            return write(name, inputs=truth.padded(9, np.nan), lengths=truth.lengths)
        if layout == "mask":
            mask = np.arange(9) < truth.lengths[:, None]
            return write(name, inputs=truth.padded(9, np.inf), mask=mask)
        if layout == "concatenated":
            return write(name, inputs=truth.flat, lengths=truth.lengths)
        if layout == "offsets":
            offsets = np.concatenate([[0], np.cumsum(truth.lengths)])
            return write(name, inputs=truth.flat, offsets=offsets)
        if layout == "vlen":
            path = write(name, attrs={"features": 5})
            write_vlen(path, "inputs", truth.sequences)
            return path
        return write(name, **{f"seq{n}__inputs": s for n, s in enumerate(truth.sequences)})

    return make


def total(path: str, options: DataOptions | None = None) -> float:
    """Sum of all inputs of a file, read in batches of two sequences."""
    with open_data([path], options) as data:
        return float(sum(batch.x.sum() for batch in data.batches(2, np.float64)))


def run_hint(hint: str, choice: int = 0) -> str:
    """Run the Python command that a hint proposes, and return the file that it writes.

    `choice` numbers the commands of a hint with several ones.
    """
    name = r"""(?:'[^']*'(?:"'"'[^']*')*|\S+)"""  # as the shell quotes it
    command = re.findall(f"python -c .*? writes {name}", hint)[choice]
    words = shlex.split(command)
    assert words[:2] == ["python", "-c"]
    scope: dict[str, Any] = {}
    exec(words[2], scope)
    if "f" in scope:
        scope["f"].close()
    return words[4].rstrip(":,")
