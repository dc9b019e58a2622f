"""Micro-batches of a batch: their rows, the ranks that compute them, and the order of sums.

A sum over micro-batches has one order, that of a binary tree. It does not depend on which rank
computes which micro-batch. So the bits of a trained network do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.training.interfaces import Exchange

Node: TypeAlias = tuple[int, int]
"""A node of the tree: its first micro-batch, and the one after its last."""

Sum = TypeVar("Sum")


@dataclass(frozen=True)
class OneRank:
    """The exchange of a single process; see `lstm_cli.training.interfaces.Exchange`."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def scatter_slices(self, slices: Sequence[Array]) -> list[Array]:
        """The only slice."""
        return list(slices)

    def join_slices(self, mine: Array, out: Array) -> None:
        """Copy the only slice."""
        out[...] = mine


ONE_RANK = OneRank()
"""The exchange of a run on one process."""


def micro_batch_rows(count: int, rows: int) -> list[Array]:
    """Rows of each micro-batch of a batch.

    Row j goes to micro-batch 0, 1, ..., M - 1, M - 1, ..., 1, 0, 0, 1, ... Batches are sorted by
    length, so all micro-batches have about equal work.

    Parameters
    ----------
    count
        Number of micro-batches; M is at most the number of rows.
    rows
        Number of rows of the batch.
    """
    M = max(1, min(count, rows))
    place = np.arange(rows) % (2 * M)
    place = np.minimum(place, 2 * M - 1 - place)
    return [np.flatnonzero(place == k) for k in range(M)]


def rank_micro_batches(count: int, rank: int, size: int) -> range:
    """Micro-batches of a rank: neighbors in the tree."""
    return range(count * rank // size, count * (rank + 1) // size)


def rank_rows(count: int, rows: int, exchange: Exchange) -> Array:
    """Rows of a batch that this rank computes, ascending."""
    parts = micro_batch_rows(count, rows)
    own = rank_micro_batches(len(parts), exchange.rank, exchange.size)
    return np.sort(np.concatenate([np.zeros(0, np.int64), *(parts[k] for k in own)]))


def rank_nodes(count: int, rank: int, size: int) -> list[Node]:
    """The largest nodes of the tree whose micro-batches are all a rank's."""
    own = rank_micro_batches(count, rank, size)

    def nodes(first: int, stop: int) -> list[Node]:
        if own.start <= first and stop <= own.stop:
            return [(first, stop)]
        if stop <= own.start or own.stop <= first:
            return []
        middle = (first + stop) // 2
        return nodes(first, middle) + nodes(middle, stop)

    return nodes(0, count)


def tree_sum(
    node: Node,
    value: Callable[[Node], Sum | None],
    add: Callable[[Sum, Sum], Sum],
    known: Sequence[Node] = (),
) -> Sum | None:
    """Sum of a node: [a, b) is [a, m) + [m, b) with m = (a + b) // 2.

    The tree is walked depth first, so that few sums are held at a time.

    Parameters
    ----------
    value
        Value of a micro-batch, or of a node in `known`. None adds nothing.
    """
    first, stop = node
    if stop - first == 1 or node in known:
        return value(node)
    middle = (first + stop) // 2
    left = tree_sum((first, middle), value, add, known)
    right = tree_sum((middle, stop), value, add, known)
    return right if left is None else left if right is None else add(left, right)


def sum_over_ranks(
    own: Mapping[Node, Array],
    count: int,
    present: Mapping[int, Any],
    size: int,
    dtype: str,
    exchange: Exchange,
) -> Array:
    """Sum of all micro-batches' values, on every rank.

    Each rank adds the nodes of all ranks in one slice of the values, in the order of the tree.

    Parameters
    ----------
    own
        Values (P,) of this rank's nodes, those of `rank_nodes` with a present micro-batch.
    count
        Number of micro-batches.
    present
        Micro-batches with a value, on any rank.
    size, dtype
        Number of values P, and their dtype.
    """
    ranks = range(exchange.size)
    nodes = [
        [
            node
            for node in rank_nodes(count, r, exchange.size)
            if any(k in present for k in range(*node))
        ]
        for r in ranks
    ]
    cuts = [size * r // exchange.size for r in range(exchange.size + 1)]
    values = [own[node] for node in nodes[exchange.rank]]
    slices = [
        np.stack([v[cuts[s] : cuts[s + 1]] for v in values])
        if values
        else np.zeros((0, cuts[s + 1] - cuts[s]), dtype)
        for s in ranks
    ]
    received = exchange.scatter_slices(slices)
    parts = {node: received[r][k] for r in ranks for k, node in enumerate(nodes[r])}
    every = [node for r in ranks for node in rank_nodes(count, r, exchange.size)]
    mine = tree_sum((0, count), parts.get, lambda a, b: a + b, every)
    total = np.empty(size, dtype)
    exchange.join_slices(np.asarray(mine, dtype), total)
    return total


def merged(parts: Sequence[Mapping[int, Any]]) -> dict[int, Any]:
    """One mapping of all ranks' mappings by number, in ascending order."""
    return dict(sorted(item for part in parts for item in part.items()))
