"""Normalization of inputs and targets, kept beside the weights or folded into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    Layers,
    LayerSpec,
    RecurrentSpec,
    lacks_bias,
)
from lstm_cli.errors import ConfigError, WeightsError

Method: TypeAlias = Literal["standard", "minmax"]
Vector: TypeAlias = NDArray[np.float64]

MEAN, SCALE = "inputs.mean", "inputs.scale"
STORED = (MEAN, SCALE)
"""Stored names of the normalization of a network's inputs, (D,) float64 each."""

SCALED_LOSSES = ("mse", "mae", "huber")
"""Losses whose targets may have any scale."""

LARGEST_LOSS = 1e-4
"""Share of a feature's scale: what rounding may take of it before a warning names the feature."""


class Statistics(Protocol):
    """Moments and extremes that a normalization is made from: (D,) each."""

    @property
    def mean(self) -> Vector:
        """Means."""

    @property
    def std(self) -> Vector:
        """Standard deviations."""

    @property
    def minimum(self) -> Vector:
        """Smallest values."""

    @property
    def maximum(self) -> Vector:
        """Largest values."""


@dataclass(frozen=True)
class Rounding:
    """Digits of one feature that a dtype cannot hold.

    Attributes
    ----------
    noun, number
        Such as ``feature``, and its number from 0.
    mean, scale
        Its normalization.
    share
        Spacing of the dtype's numbers near the mean, as a share of the scale.
    """

    noun: str
    number: int
    mean: float
    scale: float
    share: float

    def __str__(self) -> str:
        return (
            f"{self.noun} {self.number} (mean {self.mean:.6g}, scale {self.scale:.6g}) is rounded "
            f"in steps of {self.share:.2g} of its scale"
        )


@dataclass(frozen=True, eq=False)
class Normalization:
    """x becomes (x - mean) / scale, feature by feature.

    Attributes
    ----------
    mean, scale
        (D,) float64: what is subtracted, and the divisor, which is never 0.
    """

    mean: Vector
    scale: Vector

    @classmethod
    def of(cls, method: Method, statistics: Statistics) -> Normalization:
        """``standard``: mean 0, deviation 1; ``minmax``: 0 to 1. A constant is divided by 1."""
        low, high = statistics.minimum, statistics.maximum
        if method == "standard":
            mean, scale = statistics.mean, statistics.std
        else:
            with np.errstate(over="ignore"):
                mean, scale = low, high - low
        # Deviations too small or too large for float64 are as little use as none.
        varies = (low < high) & (scale > 0) & np.isfinite(scale)
        return cls(mean, np.where(varies, scale, 1.0))

    @classmethod
    def stored(cls, tensors: Mapping[str, Array]) -> Normalization | None:
        """The normalization among stored tensors that were checked; None if there is none."""
        if MEAN not in tensors:
            return None
        mean, scale = (np.array(tensors[name], np.float64) for name in STORED)
        return cls(mean, scale)

    @property
    def tensors(self) -> dict[str, Vector]:
        """By stored name."""
        return {MEAN: self.mean, SCALE: self.scale}

    @property
    def numbers(self) -> dict[str, list[float]]:
        """Mean and scale as plain numbers, for JSON."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @property
    def inverse(self) -> Normalization:
        """What undoes this one; to fold it is to take a fold back."""
        return Normalization(-self.mean / self.scale, 1 / self.scale)

    def apply(
        self, x: Array, lengths: ArrayLike | None = None, dtype: DTypeLike = np.float64
    ) -> Array:
        """`x` (N, T, D), or (N, D) without `lengths`, normalized; padding is 0.

        Computed in double precision, then cast to `dtype`.
        """
        with np.errstate(all="ignore"):  # what is not finite shows where it is used
            changed = np.subtract(x, self.mean)
            changed /= self.scale
            changed = changed.astype(dtype, copy=False)
        if lengths is not None:
            changed[np.arange(x.shape[1]) >= np.asarray(lengths)[:, None]] = 0
        return changed

    def undo(self, x: Array, lengths: ArrayLike | None = None) -> Array:
        """The inverse of `apply`, in float64."""
        with np.errstate(all="ignore"):
            changed = x * self.scale + self.mean
        if lengths is not None:
            changed[np.arange(x.shape[1]) >= np.asarray(lengths)[:, None]] = 0
        return np.asarray(changed)

    def roundings(
        self, dtype: str, largest: float = LARGEST_LOSS, noun: str = "feature"
    ) -> list[Rounding]:
        """Features of which `dtype` loses more than this share of their scale."""
        with np.errstate(over="ignore"):
            shares = np.abs(self.mean / self.scale) * _spacing(dtype)
        return [
            Rounding(noun, k, float(self.mean[k]), float(self.scale[k]), float(shares[k]))
            for k in np.flatnonzero(shares > largest).tolist()
        ]


def _spacing(dtype: str) -> float:
    """From 1 to the next number of an engine's dtype."""
    return {"bfloat16": 2.0**-7, "tf32": 2.0**-10}.get(dtype) or float(np.finfo(dtype).eps)


def scales_targets(layers: Layers, loss: str) -> bool:
    """Whether targets are to be scaled: a dense layer without activation can scale them back.

    Its bias takes their mean in.
    """
    last = _weighted(layers)[-1:]
    linear = loss in SCALED_LOSSES and bool(last) and _is_linear(last[0])
    return linear and not lacks_bias(last[0])


