"""Normalization of inputs and targets, stored with the weights or folded into them."""

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
TENSOR_NAMES = (MEAN, SCALE)
"""Stored names of the normalization of a network's inputs. Each tensor is (D,) float64."""

SCALED_LOSSES = ("mse", "mae", "huber")
"""Losses that allow targets of any scale."""

ROUNDING_LIMIT = 1e-4
"""Rounding step, as a share of a feature's scale, above which a warning names the feature."""


class Statistics(Protocol):
    """Moments and extremes of features, (D,) each, from which a normalization is computed."""

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
    """Rounding of one feature by a dtype.

    Attributes
    ----------
    noun, number
        Word such as ``feature``, and its number from 0.
    mean, scale
        Normalization of the feature.
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
    """The transformation of x to (x - mean) / scale for each feature.

    Attributes
    ----------
    mean, scale
        (D,) float64. The scale is never 0.
    """

    mean: Vector
    scale: Vector

    @classmethod
    def from_statistics(cls, method: Method, statistics: Statistics) -> Normalization:
        """Normalization to mean 0 and deviation 1 (``standard``), or to 0 to 1 (``minmax``).

        The scale of a constant feature is 1.
        """
        low, high = statistics.minimum, statistics.maximum
        if method == "standard":
            mean, scale = statistics.mean, statistics.std
        else:
            with np.errstate(over="ignore"):
                mean, scale = low, high - low
        # A feature whose deviation underflows or overflows in float64 is treated as constant.
        varies = (low < high) & (scale > 0) & np.isfinite(scale)
        return cls(mean, np.where(varies, scale, 1.0))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> Normalization | None:
        """The normalization among checked tensors of a weights file. None if there is none."""
        if MEAN not in tensors:
            return None
        mean, scale = (np.array(tensors[name], np.float64) for name in TENSOR_NAMES)
        return cls(mean, scale)

    @property
    def tensors(self) -> dict[str, Vector]:
        """Mean and scale by stored name."""
        return {MEAN: self.mean, SCALE: self.scale}

    @property
    def numbers(self) -> dict[str, list[float]]:
        """Mean and scale as plain numbers, for JSON."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @property
    def inverse(self) -> Normalization:
        """The inverse transformation. Weights folded with both are the original weights again."""
        return Normalization(-self.mean / self.scale, 1 / self.scale)

    def apply(
        self, x: Array, lengths: ArrayLike | None = None, dtype: DTypeLike = np.float64
    ) -> Array:
        """Normalized `x` (N, T, D), or (N, D) without `lengths`, with padding of 0.

        The result is computed in double precision, then cast to `dtype`.
        """
        with np.errstate(all="ignore"):  # values that are not finite show at their use
            scaled = np.subtract(x, self.mean)
            scaled /= self.scale
            scaled = scaled.astype(dtype, copy=False)
        if lengths is not None:
            scaled[np.arange(x.shape[1]) >= np.asarray(lengths)[:, None]] = 0
        return scaled

    def undo(self, x: Array, lengths: ArrayLike | None = None) -> Array:
        """Inverse of `apply`, in float64."""
        with np.errstate(all="ignore"):
            scaled = x * self.scale + self.mean
        if lengths is not None:
            scaled[np.arange(x.shape[1]) >= np.asarray(lengths)[:, None]] = 0
        return np.asarray(scaled)

    def roundings(
        self, dtype: str, largest: float = ROUNDING_LIMIT, noun: str = "feature"
    ) -> list[Rounding]:
        """Features that `dtype` rounds by more than `largest`, as a share of their scale."""
        with np.errstate(over="ignore"):
            shares = np.abs(self.mean / self.scale) * _spacing(dtype)
        return [
            Rounding(noun, k, float(self.mean[k]), float(self.scale[k]), float(shares[k]))
            for k in np.flatnonzero(shares > largest).tolist()
        ]


def _spacing(dtype: str) -> float:
    return {"bfloat16": 2.0**-7, "tf32": 2.0**-10}.get(dtype) or float(np.finfo(dtype).eps)


def scales_targets(layers: Layers, loss: str) -> bool:
    """Whether training scales the targets for these layers and this loss.

    The network must end in a dense layer without activation, whose weights and bias can take the
    scaling.
    """
    last = _without_dropout(layers)[-1:]
    linear = loss in SCALED_LOSSES and bool(last) and _is_linear(last[0])
    return linear and not lacks_bias(last[0])


