"""Parts of a comparison: block metrics, rules, layouts, orders of gates, first differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_cli.formats.gates import NATIVE_GATES, reorder_gates
from lstm_cli.network import difference
from lstm_cli.workflows.compare.diagnosis import inverse_order, order_name
from lstm_cli.workflows.compare.first_difference import DifferenceFinder, difference_sentence
from lstm_cli.workflows.compare.inputs import block_metrics, norm
from lstm_cli.workflows.compare.matching import (
    BLOCK_TRANSFORMS,
    agreement_rules,
    candidate_layouts,
    sample,
    tensor_matches,
    transformed,
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_metrics_do_not_depend_on_the_chunks(monkeypatch):
    a, b = normal(50, 7), normal(50, 7, seed=1)
    whole = block_metrics(a, b)
    monkeypatch.setattr(difference, "CHUNK_NUMBERS", 20)
    chunked = block_metrics(a, b)
    assert chunked.difference == whole.difference == float(np.abs(a.astype(float) - b).max())
    assert chunked.correlation == pytest.approx(whole.correlation, rel=1e-12)
    assert chunked.norm_b == pytest.approx(np.linalg.norm(b.astype(float)), rel=1e-12)
    assert norm(a) == pytest.approx(np.linalg.norm(a.astype(float)), rel=1e-12)


def test_metrics_that_do_not_exist():
    zero = np.zeros((3, 2), np.float32)
    assert block_metrics(zero, zero + 1).relative is None
    assert block_metrics(zero, zero + 1).correlation is None
    assert block_metrics(normal(3, 2), normal(3, 2)).correlation == pytest.approx(1)
    odd = np.array([np.nan, np.inf, 1.0])
    assert block_metrics(odd, odd).difference == 0
    assert block_metrics(odd, np.array([1.0, np.inf, 1.0])).difference == np.inf
    assert block_metrics(odd[:0], odd[:0]).difference == 0


@pytest.mark.parametrize("shape", [(6, 6), (6, 4), (6,)])
@pytest.mark.parametrize("transform", BLOCK_TRANSFORMS)
def test_a_sample_holds_numbers_of_the_transformed_block(shape, transform):
    block = normal(*shape)
    at = np.array([0, 3, 5])
    values = sample(block, transform, at)
    exchanges_axes = "transposed" in transform or transform == "by columns"
    possible = not exchanges_axes or (
        len(shape) == 2 and (shape[0] == shape[1]) == (transform != "by columns")
    )
    assert (values is not None) == possible
    if values is not None:
        whole = transformed(block, transform)
        assert whole.shape == block.shape
        np.testing.assert_array_equal(values, whole.reshape(-1)[at])


def test_layouts_are_undone():
    a = normal(12, 4)
    stored = {
        "transposed": a.T,
        "by columns": a.T.reshape(a.shape),
        "reshaped": a.reshape(4, 12),
        "interleaved": a.reshape(3, 4, 4).swapaxes(0, 1).reshape(12, 4),
        "apart": a.reshape(4, 3, 4).swapaxes(0, 1).reshape(12, 4),
        "halves": np.roll(a, 2, axis=1),
    }
    for name, b in stored.items():
        layouts = candidate_layouts(b, a.shape, 3)
        assert [layout for layout, undone in layouts if (undone == a).all()] == [name]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["lstm", "gru"]),
    hidden=st.integers(1, 5),
    width=st.integers(0, 6),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_any_order_is_read_back(kind, hidden, width, seed, data):
    native = NATIVE_GATES[kind]
    order = tuple(data.draw(st.permutations(native)))
    a = normal(len(native) * hidden, *([width] if width else []), seed=seed)
    matches = tensor_matches(a, reorder_gates(a, native, order), native, 0.0)
    assert [match.order for match in matches] == [order]
    assert matches[0].complete
    back = reorder_gates(reorder_gates(a, native, order), native, inverse_order(kind, order))
    np.testing.assert_array_equal(back, a)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), hidden=st.integers(1, 6), width=st.integers(1, 6))
def test_unrelated_numbers_have_no_match(seed, hidden, width):
    a = normal(4 * hidden, width, seed=seed)
    b = normal(4 * hidden, width, seed=seed + 10_000)
    assert not tensor_matches(a, b, NATIVE_GATES["lstm"], 0.0)
    assert not tensor_matches(a, a + np.float32(1e-2) * b, NATIVE_GATES["lstm"], 0.0)


def test_a_rule_holds_for_its_own_rounding_alone():
    a = normal(200).astype(np.float64)
    rounded = {
        "float32": a.astype(np.float32),
        "float16": a.astype(np.float16),
        "4 digits": np.array([float(f"{x:.3e}") for x in a], np.float32),
        "5 decimals": np.array([float(f"{x:.5f}") for x in a], np.float32),
    }
    for name, b in rounded.items():
        b = b.astype(np.float64)
        rules = [rule for rule in agreement_rules(0.0) if rule.rounded == "B"]
        assert next(rule.name for rule in rules if rule.holds(a, b).all()) == name
        if name != "float32":
            assert not any(rule.holds(b, a).all() for rule in rules)
        nudged = b.copy()
        nudged[7] += 1e-2
        assert not any(rule.holds(a, nudged).all() for rule in agreement_rules(0.0))


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
    finder = DifferenceFinder(10, lengths, 1e-6)
    forward = finder.difference(0, "forward", "f", a, b)
    assert (forward.turn, forward.first_step, forward.first_sequence) == (1, 1, 12)
    assert (forward.largest, forward.sequence, forward.step) == (0.5, 12, 1)
    reverse = finder.difference(0, "reverse", "f", a, b)
    # Both are their sequence's last step, so the first that the reverse pass sees.
    assert (reverse.turn, reverse.first_step, reverse.first_sequence) == (0, 3, 11)
    other = DifferenceFinder(20, None, 1e-6)
    later = other.difference(0, "forward", "f", a, np.roll(b, 1, axis=1) * 3)
    both = later.merge(forward)
    assert (both.first_step, both.largest, both.sequence) == (1, 1.5, 22)
    sentence = difference_sentence([forward, reverse], 1e-6)
    assert "layer 0 reverse, gate f, step 3 (sequence 11)" in sentence
    equal = finder.difference(0, "", "f", a, a)
    assert "no value differs" in difference_sentence([equal], 1e-6)
    odd = np.full((3, 5, 2), np.nan)
    assert not finder.difference(0, "", "f", odd, odd).exceeds
    assert finder.difference(0, "", "f", a, odd).largest == np.inf