def unfoldable(layers: Layers) -> str | None:
    """Why no weights of these layers can do what a normalization of inputs does; None: some can.

    A flatten layer fills short sequences up with zeros, which after normalization are other
    values than before: no weights behind it can make up for that.
    """
    first = _weighted(layers)[:1]
    if not first or isinstance(first[0], DropoutSpec):
        return "no layer has weights"
    if isinstance(first[0], FlattenSpec):
        return f"the padding of layer {first[0].index} (flatten) is 0 in normalized values"
    if lacks_bias(first[0]):
        return f"layer {first[0].index} ({first[0].kind}) has no bias"
    return None


def reading_layer(layers: Layers) -> LayerSpec | None:
    """The layer that sees the inputs, dropout passed over; None: there is none."""
    return next(iter(_weighted(layers)), None)


def fold(
    layers: Layers,
    weights: Mapping[str, Array],
    inputs: Normalization | None,
    targets: Normalization | None = None,
) -> dict[str, Array]:
    """Weights that give, on raw inputs, raw outputs: what was normalized, they scale themselves.

    With a = W (x - m) / s + b = (W / s) x + (b - (W / s) m), for the first layer's pre-activation
    a, and s y + m = (s W) h + (s b + m) for the last layer's output y = W h + b.

    Parameters
    ----------
    layers, weights
        The network, its layers' tensors by stored name.
    inputs, targets
        How they were normalized; None: not at all.

    Returns
    -------
    All tensors in the dtypes they came in, computed in float64; those given are left alone.

    Raises
    ------
    ConfigError
        The first layer cannot take the inputs' normalization, or the last one the targets'.
    WeightsError
        A folded weight is beyond its dtype.
    """
    if inputs is None and targets is None:
        return {name: np.array(value) for name, value in weights.items()}
    folded = {name: np.array(value, np.float64) for name, value in weights.items()}
    with np.errstate(all="ignore"):  # what does not fit is found and named below
        if inputs is not None:
            for weight, bias in _reading_tensors(_reading_layer(layers)):
                folded[weight] = folded[weight] / inputs.scale
                folded[bias] = folded[bias] - folded[weight] @ inputs.mean
        if targets is not None:
            weight, bias = _dense_tensors(_linear_layer(layers))
            folded[weight] = targets.scale[:, None] * folded[weight]
            folded[bias] = targets.scale * folded[bias] + targets.mean
    return {name: _cast(name, value, weights[name]) for name, value in folded.items()}


def fold_noise(
    layers: Layers, folded: Mapping[str, Array], inputs: Normalization, dtype: DTypeLike
) -> float:
    """Rounding of the first layer's pre-activations in `dtype`, on inputs of the data's range.

    Their terms are as large as W m / s, and nearly cancel.
    """
    most, largest = np.abs(inputs.mean) + 3 * np.abs(inputs.scale), 0.0
    with np.errstate(over="ignore"):
        for weight, bias in _reading_tensors(_reading_layer(layers)):
            terms = np.abs(folded[weight]).astype(np.float64) @ most + np.abs(folded[bias])
            largest = max(largest, float(terms.max(initial=0.0)))
    return largest * float(np.finfo(dtype).eps)


def _weighted(layers: Layers) -> list[LayerSpec]:
    """The layers without dropout, which is the identity once trained."""
    return [spec for spec in layers if not isinstance(spec, DropoutSpec)]


def _reading_layer(layers: Layers) -> RecurrentSpec | DenseSpec:
    """The layer that sees the inputs."""
    first, why = _weighted(layers)[:1], unfoldable(layers)
    if why is None and not isinstance(first[0], FlattenSpec | DropoutSpec):
        return first[0]
    raise ConfigError(
        "the normalization of the inputs cannot be folded into weights",
        expected="a recurrent or dense layer with a bias before any other",
        found=why,
    )


def _reading_tensors(spec: RecurrentSpec | DenseSpec) -> list[tuple[str, str]]:
    """Stored names of matrix and bias that make the pre-activation from x."""
    if isinstance(spec, DenseSpec):
        return [_dense_tensors(spec)]
    prefixes = [spec.prefix(direction) for direction in range(spec.directions)]
    return [(f"{prefix}weight_ih", prefix + spec.cells[0].bias_names[0]) for prefix in prefixes]


def _dense_tensors(spec: LayerSpec) -> tuple[str, str]:
    return f"layers.{spec.index}.weight", f"layers.{spec.index}.bias"


def _is_linear(spec: LayerSpec) -> bool:
    return isinstance(spec, DenseSpec) and spec.activation_name == "identity"


def _linear_layer(layers: Layers) -> LayerSpec:
    """The dense layer without activation at the end."""
    last = _weighted(layers)[-1:]
    if last and _is_linear(last[0]):
        return last[0]
    raise ConfigError(
        "the targets' scaling needs a last layer that can take it into its weights",
        expected="a dense layer with activation identity",
        found=f"layer {last[0].index} ({last[0].kind})" if last else "no layer with weights",
    )


def _cast(name: str, value: Array, like: Array) -> Array:
    """A folded tensor in the dtype it came in; it must fit."""
    with np.errstate(over="ignore"):
        cast = value.astype(like.dtype)
    if not np.isfinite(cast).all():
        raise WeightsError(
            f"{name}, with the scaling of the data folded in, is beyond {like.dtype}",
            expected=f"at most {np.finfo(like.dtype).max:g}",
            found=f"{np.abs(value).max():g}",
            hint="--dtype float64, or bring the data into a narrower range",
        )
    return cast