def fold_obstacle(layers: Layers) -> str | None:
    """Reason why a normalization of inputs cannot be folded into these layers. None: it can.

    A flatten layer pads short sequences with zeros. Zero means another value in normalized inputs
    than in raw inputs. No weights of a later layer can correct that.
    """
    first = first_layer(layers)
    if first is None:
        return "no layer has weights"
    if isinstance(first, FlattenSpec):
        return f"the padding of layer {first.index} (flatten) is 0 in normalized values"
    if not isinstance(first, RecurrentSpec | DenseSpec):
        return f"layer {first.index} ({first.kind}) has no matrix that reads the inputs"
    if lacks_bias(first):
        return f"layer {first.index} ({first.kind}) has no bias"
    return None


def first_layer(layers: Layers) -> LayerSpec | None:
    """The first layer that is not dropout. None if there is none."""
    return next(iter(_without_dropout(layers)), None)


def fold(
    layers: Layers,
    weights: Mapping[str, Array],
    inputs: Normalization | None,
    targets: Normalization | None = None,
) -> dict[str, Array]:
    """Weights for raw inputs and raw outputs, with the normalizations folded in.

    For the first layer's pre-activation a = W (x - m) / s + b = (W / s) x + (b - (W / s) m).
    For the last layer's output y = W h + b: s y + m = (s W) h + (s b + m).

    Parameters
    ----------
    layers, weights
        Layers of the network, and their tensors by stored name.
    inputs, targets
        Normalizations of inputs and targets. None: not normalized.

    Returns
    -------
    Copies of all tensors in their dtypes, computed in float64.

    Raises
    ------
    ConfigError
        The first layer cannot take the inputs' normalization, or the last layer the targets'.
    WeightsError
        A folded weight exceeds the range of its dtype.
    """
    if inputs is None and targets is None:
        return {name: np.array(value) for name, value in weights.items()}
    folded = {name: np.array(value, np.float64) for name, value in weights.items()}
    with np.errstate(all="ignore"):  # `_cast` raises for values that do not fit
        if inputs is not None:
            for weight, bias in _input_tensors(_foldable_layer(layers)):
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
    """Estimated rounding error of the first layer's pre-activations in `dtype`.

    The estimate assumes inputs within 3 scales of their mean. The error is large if m / s is,
    since terms as large as W m / s nearly cancel.
    """
    bound, largest = np.abs(inputs.mean) + 3 * np.abs(inputs.scale), 0.0
    with np.errstate(over="ignore"):
        for weight, bias in _input_tensors(_foldable_layer(layers)):
            terms = np.abs(folded[weight]).astype(np.float64) @ bound + np.abs(folded[bias])
            largest = max(largest, float(terms.max(initial=0.0)))
    return largest * float(np.finfo(dtype).eps)


def _without_dropout(layers: Layers) -> list[LayerSpec]:
    return [spec for spec in layers if not isinstance(spec, DropoutSpec)]


def _foldable_layer(layers: Layers) -> RecurrentSpec | DenseSpec:
    first, obstacle = first_layer(layers), fold_obstacle(layers)
    if obstacle is None and isinstance(first, RecurrentSpec | DenseSpec):
        return first
    raise ConfigError(
        "the normalization of the inputs cannot be folded into weights",
        expected="a recurrent or dense layer with a bias before any other",
        found=obstacle,
    )


def _input_tensors(spec: RecurrentSpec | DenseSpec) -> list[tuple[str, str]]:
    """Stored names of the matrices that read x, with their biases."""
    if isinstance(spec, DenseSpec):
        return [_dense_tensors(spec)]
    prefixes = [spec.prefix(direction) for direction in range(spec.directions)]
    return [(f"{prefix}weight_ih", prefix + spec.cells[0].bias_names[0]) for prefix in prefixes]


def _dense_tensors(spec: LayerSpec) -> tuple[str, str]:
    return f"layers.{spec.index}.weight", f"layers.{spec.index}.bias"


def _is_linear(spec: LayerSpec) -> bool:
    return isinstance(spec, DenseSpec) and spec.activation_name == "identity"


def _linear_layer(layers: Layers) -> LayerSpec:
    last = _without_dropout(layers)[-1:]
    if last and _is_linear(last[0]):
        return last[0]
    raise ConfigError(
        "the targets' scaling needs a last layer that can take it into its weights",
        expected="a dense layer with activation identity",
        found=f"layer {last[0].index} ({last[0].kind})" if last else "no layer with weights",
    )


def _cast(name: str, value: Array, like: Array) -> Array:
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
