"""Interpreter of an ONNX graph that computes with symbolic values instead of numbers.

`Interpreter` walks the nodes, functions and branches of the graph and counts the work.
`Dispatcher` selects the rule that evaluates one node, from the modules ``ops_*``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.errors import LstmCliError, WeightsError, counted, memory_is_short
from lstm_cli.formats.onnx import ops_layout, ops_math
from lstm_cli.formats.onnx.node import (
    FLOAT_TYPES,
    MAX_OPEN_ENTRIES,
    GraphContext,
    GraphNode,
    dtype_name,
)
from lstm_cli.formats.onnx.ops_constant import fold
from lstm_cli.formats.onnx.ops_recurrent import RecurrentOperator
from lstm_cli.formats.onnx.proto import (
    OnnxAttribute,
    OnnxFunction,
    OnnxGraph,
    OnnxModel,
    OnnxNode,
    OnnxTensor,
    quote_name,
)
from lstm_cli.formats.onnx.schemas import (
    RECURRENT_OPERATORS,
    check_inputs,
    read_attributes,
    resolve_attributes,
    schema_of,
    unsupported_reason,
)
from lstm_cli.formats.onnx.sizes import FreeAxes, OpenSize, OpenSizeError, product_of, size_array
from lstm_cli.formats.onnx.symbolic import (
    Concatenation,
    ConstantTensor,
    GraphValue,
    GreaterThan,
    LinearMap,
    Origin,
    RecurrentDirection,
    RuntimeInput,
    SymbolicTensor,
    UnsupportedError,
    UnsupportedValue,
    count_axes,
    parts_of,
)
from lstm_cli.formats.onnx.unroll import LoopReroller

PART_COST, TERM_COST = 64, 64
"""Work counted for each part of a concatenation and each summand, as numbers read."""
RECURRENT_COST = 8
"""Work counted for a recurrent operator, as a number of plain operators."""
MAX_NESTING = 20
"""Largest depth of nested function calls or branches."""
DOMAINS = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""
_SHAPE_ONLY_OPERATORS = RECURRENT_OPERATORS | frozenset(
    {"MatMul", "Gemm", "Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze"}
)
"""Operators that do not read all values of a constant."""

_CONSTANT_DTYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""Dtypes of the attributes of Constant that hold plain numbers."""

MISFIT_ERRORS = (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError)
"""Errors of Python and NumPy for inputs that do not fit an operator."""
_SIZE_ERRORS = (MemoryError, RecursionError)


