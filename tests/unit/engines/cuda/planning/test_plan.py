"""Plans of persistent kernels: candidates, the chosen plan, and shapes without a plan."""

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


def shape(H, precision="bfloat16", backward=False, make=LSTM, **options):
    result = recurrence_shape(make(hidden_size=H, **options), PRECISIONS[precision], backward)
    assert not isinstance(result, str), result
    return result


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("limits", [H200, A100, RTX], ids=["h200", "a100", "rtx"])
@pytest.mark.parametrize("H", [1, 33, 128, 512, 1000])
def test_plans_hold_all_weights_and_fit(H, limits, backward):
    sizes = shape(H, backward=backward)
    plans = list(candidate_plans(sizes, limits, 20))
    assert plans
    for plan in plans:
        assert plan.blocks * plan.units >= H > (plan.blocks - 1) * plan.units
        assert plan.tiles * plan.row_warps * 16 >= plan.rows
        assert plan.padded_width >= plan.width
        assert plan.padded_width == plan.chunks * plan.sum_warps * sizes.chunk
        assert 0 <= plan.register_chunks <= plan.chunks
        assert plan.shared_bytes <= limits.shared_bytes
        assert plan.registers <= min(255, 65536 // plan.threads)
        assert plan.items * plan.threads >= plan.units * plan.columns
        assert (plan.kind == BLOCK) == (plan.blocks == 1)
        assert plan.kind != CLUSTER or plan.blocks <= limits.largest_cluster


@pytest.mark.parametrize(
    ("H", "limits", "kind"),
    [(8, H200, BLOCK), (256, H200, CLUSTER), (1024, H200, GRID), (256, A100, GRID)],
)
def test_kind_of_the_best_plan(H, limits, kind):
    plan = best_plan(shape(H), limits, 16, 1)
    assert plan is not None
    assert plan.kind == kind


def test_best_is_the_fastest_by_the_model():
    sizes = shape(256)
    plan = best_plan(sizes, H200, 24, 2)
    assert plan is not None
    assert step_seconds(plan, H200, 24, 2) == min(
        step_seconds(p, H200, 24, 2) for p in candidate_plans(sizes, H200, 24)
    )


def test_one_kind_only():
    for kind in (BLOCK, CLUSTER, GRID):
        plan = best_plan(shape(32), H200, 8, 1, kind)
        assert plan is not None
        assert plan.kind == kind


def test_directions_of_a_grid_are_resident_together():
    plan = best_plan(shape(1024), H200, 16, 2)
    assert plan is not None
    assert plan.blocks * 2 <= H200.multiprocessors


def test_large_batches_are_divided_between_groups():
    plan = best_plan(shape(128), H200, 128, 1)
    assert plan is not None
    assert plan.groups(128) > 1
    assert waves(plan, H200, 128, 1) == 1


def test_vectors_in_shared_memory_avoid_bank_conflicts():
    """Row strides are 64 bytes off a multiple of 128, sum strides 4 numbers off one of 16."""
    for precision in ("tf32", "bfloat16"):
        sizes = shape(200, precision)
        for plan in candidate_plans(sizes, H200, 32):
            assert plan.sum_stride % 16 == 4
            if plan.kind != GRID:
                assert plan.vector_stride * sizes.operand_bytes % 128 == 64


@pytest.mark.parametrize(
    ("cell", "precision", "why"),
    [
        (LSTM(hidden_size=8), "float32", "exact"),
        (LSTM(hidden_size=8), "float64", "exact"),
        (LSTM(hidden_size=8, projection_size=4), "bfloat16", "more than one product"),
        (GRU(hidden_size=8, reset_after=False), "tf32", "more than one product"),
    ],
)
def test_shapes_without_persistent_kernels(cell, precision, why):
    reason = recurrence_shape(cell, PRECISIONS[precision], False)
    assert isinstance(reason, str)
    assert why in reason


def test_weights_that_are_too_large():
    assert best_plan(shape(2048, "tf32"), H200, 1, 1) is None
    assert best_plan(shape(2048, "bfloat16"), H200, 1, 1) is not None


def test_derivatives_of_float16_are_wide():
    assert shape(8, "float16").narrow
    assert not shape(8, "float16", backward=True).narrow


def test_gates_that_are_multiplied():
    assert multiplied_gates(LSTM(hidden_size=2)) == ("i", "f", "g", "o")
    assert multiplied_gates(LSTM(hidden_size=2, coupled_input_forget=True)) == ("i", "g", "o")
    assert multiplied_gates(LSTM(hidden_size=2, use_forget_gate=False)) == ("i", "g", "o")
    assert multiplied_gates(RNN(hidden_size=2)) == ("h",)
