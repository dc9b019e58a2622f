"""Arithmetic and activation operators on symbolic tensors.

MatMul, Gemm, Add, Mul, BatchNormalization and the like become linear maps and products; Relu,
Softmax and the like become activations. Constants and tensors broadcast as NumPy arrays do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array
from lstm_cli.errors import counted
from lstm_cli.formats.builder import rounded_sum
from lstm_cli.formats.onnx.node import GraphNode
from lstm_cli.formats.onnx.ops_layout import gather
from lstm_cli.formats.onnx.schemas import NATIVE_ACTIVATIONS
from lstm_cli.formats.onnx.sizes import FreeAxes, is_all_steps
from lstm_cli.formats.onnx.symbolic import (
    ALL_STEPS,
    FEATURES,
    REVERSED_STEPS,
    ActivationOutput,
    Axis,
    ConstantTensor,
    ElementwiseProduct,
    FeatureVector,
    FlattenedSteps,
    GraphValue,
    GreaterThan,
    LinearMap,
    Signal,
    SoftmaxOutput,
    SymbolicTensor,
    Term,
    UnsupportedError,
    Weight,
    ZeroState,
    check_feature_count,
    count_axes,
    is_complete,
    same_vector,
    shortest_decimal,
    vector_at,
)

MAX_TERMS = 256
"""Largest number of summands of a linear map. Hostile files could double them without limit."""


def reads_all_steps(*vectors: FeatureVector) -> bool:
    """True if one of the vectors is read at all steps."""
    return any(is_all_steps(vector.step) for vector in vectors)


def tensor_of(signal: Signal, shape: Sequence[int], axes: tuple[Axis, ...]) -> SymbolicTensor:
    """All features of a signal, laid out over the axes of a tensor."""
    step = ALL_STEPS if signal.per_step else None
    return SymbolicTensor(signal, step, np.arange(signal.size).reshape(shape), axes)


def zero_state(constant: ConstantTensor, where: str) -> SymbolicTensor | None:
    """Initial state of zeros as a symbolic tensor, so that its product keeps the weights.

    None if the constant is not a floating-point tensor of zeros.
    """
    array = constant.array
    if array.dtype.kind != "f" or not array.ndim or not array.shape[-1] or array.any():
        return None
    size = array.shape[-1]
    axes = ((),) * (array.ndim - 1) + ((FEATURES,),)
    return tensor_of(ZeroState(size, False, where), (size,), axes)


def matmul(
    free_axes: FreeAxes, value: SymbolicTensor, constant: ConstantTensor, where: str
) -> SymbolicTensor:
    """MatMul of the last axis with a constant matrix (in, out)."""
    matrix = constant.array
    if matrix.ndim < 1 or matrix.dtype.kind != "f":
        raise UnsupportedError(
            f"it multiplies by a tensor of {count_axes(matrix.ndim)} and dtype {matrix.dtype}"
        )
    drop = matrix.ndim == 1
    matrix = matrix[:, None] if drop else matrix
    if any(n != 1 for n in matrix.shape[:-2]):
        raise UnsupportedError("it multiplies by several matrices")
    matrix = matrix.reshape(matrix.shape[-2:])
    source = _contracted_vector(free_axes, value, matrix.shape[0], where)
    if source.indices.size != matrix.shape[0]:
        features = counted(source.indices.size, "feature")
        raise UnsupportedError(f"it multiplies {features} by a matrix {matrix.shape}")
    term = Term(source, Weight(matrix, constant.origins, constant.change))
    signal = LinearMap(matrix.shape[1], reads_all_steps(source), where, (term,))
    outer = tuple(tuple(p for p in axis if p != FEATURES) for axis in value.axes[:-1])
    shape = () if drop else (signal.size,)
    return tensor_of(signal, shape, (*outer, *(((FEATURES,),) if not drop else ())))


def _contracted_vector(
    free_axes: FreeAxes, value: SymbolicTensor, size: int, where: str
) -> FeatureVector:
    """Features of the last axis, over which a matrix product sums."""
    last = value.axes[-1] if value.axes else ()
    if FEATURES in last or not last:
        summands = value.indices.shape[len(value.indices.shape) - last.count(FEATURES) :]
        if int(np.prod(summands, dtype=object)) != value.indices.size:
            raise UnsupportedError("it multiplies several rows of features by a matrix")
    free = [part for part in last if part != FEATURES]
    if not free:
        return value.vector
    if len(free) != 1 or not free_axes.claim_time(free[0]) or not is_all_steps(value.step):
        raise UnsupportedError("it sums over the sequences of a batch")
    return _flattened_vector(free_axes, value, last, size, where)


def _flattened_vector(
    free_axes: FreeAxes, value: SymbolicTensor, last: Axis, size: int, where: str
) -> FeatureVector:
    """Features of all steps in one vector, in the order of the axis `last`."""
    features = value.indices.size
    if free_axes.time is not None and free_axes.steps is None:
        free_axes.sizes[free_axes.time] = size // max(features, 1)
    steps = free_axes.steps or 0
    check_feature_count(steps * features)
    source = FeatureVector(value.signal, ALL_STEPS, value.indices.reshape(-1))
    order = np.arange(steps * features).reshape(steps, features)
    order = order[::-1] if value.step == REVERSED_STEPS else order
    if last[0] == FEATURES:
        if len(last) > 2:
            raise UnsupportedError("it sums over features on both sides of the steps")
        order = order.T
    signal = FlattenedSteps(steps * features, False, where, source, steps)
    return FeatureVector(signal, None, order.reshape(-1))


def output_vector(free_axes: FreeAxes, value: SymbolicTensor) -> FeatureVector:
    """Output of a network as a vector; an axis of steps and features becomes one vector.

    Raises
    ------
    UnsupportedError
        The tensor has another layout.
    """
    mixed = [axis for axis in value.axes if FEATURES in axis and len(axis) > 1]
    if not mixed:
        return value.vector
    free = [part for part in mixed[0] if part != FEATURES]
    if len(mixed) > 1 or len(free) > 1 or sum(axis.count(FEATURES) for axis in value.axes) > 1:
        raise UnsupportedError("the features share an axis with several other axes")
    if not is_all_steps(value.step) or not free_axes.claim_time(free[0]) or free_axes.steps is None:
        raise UnsupportedError(
            "features of different sequences, or of an open number of steps, share an axis"
        )
    size = value.indices.size * free_axes.steps
    return _flattened_vector(free_axes, value, mixed[0], size, value.signal.where)


def linear_terms(vector: FeatureVector) -> tuple[tuple[Term, ...], Weight | None]:
    """Summands and bias of a vector; a vector of another signal is its own single summand."""
    signal = vector.signal
    if not isinstance(signal, LinearMap) or _is_gated_state(signal):
        return (Term(vector, Weight(np.ones(vector.indices.size))),), None
    selection = None if is_complete(vector) else vector.indices
    sources = [vector_at(_selected_source(t, selection), vector.step) for t in signal.terms]
    weights = [select_columns(t.weight, selection) for t in signal.terms]
    bias = None if signal.bias is None else select_columns(signal.bias, selection)
    return tuple(map(Term, sources, weights)), bias


def _is_gated_state(signal: LinearMap) -> bool:
    """True for the state of a gated cell (f * c + i * g), which is kept apart from other sums."""
    return (
        len(signal.terms) > 1
        and all(term.weight.diagonal for term in signal.terms)
        and any(isinstance(term.source.signal, ElementwiseProduct) for term in signal.terms)
    )


def _selected_source(term: Term, indices: Array | None) -> FeatureVector:
    source = term.source
    if indices is None or not term.weight.diagonal:
        return source
    return FeatureVector(source.signal, source.step, source.indices[indices])


def select_columns(weight: Weight, indices: Array | None) -> Weight:
    """Columns of a weight (None: all); consecutive columns are a view."""
    if indices is None:
        return weight
    start = int(indices[0]) if indices.size else 0
    if not (indices == np.arange(indices.size) + start).all():
        return replace(weight, array=weight.array[..., indices], change="computed", columns=None)
    stop = start + indices.size
    offset = weight.columns[0] if weight.columns else 0
    columns = offset + start, offset + stop
    return replace(weight, array=weight.array[..., start:stop], columns=columns)


def add(one: SymbolicTensor, other: SymbolicTensor, where: str) -> SymbolicTensor:
    """Sum of two tensors, as one linear map."""
    (first, second), shape, axes = broadcast_tensors(one, other)
    (a, bias), (b, other_bias) = linear_terms(first), linear_terms(second)
    total = _sum_biases(bias, other_bias)
    per_step = reads_all_steps(first, second)
    return tensor_of(LinearMap(first.indices.size, per_step, where, a + b, total), shape, axes)


def _sum_biases(one: Weight | None, other: Weight | None) -> Weight | None:
    if one is None or other is None:
        return other if one is None else one
    columns = one.columns if one.columns == other.columns else None
    total = rounded_sum(one.array, other.array)
    return Weight(total, one.origins + other.origins, "added", columns)


def add_constant(value: SymbolicTensor, constant: ConstantTensor, where: str) -> SymbolicTensor:
    """Sum of a tensor and a constant that is equal for every sequence and step."""
    array, value = broadcast_constant(constant.array, value)
    if not array.any() and not isinstance(value.signal, LinearMap):
        return value
    summands, bias = linear_terms(value.vector)
    total = _sum_biases(bias, Weight(array.reshape(-1), constant.origins, constant.change))
    per_step = reads_all_steps(value.vector)
    signal = LinearMap(value.indices.size, per_step, where, summands, total)
    return tensor_of(signal, value.indices.shape, value.axes)


def scale(value: SymbolicTensor, constant: ConstantTensor, where: str) -> SymbolicTensor:
    """Product of a tensor and a constant that is equal for every sequence and step."""
    array, value = broadcast_constant(constant.array, value)
    if (array == 1).all():
        return value
    if not array.any():
        zeros = tensor_of(ZeroState(value.indices.size, False, where), (-1,), ())
        return multiply(value, zeros, where)
    weight = Weight(array.reshape(-1), constant.origins, constant.change)
    term = Term(value.vector, weight)
    signal = LinearMap(value.indices.size, reads_all_steps(value.vector), where, (term,))
    return tensor_of(signal, value.indices.shape, value.axes)


def multiply(one: SymbolicTensor, other: SymbolicTensor, where: str) -> SymbolicTensor:
    """Elementwise product of two tensors."""
    if isinstance(other.signal, ZeroState) and other.indices.size == one.indices.size:
        first, second, shape, axes = one.vector, other.vector, one.indices.shape, one.axes
    else:
        (first, second), shape, axes = broadcast_tensors(one, other)
    per_step = reads_all_steps(first, second)
    signal = ElementwiseProduct(first.indices.size, per_step, where, first, second)
    return tensor_of(signal, shape, axes)


def broadcast_constant(array: Array, value: SymbolicTensor) -> tuple[Array, SymbolicTensor]:
    """Broadcast a constant to the features of a tensor; the tensor gets the axes of both.

    Raises
    ------
    UnsupportedError
        The constant differs from sequence to sequence or from step to step.
    """
    if array.ndim > len(value.axes):
        value = replace(value, axes=((),) * (array.ndim - len(value.axes)) + value.axes)
    array = array.reshape((1,) * (len(value.axes) - array.ndim) + array.shape)
    features = list(value.indices.shape)
    shape: list[int] = []
    for k, axis in enumerate(value.axes):
        count = axis.count(FEATURES)
        sizes, features = features[:count], features[count:]
        if count and array.shape[k] != 1:
            if len(axis) != count:
                raise UnsupportedError("its constant differs from step to step")
            shape += sizes
        else:
            array = _first_entry(array, k)
            shape += [1] * count
    return np.broadcast_to(array.reshape(shape), value.indices.shape), value


def _first_entry(array: Array, axis: int) -> Array:
    """First entry of an axis whose entries must all be equal."""
    first = array.take([0], axis=axis)
    if array.shape[axis] != 1 and not (array == first).all():
        raise UnsupportedError(
            "its constant differs from sequence to sequence or from step to step"
        )
    return first


def broadcast_tensors(
    one: SymbolicTensor, other: SymbolicTensor
) -> tuple[tuple[FeatureVector, FeatureVector], tuple[int, ...], tuple[Axis, ...]]:
    """Broadcast two tensors: both feature vectors, and the shape and axes of the result."""
    rank = max(len(one.axes), len(other.axes))
    padded = [((),) * (rank - len(value.axes)) + value.axes for value in (one, other)]
    axes = tuple(_common_axis(a, b) for a, b in zip(*padded, strict=True))
    index_arrays = [
        _expand_indices(value.indices, old_axes, axes)
        for value, old_axes in zip((one, other), padded, strict=True)
    ]
    shapes = [indices.shape for indices in index_arrays]
    check_feature_count(math.prod(np.broadcast_shapes(*shapes)))
    first, second = np.broadcast_arrays(*index_arrays)
    vectors = (
        FeatureVector(one.signal, one.step, first.reshape(-1)),
        FeatureVector(other.signal, other.step, second.reshape(-1)),
    )
    return vectors, first.shape, axes


def _common_axis(one: Axis, other: Axis) -> Axis:
    if one == other or not other:
        return one
    if not one:
        return other
    raise UnsupportedError("it combines tensors of different layouts")


def _expand_indices(indices: Array, old_axes: Sequence[Axis], axes: Sequence[Axis]) -> Array:
    """Reshape `indices` to one axis for each axis of features of the result."""
    sizes, shape = iter(indices.shape), []
    for old_axis, axis in zip(old_axes, axes, strict=True):
        count = axis.count(FEATURES)
        shape += [next(sizes) for _ in range(count)] if old_axis else [1] * count
    return indices.reshape(shape)


def divide(one: SymbolicTensor, other: SymbolicTensor, where: str) -> SymbolicTensor:
    """Div of two tensors: x / (1 + |x|) is softsign; any other quotient is unsupported."""
    parts, bias = linear_terms(other.vector)
    inner = parts[0].source.signal
    is_plain = len(parts) == 1 and parts[0].weight.identity and is_complete(parts[0].source)
    adds_one = bias is not None and bool((bias.array == 1).all())
    if is_plain and adds_one and isinstance(inner, ActivationOutput):
        source = vector_at(inner.source, parts[0].source.step)
        if inner.activation.name == "symmrelu" and same_vector(source, one.vector):
            return activate(one, Activation("softsign"), where)
    raise UnsupportedError("it divides by values that depend on the input")


def exponential(value: SymbolicTensor, where: str) -> SymbolicTensor:
    """Exp of -x * x is the activation gauss; any other exponential is unsupported."""
    parts, bias = linear_terms(value.vector)
    inner = parts[0].source.signal
    negative = len(parts) == 1 and bias is None and bool((parts[0].weight.array == -1).all())
    if negative and parts[0].weight.diagonal and isinstance(inner, ElementwiseProduct):
        step = parts[0].source.step
        first, second = (vector_at(factor, step) for factor in (inner.first, inner.second))
        if is_complete(parts[0].source) and same_vector(first, second):
            size, gauss = value.indices.size, Activation("gauss")
            signal = ActivationOutput(size, reads_all_steps(first), where, first, gauss)
            return tensor_of(signal, value.indices.shape, value.axes)
    raise UnsupportedError("its exponential is not an activation that lstm-cli has")


def activate(value: SymbolicTensor, activation: Activation, where: str) -> SymbolicTensor:
    """Elementwise activation of a tensor."""
    per_step = reads_all_steps(value.vector)
    signal = ActivationOutput(value.indices.size, per_step, where, value.vector, activation)
    return tensor_of(signal, value.indices.shape, value.axes)


def softmax(value: SymbolicTensor, axis: int, opset: int, where: str) -> SymbolicTensor:
    """Softmax over the features, which must be the last axis and no other."""
    rank = len(value.axes)
    size = value.indices.shape[-1] if value.indices.ndim else 1
    is_last = axis in (-1, rank - 1) or (opset < 13 and all(not p for p in value.axes[axis:-1]))
    if not is_last or value.axes[-1] != (FEATURES,) or size != value.indices.size:
        raise UnsupportedError(f"it is a softmax over axis {axis}, which is not the features")
    signal = SoftmaxOutput(value.indices.size, reads_all_steps(value.vector), where, value.vector)
    return tensor_of(signal, value.indices.shape, value.axes)


ACTIVATION_OPERATORS = {
    name: native
    for name, native in NATIVE_ACTIVATIONS.items()
    if name not in ("affine", "scaledtanh")
}
"""Operators that are activations: name in lower case to lstm-cli's name."""
SOFTPLUS_THRESHOLD = 16
"""Softplus of x equals x in float32 from this x on."""


