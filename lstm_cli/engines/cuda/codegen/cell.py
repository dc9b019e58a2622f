"""CUDA C++ of expressions: where the equations of a gate become statements of a kernel.

Each node of the expression graph is one statement, and arguments come before their readers.
"""

from __future__ import annotations

from collections.abc import Mapping

from lstm_cli.cells.expression import Expression, topological

OPERATIONS: Mapping[str, str] = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "negative": "-{0}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "exp": "exp({0})",
    "log1p": "log1p({0})",
    "sqrt": "sqrt({0})",
    "tanh": "tanh({0})",
    "sigmoid": "real(1) / (real(1) + exp(-{0}))",
    "select": "{0} ? {1} : {2}",
    "clip": "{0} < {1} ? {1} : {2} < {0} ? {2} : {0}",
}
"""CUDA C++ of each operation. NaN propagates through all of them, as in NumPy."""

CONDITIONS = ("less", "less_equal")


def emit(
    roots: Mapping[str, Expression], values: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Emit statements that compute expressions.

    Parameters
    ----------
    roots
        Expressions to compute, by name.
    values
        CUDA C++ of every symbol.

    Returns
    -------
    lines, names
        Statements in the type ``real``, which the code around them defines; and the name of the
        variable that holds each root.
    """
    names: dict[Expression, str] = {}
    lines = []
    for node in topological(roots.values()):
        name = f"v{len(names)}"
        names[node] = name
        kind = "bool" if node.op in CONDITIONS else "real"
        lines.append(f"const {kind} {name} = {_value(node, names, values)};")
    return lines, {name: names[root] for name, root in roots.items()}


def _value(node: Expression, names: Mapping[Expression, str], values: Mapping[str, str]) -> str:
    if node.op == "symbol":
        return values[str(node.payload)]
    if node.op == "constant":
        return f"real({float(node.payload or 0.0)!r})"
    return OPERATIONS[node.op].format(*(names[arg] for arg in node.args))
