"""Phases of a cell's step: they equal its equations, and read only values that are in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from networks import CELL_OPTIONS, KINDS

from lstm_cli.cells import Cell, trace
from lstm_cli.cells.cell import PROJECTED
from lstm_cli.cells.expression import Expression, evaluate, symbol, topological
from lstm_cli.cells.gradient import gradient
from lstm_cli.engines import schedule
from lstm_cli.engines.schedule import (
    CHEAP,
    MASK,
    CellSchedule,
    inference,
    inspection,
    inspection_names,
    reads_symbol,
    slot_symbol,
    substitute,
    symbols,
    training,
)

Make = Callable[[Cell], CellSchedule]

SCHEDULES: dict[str, Make] = {
    "inference": inference,
    "inspection": inspection,
    "training": lambda cell: training(cell, False),
    "dropout": lambda cell: training(cell, True),
}

every_option = pytest.mark.parametrize("option", CELL_OPTIONS)
every_kind = pytest.mark.parametrize("purpose", SCHEDULES)


def cell_of(option: str) -> Cell:
    kind, options = CELL_OPTIONS[option]
    return KINDS[kind](hidden_size=7, **options)


class StepValues:
    """Random values of all symbols of a step, including results of products."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.graph = cell, trace(cell)
        rng = np.random.default_rng(0)
        names = [f"{kind}_{gate}" for gate in cell.letters for kind in "xh"]
        names += [f"p_{gate}" for gate in cell.peephole_gates]
        names += [f"{name}_prev" for name in cell.states] + [PROJECTED, MASK]
        names += [f"d_{name}" for name in cell.states] + [f"d_reads {k}" for k in range(3)]
        self.values = {name: rng.standard_normal(5) for name in names}

    def product_results(self, k: int) -> set[str]:
        """Symbols that the product of phase `k` computes."""
        stage = self.graph.stages[k]
        return {f"h_{gate}" for gate in stage.gates} or {PROJECTED}

    def evaluate(self, root: Expression) -> np.ndarray:
        return np.asarray(evaluate({"": root}, self.values)[""])


@every_option
@every_kind
def test_phases_compute_the_step(purpose: str, option: str) -> None:
    step = StepValues(cell_of(option))
    plan = SCHEDULES[purpose](step.cell)
    assert [phase.stage.matrix for phase in plan.phases] == [
        stage.matrix for stage in step.graph.stages
    ]
    in_memory = {n for n in step.values if n.startswith(("x_", "p_")) or n.endswith("_prev")}
    actual: dict[str, np.ndarray] = {}
    for k, phase in enumerate(plan.phases):
        allowed = (
            in_memory
            | step.product_results(k)
            | {MASK}
            | {n for n in actual if n.startswith("slot")}
        )
        if k:
            allowed -= {"c_prev"}  # the new c may have overwritten it
        roots = phase.roots
        assert set(symbols(roots.values())) <= allowed
        actual |= evaluate(roots, {**step.values, **actual})
        if phase.reads is not None:
            expected = step.evaluate(step.graph.stages[k + 1].reads)
            if plan.dropout and step.graph.stages[k + 1].matrix == "weight_hh":
                expected = expected * step.values[MASK]
            np.testing.assert_allclose(actual["reads"], expected, rtol=1e-13)
    for name, state in step.graph.states.items():
        np.testing.assert_allclose(actual[name], step.evaluate(state), rtol=1e-13)
    for k in range(len(plan.slots)):
        assert f"slot {k}" in actual


@every_option
def test_inspection_stores_gates_and_states_in_order(option: str) -> None:
    step = StepValues(cell_of(option))
    plan, names = inspection(step.cell), inspection_names(step.cell)
    values = {**step.graph.gates, **step.graph.states}
    assert names == [*step.graph.gates, *(["c"] if "c" in step.graph.states else [])]
    assert plan.slots[: len(names)] == tuple(values[name] for name in names)