def activation_of(node: GraphNode) -> Activation:
    """Activation that an operator computes.

    Raises
    ------
    UnsupportedError
        The operator is not an activation.
    """
    op = node.op
    if op in ("Clip", "Max"):
        return _relu_of_limits(node)
    if op == "Abs":
        return Activation("symmrelu")
    if op == "PRelu":
        return _leaky_relu(node.constant(1).array)
    name = ACTIVATION_OPERATORS.get(op.lower())  # the schemas accept ONNX's spelling only
    if name is None:
        raise UnsupportedError("it is an operator for which lstm-cli has no layer")
    return Activation(name, **{k: shortest_decimal(v) for k, v in node.attributes.items()})


def _leaky_relu(slopes: Array) -> Activation:
    if not slopes.size or (slopes != slopes.flat[0]).any():
        raise UnsupportedError("its slopes differ from feature to feature")
    return Activation("leaky_relu", shortest_decimal(slopes.flat[0]))


def _relu_of_limits(node: GraphNode) -> Activation:
    """ReLU from Clip or Max with the lower limit 0."""
    limits: list[Any] = [node.attributes.get("min"), node.attributes.get("max")]
    if node.op == "Max" and len(node.inputs) != 2:
        raise UnsupportedError("it takes the maximum of more than a tensor and a constant")
    for k in (1, 2):
        if node.input(k) is not None:
            limits[k - 1] = float(node.constant(k).array.reshape(-1)[0])
            if node.constant(k).array.size != 1:
                limits[0] = None
    low, high = limits
    if low != 0 or (high is not None and high < np.finfo(np.float32).max):
        raise UnsupportedError(
            f"it limits values to [{low}, {high}], which is not an activation of lstm-cli"
        )
    return Activation("relu")


