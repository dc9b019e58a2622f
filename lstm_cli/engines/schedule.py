"""A cell's step in phases: what is computed after each of its matrix products.

A phase is a product and the pointwise part that follows it. What a later phase, or the backward
step, needs of an earlier one is kept in numbered slots: results of costly functions, and sums
of products, never what can be had again by cheap arithmetic from these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from lstm_cli.cells import Cell, trace
from lstm_cli.cells.cell import PROJECTED, CellGraph, Stage
from lstm_cli.cells.expression import Expression, symbol, topological
from lstm_cli.cells.gradient import gradient

MASK = "mask"
"""The symbol of recurrent dropout: what the vector of a recurrent product is multiplied by."""

CHEAP = frozenset(
    {"add", "subtract", "multiply", "negative", "less", "less_equal", "select", "clip"}
)


@dataclass(frozen=True)
class Phase:
    """A product, and what follows it over the same columns.

    Attributes
    ----------
    stage
        The product.
    reads
        What the next product multiplies; None for the last one.
    states
        New states that can be known by now.
    slots
        What is kept, by slot.
    """

    stage: Stage
    reads: Expression | None
    states: Mapping[str, Expression]
    slots: Mapping[int, Expression]

    @property
    def projects(self) -> bool:
        """Whether its columns are the P of a projection, rather than the H units."""
        return self.stage.matrix == "weight_hr"

    @property
    def roots(self) -> dict[str, Expression]:
        """All that it computes, by name: ``reads``, ``slot 0``, and the states' names."""
        found = {f"slot {k}": node for k, node in self.slots.items()}
        found |= dict(self.states)
        return found if self.reads is None else found | {"reads": self.reads}


@dataclass(frozen=True)
class BackwardPhase:
    """A product of the backward step, and what follows it.

    Attributes
    ----------
    stage
        The product that this one undoes; None for the first phase, which begins from the
        states' derivatives.
    projects
        Whether its columns are the P of a projection.
    derivatives
        By the symbol they belong to: ``x_<gate>``, ``h_<gate>``, ``p_<gate>``, `PROJECTED`,
        and ``<state>_prev`` for what does not come through a product.
    """

    stage: Stage | None
    projects: bool
    derivatives: Mapping[str, Expression]


@dataclass(frozen=True, eq=False)
class CellSchedule:
    """A cell's step, for one purpose.

    Attributes
    ----------
    purpose
        ``inference``, ``inspection`` or ``training``.
    phases
        In order.
    slots
        What is kept of each step, in order of slots.
    backward
        The backward step; empty but for training.
    reads
        In training, the slot of what each product but the first reads.
    dropout
        Whether the vectors of recurrent products are multiplied by a mask.
    """

    purpose: str
    phases: tuple[Phase, ...]
    slots: tuple[Expression, ...]
    backward: tuple[BackwardPhase, ...] = ()
    reads: tuple[int, ...] = ()
    dropout: bool = False

    @property
    def name(self) -> str:
        """Differs between schedules of one cell."""
        return f"{self.purpose} with dropout" if self.dropout else self.purpose


@lru_cache(maxsize=256)
def stages(cell: Cell) -> tuple[Stage, ...]:
    """A cell's matrix products, in order."""
    return trace(cell).stages


@lru_cache(maxsize=256)
def inference(cell: Cell) -> CellSchedule:
    """The step alone: slots hold what one phase leaves for the next."""
    graph = trace(cell)
    return _schedule("inference", graph, _carried(graph))


@lru_cache(maxsize=256)
def inspection(cell: Cell) -> CellSchedule:
    """The step with every gate and every state but h in the first slots, in that order."""
    graph = trace(cell)
    values = {**graph.gates, **graph.states}
    kept = [values[name] for name in inspection_names(cell)]
    return _schedule(
        "inspection", graph, [*kept, *(node for node in _carried(graph) if node not in kept)]
    )


def inspection_names(cell: Cell) -> list[str]:
    """The names of what `inspection` keeps in its first slots: gates, and states but h."""
    graph = trace(cell)
    return [*graph.gates, *(name for name in graph.states if name != "h")]


@lru_cache(maxsize=256)
def training(cell: Cell, dropout: bool) -> CellSchedule:
    """The step, with what its backward step needs in the slots; and that backward step."""
    graph = _masked(trace(cell)) if dropout else trace(cell)
    derivatives = _derivatives(graph)
    needed = [node for parts in derivatives.values() for node in parts]
    slots = list(
        dict.fromkeys([*_carried(graph), *_cut(needed, _forward_only, _at_hand_backwards)])
    )
    reads = [stage.reads for stage in graph.stages[1:]]
    slots += [node for node in reads if node not in slots]
    forward = _schedule("training", graph, slots)
    kept = {node: slot_symbol(k) for k, node in enumerate(slots)}
    phases = tuple(
        BackwardPhase(stage, projects, {n: substitute(v, kept) for n, v in found.items()})
        for stage, projects, found in _backward_phases(graph, derivatives)
    )
    places = tuple(slots.index(node) for node in reads)
    return replace(forward, backward=phases, reads=places, dropout=dropout)


def slot_symbol(k: int) -> Expression:
    """The value of slot `k`."""
    return symbol(f"slot {k}")


def reads_symbol(k: int) -> Expression:
    """The derivative for the vector that product `k` reads."""
    return symbol(f"d_reads {k}")


def substitute(root: Expression, values: Mapping[Expression, Expression]) -> Expression:
    """`root` with some of its nodes replaced."""
    made: dict[Expression, Expression] = {}
    for node in topological([root]):
        args = tuple(made[arg] for arg in node.args)
        made[node] = values.get(node) or Expression(node.op, args, node.payload)
    return made[root]


