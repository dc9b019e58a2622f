"""Linear modules, and the names of those that lstm-cli has no layer for."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from lstm_cli.errors import Problem, WeightsError
from lstm_cli.formats.torch.modules import (
    Group,
    Linear,
    Module,
    Tensors,
    group,
    not_floats,
    problem,
    shape_of,
)
from lstm_cli.formats.torch.names import (
    Beside,
    beside_the_network,
    copies,
    is_of_loss,
    rewritten,
)
from lstm_cli.formats.torch.order import find_order
from lstm_cli.formats.torch.recurrent import Unfit, recurrent
from lstm_cli.formats.torch.tensors import StoredTensor, listed, shown

_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|emb|wte|wpe|tok(en)?s?)([._]|$)", re.IGNORECASE)
_RANKS = {1: "nn.LayerNorm, nn.RMSNorm or nn.PReLU", 3: "nn.Conv1d", 4: "nn.Conv2d"}
_PARTS = {
    "running_mean": "nn.BatchNorm",
    "running_var": "nn.BatchNorm",
    "in_proj_weight": "nn.MultiheadAttention",
    "in_proj_bias": "nn.MultiheadAttention",
}
"""Names of tensors that only one kind of module has."""
MOST_PROBLEMS = 20


def modules_of(
    tensors: Tensors, source: str, stored: bool = True
) -> tuple[list[Module], tuple[str, ...]]:
    """Modules in stored order, which says something if `stored`, and notes on what is left out.

    Raises
    ------
    WeightsError
        Names every module and tensor that has no layer here.
    """
    found, elsewhere = rewritten(tensors)
    problems: list[tuple[Problem, str | None]] = [(one, None) for one in found]
    groups, strays, counts = group(
        {n: t for n, t in tensors.items() if not _is_below(n, elsewhere)} if found else tensors
    )
    modules: list[Module] = []
    notes: list[str] = []
    twins = copies(groups)
    for one in groups:
        beside = twins.get(one.name) or (None if one.recurrent else _beside(one))
        if beside is not None:
            shapes = ", ".join(shape_of(tensor) for tensor in one.tensors())
            problems.append((problem(one, beside.kind, shapes), beside.pattern))
            continue
        wrong = not_floats(one)
        problems += [(each, None) for each in wrong]
        if not wrong:
            try:
                modules.append(recurrent(one) if one.recurrent else _linear(one, strays))
            except Unfit as error:
                problems.append((error.problem, None))
                continue
            if is_of_loss(one.name):
                notes.append(
                    f"{shown(one.name)} is taken for a Linear, though by its name it is of a loss: "
                    f"--ignore '{one.name}.*' leaves it out"
                )
    problems += [_stray_problem(tensor) for tensor in strays]
    problems += [
        (Problem(f"the name {shown(n)} cannot be printed"), None)
        for n in tensors
        if not n.isprintable()
    ]
    if problems or not modules:
        raise _refused(problems, modules, source, stored)
    names = [tensor.name for tensor in counts]
    if names:
        notes.insert(0, f"left out, as they are counts: {listed(names)}")
    return modules, tuple(notes)


def _refused(
    problems: list[tuple[Problem, str | None]], modules: Sequence[Module], source: str, stored: bool
) -> WeightsError:
    """The problems, each with what helps: one option for all that is beside the network."""
    if not problems:
        return WeightsError(
            "there are no recurrent or linear weights",
            where=source,
            hint="torch.save(model.state_dict(), path) writes the weights of all modules",
        )
    patterns = list(dict.fromkeys(pattern for _, pattern in problems if pattern))
    hint: str | None = None
    if not patterns or any(pattern is None for _, pattern in problems):
        hint = _only(modules, stored)
    elif len(patterns) < MOST_PROBLEMS and all(map(_is_pattern, patterns)):
        hint = f"--ignore '{','.join(patterns)}' leaves out what no output depends on"
    return WeightsError(
        [_at(replace(one, hint=one.hint or hint), source) for one, _ in problems[:MOST_PROBLEMS]]
    )


def _only(modules: Sequence[Module], stored: bool) -> str | None:
    """How to take the modules that are read, where they are a network by themselves."""
    try:
        modules = find_order(modules, stored, "").modules
    except (WeightsError, IndexError):
        return None
    patterns = [f"{module.name}.*" for module in modules]
    if len(patterns) > 8 or not all(module.name and _is_pattern(module.name) for module in modules):
        return None
    return (
        f"--only '{','.join(patterns)}' takes these layers alone; what stands in front of them in "
        "the model has to be computed before, and DATA to hold its outputs"
    )


def _is_pattern(name: str) -> bool:
    """Whether a name says no more than itself in a pattern within quotes."""
    return re.fullmatch(r"[\w.* -]+", name) is not None


def _at(problem: Problem, source: str) -> Problem:
    return Problem(problem.what, problem.expected, problem.found, (source,), problem.hint)


def _linear(group: Group, strays: Sequence[StoredTensor]) -> Linear:
    parts = group.parts[0, False]
    weight, bias = parts.get("weight"), parts.get("bias")
    if weight is None:
        raise Unfit(problem(group, "has a bias and no weight"))
    if len(weight.shape) != 2:
        raise Unfit(problem(group, f"has no layer here: {_kind(group, weight, strays)}",
                            shape_of(weight)))  # fmt: skip
    if bias is None and _EMBEDDING.search(group.name):
        what = "has no layer here: by its name it is nn.Embedding"
        raise Unfit(problem(group, what, shape_of(weight)))
    if 0 in weight.shape or (bias is not None and bias.shape != weight.shape[:1]):
        sizes = ", ".join(shape_of(t) for t in (weight, bias) if t is not None)
        raise Unfit(problem(group, "is no nn.Linear: its shapes do not fit", sizes))
    return Linear(group.name, weight, bias)


def _kind(group: Group, weight: StoredTensor, strays: Sequence[StoredTensor]) -> str:
    """What a module is whose weight is no matrix."""
    own = {tensor.name.rpartition(".")[2] for tensor in strays
           if tensor.name.rpartition(".")[0] == group.name}  # fmt: skip
    if "running_mean" in own:
        return "by its running mean it is nn.BatchNorm"
    if not weight.shape:
        return "it is a single number"
    kind = _RANKS.get(len(weight.shape), "of no known kind")
    if len(weight.shape) == 1 and "bias" not in group.parts[0, False]:
        kind = f"{kind}, or the class weights of a loss"
    return f"by its shape it is {kind}"


def _stray_problem(tensor: StoredTensor) -> tuple[Problem, str | None]:
    """A tensor that is no weight of a layer, and the pattern that leaves it out, if it may be."""
    last = tensor.name.rpartition(".")[2]
    beside = beside_the_network(tensor.name)
    kind = None if beside is None else beside.kind
    pattern = tensor.name if beside is None else beside.pattern
    if last in _PARTS:
        kind, pattern = f"it is {_PARTS[last]}'s", ""
    elif kind is None and not tensor.shape:
        kind = "it is a single number"
    what = f"the tensor {shown(tensor.name)} has no place in a layer"
    found = f"{tensor.shape} {tensor.dtype}"
    return Problem(what + (f": {kind}" if kind else ""), found=found), pattern or None


def _beside(group: Group) -> Beside | None:
    """What a module is whose weight is no matrix, if by its name it is no part of the network."""
    weight = group.parts[0, False].get("weight")
    if weight is None or len(weight.shape) == 2:
        return None
    found = beside_the_network(f"{group.name}.weight")
    return None if found is None else Beside(f"is no layer: {found.kind}", found.pattern)


def _is_below(name: str, modules: Collection[str]) -> bool:
    """Whether a tensor is of one of the modules, or of a module in one."""
    own = name.startswith(("module.", "parametrizations.")) or "." not in name
    return any(name.startswith(f"{module}.") if module else own for module in modules)
