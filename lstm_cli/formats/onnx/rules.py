"""Which rule evaluates an operator, by what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.formats.onnx import activations, arithmetic, elementwise, messages, views
from lstm_cli.formats.onnx.calls import Call
from lstm_cli.formats.onnx.folding import fold
from lstm_cli.formats.onnx.frame import Frame
from lstm_cli.formats.onnx.operators import NODES, Operator
from lstm_cli.formats.onnx.sizes import OpenSizeError, product, sized
from lstm_cli.formats.onnx.unrolled import Rerolling
from lstm_cli.formats.onnx.values import (
    Anything,
    Constant,
    Exceeds,
    Linear,
    RefusedError,
    Side,
    Unknown,
    Value,
)

FLOATS = (messages.FLOAT, messages.FLOAT16, messages.DOUBLE, messages.BFLOAT16)

_SIDEWAYS = frozenset(
    {"Identity", "Cast", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Reshape", "Gather"}
    | {"Slice", "Split", "Expand", "Concat", "Tile", "Range", "Add", "Sub", "Mul"}
    | {"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Not", "And", "Or"}
)
"""What may be made of states and lengths that are fed at run time."""
_BY_SIZE = frozenset(
    {"Reshape", "Expand", "Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "ReverseSequence"}
    | NODES
)
"""What may be done to values by sizes that the file leaves open."""
EMBEDDING = "it is an embedding, a table read by ids, for which lstm-cli has no layer"
MOST_TERMS = 256


class Rules:
    """Evaluates operators.

    Parameters
    ----------
    frame
        Free axes of the graph's input.
    notes
        To be added to.
    inputs
        Names of the graph's inputs.
    nodes
        Operators in the file.
    """

    def __init__(
        self,
        frame: Frame,
        notes: dict[str, None],
        inputs: frozenset[str] = frozenset(),
        nodes: int = 0,
    ) -> None:
        self.frame, self.notes, self.inputs = frame, notes, inputs
        self.rerolling = Rerolling(frame, notes, nodes)

    def evaluate(self, call: Call) -> Sequence[Anything]:
        """The operator's outputs.

        Raises
        ------
        RefusedError, LstmCliError
            It cannot be represented.
        """
        unknown = next((value for value in call.inputs if isinstance(value, Unknown)), None)
        if unknown is not None:
            return [unknown] * len(call.node.outputs)
        if call.op == "Where":
            return [self._where(call)]
        if any(isinstance(value, Value) for value in call.inputs):
            return self._of_values(call)
        side = next((value for value in call.inputs if isinstance(value, Side)), None)
        if side is not None and call.op == "Gather" and isinstance(call.given(0), Constant):
            raise RefusedError(EMBEDDING)
        if side is not None and call.op not in NODES:
            if call.op not in _SIDEWAYS:
                raise RefusedError(f"it computes something of the input {side.name}")
            changed = call.op in ("Add", "Sub", "Mul", "Concat") and len(call.inputs) > 1
            made = replace(side, computed=side.computed or changed)
            return [made] * len(call.node.outputs)
        return self._of_constants(call)

    def _of_constants(self, call: Call) -> Sequence[Anything]:
        if call.op in ("MatMul", "Gemm"):
            initial = arithmetic.zeros(call.constant(0), call.where)
            if initial is not None:
                return [self._product(call, initial)]
        try:
            found = fold(call)
        except OpenSizeError:
            if call.op != "Range":
                raise
            return [Side("the number of steps")]
        if found is None:
            raise RefusedError("it is an operator that lstm-cli does not know")
        return found

    def _of_values(self, call: Call) -> Sequence[Anything]:
        if call.is_open and call.op not in _BY_SIZE:
            raise OpenSizeError("only what moves values about may do so")
        if call.op in NODES:
            return Operator(call, self.frame, self.notes, self.inputs).outputs()
        if call.op == "Gather" and isinstance(call.given(0), Constant):
            raise RefusedError(EMBEDDING)
        if call.op == "Concat":
            return [self._concat(call)]
        if call.op == "Greater":
            return [activations.exceeds(call)]
        first = call.given(0)
        if isinstance(first, Value):
            if call.op in ("Shape", "Size"):
                return [self._shape(call, first)]
            if call.op == "Cast" and call.attributes["to"] not in FLOATS:
                raise RefusedError(
                    "it turns values into something other than real numbers, such as ids of an "
                    "embedding, for which lstm-cli has no layer"
                )
            moved = views.view(self.frame, call, first)
            if moved is not None:
                if call.op == "Dropout":
                    self.notes[f"{call.where} is left out: it acts in training only"] = None
                return moved
        return [self._computed(call, first)]

    def _shape(self, call: Call, value: Value) -> Constant:
        dims = self.frame.dims(value)
        if call.op == "Size":
            return Constant(sized([product(dims)]).reshape(()))
        start, end = call.attributes.get("start", 0), call.attributes.get("end")
        return Constant(sized(dims[start:end]))

    def _concat(self, call: Call) -> Value:
        values = [value for value in call.inputs if isinstance(value, Value)]
        if len(values) != len(call.inputs):
            raise RefusedError("it puts constants or other inputs beside computed values")
        axis = call.axis(len(values[0].axes))
        if any(len(value.axes) != len(values[0].axes) for value in values):
            raise RefusedError("it puts values of different rank side by side")
        found = self.rerolling.series(values, axis)
        if found is not None or len(values) == 1:
            return found or values[0]
        return views.stacked(values, axis, call.where)

    def _where(self, call: Call) -> Anything:
        condition, yes, no = call.inputs[:3]
        if isinstance(condition, Constant):
            if not condition.array.dtype.hasobject and condition.array.size:
                if condition.array.all():
                    return self._chosen(yes)
                if not condition.array.any():
                    return self._chosen(no)
            return self._of_constants(call)[0]
        if isinstance(condition, Exceeds):
            return activations.softplus(condition, yes, no)
        if not isinstance(condition, Side):
            raise RefusedError("it chooses by values that depend on the input")
        values = [value for value in (yes, no) if isinstance(value, Value)]
        if len(values) != 1:
            raise RefusedError(f"it chooses by the input {condition.name}")
        other = no if values[0] is yes else yes
        if isinstance(other, Constant) and other.array.any():
            raise RefusedError("it fills the padding with something other than 0")
        self.notes["what the model does to the padding is left to the data's lengths"] = None
        return values[0]

    def _chosen(self, value: Anything | None) -> Anything:
        if value is None:
            raise RefusedError("it chooses nothing")
        return value

    def _computed(self, call: Call, first: Anything | None) -> Value:
        second, op = call.given(1), call.op
        if op in ("MatMul", "Gemm"):
            return self._product(call, first)
        if op in ("Add", "Sub", "Mul", "Div"):
            return self._binary(call, first, second)
        if not isinstance(first, Value):
            raise RefusedError("it is an operator that lstm-cli does not know")
        if op == "Softmax":
            return elementwise.softmax(first, call.attributes["axis"], call.opset, call.where)
        if op in ("ReduceSum", "ReduceMean"):
            return self._reduced(call, first)
        if op == "Exp":
            return elementwise.exponential(first, call.where)
        if op == "Selu":
            alpha, gamma = call.attributes["alpha"], call.attributes["gamma"]
            bent = elementwise.activate(first, Activation("elu", alpha), call.where)
            return self._scaled(call, bent, gamma)
        if op == "Neg":
            return self._scaled(call, first, -1.0)
        if op == "ReverseSequence":
            return self._reversed(call, first)
        if op == "BatchNormalization":
            return self._normalised(call, first)
        return elementwise.activate(first, activations.activation(call), call.where)

    def _reduced(self, call: Call, value: Value) -> Value:
        """The sum or mean over an axis of features."""
        axes = call.axes(1) or []
        if len(axes) != 1 or value.axes[axes[0]] != ("f",):
            raise RefusedError("it sums over something other than one axis of features")
        axis, size = axes[0] % len(value.axes), self.frame.dims(value)[axes[0]]
        keep = call.flag("keepdims")
        if not isinstance(size, int) or size > MOST_TERMS:
            raise RefusedError(f"it adds up more than {MOST_TERMS} values")
        indices = [np.array([k] if keep else k) for k in range(size)]
        parts = [views.gather(self.frame, value, axis, index) for index in indices]
        found = parts[0]
        for part in parts[1:]:
            found = self._sum(call, found, part)
        return self._scaled(call, found, 1 / size) if call.op == "ReduceMean" else found

    def _scaled(self, call: Call, value: Value, factor: float) -> Value:
        return arithmetic.scale(value, Constant(np.array(factor, np.float32)), call.where)

    def _product(self, call: Call, first: Anything | None) -> Value:
        if not isinstance(first, Value):
            raise RefusedError("it multiplies a constant with values, in this order")
        factor = call.given(1)
        if not isinstance(factor, Constant):
            raise RefusedError("it multiplies two values that both depend on the input")
        if call.op == "MatMul":
            return arithmetic.matmul(self.frame, first, factor, call.where)
        return self._gemm(call, first, factor)

    def _gemm(self, call: Call, first: Value, factor: Constant) -> Value:
        if call.flag("transA"):
            raise RefusedError("its transA is 1")
        array, change = factor.array, factor.change
        if call.flag("transB"):
            array = array.T
            change = {"": "transposed", "transposed": ""}.get(change, change)
        alpha, beta = call.attributes["alpha"], call.attributes["beta"]
        if alpha != 1:
            array, change = (array * np.float64(alpha)).astype(array.dtype), "computed"
        made = Constant(array, factor.origins, change)
        value = arithmetic.matmul(self.frame, first, made, call.where)
        addend = call.given(2)
        if addend is None or not beta:
            return value
        if isinstance(addend, Constant) and beta != 1:
            scaled = (addend.array * np.float64(beta)).astype(addend.array.dtype)
            addend = Constant(scaled, addend.origins, "computed")
        elif isinstance(addend, Value):
            addend = self._scaled(call, addend, beta)
        return self._sum(call, value, addend)

    def _binary(self, call: Call, first: Anything | None, second: Anything | None) -> Value:
        op = call.op
        if op == "Add":
            return self._sum(call, first, second)
        if op == "Sub":
            if isinstance(second, Value):
                return self._sum(call, first, self._scaled(call, second, -1.0))
            if isinstance(second, Constant):
                negative = Constant(-second.array, second.origins, "computed")
                return self._sum(call, first, negative)
        if op == "Mul" and isinstance(first, Constant):
            first, second = second, first
        if not isinstance(first, Value):
            raise RefusedError("it divides a constant by values")
        if isinstance(second, Constant):
            if op == "Div":
                with np.errstate(all="ignore"):
                    inverse = (1 / second.array.astype(np.float64)).astype(second.array.dtype)
                second = Constant(inverse, second.origins, "computed")
            return arithmetic.scale(first, second, call.where)
        if not isinstance(second, Value):
            raise RefusedError("it combines values with something fed at run time")
        if op == "Div":
            return elementwise.divide(first, second, call.where)
        return arithmetic.multiply(first, second, call.where)

    def _sum(self, call: Call, first: Anything | None, second: Anything | None) -> Value:
        if isinstance(first, Constant):
            first, second = second, first
        if not isinstance(first, Value):
            raise RefusedError("it combines values with something fed at run time")
        if isinstance(second, Constant):
            found = arithmetic.add_constant(first, second, call.where)
        elif isinstance(second, Value):
            found = arithmetic.add(first, second, call.where)
        else:
            raise RefusedError("it combines values with something fed at run time")
        if isinstance(found.atom, Linear) and len(found.atom.terms) > MOST_TERMS:
            raise RefusedError(f"it adds up more than {MOST_TERMS} values")
        return found

    def _reversed(self, call: Call, value: Value) -> Value:
        """ReverseSequence: within the lengths of the data, or all of T."""
        axis, batch = call.attributes["time_axis"], call.attributes["batch_axis"] % len(value.axes)
        if {axis, batch} != {0, 1}:
            raise RefusedError(f"its time_axis is {axis} and its batch_axis {batch}, not 0 and 1")
        size, lengths = self.frame.dims(value)[axis], call.given(1)
        if isinstance(lengths, Constant):
            if any(n != size for n in lengths.array.reshape(-1)):
                raise RefusedError("it reverses sequences of lengths that are fixed in the file")
        elif isinstance(lengths, Side):
            self.notes[f"the model's input {lengths.name} is left to lengths of the data"] = None
        return views.reverse(self.frame, value, axis)

    def _normalised(self, call: Call, value: Value) -> Value:
        """Batch normalisation as it is at inference: a scale and a shift of every feature."""
        if len(value.axes) < 2 or value.axes[1] != ("f",) or value.pick.ndim != 1:
            raise RefusedError("it normalises over something other than the features")
        if call.flag("training_mode"):
            raise RefusedError("it normalises by the batch, as in training")
        if not call.attributes.get("spatial", 1) and len(value.axes) > 2:
            raise RefusedError("it normalises every step by numbers of its own (spatial: 0)")
        given = [call.constant(k).array.astype(np.float64) for k in range(1, 5)]
        factor, shift, mean, variance = given
        slope = factor / np.sqrt(variance + call.attributes["epsilon"])
        shape = (-1, *[1] * (len(value.axes) - 2))
        parts = [a.astype(np.float32).reshape(shape) for a in (slope, shift - mean * slope)]
        origins = tuple(o for k in range(1, 5) for o in call.constant(k).origins)
        constants = [Constant(part, origins, "computed") for part in parts]
        scaled = arithmetic.scale(value, constants[0], call.where)
        return arithmetic.add_constant(scaled, constants[1], call.where)
