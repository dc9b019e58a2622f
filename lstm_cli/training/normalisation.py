"""Scaling of inputs and targets while training, and its folding into the weights afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    Layers,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.errors import ConfigError, WeightsError

Method: TypeAlias = Literal["standard", "minmax"]
Vector: TypeAlias = NDArray[np.float64]

SCALED_LOSSES = ("mse", "mae", "huber")
"""Losses whose targets may have any scale."""


class Statistics(Protocol):
    """What a scaling is made from: (D,) each."""

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


@dataclass(frozen=True, eq=False)
class Scaling:
    """x becomes (x - mean) / scale, feature by feature.

    Attributes
    ----------
    mean, scale
        (D,) float64: what is taken off, and what is divided by.
    """

    mean: Vector
    scale: Vector

    @classmethod
    def of(cls, method: Method, statistics: Statistics) -> Scaling:
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

    def apply(self, x: Array, lengths: ArrayLike | None = None) -> Array:
        """`x` (N, T, D), or (N, D) without `lengths`, scaled in its dtype; padding stays 0."""
        return _outside_padding((x - self.mean) / self.scale, x, lengths)

    def undo(self, x: Array, lengths: ArrayLike | None = None) -> Array:
        """The inverse of `apply`."""
        return _outside_padding(x * self.scale + self.mean, x, lengths)


def _outside_padding(changed: Array, x: Array, lengths: ArrayLike | None) -> Array:
    """`changed` in the dtype of `x`, 0 past each sequence's end."""
    changed = changed.astype(x.dtype if x.dtype.kind == "f" else np.float64, copy=False)
    if lengths is not None:
        changed[np.arange(x.shape[1]) >= np.asarray(lengths)[:, None]] = 0
    return changed


def need_foldable(layers: Layers) -> None:
    """Raise ConfigError unless the scaling of inputs can be folded into these layers.

    A flatten layer fills short sequences up with zeros, which after scaling are other values
    than before: no weights behind it can make up for that.
    """
    _reading_layer(layers)


def scales_targets(layers: Layers, loss: str) -> bool:
    """Whether targets are to be scaled: a dense layer without activation can scale them back."""
    last = _weighted(layers)[-1:]
    return loss in SCALED_LOSSES and bool(last) and _is_linear(last[0])


def fold(
    layers: Layers,
    weights: Mapping[str, Array],
    inputs: Scaling | None,
    targets: Scaling | None,
) -> dict[str, Array]:
    """Weights that give, on raw inputs, raw outputs: what training scaled, they scale themselves.

    With a = W (x - m) / s + b = (W / s) x + (b - (W / s) m), for the first layer's pre-activation
    a, and s y + m = (s W) h + (s b + m) for the last layer's output y = W h + b.

    Parameters
    ----------
    layers, weights
        The network that was trained, its tensors by stored name.
    inputs, targets
        How they were scaled; None: not at all.

    Returns
    -------
    All tensors in the dtypes they came in, computed in float64; those given are left alone.

    Raises
    ------
    ConfigError
        The first layer cannot take the inputs' scaling, or the last one the targets'.
    WeightsError
        A folded weight is beyond its dtype.
    """
    folded = {name: np.asarray(value, np.float64) for name, value in weights.items()}
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


def _weighted(layers: Layers) -> list[LayerSpec]:
    """The layers without dropout, which is the identity once trained."""
    return [spec for spec in layers if not isinstance(spec, DropoutSpec)]


def _reading_layer(layers: Layers) -> RecurrentSpec | DenseSpec:
    """The layer that sees the inputs."""
    first = _weighted(layers)[:1]
    if first and not isinstance(first[0], FlattenSpec | DropoutSpec):
        return first[0]
    found = f"layer {first[0].index} ({first[0].kind})" if first else "no layer with weights"
    raise ConfigError(
        "train.normalize needs a first layer that can take the scaling into its weights",
        expected="a recurrent or dense layer before any other",
        found=found,
        hint="--set train.normalize=false, or put a recurrent or dense layer first",
    )


def _reading_tensors(spec: RecurrentSpec | DenseSpec) -> list[tuple[str, str]]:
    """Stored names of matrix and bias that make the pre-activation from x."""
    if isinstance(spec, DenseSpec):
        return [_dense_tensors(spec)]
    prefixes = [spec.prefix(direction) for direction in range(spec.directions)]
    bias = "bias_ih" if spec.cells[0].recurrent_bias else "bias"
    return [(f"{prefix}weight_ih", prefix + bias) for prefix in prefixes]


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
