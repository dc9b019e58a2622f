"""Phases of a cell's step, each a matrix product and the elementwise part after it.

jit and cuda emit kernels from these phases. Numbered slots hold the values that a later phase or
the backward step needs: results of costly functions, and sums of products. Values that cheap
arithmetic can recompute from these have no slot. `lstm_cli.cells.gradient.backward` computes the
same backward step in another way, and is the oracle for it.
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
"""Symbol of the mask of recurrent dropout, which multiplies the vector of a recurrent product."""

CHEAP = frozenset(
    {"add", "subtract", "multiply", "negative", "less", "less_equal", "select", "clip"}
)
"""Operations that are recomputed rather than stored."""


@dataclass(frozen=True)
class Phase:
    """A matrix product, and the elementwise part after it over the same columns.

    Attributes
    ----------
    stage
        The matrix product.
    reads
        Vector that the next product multiplies. None in the last phase.
    states
        New states that this phase computes.
    slots
        Values that this phase stores, by slot number.
    """

    stage: Stage
    reads: Expression | None
    states: Mapping[str, Expression]
    slots: Mapping[int, Expression]

    @property
    def projects(self) -> bool:
        """Whether the columns are the P features of a projection, rather than the H units."""
        return self.stage.matrix == "weight_hr"

    @property
    def roots(self) -> dict[str, Expression]:
        """All expressions of the phase by name: ``reads``, ``slot 0``, and the states' names."""
        roots = {f"slot {k}": node for k, node in self.slots.items()}
        roots |= dict(self.states)
        return roots if self.reads is None else roots | {"reads": self.reads}


@dataclass(frozen=True)
class BackwardPhase:
    """A matrix product of the backward step, and the elementwise part after it.

    Attributes
    ----------
    stage
        Forward product that this phase differentiates. None for the first phase, which starts
        from the states' derivatives.
    projects
        Whether the columns are the P features of a projection.
    derivatives
        Derivatives by symbol: ``x_<gate>``, ``h_<gate>``, ``p_<gate>``, `PROJECTED`, and
        ``<state>_prev`` for the part that does not come through a product.
    """

    stage: Stage | None
    projects: bool
    derivatives: Mapping[str, Expression]


@dataclass(frozen=True, eq=False)
class CellSchedule:
    """Phases and slots of a cell's step, for one purpose.

    Attributes
    ----------
    purpose
        ``inference``, ``inspection`` or ``training``.
    phases
        Forward phases in order.
    slots
        Value of each slot, in slot order.
    backward
        Backward phases. Only training has them.
    reads
        Slot number of the vector that each product after the first reads. Only training has them.
    dropout
        Whether a mask multiplies the vectors of recurrent products.
    """

    purpose: str
    phases: tuple[Phase, ...]
    slots: tuple[Expression, ...]
    backward: tuple[BackwardPhase, ...] = ()
    reads: tuple[int, ...] = ()
    dropout: bool = False

    @property
    def name(self) -> str:
        """Name that differs between the schedules of one cell."""
        return f"{self.purpose} with dropout" if self.dropout else self.purpose


@lru_cache(maxsize=256)
def stages(cell: Cell) -> tuple[Stage, ...]:
    """Matrix products of a cell in order."""
    return trace(cell).stages


@lru_cache(maxsize=256)
def inference(cell: Cell) -> CellSchedule:
    """The schedule of inference. Slots hold the values that one phase passes to the next."""
    graph = trace(cell)
    return _schedule("inference", graph, _between_phases(graph))


@lru_cache(maxsize=256)
def inspection(cell: Cell) -> CellSchedule:
    """The schedule that stores every gate, then every state but h, in the first slots."""
    graph = trace(cell)
    values = {**graph.gates, **graph.states}
    first = [values[name] for name in inspection_names(cell)]
    rest = [node for node in _between_phases(graph) if node not in first]
    return _schedule("inspection", graph, [*first, *rest])


def inspection_names(cell: Cell) -> list[str]:
    """Names of the first slots of `inspection`: gates, then states but h."""
    graph = trace(cell)
    return [*graph.gates, *(name for name in graph.states if name != "h")]


@lru_cache(maxsize=256)
def training(cell: Cell, dropout: bool) -> CellSchedule:
    """The schedule of training: slots hold the values that the backward phases need."""
    graph = _masked(trace(cell)) if dropout else trace(cell)
    derivatives = _derivatives(graph)
    needed = [node for parts in derivatives.values() for node in parts]
    slots = list(
        dict.fromkeys(
            [*_between_phases(graph), *_nodes_to_store(needed, _forward_only, _in_memory_backward)]
        )
    )
    reads = [stage.reads for stage in graph.stages[1:]]
    slots += [node for node in reads if node not in slots]
    forward = _schedule("training", graph, slots)
    stored = {node: slot_symbol(k) for k, node in enumerate(slots)}
    phases = tuple(
        BackwardPhase(stage, projects, {n: substitute(v, stored) for n, v in parts.items()})
        for stage, projects, parts in _backward_phases(graph, derivatives)
    )
    read_slots = tuple(slots.index(node) for node in reads)
    return replace(forward, backward=phases, reads=read_slots, dropout=dropout)


def slot_symbol(k: int) -> Expression:
    """Symbol of the value of slot `k`."""
    return symbol(f"slot {k}")


def reads_symbol(k: int) -> Expression:
    """Symbol of the derivative for the vector that product `k` reads."""
    return symbol(f"d_reads {k}")


def substitute(root: Expression, values: Mapping[Expression, Expression]) -> Expression:
    """`root` with nodes replaced by their `values`."""
    replaced: dict[Expression, Expression] = {}
    for node in topological([root]):
        args = tuple(replaced[arg] for arg in node.args)
        replaced[node] = values.get(node) or Expression(node.op, args, node.payload)
    return replaced[root]