@every_option
@pytest.mark.parametrize("dropout", [False, True])
def test_the_backward_step_is_the_gradient(dropout: bool, option: str) -> None:
    step = StepValues(cell_of(option))
    plan, graph = training(step.cell, dropout), step.graph
    seeds: dict[Expression, Expression] = {}
    for name, state in graph.states.items():
        d = symbol(f"d_{name}")
        seeds[state] = seeds[state] + d if state in seeds else d
    for k, stage in enumerate(graph.stages[1:], 1):
        d = reads_symbol(k)
        if dropout and stage.matrix == "weight_hh":
            d = d * symbol(MASK)
        seeds[stage.reads] = seeds[stage.reads] + d if stage.reads in seeds else d
    expected = {name: step.evaluate(d) for name, d in gradient(seeds).items() if name != MASK}
    slots = {str(slot_symbol(k).payload): step.evaluate(s) for k, s in enumerate(plan.slots)}
    if dropout:  # a slot holds the vector after the mask
        for k, slot in zip(range(1, len(graph.stages)), plan.reads, strict=True):
            if graph.stages[k].matrix == "weight_hh":
                masked = step.evaluate(graph.stages[k].reads) * step.values[MASK]
                np.testing.assert_allclose(slots[f"slot {slot}"], masked)
    actual: dict[str, np.ndarray] = {}
    later = {f"d_reads {k}" for k in range(1, len(graph.stages))}
    available = {f"d_{name}" for name in graph.states}
    for phase in plan.backward:
        if phase.stage is not None:
            key = (phase.stage.matrix, phase.stage.gates)
            k = [(stage.matrix, stage.gates) for stage in graph.stages].index(key)
            available |= {f"d_reads {k}"}
        for name, d in phase.derivatives.items():
            assert name not in actual
            for other in symbols([d]):
                in_memory = other.startswith(("p_", "slot ")) or other.endswith("_prev")
                assert in_memory or other == MASK or other in available
            actual[name] = np.asarray(evaluate({"": d}, {**step.values, **slots})[""])
    assert later <= available
    if plan.backward[0].projects:
        assert set(actual) >= {PROJECTED}
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name], np.broadcast_to(value, 5), rtol=1e-12, err_msg=name
        )


SLOTS = {
    "lstm": (0, 5, 5),  # i, f, g, o, and tanh(c)
    "lstm coupled": (0, 5, 4),  # f is 1 - i
    "lstm no forget gate": (0, 4, 4),
    "lstm peepholes projection": (0, 5, 6),  # and the unprojected output
    "gru reset after": (0, 3, 4),  # r, z, n, and the sum that r scales
    "gru reset before": (1, 3, 4),  # z, which the second phase needs; in training r h_prev, too
    "rnn": (0, 1, 1),
}


@pytest.mark.parametrize("option", SLOTS)
def test_slots_are_few(option: str) -> None:
    cell = cell_of(option)
    actual = [len(SCHEDULES[name](cell).slots) for name in ("inference", "inspection", "training")]
    assert tuple(actual) == SLOTS[option]
    assert len(training(cell, True).slots) == SLOTS[option][2]


@every_option
def test_cheap_values_have_no_slot(option: str) -> None:
    cell = cell_of(option)
    plan = training(cell, False)
    reads = {stage.reads for stage in trace(cell).stages[1:]}
    for node in plan.slots:
        sums = node.op == "add" and all(arg.op == "symbol" for arg in node.args)
        product = node.op == "symbol"  # of a matrix, which is expensive
        compared = any(n.op in ("less", "clip") for n in topological([node]))
        assert node.op not in CHEAP or sums or product or compared or node in reads


def test_a_slot_passes_a_value_from_one_phase_to_a_later_one() -> None:
    plan = inference(cell_of("gru reset before"))
    first, second = plan.phases
    assert list(first.slots) == [0]
    assert second.slots == {}
    assert "slot 0" in symbols(second.roots.values())
    assert set(first.roots) == {"slot 0", "reads"}
    assert set(second.roots) == {"h"}


def test_a_projection_is_a_phase_of_its_own() -> None:
    plan = inference(cell_of("lstm narrow projection"))
    assert [phase.projects for phase in plan.phases] == [False, True]
    assert set(plan.phases[0].roots) == {"c", "reads"}
    assert symbols(plan.phases[1].roots.values()) == [PROJECTED]


def test_schedules_are_cached() -> None:
    cell = cell_of("lstm")
    assert inference(cell) is inference(cell_of("lstm"))
    assert training(cell, True) is not training(cell, False)


def test_substitution_replaces_whole_nodes() -> None:
    a, b, c = map(symbol, "abc")
    root = (a + b) * (a + b) - b
    assert substitute(root, {a + b: c}) is c * c - b
    assert substitute(root, {}) is root
    assert substitute(root, {root: a}) is a
    assert schedule.symbols([root]) in (["a", "b"], ["b", "a"])
