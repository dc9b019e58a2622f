"""A traced cell has the bits of the cell, from a graph of operations that engines can emit."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from networks import random_weights
from strategies import cells

from lstm_cli.cells import FORMULAS, Cell, trace
from lstm_cli.cells.expression import OPERATIONS, topological
from lstm_cli.engines.reference.step import NumpyStep
from lstm_cli.engines.reference.weights import DirectionWeights
from lstm_cli.engines.types import RecurrentSpec

EVERY = tuple(FORMULAS)
seeds = st.integers(0, 2**20)
dtypes = st.sampled_from(["float32", "float64"])


def step_of(
    cell: Cell, N: int, seed: int, dtype: str
) -> tuple[NumpyStep, list[Any], dict[str, Any]]:
    """A step over random values, the states before it, and where its gates are noted."""
    rng = np.random.default_rng(seed)
    spec = RecurrentSpec(0, 3, (cell,))
    named = {
        name.removeprefix(spec.prefix(0)): value.astype(dtype)
        for name, value in random_weights([spec], seed).items()
    }
    weights = DirectionWeights.from_tensors(cell, named)
    z = rng.standard_normal((N, len(cell.gates) * cell.hidden_size)).astype(dtype)
    states = [rng.standard_normal((N, size)).astype(dtype) for size in cell.state_sizes]
    history: dict[str, Any] = {}
    return NumpyStep(weights, z, None, history, {}), states, history


@given(cell=cells(EVERY), N=st.integers(1, 4), seed=seeds, dtype=dtypes)
def test_bit_for_bit(cell: Cell, N: int, seed: int, dtype: str) -> None:
    with np.errstate(all="ignore"):
        step, states, gates = step_of(cell, N, seed, dtype)
        written = cell.cell_forward(step, *states)
        step, states, traced_gates = step_of(cell, N, seed, dtype)
        traced = trace(cell).cell_forward(step, *states)
    assert len(written) == len(traced) == len(cell.states)
    for one, other in zip(written, traced, strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_array_equal(one, other)
    assert gates.keys() == traced_gates.keys()
    for gate, (value,) in gates.items():
        np.testing.assert_array_equal(value, traced_gates[gate][0])
    assert all(np.ptp(state) > 0 for state in written if state.size > 3)


@given(cell=cells(EVERY))
def test_a_stage_reads_only_what_is_known_before_it(cell: Cell) -> None:
    graph = trace(cell)
    known = {f"x_{gate}" for gate in cell.letters} | {f"p_{gate}" for gate in cell.peephole_gates}
    known |= {f"{state}_prev" for state in cell.states}
    for stage in graph.stages:
        assert symbols_of(stage.reads) <= known
        known |= {f"h_{gate}" for gate in stage.gates} or {"projected"}
    for root in (*graph.gates.values(), *graph.states.values()):
        assert symbols_of(root) <= known
    assert {gate for stage in graph.stages for gate in stage.gates} == set(cell.letters)


@given(cell=cells(EVERY))
def test_only_operations_engines_know(cell: Cell) -> None:
    graph = trace(cell)
    roots = [*graph.gates.values(), *graph.states.values(), *(s.reads for s in graph.stages)]
    actual = {node.op for node in topological(roots)}
    assert actual <= {"symbol", "constant", *OPERATIONS}


@given(cell=cells(EVERY))
def test_equal_cells_have_one_graph(cell: Cell) -> None:
    first, second = trace(cell), trace(cell)
    assert all(first.states[name] is second.states[name] for name in cell.states)


def symbols_of(root: Any) -> set[str]:
    return {str(node.payload) for node in topological([root]) if node.op == "symbol"}
