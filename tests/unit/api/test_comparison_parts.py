"""The parts of a comparison by themselves: figures, rules, layouts, first steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_cli.api.comparison import block_metrics as figures_module
from lstm_cli.api.comparison.diagnosis import inverse_order, order_name
from lstm_cli.api.comparison.first_difference import DifferenceFinder, difference_sentence
from lstm_cli.api.comparison.matching import (
    BLOCK_TRANSFORMS,
    agreement_rules,
    candidate_layouts,
    sample,
    tensor_matches,
    transformed,
)
from lstm_cli.api.comparison.metrics import block_metrics, norm
from lstm_cli.formats.gates import NATIVE, reorder


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_figures_are_those_of_the_whole_whatever_the_pieces(monkeypatch):
    a, b = drawn(50, 7), drawn(50, 7, seed=1)
    whole = block_metrics(a, b)
    monkeypatch.setattr(figures_module, "PIECE", 20)
    pieces = block_metrics(a, b)
    assert pieces.difference == whole.difference == float(np.abs(a.astype(float) - b).max())
    assert pieces.correlation == pytest.approx(whole.correlation, rel=1e-12)
    assert pieces.norm_b == pytest.approx(np.linalg.norm(b.astype(float)), rel=1e-12)
    assert norm(a) == pytest.approx(np.linalg.norm(a.astype(float)), rel=1e-12)


def test_figures_of_what_has_none():
    zero = np.zeros((3, 2), np.float32)
    assert block_metrics(zero, zero + 1).relative is None
    assert block_metrics(zero, zero + 1).correlation is None
    assert block_metrics(drawn(3, 2), drawn(3, 2)).correlation == pytest.approx(1)
    odd = np.array([np.nan, np.inf, 1.0])
    assert block_metrics(odd, odd).difference == 0
    assert block_metrics(odd, np.array([1.0, np.inf, 1.0])).difference == np.inf
    assert block_metrics(odd[:0], odd[:0]).difference == 0


@pytest.mark.parametrize("shape", [(6, 6), (6, 4), (6,)])
@pytest.mark.parametrize("change", BLOCK_TRANSFORMS)
def test_picked_numbers_are_those_of_the_changed_block(shape, change):
    block = drawn(*shape)
    at = np.array([0, 3, 5])
    found = sample(block, change, at)
    turned = "transposed" in change or change == "by columns"
    possible = not turned or (
        len(shape) == 2 and (shape[0] == shape[1]) == (change != "by columns")
    )
    assert (found is not None) == possible
    if found is not None:
        made = transformed(block, change)
        assert made.shape == block.shape
        np.testing.assert_array_equal(found, made.reshape(-1)[at])


def test_layouts_are_undone():
    a = drawn(12, 4)
    stored = {
        "transposed": a.T,
        "by columns": a.T.reshape(a.shape),
        "reshaped": a.reshape(4, 12),
        "interleaved": a.reshape(3, 4, 4).swapaxes(0, 1).reshape(12, 4),
        "apart": a.reshape(4, 3, 4).swapaxes(0, 1).reshape(12, 4),
        "halves": np.roll(a, 2, axis=1),
    }
    for name, b in stored.items():
        found = [
            layout for layout, undone in candidate_layouts(b, a.shape, 3) if (undone == a).all()
        ]
        assert found == [name]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["lstm", "gru"]),
    hidden=st.integers(1, 5),
    width=st.integers(0, 6),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_any_order_is_read_back(kind, hidden, width, seed, data):
    native = NATIVE[kind]
    order = tuple(data.draw(st.permutations(native)))
    a = drawn(len(native) * hidden, *([width] if width else []), seed=seed)
    found = tensor_matches(a, reorder(a, native, order), native, 0.0)
    assert [reading.order for reading in found] == [order]
    assert found[0].complete
    back = reorder(reorder(a, native, order), native, inverse_order(kind, order))
    np.testing.assert_array_equal(back, a)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), hidden=st.integers(1, 6), width=st.integers(1, 6))
def test_nothing_is_read_into_other_numbers(seed, hidden, width):
    a = drawn(4 * hidden, width, seed=seed)
    b = drawn(4 * hidden, width, seed=seed + 10_000)
    assert not tensor_matches(a, b, NATIVE["lstm"], 0.0)
    assert not tensor_matches(a, a + np.float32(1e-2) * b, NATIVE["lstm"], 0.0)


def test_rules_hold_for_what_they_are_called_after_and_for_nothing_else():
    a = drawn(200).astype(np.float64)
    made = {
        "float32": a.astype(np.float32),
        "float16": a.astype(np.float16),
        "4 digits": np.array([float(f"{x:.3e}") for x in a], np.float32),
        "5 decimals": np.array([float(f"{x:.5f}") for x in a], np.float32),
    }
    for name, b in made.items():
        b = b.astype(np.float64)
        holding = [r.name for r in agreement_rules(0.0) if r.rounded == "B" and r.holds(a, b).all()]
        assert holding[0] == name
        if name != "float32":
            assert not any(r.holds(b, a).all() for r in agreement_rules(0.0) if r.rounded == "B")
        nudged = b.copy()
        nudged[7] += 1e-2
        assert not any(r.holds(a, nudged).all() for r in agreement_rules(0.0))


def test_names_of_orders():
    assert order_name("lstm", "iofg").framework == "ONNX"
    assert order_name("lstm", "igof").undone == "ONNX"
    assert order_name("lstm", "igof").framework is None
    assert order_name("lstm", "iof").text == "ONNX order i, o, f"
    assert order_name("gru", "zrn").text == "ONNX and Keras order z, r, n"
    assert order_name("gru", "nzr").text == "the order n, z, r"


def test_the_first_step_is_the_first_that_a_direction_runs():
    a = np.zeros((3, 5, 2))
    b = a.copy()
    b[2, 1, 0] = 0.5
    b[1, 3, 1] = 0.25
    lengths = np.array([5, 4, 2])
    parting = DifferenceFinder(10, lengths, 1e-6)
    forward = parting.part(0, "forward", "f", a, b)
    assert (forward.turn, forward.first_step, forward.first_sequence) == (1, 1, 12)
    assert (forward.largest, forward.sequence, forward.step) == (0.5, 12, 1)
    reverse = parting.part(0, "reverse", "f", a, b)
    # Both are their sequence's last step, so the first that the reverse pass sees.
    assert (reverse.turn, reverse.first_step, reverse.first_sequence) == (0, 3, 11)
    later = DifferenceFinder(20, None, 1e-6).part(0, "forward", "f", a, np.roll(b, 1, axis=1) * 3)
    both = later.joined(forward)
    assert (both.first_step, both.largest, both.sequence) == (1, 1.5, 22)
    assert "layer 0 reverse, gate f, step 3 (sequence 11)" in difference_sentence(
        [forward, reverse], 1e-6
    )
    assert "nothing parts" in difference_sentence([parting.part(0, "", "f", a, a)], 1e-6)
    odd = np.full((3, 5, 2), np.nan)
    assert not parting.part(0, "", "f", odd, odd).exceeds
    assert parting.part(0, "", "f", a, odd).largest == np.inf