def greater(node: GraphNode) -> GreaterThan:
    """Greater of a tensor and a constant, as a mask."""
    value, limit = node.input(0), node.constant(1).array
    if not isinstance(value, SymbolicTensor) or limit.size != 1:
        raise UnsupportedError("it compares values that depend on the input")
    return GreaterThan(value.vector, float(limit.reshape(-1)[0]))


def softplus(
    condition: GreaterThan, yes: GraphValue | None, no: GraphValue | None
) -> SymbolicTensor:
    """Softplus from a Where that takes x for large x and softplus(x) otherwise."""
    if (
        isinstance(yes, SymbolicTensor)
        and isinstance(no, SymbolicTensor)
        and isinstance(no.signal, ActivationOutput)
        and no.signal.activation.name == "softplus"
        and condition.limit >= SOFTPLUS_THRESHOLD
        and same_vector(condition.vector, yes.vector)
        and same_vector(no.signal.source, yes.vector)
    ):
        return no
    raise UnsupportedError("it selects by values that depend on the input")


def product(free_axes: FreeAxes, node: GraphNode, first: GraphValue | None) -> SymbolicTensor:
    """MatMul or Gemm of a tensor and a constant matrix."""
    if not isinstance(first, SymbolicTensor):
        raise UnsupportedError("it multiplies a constant by a tensor, in this order")
    matrix = node.input(1)
    if not isinstance(matrix, ConstantTensor):
        raise UnsupportedError("it multiplies two tensors that both depend on the input")
    if node.op == "MatMul":
        return matmul(free_axes, first, matrix, node.where)
    return _gemm(free_axes, node, first, matrix)


