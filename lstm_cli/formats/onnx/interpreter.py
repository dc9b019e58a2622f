"""Runs a graph on what its values are instead of on numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstm_cli.errors import LstmCliError, WeightsError, memory_is_short
from lstm_cli.formats.onnx.calls import Call, Effort
from lstm_cli.formats.onnx.messages import Attribute, Function, Graph, Model, Node, Tensor
from lstm_cli.formats.onnx.operators import NODES
from lstm_cli.formats.onnx.rules import Rules
from lstm_cli.formats.onnx.schemas import check_inputs, read_attributes, resolved, schema_of, unread
from lstm_cli.formats.onnx.sizes import OpenSizeError
from lstm_cli.formats.onnx.tensors import dtype_name, quoted
from lstm_cli.formats.onnx.values import (
    Anything,
    Constant,
    Joined,
    Linear,
    Origin,
    Recurrent,
    RefusedError,
    Unknown,
    Value,
)
from lstm_cli.formats.onnx.vectors import pieces

A_PART, A_TERM = 64, 64
"""Numbers that are read in the time that one vector of several, or one summand, takes."""
A_CELL = 8
"""Operators that are evaluated in the time that a recurrent one takes."""
DEEPEST = 20
"""Functions within functions, branches within branches."""
DOMAINS = ("", "ai.onnx")
_UNREAD = NODES | {"MatMul", "Gemm", "Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze"}
"""Operators that look at a constant without reading all of it."""

_NUMBERS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""Types of the numbers that a Constant holds as they are."""

MISTAKES = (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError)
"""What Python and NumPy raise where inputs do not fit an operator."""
_MISTAKES_OF_SIZE = (MemoryError, RecursionError)


