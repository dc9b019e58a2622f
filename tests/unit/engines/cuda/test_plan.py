"""Plans of persistent kernels: what fits, what is chosen, and what is not possible."""

from __future__ import annotations

import pytest

from lstm_cli.cells import GRU, LSTM, RNN
from lstm_cli.engines.cuda.planning.plan import (
    BLOCK,
    CLUSTER,
    GRID,
    DeviceLimits,
    multiplied_gates,
    recurrence_shape,
)
from lstm_cli.engines.cuda.planning.plan_search import (
    best_plan,
    candidate_plans,
    step_seconds,
    waves,
)
from lstm_cli.engines.cuda.precision import PRECISIONS

H200 = DeviceLimits(132, 232448, 16)
A100 = DeviceLimits(108, 166912, 1)
RTX = DeviceLimits(84, 101376, 1)


def work(H, precision="bfloat16", backward=False, make=LSTM, **options):
    found = recurrence_shape(make(hidden_size=H, **options), PRECISIONS[precision], backward)
    assert not isinstance(found, str), found
    return found


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("facts", [H200, A100, RTX], ids=["h200", "a100", "rtx"])
@pytest.mark.parametrize("H", [1, 33, 128, 512, 1000])
def test_plans_hold_all_weights_and_fit(H, facts, backward):
    given = work(H, backward=backward)
    found = list(candidate_plans(given, facts, 20))
    assert found
    for plan in found:
        assert plan.blocks * plan.units >= H > (plan.blocks - 1) * plan.units
        assert plan.tiles * plan.row_warps * 16 >= plan.rows
        assert plan.padded >= plan.width
        assert plan.padded == plan.chunks * plan.sum_warps * given.chunk
        assert 0 <= plan.held <= plan.chunks
        assert plan.shared_bytes <= facts.shared_bytes
        assert plan.registers <= min(255, 65536 // plan.threads)
        assert plan.items * plan.threads >= plan.units * plan.columns
        assert (plan.kind == BLOCK) == (plan.blocks == 1)
        assert plan.kind != CLUSTER or plan.blocks <= facts.largest_cluster


@pytest.mark.parametrize(
    ("H", "facts", "kind"),
    [(8, H200, BLOCK), (256, H200, CLUSTER), (1024, H200, GRID), (256, A100, GRID)],
)
def test_kind_that_is_chosen(H, facts, kind):
    plan = best_plan(work(H), facts, 16, 1)
    assert plan is not None
    assert plan.kind == kind


def test_best_is_the_fastest_by_the_model():
    given = work(256)
    plan = best_plan(given, H200, 24, 2)
    assert plan is not None
    assert step_seconds(plan, H200, 24, 2) == min(
        step_seconds(p, H200, 24, 2) for p in candidate_plans(given, H200, 24)
    )


def test_one_kind_only():
    for kind in (BLOCK, CLUSTER, GRID):
        plan = best_plan(work(32), H200, 8, 1, kind)
        assert plan is not None
        assert plan.kind == kind


def test_directions_of_a_grid_are_resident_together():
    plan = best_plan(work(1024), H200, 16, 2)
    assert plan is not None
    assert plan.blocks * 2 <= H200.multiprocessors


def test_large_batches_are_parted_between_groups():
    plan = best_plan(work(128), H200, 128, 1)
    assert plan is not None
    assert plan.groups(128) > 1
    assert waves(plan, H200, 128, 1) == 1


def test_vectors_in_shared_memory_meet_no_bank_twice():
    """Rows stand 64 bytes off a multiple of 128, sums 4 numbers off one of 16."""
    for precision in ("tf32", "bfloat16"):
        given = work(200, precision)
        for plan in candidate_plans(given, H200, 32):
            assert plan.sum_row % 16 == 4
            if plan.kind != GRID:
                assert plan.row_numbers * given.item_bytes % 128 == 64


@pytest.mark.parametrize(
    ("cell", "precision", "why"),
    [
        (LSTM(hidden_size=8), "float32", "exact"),
        (LSTM(hidden_size=8), "float64", "exact"),
        (LSTM(hidden_size=8, projection_size=4), "bfloat16", "more than one product"),
        (GRU(hidden_size=8, reset_after=False), "tf32", "more than one product"),
    ],
)
def test_what_is_not_possible(cell, precision, why):
    found = recurrence_shape(cell, PRECISIONS[precision], False)
    assert isinstance(found, str)
    assert why in found


def test_what_is_too_large():
    assert best_plan(work(2048, "tf32"), H200, 1, 1) is None
    assert best_plan(work(2048, "bfloat16"), H200, 1, 1) is not None


def test_derivatives_of_float16_are_wide():
    assert work(8, "float16").narrow
    assert not work(8, "float16", backward=True).narrow


def test_gates_that_are_multiplied():
    assert multiplied_gates(LSTM(hidden_size=2)) == ("i", "f", "g", "o")
    assert multiplied_gates(LSTM(hidden_size=2, coupled_input_forget=True)) == ("i", "g", "o")
    assert multiplied_gates(LSTM(hidden_size=2, use_forget_gate=False)) == ("i", "g", "o")
    assert multiplied_gates(RNN(hidden_size=2)) == ("h",)