def _gemm(
    free_axes: FreeAxes, node: GraphNode, first: SymbolicTensor, matrix: ConstantTensor
) -> SymbolicTensor:
    if node.flag("transA"):
        raise UnsupportedError("its transA is 1")
    array, change = matrix.array, matrix.change
    if node.flag("transB"):
        array = array.T
        change = {"": "transposed", "transposed": ""}.get(change, change)
    alpha, beta = node.attributes["alpha"], node.attributes["beta"]
    if alpha != 1:
        array, change = (array * np.float64(alpha)).astype(array.dtype), "computed"
    factor = ConstantTensor(array, matrix.origins, change)
    value = matmul(free_axes, first, factor, node.where)
    addend = node.input(2)
    if addend is None or not beta:
        return value
    if isinstance(addend, ConstantTensor) and beta != 1:
        scaled = (addend.array * np.float64(beta)).astype(addend.array.dtype)
        addend = ConstantTensor(scaled, addend.origins, "computed")
    elif isinstance(addend, SymbolicTensor):
        addend = scale_by(addend, beta, node.where)
    return total(value, addend, node.where)


def scale_by(value: SymbolicTensor, factor: float, where: str) -> SymbolicTensor:
    """Product of a tensor and a number, in float32."""
    return scale(value, ConstantTensor(np.array(factor, np.float32)), where)