def symbols(roots: Iterable[Expression]) -> list[str]:
    """The names of the symbols that `roots` are computed from."""
    return [str(node.payload) for node in topological(roots) if node.op == "symbol"]


def _masked(graph: CellGraph) -> CellGraph:
    """The graph with dropout on what the recurrent products read."""
    stages = tuple(
        stage
        if stage.matrix == "weight_hr"
        else Stage(stage.matrix, stage.reads * symbol(MASK), stage.gates)
        for stage in graph.stages
    )
    return CellGraph(stages, graph.gates, graph.states)


def _gives(stage: Stage) -> set[str]:
    """The symbols whose values a product gives."""
    return {f"h_{gate}" for gate in stage.gates} or {PROJECTED}


def _phase_of(node: Expression, graph: CellGraph) -> int:
    """The first phase after which a node can be known."""
    names = set(symbols([node]))
    return max((k for k, stage in enumerate(graph.stages) if names & _gives(stage)), default=0)


def _schedule(purpose: str, graph: CellGraph, slots: list[Expression]) -> CellSchedule:
    """Phases that fill `slots`."""
    kept = {node: slot_symbol(k) for k, node in enumerate(slots)}
    phases = []
    for k, stage in enumerate(graph.stages):
        before = {n: s for n, s in kept.items() if _phase_of(n, graph) < k}
        own = {
            number: substitute(node, before)
            for number, node in enumerate(slots)
            if _phase_of(node, graph) == k
        }
        states = {
            name: substitute(node, before)
            for name, node in graph.states.items()
            if _phase_of(node, graph) == k
        }
        following = graph.stages[k + 1].reads if k + 1 < len(graph.stages) else None
        reads = None if following is None else substitute(following, before)
        phases.append(Phase(stage, reads, states, own))
    return CellSchedule(purpose, tuple(phases), tuple(slots))


def _carried(graph: CellGraph) -> list[Expression]:
    """What later phases need of earlier ones."""
    found: list[Expression] = []
    for k in range(1, len(graph.stages)):
        later = [node for node in graph.states.values() if _phase_of(node, graph) == k]
        later += [stage.reads for stage in graph.stages[k + 1 :]]
        later = [node for node in later if _phase_of(node, graph) == k]

        def early(node: Expression, limit: int = k) -> bool:
            return _phase_of(node, graph) < limit

        found += _cut(later, early, _at_hand)
    return list(dict.fromkeys(found))


def _at_hand(name: str) -> bool:
    """Whether a symbol can be read from memory in any phase of the step."""
    return name.startswith(("x_", "p_")) or name in ("h_prev", MASK)


def _at_hand_backwards(name: str) -> bool:
    """Whether a symbol can be read from memory in the backward step."""
    return name.startswith("p_") or name.endswith("_prev") or name == MASK


def _forward_only(node: Expression) -> bool:
    return not any(name.startswith("d_") for name in symbols([node]))


def _cut(
    roots: Iterable[Expression],
    early: Callable[[Expression], bool],
    at_hand: Callable[[str], bool],
) -> list[Expression]:
    """The nodes to keep so that `roots` can be had from them by cheap arithmetic."""
    found: dict[Expression, None] = {}
    seen: set[Expression] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen or node.op == "constant":
            continue
        seen.add(node)
        if node.op == "symbol":
            if early(node) and not at_hand(str(node.payload)):
                found[node] = None
        elif early(node) and (node.op not in CHEAP or _sums_parts(node)):
            if not all(at_hand(name) for name in symbols([node])) or node.op not in CHEAP:
                found[node] = None
        else:
            stack += node.args
    return list(found)


def _sums_parts(node: Expression) -> bool:
    """Whether a node adds up an input part and a recurrent part, which none need know apart."""
    return node.op == "add" and all(
        arg.op == "symbol" and str(arg.payload).startswith(("x_", "h_")) for arg in node.args
    )


def _derivatives(graph: CellGraph) -> dict[str, list[Expression]]:
    """By symbol, the derivatives that come from the states and from each product's vector."""
    found: dict[str, list[Expression]] = {}
    seeds: dict[Expression, Expression] = {}
    for name, state in graph.states.items():
        d = symbol(f"d_{name}")
        seeds[state] = seeds[state] + d if state in seeds else d
    parts = [gradient(seeds)]
    parts += [gradient({s.reads: reads_symbol(k)}) for k, s in enumerate(graph.stages)]
    for part in parts:
        for name, d in part.items():
            found.setdefault(name, []).append(d)
    return {name: d for name, d in found.items() if name != MASK}


def _backward_phases(
    graph: CellGraph, derivatives: Mapping[str, list[Expression]]
) -> list[tuple[Stage | None, bool, dict[str, Expression]]]:
    """The first phase, then a phase for each product but the first, from the last one.

    The first product's vector is known before the step: what its derivative gives belongs to
    the states before, and is added where the step before begins.
    """
    later = list(range(len(graph.stages) - 1, 0, -1))
    position = {str(reads_symbol(k).payload): n + 1 for n, k in enumerate(later)}
    first = str(reads_symbol(0).payload)
    phases: list[dict[str, Expression]] = [{} for _ in range(len(later) + 1)]
    for name, parts in derivatives.items():
        own = [d for d in parts if first not in symbols([d])]
        if own:
            total = own[0]
            for part in own[1:]:
                total = total + part
            at = max((position.get(s, 0) for s in symbols([total])), default=0)
            phases[at][name] = total
    projects = any(stage.matrix == "weight_hr" for stage in graph.stages)
    result: list[tuple[Stage | None, bool, dict[str, Expression]]] = [(None, projects, phases[0])]
    result += [(graph.stages[k], False, phases[n + 1]) for n, k in enumerate(later)]
    return result
