"""How columns are cut into panels."""

from __future__ import annotations

import pytest

from lstm_cli.engines.jit.codegen.ir import Lanes
from lstm_cli.engines.jit.codegen.tile import Columns, columns

LANES = [Lanes("float", 16), Lanes("float", 8), Lanes("float", 4), Lanes("double", 2)]
SIZES = [*range(1, 70), 100, 127, 128, 129, 200]

every_cut = pytest.mark.parametrize("per", [None, 1, 2])
every_gates = pytest.mark.parametrize("gates", [1, 2, 3, 4])
every_lanes = pytest.mark.parametrize("lanes", LANES, ids=lambda lanes: lanes.type)


def panels(cut: Columns) -> list[int]:
    """The columns of each panel."""
    tail = cut.split.tail
    return [cut.split.main.columns] * cut.count + ([tail.columns] if tail else [])


@every_lanes
@every_gates
@every_cut
def test_panels_cover_the_columns_and_little_more(
    per: int | None, gates: int, lanes: Lanes
) -> None:
    for size in SIZES:
        cut = columns(size, gates, lanes, per)
        found = panels(cut)
        assert cut.padded == sum(found) >= size
        assert sum(found[:-1]) < size
        rest = size % lanes.count
        waste = cut.padded - size
        assert waste == (-rest % lanes.count if rest > lanes.count // 2 else waste)
        assert waste < lanes.count
        assert size <= cut.stride < size + lanes.count
        assert cut.stride % lanes.count == 0
        assert cut.width == gates * cut.padded
        assert cut.split.main.gates == cut.split.gates == gates


@every_lanes
@every_gates
def test_a_narrow_rest_takes_half_a_vector(gates: int, lanes: Lanes) -> None:
    main = columns(1000, gates, lanes).split.main.columns
    half = lanes.count // 2
    cut = columns(2 * main + half, gates, lanes)
    assert cut.count == 2
    assert cut.split.tail is not None
    assert cut.split.tail.lanes.count == half
    whole = columns(2 * main, gates, lanes)
    assert whole.split.tail is None
    assert whole.padded == 2 * main


def test_about_four_vectors_make_a_panel() -> None:
    lanes = Lanes("float", 16)
    found = {gates: columns(1000, gates, lanes).split.main.vectors for gates in (1, 2, 3, 4)}
    assert found == {1: 4, 2: 4, 3: 3, 4: 4}
    assert columns(1000, 3, lanes, per=2).split.main.vectors == 6


def test_the_name_says_how_columns_are_cut_and_not_how_many_there_are() -> None:
    lanes = Lanes("float", 16)
    assert columns(64, 4, lanes).split.name == columns(1600, 4, lanes).split.name
    names = {columns(size, gates, lanes, per).split.name
             for size in (64, 69, 75) for gates in (1, 4) for per in (1, 2)}  # fmt: skip
    assert len(names) == 10  # a rest of 11 fills a panel of one vector, but not one of two
    assert columns(64, 4, lanes).split.name != columns(64, 4, Lanes("float", 8)).split.name
    assert columns(64, 4, lanes).split.name != columns(64, 4, Lanes("double", 8)).split.name
