"""Order and groups of rows, and the choice of threads with its explanation."""

from __future__ import annotations

import numpy as np
import pytest
from compiled_ir import usable_machine
from hypothesis import given
from hypothesis import strategies as st

from lstm_cli.cells import GRU, LSTM, RNN, Cell
from lstm_cli.engines.jit import layers
from lstm_cli.engines.jit.batch import RowGroups, full_batch, group_rows, ragged_batch
from lstm_cli.engines.jit.engine import JitEngine
from lstm_cli.engines.types import RecurrentSpec

LENGTHS = np.array([3, 0, 6, 1, 6, 2, 5, 4])
T = 6


@st.composite
def lengths(draw: st.DrawFn) -> np.ndarray:
    return np.array(draw(st.lists(st.integers(0, 9), min_size=1, max_size=40)), np.int64)


def groups(rows: RowGroups) -> list[slice]:
    return [slice(a, b) for a, b in zip(rows.starts, rows.starts[1:], strict=False)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("N", [0, 1, 6, 7, 64])
def test_full_batches_are_cut_into_equal_groups(N: int, count: int) -> None:
    rows = full_batch(N, T, count)
    sizes = np.diff(rows.starts)
    assert len(sizes) == rows.groups == count
    assert sizes.sum() == rows.count == N
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(rows.active, np.repeat(sizes[:, None], T, axis=1))
    assert rows.active.flags.c_contiguous
    assert rows.active.dtype == rows.starts.dtype == np.int64
    assert rows.order is None
    assert rows.thread_owns_groups


def test_no_groups_are_one_that_is_shared() -> None:
    for rows in (full_batch(5, T, 0), ragged_batch(LENGTHS, T, 0)):
        assert rows.groups == 1
        assert not rows.thread_owns_groups
    assert full_batch(5, T, 1).thread_owns_groups


def test_lengths_that_are_all_equal_need_no_order() -> None:
    assert group_rows(4, T, None, 2) is full_batch(4, T, 2)
    assert group_rows(4, T, np.full(4, T), 2) is full_batch(4, T, 2)
    assert group_rows(4, T, np.array([T, T, T, T - 1]), 2).order is not None
    assert group_rows(0, T, np.zeros(0, np.int64), 1).count == 0


@given(lengths(), st.integers(0, 5))
def test_rows_are_sorted_in_each_group(n: np.ndarray, count: int) -> None:
    rows = ragged_batch(n, 9, count)
    assert rows.order is not None
    assert sorted(rows.order) == list(range(len(n)))
    np.testing.assert_array_equal(rows.lengths, n[rows.order])
    assert rows.groups == max(1, count)
    for own, active in zip(groups(rows), rows.active, strict=True):
        part = rows.lengths[own]
        assert (np.diff(part) <= 0).all()
        np.testing.assert_array_equal(active, [(part > t).sum() for t in range(9)])


@given(lengths(), st.integers(2, 5))
def test_groups_have_about_equal_work(n: np.ndarray, count: int) -> None:
    rows = ragged_batch(n, 9, count)
    sizes, work = np.diff(rows.starts), [rows.lengths[own].sum() for own in groups(rows)]
    assert sizes.max() - sizes.min() <= 1
    assert max(work) - min(work) <= n.max()


def test_sequences_of_one_length_keep_their_order() -> None:
    rows = ragged_batch(LENGTHS, T, 1)
    np.testing.assert_array_equal(rows.order, [2, 4, 6, 7, 0, 5, 3, 1])


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n", [None, LENGTHS], ids=["full", "ragged"])
def test_offsets_are_where_each_rows_first_step_is(
    n: np.ndarray | None, reverse: bool, count: int
) -> None:
    N, D, base = len(LENGTHS), 5, 3
    array = np.arange(N * T * 2 * D).reshape(N, T, 2 * D)
    row, step = array.strides[0] // 8, array.strides[1] // 8
    rows = group_rows(N, T, n, count)
    found = rows.offsets(row, step, base, reverse=reverse)
    assert found.dtype == np.int64
    for k, at in enumerate(found):
        sequence = k if rows.order is None else rows.order[k]
        length = T if n is None else n[sequence]
        if length:
            assert array.ravel()[at] == array[sequence, length - 1 if reverse else 0, base]


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n", [None, LENGTHS], ids=["full", "ragged"])
def test_steps_are_those_of_the_loops(n: np.ndarray | None, reverse: bool, count: int) -> None:
    N = len(LENGTHS)
    rows = group_rows(N, T, n, count)
    expected, firsts = [], []
    if n is None:  # of whole sequences all groups' steps are numbered together
        rows = group_rows(N, T, n, min(count, 1))
    for own, active in zip(groups(rows), rows.active, strict=True):
        firsts.append(len(expected))
        for passed in range(T):
            for row in range(own.start, own.start + active[passed]):
                sequence = row if rows.order is None else rows.order[row]
                length = T if n is None else n[sequence]
                t = length - 1 - passed if reverse else passed
                expected.append((row, sequence, t))
    rows = group_rows(N, T, n, count)
    firsts = rows.starts[:-1] if n is None else firsts
    found = list(zip(*rows.steps(reverse=reverse), strict=True))
    assert found == expected
    assert len({(sequence, t) for _, sequence, t in found}) == len(found)
    assert len(found) == (N * T if n is None else n.sum())
    np.testing.assert_array_equal(rows.first_records(), firsts)


@pytest.mark.parametrize("n", [None, LENGTHS], ids=["full", "ragged"])
def test_sums_are_made_in_one_order_whatever_the_groups(n: np.ndarray | None) -> None:
    orders = []
    for count in (0, 1, 2, 3):
        rows = group_rows(len(LENGTHS), T, n, count)
        _, sequence, passed = rows.steps(reverse=False)
        order = rows.sum_order(sequence, passed)
        order = slice(None) if order is None else order
        orders.append((sequence[order].tolist(), passed[order].tolist()))
    assert orders == [orders[0]] * 4


def test_more_groups_than_rows() -> None:
    rows = ragged_batch(np.array([2, 5]), T, 4)
    assert rows.groups == 4
    assert np.diff(rows.starts).tolist() == [1, 1, 0, 0]
    assert rows.active[2:].sum() == 0
    assert rows.first_records().tolist() == [0, 5, 7, 7]


# The choice of threads and its explanation

WORKLOADS = [(32, 1, 100, 2), (100, 32, 100, 2), (512, 8, 3, 2), (400, 64, 3, 2), (100, 32, 100, 1)]
"""H, N, T and threads."""


def layer(H: int, kind: type[Cell] = LSTM) -> RecurrentSpec:
    return RecurrentSpec(0, 6, (kind(hidden_size=H),))


@pytest.mark.parametrize(("H", "N", "T", "threads"), WORKLOADS)
def test_threads_and_groups_are_those_of_a_pass(
    H: int, N: int, T: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable_machine()
    engine, spec = JitEngine("float32", threads), layer(H)
    groups_of_passes: list[int] = []

    def recorded(N: int, T: int, lengths: np.ndarray | None, groups: int) -> RowGroups:
        groups_of_passes.append(groups)
        return group_rows(N, T, lengths, groups)

    monkeypatch.setattr(layers, "group_rows", recorded)
    weights = {name: np.zeros(p.shape, np.float32) for name, p in spec.parameters().items()}
    engine.layer(spec, weights).forward(np.zeros((N, T, 6), np.float32), None)
    explanation = engine.explain([spec], N, T)[spec.index]
    assert [explanation.numbers["groups"]] == groups_of_passes
    assert explanation.numbers["threads"] == (1 if "1 thread" in explanation.way else threads)


def test_every_choice_is_explained() -> None:
    usable_machine()
    engine = JitEngine("float32", 2)
    assert {engine.explain([layer(H)], N, T)[0].way for H, N, T, _ in WORKLOADS} == {
        "1 thread",
        "2 threads that share the units",
        "2 threads, each with sequences of its own",
    }
    for kind, gates in ((LSTM, 4), (GRU, 3), (RNN, 1)):
        for dtype in ("float32", "float64", "bfloat16"):
            explanation = JitEngine(dtype, 2).explain([layer(100, kind)], 8, 50)[0]
            assert explanation.numbers["tile_gates"] == gates
            assert explanation.floor is None
            assert f"{gates} gates" in explanation.reasons[0]
            assert max(map(len, explanation.reasons)) < 76