def total(first: GraphValue | None, second: GraphValue | None, where: str) -> SymbolicTensor:
    """Sum of two tensors, one of which may be constant."""
    if isinstance(first, ConstantTensor):
        first, second = second, first
    if not isinstance(first, SymbolicTensor):
        raise UnsupportedError("it combines a tensor with an input fed at run time")
    if isinstance(second, ConstantTensor):
        result = add_constant(first, second, where)
    elif isinstance(second, SymbolicTensor):
        result = add(first, second, where)
    else:
        raise UnsupportedError("it combines a tensor with an input fed at run time")
    if isinstance(result.signal, LinearMap) and len(result.signal.terms) > MAX_TERMS:
        raise UnsupportedError(f"it adds up more than {MAX_TERMS} tensors")
    return result


def binary(node: GraphNode, first: GraphValue | None, second: GraphValue | None) -> SymbolicTensor:
    """Add, Sub, Mul or Div of two tensors, one of which may be constant."""
    op = node.op
    if op == "Add":
        return total(first, second, node.where)
    if op == "Sub":
        if isinstance(second, SymbolicTensor):
            return total(first, scale_by(second, -1.0, node.where), node.where)
        if isinstance(second, ConstantTensor):
            negative = ConstantTensor(-second.array, second.origins, "computed")
            return total(first, negative, node.where)
    if op == "Mul" and isinstance(first, ConstantTensor):
        first, second = second, first
    if not isinstance(first, SymbolicTensor):
        raise UnsupportedError("it divides a constant by a tensor")
    if isinstance(second, ConstantTensor):
        if op == "Div":
            with np.errstate(all="ignore"):
                inverse = (1 / second.array.astype(np.float64)).astype(second.array.dtype)
            second = ConstantTensor(inverse, second.origins, "computed")
        return scale(first, second, node.where)
    if not isinstance(second, SymbolicTensor):
        raise UnsupportedError("it combines a tensor with an input fed at run time")
    if op == "Div":
        return divide(first, second, node.where)
    return multiply(first, second, node.where)