class Interpreter:
    """Evaluates nodes.

    Parameters
    ----------
    model
        For its functions and operator sets.
    rules
        What evaluates one operator.
    effort
        What the file may cost.
    """

    def __init__(self, model: Model, rules: Rules, effort: Effort) -> None:
        self.rules, self.effort = rules, effort
        self.opset = opset(model)
        self.functions = {(f.domain, f.name, f.overload): f for f in model.functions}

    def run(
        self,
        graph: Graph | Function,
        names: dict[str, Anything],
        given: Mapping[str, Attribute | None] | None = None,
        depth: int = 0,
    ) -> dict[str, Anything]:
        """Every value of a graph by name, beginning with those in `names`.

        Raises
        ------
        WeightsError
            A name stands for two values, or the graph computes too much.
        """
        self.effort.spend(work=len(names))
        _check_names(graph)
        stored = {} if isinstance(graph, Function) else {t.name: t for t in graph.initializers}
        for node in graph.nodes:
            for name in node.inputs:
                if name and name not in names and name in stored:
                    names[name] = self.constant(stored[name])
            values = self._evaluated(node, names, given or {}, depth)
            named = zip(node.outputs, values, strict=False)
            names.update({name: value for name, value in named if name})
        ends = () if isinstance(graph, Function) else graph.outputs
        for end in ends:
            if end.name not in names and end.name in stored:
                names[end.name] = self.constant(stored[end.name])
        return names

    def constant(self, tensor: Tensor) -> Anything:
        """A stored tensor."""
        try:
            array = self.effort.stored_array(tensor)
        except LstmCliError as error:
            return Unknown(f"the tensor {quoted(tensor.name)}", error)
        origin = Origin(tensor.name, tuple(tensor.dims), dtype_name(tensor))
        return Constant(array, (origin,))

    def _evaluated(
        self,
        node: Node,
        names: Mapping[str, Anything],
        given: Mapping[str, Attribute | None],
        depth: int,
    ) -> Sequence[Anything]:
        call = self._call(node, names)
        self.effort.spend(nodes=node_weight(node), work=_read_numbers(call), where=call.where)
        try:
            attributes = resolved(node, given)
            if node.domain not in DOMAINS or (node.domain, node.op_type, "") in self.functions:
                values = self._function(call, attributes, depth)
            else:
                call = self._read(call, attributes)
                if node.op_type == "If":
                    values = self._branch(call, names, given, depth)
                elif node.op_type == "Constant":
                    values = [_written(call)]
                else:
                    values = self.rules.evaluate(call)
        except LstmCliError as error:
            return [Unknown(call.where, error)] * len(node.outputs)
        except MISTAKES as error:
            return [self._refused(call, error)] * len(node.outputs)
        except _MISTAKES_OF_SIZE as error:
            if isinstance(error, MemoryError) and memory_is_short():
                raise
            return [Unknown(f"{call.where}: it is out of proportion")] * len(node.outputs)
        self._weigh(call, values)
        return values

    def _refused(self, call: Call, error: Exception) -> Unknown:
        """Why an operator's outputs are not known; an open size is named, whatever it led to."""
        said = isinstance(error, RefusedError)
        if isinstance(error, OpenSizeError) or (call.is_open and not said):
            return Unknown(call.where, self.rules.frame.open_error(call, error))
        if said:
            return Unknown(f"{call.where}: {str(error)[:300]}")
        forms = ", ".join(_form(value) for value in call.inputs)
        return Unknown(f"{call.where}: its inputs do not fit it or each other: {forms}"[:400])

    def _weigh(self, call: Call, values: Sequence[Anything]) -> None:
        """Count what an operator made."""
        for value in values:
            if isinstance(value, Value):
                self.effort.spend(work=value.pick.size + _parts(value), where=call.where)
        if call.op in NODES and values and isinstance(values[0], Value):
            atoms = {piece.atom for piece in pieces(values[0].vector)}
            made = [atom for atom in atoms if isinstance(atom, Recurrent)]
            new = sum(array.nbytes for atom in made for array in atom.tensors.values())
            self.effort.spend(room=new, where=call.where)

    def _call(self, node: Node, names: Mapping[str, Anything]) -> Call:
        inputs = [self._input(name, names) for name in node.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        return Call(node, tuple(inputs), {}, self.opset, self.effort)

    def _read(self, call: Call, attributes: Mapping[str, Attribute]) -> Call:
        """One of ONNX's own operators with its attributes, as its opset has it."""
        schema = schema_of(call.op, call.opset)
        if schema is None:
            raise RefusedError(unread(call.node))
        check_inputs(call.node, len(call.inputs), schema)
        return replace(call, attributes=read_attributes(call.node, attributes, schema))

    def _input(self, name: str, names: Mapping[str, Anything]) -> Any:
        if not name:
            return None
        found = names.get(name)
        if found is None:
            return Unknown(f"{quoted(name)}, which nothing before its use computes")
        return found

    def _branch(
        self,
        call: Call,
        names: Mapping[str, Anything],
        given: Mapping[str, Attribute | None],
        depth: int,
    ) -> Sequence[Anything]:
        """If: the branch that its condition, a constant, takes."""
        condition = call.constant(0).array
        if np.size(condition) != 1:
            raise RefusedError(f"its condition has {np.size(condition)} values")
        taken = bool(condition.reshape(-1)[0])
        branch: Graph = call.attributes["then_branch" if taken else "else_branch"]
        if depth >= DEEPEST:
            raise RefusedError("its branches are too deep")
        inner = self.run(branch, dict(names), given, depth + 1)
        return [self._input(output.name, inner) for output in branch.outputs]

    def _function(
        self, call: Call, attributes: Mapping[str, Attribute], depth: int
    ) -> Sequence[Anything]:
        node = call.node
        function = self.functions.get((node.domain, node.op_type, node.overload))
        if function is None:
            raise RefusedError(f"it is an operator of the domain {node.domain!r}")
        if depth >= DEEPEST:
            raise RefusedError(f"functions within functions more than {DEEPEST} deep")
        if len(call.inputs) > len(function.inputs):
            raise RefusedError(f"its function has {len(function.inputs)} inputs")
        inputs = dict(zip(function.inputs, call.inputs, strict=False))
        names = {name: value for name, value in inputs.items() if value is not None}
        scope: dict[str, Attribute | None] = dict.fromkeys(function.attribute_names)
        scope |= {attribute.name: attribute for attribute in function.attribute_defaults}
        unknown = attributes.keys() - scope.keys()
        if unknown:
            raise RefusedError(f"its function has no attribute {quoted(min(unknown))}")
        outer, self.opset = self.opset, opset(function) or self.opset
        try:
            inner = self.run(function, names, {**scope, **attributes}, depth + 1)
        finally:
            self.opset = outer
        return [self._input(name, inner) for name in function.outputs]


def node_weight(node: Node) -> int:
    """A node's share of the work: long lists of inputs, outputs and numbers take their time."""
    own = (len(a.ints) + len(a.floats) + len(a.strings) for a in node.attributes)
    lists = len(node.inputs) + len(node.outputs) + len(node.attributes) + sum(own)
    return (A_CELL if node.op_type in NODES else 1) + lists // 16


def _read_numbers(call: Call) -> int:
    """Numbers of constants that an operator reads."""
    constants = [value for value in call.inputs if isinstance(value, Constant)]
    if call.op == "Gather" and isinstance(call.given(0), Value):  # steps, each on its own
        return sum(4 * A_PART * constant.array.size for constant in constants)
    if call.op in _UNREAD:
        return 0
    return sum(constant.array.size for constant in constants)


def _parts(value: Value) -> int:
    if isinstance(value.atom, Joined):
        return A_PART * len(value.atom.parts)
    return A_TERM * len(value.atom.terms) if isinstance(value.atom, Linear) else 0


def _form(value: Anything | None) -> str:
    """A value in a few words."""
    if isinstance(value, Constant):
        return f"{value.array.dtype} {value.array.shape}"
    if isinstance(value, Value):
        return f"values of {len(value.axes)} axes"
    return "none" if value is None else "another input"


def _check_names(graph: Graph | Function) -> None:
    """Raise if a name stands for two inputs, stored tensors or results."""
    if isinstance(graph, Function):
        inputs, stored = list(graph.inputs), list[str]()
    else:
        inputs = [value.name for value in graph.inputs]
        stored = [tensor.name for tensor in graph.initializers]
    made = [name for node in graph.nodes for name in node.outputs if name]
    known = {*inputs, *stored}  # an input may have a stored tensor as default
    twice = [name for names in (inputs, stored, made) for name in _repeated(names)]
    twice += [name for name in made if name in known]
    if twice:
        raise WeightsError(f"the model's name {quoted(twice[0])} stands for two values")


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def opset(model: Model | Function) -> int:
    """Version of ONNX's own operators; 0 where none is named.

    Raises
    ------
    WeightsError
        Two are named.
    """
    versions = {entry.version for entry in model.operator_sets if entry.domain in DOMAINS}
    if len(versions) > 1:
        raise WeightsError(
            "the model names two versions of ONNX's operators",
            expected="one opset",
            found=" and ".join(map(str, sorted(versions))),
        )
    return max(versions, default=0)


def _written(call: Call) -> Constant:
    """What a Constant node holds."""
    if len(call.attributes) != 1:
        raise RefusedError(f"it holds {len(call.attributes)} values in the place of one")
    ((key, value),) = call.attributes.items()
    if key in _NUMBERS:
        return Constant(np.array(value, _NUMBERS[key]))
    array = call.tensor("value")
    if array is None:
        raise RefusedError("it holds no tensor of numbers")
    name = call.node.outputs[0] if call.node.outputs else ""
    return Constant(array, (Origin(name, array.shape, array.dtype.name),))
