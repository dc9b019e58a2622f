"""Linear modules, and the names of those that lstm-cli has no layer for."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
from lstm_cli.formats.torch.recurrent import Unfit, recurrent
from lstm_cli.formats.torch.tensors import StoredTensor, listed, shown

_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|emb|wte|wpe|tok(en)?s?)([._]|$)", re.IGNORECASE)
_STRAYS = (
    (re.compile(r"(_g|_v|\.original[01])$"), "weight_norm: remove_weight_norm, or "
     "parametrize.remove_parametrizations, before saving"),
    (re.compile(r"in_proj_(weight|bias)$"), "nn.MultiheadAttention"),
    (re.compile(r"running_(mean|var)$"), "nn.BatchNorm"),
)  # fmt: skip
_RANKS = {1: "nn.LayerNorm, nn.BatchNorm or nn.PReLU", 3: "nn.Conv1d", 4: "nn.Conv2d"}
_HINT = "--prefix takes only the names below a prefix, where the rest is another network's"
MOST_PROBLEMS = 20


def modules_of(tensors: Tensors, source: str) -> tuple[list[Module], tuple[str, ...]]:
    """Modules in stored order, and notes about what is left out.

    Raises
    ------
    WeightsError
        Names every module and tensor that has no layer here.
    """
    groups, strays, counts = group(tensors)
    modules: list[Module] = []
    problems: list[Problem] = []
    for one in groups:
        found = not_floats(one)
        problems += found
        if not found:
            try:
                modules.append(recurrent(one) if one.recurrent else _linear(one))
            except Unfit as error:
                problems.append(error.problem)
    problems += _stray_problems(strays)
    problems += [
        Problem(f"the name {shown(n)} cannot be printed") for n in tensors if not n.isprintable()
    ]
    if problems or not modules:
        problems = problems or [Problem("there are no recurrent or linear weights")]
        raise WeightsError([_at(problem, source) for problem in problems[:MOST_PROBLEMS]])
    names = [tensor.name for tensor in counts]
    return modules, ((f"left out, as they are counts: {listed(names)}",) if names else ())


def _at(problem: Problem, source: str) -> Problem:
    return Problem(problem.what, problem.expected, problem.found, (source,), problem.hint)


def _linear(group: Group) -> Linear:
    parts = group.parts[0, False]
    weight, bias = parts.get("weight"), parts.get("bias")
    if weight is None:
        raise Unfit(problem(group, "has a bias and no weight", hint=_HINT))
    if len(weight.shape) != 2:
        kind = _RANKS.get(len(weight.shape), "of no known kind")
        what = f"has no layer here: by its shape it is {kind}"
        raise Unfit(problem(group, what, shape_of(weight), _HINT))
    if bias is None and _EMBEDDING.search(group.name):
        what = "has no layer here: by its name it is nn.Embedding"
        raise Unfit(problem(group, what, shape_of(weight), _HINT))
    if 0 in weight.shape or (bias is not None and bias.shape != weight.shape[:1]):
        sizes = ", ".join(shape_of(t) for t in (weight, bias) if t is not None)
        raise Unfit(problem(group, "is no nn.Linear: its shapes do not fit", sizes, _HINT))
    return Linear(group.name, weight, bias)


def _stray_problems(strays: Iterable[StoredTensor]) -> list[Problem]:
    return [
        Problem(
            f"the tensor {shown(tensor.name)} has no place in a layer{_reason(tensor.name)}",
            found=f"{tensor.shape} {tensor.dtype}",
            hint=_HINT,
        )
        for tensor in strays
    ]


def _reason(name: str) -> str:
    kind = next((kind for pattern, kind in _STRAYS if pattern.search(name)), None)
    return "" if kind is None else f": it looks like {kind}"