def reduce_features(free_axes: FreeAxes, node: GraphNode, value: SymbolicTensor) -> SymbolicTensor:
    """ReduceSum or ReduceMean over one axis of features."""
    axes = node.axes(1) or []
    if len(axes) != 1 or value.axes[axes[0]] != (FEATURES,):
        raise UnsupportedError("it sums over something other than one axis of features")
    axis, size = axes[0] % len(value.axes), free_axes.shape(value)[axes[0]]
    keep = node.flag("keepdims")
    if not isinstance(size, int) or size > MAX_TERMS:
        raise UnsupportedError(f"it adds up more than {MAX_TERMS} features")
    positions = [np.array([k] if keep else k) for k in range(size)]
    parts = [gather(free_axes, value, axis, position) for position in positions]
    result = parts[0]
    for part in parts[1:]:
        result = total(result, part, node.where)
    return scale_by(result, 1 / size, node.where) if node.op == "ReduceMean" else result


def batch_normalization(node: GraphNode, value: SymbolicTensor) -> SymbolicTensor:
    """BatchNormalization at inference: a scale and a shift of every feature."""
    if len(value.axes) < 2 or value.axes[1] != (FEATURES,) or value.indices.ndim != 1:
        raise UnsupportedError("it normalizes over something other than the features")
    if node.flag("training_mode"):
        raise UnsupportedError("it normalizes by the statistics of the batch, as in training")
    if not node.attributes.get("spatial", 1) and len(value.axes) > 2:
        raise UnsupportedError("it normalizes every step by other numbers (spatial: 0)")
    constants = [node.constant(k) for k in range(1, 5)]
    factor, shift, mean, variance = (c.array.astype(np.float64) for c in constants)
    slope = factor / np.sqrt(variance + node.attributes["epsilon"])
    shape = (-1, *[1] * (len(value.axes) - 2))
    slope, shift = (a.astype(np.float32).reshape(shape) for a in (slope, shift - mean * slope))
    origins = tuple(origin for constant in constants for origin in constant.origins)
    scaled = scale(value, ConstantTensor(slope, origins, "computed"), node.where)
    return add_constant(scaled, ConstantTensor(shift, origins, "computed"), node.where)