class Interpreter:
    """Evaluates the nodes of a graph in order.

    Parameters
    ----------
    model
        Source of functions and operator sets.
    dispatcher
        Evaluates one node of ONNX's own operators.
    """

    def __init__(self, model: OnnxModel, dispatcher: Dispatcher) -> None:
        self.dispatcher, self.budget = dispatcher, dispatcher.context.budget
        self.opset = opset(model)
        self.functions = {(f.domain, f.name, f.overload): f for f in model.functions}

    def run(
        self,
        graph: OnnxGraph | OnnxFunction,
        names: dict[str, GraphValue],
        scope: Mapping[str, OnnxAttribute | None] | None = None,
        depth: int = 0,
    ) -> dict[str, GraphValue]:
        """Evaluate a graph or function; `names` holds its inputs and receives all its values.

        Parameters
        ----------
        scope
            Attributes of the enclosing function, None for an omitted attribute.
        depth
            Number of enclosing functions and branches.

        Raises
        ------
        WeightsError
            A name stands for two values, or the work exceeds the budget.
        """
        self.budget.spend(numbers=len(names))
        _check_names(graph)
        stored = {} if isinstance(graph, OnnxFunction) else {t.name: t for t in graph.initializers}
        for message in graph.nodes:
            for name in message.inputs:
                if name and name not in names and name in stored:
                    names[name] = self.constant(stored[name])
            values = self._evaluate(message, names, scope or {}, depth)
            named = zip(message.outputs, values, strict=False)
            names.update({name: value for name, value in named if name})
        outputs = () if isinstance(graph, OnnxFunction) else graph.outputs
        for name in (info.name for info in outputs):
            if name not in names and name in stored:
                names[name] = self.constant(stored[name])
        return names

    def constant(self, tensor: OnnxTensor) -> GraphValue:
        """Value of a stored tensor; a tensor that cannot be read becomes an `UnsupportedValue`."""
        try:
            array = self.budget.stored_array(tensor)
        except LstmCliError as error:
            return UnsupportedValue(f"the tensor {quote_name(tensor.name)}", error)
        origin = Origin(tensor.name, tuple(tensor.dims), dtype_name(tensor))
        return ConstantTensor(array, (origin,))

    def _evaluate(
        self,
        message: OnnxNode,
        names: Mapping[str, GraphValue],
        scope: Mapping[str, OnnxAttribute | None],
        depth: int,
    ) -> Sequence[GraphValue]:
        node = self._graph_node(message, names)
        self.budget.spend(nodes=node_weight(message), numbers=_numbers_read(node), where=node.where)
        try:
            attributes = resolve_attributes(message, scope)
            key = (message.domain, message.op_type, "")
            if message.domain not in DOMAINS or key in self.functions:
                values = self._function(node, attributes, depth)
            else:
                node = self._with_attributes(node, attributes)
                if message.op_type == "If":
                    values = self._branch(node, names, scope, depth)
                elif message.op_type == "Constant":
                    values = [_stored_constant(node)]
                else:
                    values = self.dispatcher.evaluate(node)
        except LstmCliError as error:
            return [UnsupportedValue(node.where, error)] * len(message.outputs)
        except MISFIT_ERRORS as error:
            return [self._unsupported(node, error)] * len(message.outputs)
        except _SIZE_ERRORS as error:
            if isinstance(error, MemoryError) and memory_is_short():
                raise
            reason = UnsupportedValue(f"{node.where}: it needs too much memory or recursion")
            return [reason] * len(message.outputs)
        self._spend_on_results(node, values)
        return values

    def _unsupported(self, node: GraphNode, error: Exception) -> UnsupportedValue:
        """Reason why a node has no value; an open size precedes other errors as the reason."""
        is_clause = isinstance(error, UnsupportedError)
        if isinstance(error, OpenSizeError) or (node.has_open_sizes and not is_clause):
            free_axes = self.dispatcher.free_axes
            return UnsupportedValue(node.where, _open_size_error(free_axes, node, error))
        if is_clause:
            return UnsupportedValue(f"{node.where}: {str(error)[:300]}")
        inputs = ", ".join(_describe(value) for value in node.inputs)
        reason = f"its inputs do not fit the operator or each other: {inputs}"
        return UnsupportedValue(f"{node.where}: {reason}"[:400])

    def _spend_on_results(self, node: GraphNode, values: Sequence[GraphValue]) -> None:
        """Count the values that a node computes."""
        for value in values:
            if isinstance(value, SymbolicTensor):
                self.budget.spend(numbers=value.indices.size + _part_cost(value), where=node.where)
        if node.op in RECURRENT_OPERATORS and values and isinstance(values[0], SymbolicTensor):
            signals = {part.signal for part in parts_of(values[0].vector)}
            directions = [signal for signal in signals if isinstance(signal, RecurrentDirection)]
            tensors = [tensor for signal in directions for tensor in signal.tensors.values()]
            self.budget.spend(byte_count=sum(t.values.nbytes for t in tensors), where=node.where)

    def _graph_node(self, message: OnnxNode, names: Mapping[str, GraphValue]) -> GraphNode:
        inputs = [self._input(name, names) for name in message.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        return GraphNode(message, tuple(inputs), {}, self.opset, self.budget)

    def _with_attributes(
        self, node: GraphNode, attributes: Mapping[str, OnnxAttribute]
    ) -> GraphNode:
        """Check one of ONNX's own operators against its opset, and read its attributes."""
        schema = schema_of(node.op, node.opset)
        if schema is None:
            raise UnsupportedError(unsupported_reason(node.message))
        check_inputs(node.message, len(node.inputs), schema)
        return replace(node, attributes=read_attributes(node.message, attributes, schema))

    def _input(self, name: str, names: Mapping[str, GraphValue]) -> Any:
        if not name:
            return None
        value = names.get(name)
        if value is None:
            return UnsupportedValue(f"{quote_name(name)}, which no earlier node computes")
        return value

    def _branch(
        self,
        node: GraphNode,
        names: Mapping[str, GraphValue],
        scope: Mapping[str, OnnxAttribute | None],
        depth: int,
    ) -> Sequence[GraphValue]:
        """Evaluate the branch of If that its condition selects, which must be constant."""
        condition = node.constant(0).array
        if np.size(condition) != 1:
            raise UnsupportedError(f"its condition has {np.size(condition)} values")
        name = "then_branch" if condition.reshape(-1)[0] else "else_branch"
        branch: OnnxGraph = node.attributes[name]
        if depth >= MAX_NESTING:
            raise UnsupportedError(f"its branches are nested more than {MAX_NESTING} deep")
        inner = self.run(branch, dict(names), scope, depth + 1)
        return [self._input(output.name, inner) for output in branch.outputs]

    def _function(
        self, node: GraphNode, attributes: Mapping[str, OnnxAttribute], depth: int
    ) -> Sequence[GraphValue]:
        message = node.message
        function = self.functions.get((message.domain, message.op_type, message.overload))
        if function is None:
            raise UnsupportedError(f"it is an operator of the domain {message.domain!r}")
        if depth >= MAX_NESTING:
            raise UnsupportedError(f"its functions are nested more than {MAX_NESTING} deep")
        if len(node.inputs) > len(function.inputs):
            raise UnsupportedError(f"its function has {counted(len(function.inputs), 'input')}")
        inputs = dict(zip(function.inputs, node.inputs, strict=False))
        names = {name: value for name, value in inputs.items() if value is not None}
        scope: dict[str, OnnxAttribute | None] = dict.fromkeys(function.attribute_names)
        scope |= {attribute.name: attribute for attribute in function.attribute_defaults}
        unknown = attributes.keys() - scope.keys()
        if unknown:
            raise UnsupportedError(f"its function has no attribute {quote_name(min(unknown))}")
        outer, self.opset = self.opset, opset(function) or self.opset
        try:
            inner = self.run(function, names, {**scope, **attributes}, depth + 1)
        finally:
            self.opset = outer
        return [self._input(name, inner) for name in function.outputs]


def _open_size_error(free_axes: FreeAxes, node: GraphNode, error: Exception) -> WeightsError:
    """Error of a node that needs the number of an open size; names the open axes."""
    arrays = [value.array for value in node.inputs if isinstance(value, ConstantTensor)]
    entries = [n for a in arrays if a.dtype == object for n in a.reshape(-1)[:MAX_OPEN_ENTRIES]]
    used = {name for size in entries if isinstance(size, OpenSize) for name in size.names}
    open_axes = [name for name, size in free_axes.sizes.items() if size is None]
    labels = [free_axes.labels[name] for name in open_axes if name in used]
    labels = labels or [free_axes.labels[name] for name in open_axes]
    reason = f": {error}" if isinstance(error, UnsupportedError) else ""
    return WeightsError(
        f"{node.where} calculates with a size that the model leaves open{reason}",
        expected="a number",
        found=" and ".join(labels) or "an open size",
        where=str(node.path),
        hint="export the model with this size fixed (torch.onnx.export without dynamic_axes or "
        "dynamic_shapes): lstm-cli runs any number of sequences all the same",
    )


def node_weight(message: OnnxNode) -> int:
    """Work of a node, as a number of operators; every 16 list items count as one operator."""
    items = sum(len(a.ints) + len(a.floats) + len(a.strings) for a in message.attributes)
    items += len(message.inputs) + len(message.outputs) + len(message.attributes)
    return (RECURRENT_COST if message.op_type in RECURRENT_OPERATORS else 1) + items // 16


def _numbers_read(node: GraphNode) -> int:
    """Numbers that are read from the constant inputs of a node."""
    constants = [value for value in node.inputs if isinstance(value, ConstantTensor)]
    if node.op == "Gather" and isinstance(node.input(0), SymbolicTensor):  # selects single steps
        return sum(4 * PART_COST * constant.array.size for constant in constants)
    if node.op in _SHAPE_ONLY_OPERATORS:
        return 0
    return sum(constant.array.size for constant in constants)


def _part_cost(value: SymbolicTensor) -> int:
    if isinstance(value.signal, Concatenation):
        return PART_COST * len(value.signal.parts)
    return TERM_COST * len(value.signal.terms) if isinstance(value.signal, LinearMap) else 0


def _describe(value: GraphValue | None) -> str:
    if isinstance(value, ConstantTensor):
        return f"{value.array.dtype} {value.array.shape}"
    if isinstance(value, SymbolicTensor):
        return f"a tensor of {count_axes(len(value.axes))}"
    return "none" if value is None else "another input"


def _check_names(graph: OnnxGraph | OnnxFunction) -> None:
    """Raise if a name stands for two inputs, stored tensors or outputs of nodes."""
    if isinstance(graph, OnnxFunction):
        inputs, stored = list(graph.inputs), list[str]()
    else:
        inputs = [value.name for value in graph.inputs]
        stored = [tensor.name for tensor in graph.initializers]
    outputs = [name for message in graph.nodes for name in message.outputs if name]
    sources = {*inputs, *stored}  # an input may have a stored tensor as default
    twice = [name for names in (inputs, stored, outputs) for name in _repeated(names)]
    twice += [name for name in outputs if name in sources]
    if twice:
        raise WeightsError(f"the model's name {quote_name(twice[0])} stands for two values")


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def opset(model: OnnxModel | OnnxFunction) -> int:
    """Version of ONNX's own operators; 0 if the model names none.

    Raises
    ------
    WeightsError
        The model names two versions.
    """
    versions = {entry.version for entry in model.operator_sets if entry.domain in DOMAINS}
    if len(versions) > 1:
        raise WeightsError(
            "the model names two versions of ONNX's operators",
            expected="one opset",
            found=" and ".join(map(str, sorted(versions))),
        )
    return max(versions, default=0)


def _stored_constant(node: GraphNode) -> ConstantTensor:
    """Value of a Constant node."""
    if len(node.attributes) != 1:
        raise UnsupportedError(f"it holds {len(node.attributes)} values instead of one")
    ((key, value),) = node.attributes.items()
    if key in _CONSTANT_DTYPES:
        return ConstantTensor(np.array(value, _CONSTANT_DTYPES[key]))
    array = node.tensor("value")
    if array is None:
        raise UnsupportedError("it holds no tensor of numbers")
    name = node.message.outputs[0] if node.message.outputs else ""
    return ConstantTensor(array, (Origin(name, array.shape, array.dtype.name),))


_RUNTIME_INPUT_OPERATORS = frozenset(
    {"Identity", "Cast", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Reshape", "Gather"}
    | {"Slice", "Split", "Expand", "Concat", "Tile", "Range", "Add", "Sub", "Mul"}
    | {"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Not", "And", "Or"}
)
"""Operators that may read states and lengths that are fed at run time."""
_OPEN_SIZE_OPERATORS = frozenset(
    {"Reshape", "Expand", "Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "ReverseSequence"}
    | RECURRENT_OPERATORS
)
"""Operators that may use open sizes on symbolic tensors."""
EMBEDDING = "it is an embedding, a table read by ids, for which lstm-cli has no layer"


class Dispatcher:
    """Selects the rule that evaluates a node, by operator and kinds of inputs."""

    def __init__(self, context: GraphContext) -> None:
        self.context, self.free_axes, self.notes = context, context.free_axes, context.notes
        self.reroller = LoopReroller(context)

    def evaluate(self, node: GraphNode) -> Sequence[GraphValue]:
        """Outputs of a node.

        Raises
        ------
        UnsupportedError, LstmCliError
            lstm-cli cannot represent the operation.
        """
        for value in node.inputs:
            if isinstance(value, UnsupportedValue):
                return [value] * len(node.message.outputs)
        if node.op == "Where":
            return [self._where(node)]
        if any(isinstance(value, SymbolicTensor) for value in node.inputs):
            return self._evaluate_symbolic(node)
        runtime_inputs = [value for value in node.inputs if isinstance(value, RuntimeInput)]
        if not runtime_inputs:
            return self._evaluate_constants(node)
        if node.op == "Gather" and isinstance(node.input(0), ConstantTensor):
            raise UnsupportedError(EMBEDDING)
        if node.op in RECURRENT_OPERATORS:
            return self._evaluate_constants(node)
        return _evaluate_runtime_input(node, runtime_inputs[0])

    def _evaluate_constants(self, node: GraphNode) -> Sequence[GraphValue]:
        if node.op in ("MatMul", "Gemm"):
            initial = ops_math.zero_state(node.constant(0), node.where)
            if initial is not None:
                return [ops_math.product(self.free_axes, node, initial)]
        try:
            constants = fold(node)
        except OpenSizeError:
            if node.op != "Range":
                raise
            return [RuntimeInput("the number of steps")]
        if constants is None:
            raise UnsupportedError("it is an operator that lstm-cli does not know")
        return constants

    def _evaluate_symbolic(self, node: GraphNode) -> Sequence[GraphValue]:
        if node.has_open_sizes and node.op not in _OPEN_SIZE_OPERATORS:
            raise OpenSizeError("only an operator that moves values may do so")
        if node.op in RECURRENT_OPERATORS:
            return RecurrentOperator(node, self.context).outputs()
        if node.op == "Gather" and isinstance(node.input(0), ConstantTensor):
            raise UnsupportedError(EMBEDDING)
        if node.op == "Concat":
            return [self._concat(node)]
        if node.op == "Greater":
            return [ops_math.greater(node)]
        first = node.input(0)
        if isinstance(first, SymbolicTensor):
            if node.op in ("Shape", "Size"):
                return [self._shape(node, first)]
            if node.op == "Cast" and node.attributes["to"] not in FLOAT_TYPES:
                raise UnsupportedError(
                    "it converts a tensor to another type than real numbers, such as ids of an "
                    "embedding, for which lstm-cli has no layer"
                )
            moved = ops_layout.move(self.free_axes, node, first)
            if moved is not None:
                if node.op == "Dropout":
                    self.notes[f"{node.where} is left out: it acts in training only"] = None
                return moved
        return [self._compute(node, first)]

    def _shape(self, node: GraphNode, value: SymbolicTensor) -> ConstantTensor:
        shape = self.free_axes.shape(value)
        if node.op == "Size":
            return ConstantTensor(size_array([product_of(shape)]).reshape(()))
        start, end = node.attributes.get("start", 0), node.attributes.get("end")
        return ConstantTensor(size_array(shape[start:end]))

    def _concat(self, node: GraphNode) -> SymbolicTensor:
        tensors = [value for value in node.inputs if isinstance(value, SymbolicTensor)]
        if len(tensors) != len(node.inputs):
            raise UnsupportedError("it joins constants or other inputs with computed tensors")
        axis = node.axis(len(tensors[0].axes))
        if any(len(tensor.axes) != len(tensors[0].axes) for tensor in tensors):
            raise UnsupportedError("it joins tensors of different rank")
        sequence = self.reroller.series(tensors, axis)
        if sequence is not None or len(tensors) == 1:
            return sequence or tensors[0]
        return ops_layout.concatenate_tensors(tensors, axis, node.where)

    def _where(self, node: GraphNode) -> GraphValue:
        condition, yes, no = node.inputs[:3]
        if isinstance(condition, ConstantTensor):
            if not condition.array.dtype.hasobject and condition.array.size:
                if condition.array.all():
                    return _selected(yes)
                if not condition.array.any():
                    return _selected(no)
            return self._evaluate_constants(node)[0]
        if isinstance(condition, GreaterThan):
            return ops_math.softplus(condition, yes, no)
        if not isinstance(condition, RuntimeInput):
            raise UnsupportedError("it selects by values that depend on the input")
        tensors = [value for value in (yes, no) if isinstance(value, SymbolicTensor)]
        if len(tensors) != 1:
            raise UnsupportedError(f"it selects by the input {condition.name}")
        other = no if tensors[0] is yes else yes
        if isinstance(other, ConstantTensor) and other.array.any():
            raise UnsupportedError("it fills the padding with values other than 0")
        self.notes["the lengths of the data replace the model's masks of the padding"] = None
        return tensors[0]

    def _compute(self, node: GraphNode, first: GraphValue | None) -> SymbolicTensor:
        op, where = node.op, node.where
        if op in ("MatMul", "Gemm"):
            return ops_math.product(self.free_axes, node, first)
        if op in ("Add", "Sub", "Mul", "Div"):
            return ops_math.binary(node, first, node.input(1))
        if not isinstance(first, SymbolicTensor):
            raise UnsupportedError("it is an operator that lstm-cli does not know")
        if op == "Softmax":
            return ops_math.softmax(first, node.attributes["axis"], node.opset, where)
        if op in ("ReduceSum", "ReduceMean"):
            return ops_math.reduce_features(self.free_axes, node, first)
        if op == "Exp":
            return ops_math.exponential(first, where)
        if op == "Selu":
            alpha, gamma = node.attributes["alpha"], node.attributes["gamma"]
            elu = ops_math.activate(first, Activation("elu", alpha), where)
            return ops_math.scale_by(elu, gamma, where)
        if op == "Neg":
            return ops_math.scale_by(first, -1.0, where)
        if op == "ReverseSequence":
            return self._reverse_sequence(node, first)
        if op == "BatchNormalization":
            return ops_math.batch_normalization(node, first)
        return ops_math.activate(first, ops_math.activation_of(node), where)

    def _reverse_sequence(self, node: GraphNode, value: SymbolicTensor) -> SymbolicTensor:
        """ReverseSequence within the lengths of the data, or of all T steps."""
        axis, batch = node.attributes["time_axis"], node.attributes["batch_axis"] % len(value.axes)
        if {axis, batch} != {0, 1}:
            raise UnsupportedError(
                f"its time_axis is {axis} and its batch_axis {batch}, not 0 and 1"
            )
        size, lengths = self.free_axes.shape(value)[axis], node.input(1)
        if isinstance(lengths, ConstantTensor):
            if any(n != size for n in lengths.array.reshape(-1)):
                raise UnsupportedError("it reverses sequences of lengths that the file fixes")
        elif isinstance(lengths, RuntimeInput):
            name = lengths.name
            self.notes[f"the model's input {name} comes from the lengths of the data"] = None
        return ops_layout.reverse(self.free_axes, value, axis)


def _evaluate_runtime_input(node: GraphNode, value: RuntimeInput) -> Sequence[GraphValue]:
    if node.op not in _RUNTIME_INPUT_OPERATORS:
        raise UnsupportedError(f"it computes with the input {value.name}")
    changes = node.op in ("Add", "Sub", "Mul", "Concat") and len(node.inputs) > 1
    result = replace(value, computed=value.computed or changes)
    return [result] * len(node.message.outputs)


def _selected(value: GraphValue | None) -> GraphValue:
    if value is None:
        raise UnsupportedError("its selected input is omitted")
    return value