def symbols(roots: Iterable[Expression]) -> list[str]:
    """Names of the symbols in `roots`."""
    return [str(node.payload) for node in topological(roots) if node.op == "symbol"]


def _masked(graph: CellGraph) -> CellGraph:
    """The graph with dropout of the vectors that recurrent products read."""
    stages = tuple(
        stage
        if stage.matrix == "weight_hr"
        else Stage(stage.matrix, stage.reads * symbol(MASK), stage.gates)
        for stage in graph.stages
    )
    return CellGraph(stages, graph.gates, graph.states)


def _result_symbols(stage: Stage) -> set[str]:
    return {f"h_{gate}" for gate in stage.gates} or {PROJECTED}


def _phase_of(node: Expression, graph: CellGraph) -> int:
    """The first phase that can compute a node."""
    names = set(symbols([node]))
    return max(
        (k for k, stage in enumerate(graph.stages) if names & _result_symbols(stage)), default=0
    )


def _schedule(purpose: str, graph: CellGraph, slots: list[Expression]) -> CellSchedule:
    """A schedule whose phases fill `slots`."""
    stored = {node: slot_symbol(k) for k, node in enumerate(slots)}
    phases = []
    for k, stage in enumerate(graph.stages):
        before = {n: s for n, s in stored.items() if _phase_of(n, graph) < k}
        phase_slots = {
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
        phases.append(Phase(stage, reads, states, phase_slots))
    return CellSchedule(purpose, tuple(phases), tuple(slots))


def _between_phases(graph: CellGraph) -> list[Expression]:
    """Values that an earlier phase computes and a later phase needs."""
    nodes: list[Expression] = []
    for k in range(1, len(graph.stages)):
        later = [node for node in graph.states.values() if _phase_of(node, graph) == k]
        later += [stage.reads for stage in graph.stages[k + 1 :]]
        later = [node for node in later if _phase_of(node, graph) == k]

        def early(node: Expression, limit: int = k) -> bool:
            return _phase_of(node, graph) < limit

        nodes += _nodes_to_store(later, early, _in_memory)
    return list(dict.fromkeys(nodes))


def _in_memory(name: str) -> bool:
    """Whether a symbol is in memory in every phase of the forward step."""
    return name.startswith(("x_", "p_")) or name in ("h_prev", MASK)


def _in_memory_backward(name: str) -> bool:
    """Whether a symbol is in memory in the backward step."""
    return name.startswith("p_") or name.endswith("_prev") or name == MASK


def _forward_only(node: Expression) -> bool:
    return not any(name.startswith("d_") for name in symbols([node]))


def _nodes_to_store(
    roots: Iterable[Expression],
    early: Callable[[Expression], bool],
    in_memory: Callable[[str], bool],
) -> list[Expression]:
    """Nodes to store so that cheap arithmetic recomputes `roots` from them.

    Parameters
    ----------
    early
        Whether an earlier phase can compute a node.
    in_memory
        Whether a symbol needs no slot.
    """
    stored: dict[Expression, None] = {}
    visited: set[Expression] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in visited or node.op == "constant":
            continue
        visited.add(node)
        if node.op == "symbol":
            if early(node) and not in_memory(str(node.payload)):
                stored[node] = None
        elif early(node) and (node.op not in CHEAP or _sums_parts(node)):
            if not all(in_memory(name) for name in symbols([node])) or node.op not in CHEAP:
                stored[node] = None
        else:
            stack += node.args
    return list(stored)


def _sums_parts(node: Expression) -> bool:
    """Whether a node is the sum of an input part and a recurrent part, which is one slot."""
    return node.op == "add" and all(
        arg.op == "symbol" and str(arg.payload).startswith(("x_", "h_")) for arg in node.args
    )


def _derivatives(graph: CellGraph) -> dict[str, list[Expression]]:
    """Derivatives by symbol: one part through the states, and one through each product's vector."""
    derivatives: dict[str, list[Expression]] = {}
    seeds: dict[Expression, Expression] = {}
    for name, state in graph.states.items():
        d = symbol(f"d_{name}")
        seeds[state] = seeds[state] + d if state in seeds else d
    parts = [gradient(seeds)]
    parts += [gradient({s.reads: reads_symbol(k)}) for k, s in enumerate(graph.stages)]
    for part in parts:
        for name, d in part.items():
            derivatives.setdefault(name, []).append(d)
    return {name: d for name, d in derivatives.items() if name != MASK}


def _backward_phases(
    graph: CellGraph, derivatives: Mapping[str, list[Expression]]
) -> list[tuple[Stage | None, bool, dict[str, Expression]]]:
    """The first phase, then a phase for each product from the last to the second.

    The first product reads states of the previous step. So its derivative belongs to those states.
    The backward step of the previous step adds it at its start.
    """
    later = list(range(len(graph.stages) - 1, 0, -1))
    position = {str(reads_symbol(k).payload): n + 1 for n, k in enumerate(later)}
    first = str(reads_symbol(0).payload)
    phases: list[dict[str, Expression]] = [{} for _ in range(len(later) + 1)]
    for name, parts in derivatives.items():
        here = [d for d in parts if first not in symbols([d])]
        if here:
            total = here[0]
            for part in here[1:]:
                total = total + part
            at = max((position.get(s, 0) for s in symbols([total])), default=0)
            phases[at][name] = total
    projects = any(stage.matrix == "weight_hr" for stage in graph.stages)
    result: list[tuple[Stage | None, bool, dict[str, Expression]]] = [(None, projects, phases[0])]
    result += [(graph.stages[k], False, phases[n + 1]) for n, k in enumerate(later)]
    return result
