"""What ``lstm-cli data FILE`` knows about a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lstm_cli.data.types import TargetInfo
from lstm_cli.errors import Problem

Spread: TypeAlias = tuple[int, float, int]
"""Smallest, median and largest."""


@dataclass(frozen=True)
class StoredReport:
    """One dataset.

    Attributes
    ----------
    path
        In the file.
    shape, dtype
        As declared; None and ``?`` if it cannot be opened.
    storage
        ``contiguous``, ``chunked``, ``compact``, ``virtual``, ``external storage``, ``external
        link``, or ``unreadable``.
    chunks, compression
        None for contiguous or uncompressed storage.
    nbytes
        Bytes it takes in the file, or None.
    in_heap
        These are references alone: the values, of variable length, stand elsewhere in the file.
    role
        What it was taken for: ``inputs``, ``targets``, ...; ``refused``, or empty.
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: str
    storage: str
    chunks: tuple[int, ...] | None
    compression: str | None
    nbytes: int | None
    in_heap: bool
    role: str


@dataclass(frozen=True)
class GroupReport:
    """A group that holds sequences.

    Attributes
    ----------
    name
        As DATA names it: ``words.h5:/test``.
    layout, reason
        What it was taken for, and why.
    count, features
        Sequences N and features D.
    steps
        Shortest, median and longest.
    total_steps
        Of all sequences together.
    dtype
        Of the inputs, as stored.
    targets
        What they are, or None.
    names
        The first few sequence names, or None.
    class_labels
        Labels of the classes, or None.
    class_counts
        How often each class index stands in the targets, if they may be class indices.
    values, candidates
        Values in the shortest, median and longest row, and the features D that divide them all;
        given where nothing says D: `features`, `steps` and `total_steps` are None then.
    """

    name: str
    layout: str
    reason: str
    count: int
    features: int | None
    steps: Spread | None
    total_steps: int | None
    dtype: str
    targets: TargetInfo | None
    names: tuple[str, ...] | None
    class_labels: tuple[str, ...] | None
    class_counts: Mapping[int, int]
    values: Spread | None = None
    candidates: tuple[int, ...] = ()


@dataclass(frozen=True)
class FileReport:
    """A file: its datasets, the groups that hold sequences, and all that is wrong.

    Attributes
    ----------
    path, size
        The file and its bytes.
    format
        ``HDF5`` or ``NetCDF-4``.
    datasets, groups
        What it holds.
    problems
        Everything found wrong; empty if nothing is.
    suggestion
        YAML to begin a config with, or empty.
    """

    path: str
    size: int
    format: str
    datasets: tuple[StoredReport, ...]
    groups: tuple[GroupReport, ...]
    problems: tuple[Problem, ...]
    suggestion: str
