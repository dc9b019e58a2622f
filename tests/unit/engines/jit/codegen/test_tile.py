"""Columns split into panels, against sizes worked out by hand."""

from __future__ import annotations

import pytest

from lstm_cli.engines.jit.codegen.ir import VectorType
from lstm_cli.engines.jit.codegen.tile import Columns, split_columns

VECTORS = [
    VectorType("float", 16),
    VectorType("float", 8),
    VectorType("float", 4),
    VectorType("double", 2),
]
SIZES = [*range(1, 70), 100, 127, 128, 129, 200]

every_cut = pytest.mark.parametrize("gate_vectors", [None, 1, 2])
every_gates = pytest.mark.parametrize("gates", [1, 2, 3, 4])
every_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.type)


def panels(columns: Columns) -> list[int]:
    """The columns of each panel."""
    tail = columns.split.tail
    return [columns.split.main.columns] * columns.count + ([tail.columns] if tail else [])


@every_vector
@every_gates
@every_cut
def test_panels_cover_the_columns_and_little_more(
    gate_vectors: int | None, gates: int, vector: VectorType
) -> None:
    for size in SIZES:
        columns = split_columns(size, gates, vector, gate_vectors)
        widths = panels(columns)
        assert columns.padded == sum(widths) >= size
        assert sum(widths[:-1]) < size
        rest = size % vector.count
        waste = columns.padded - size
        assert waste == (-rest % vector.count if rest > vector.count // 2 else waste)
        assert waste < vector.count
        assert size <= columns.stride < size + vector.count
        assert columns.stride % vector.count == 0
        assert columns.width == gates * columns.padded
        assert columns.split.main.gates == columns.split.gates == gates


@every_vector
@every_gates
def test_a_narrow_rest_takes_half_a_vector(gates: int, vector: VectorType) -> None:
    main = split_columns(1000, gates, vector).split.main.columns
    half = vector.count // 2
    columns = split_columns(2 * main + half, gates, vector)
    assert columns.count == 2
    assert columns.split.tail is not None
    assert columns.split.tail.vector.count == half
    whole = split_columns(2 * main, gates, vector)
    assert whole.split.tail is None
    assert whole.padded == 2 * main


def test_about_four_vectors_make_a_panel() -> None:
    vector = VectorType("float", 16)
    vectors = {
        gates: split_columns(1000, gates, vector).split.main.vectors for gates in (1, 2, 3, 4)
    }
    assert vectors == {1: 4, 2: 4, 3: 3, 4: 4}
    assert split_columns(1000, 3, vector, gate_vectors=2).split.main.vectors == 6


def test_the_name_says_how_columns_are_cut_and_not_how_many_there_are() -> None:
    vector = VectorType("float", 16)
    assert split_columns(64, 4, vector).split.name == split_columns(1600, 4, vector).split.name
    names = {split_columns(size, gates, vector, gate_vectors).split.name
             for size in (64, 69, 75) for gates in (1, 4) for gate_vectors in (1, 2)}  # fmt: skip
    assert len(names) == 10  # a rest of 11 fills a panel of one vector, but not one of two
    assert (
        split_columns(64, 4, vector).split.name
        != split_columns(64, 4, VectorType("float", 8)).split.name
    )
    assert (
        split_columns(64, 4, vector).split.name
        != split_columns(64, 4, VectorType("double", 8)).split.name
    )
