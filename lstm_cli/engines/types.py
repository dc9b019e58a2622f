"""What an engine takes and gives: layer specifications, batches, and the engine protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from lstm_cli.cells import Activation, Cell, Parameter
from lstm_cli.engines.arrays import Array as Array
from lstm_cli.engines.arrays import Elementwise as Elementwise
from lstm_cli.engines.arrays import Own as Own

State: TypeAlias = tuple[Own, Own | None]
"""(h, c) of one recurrent layer: h (N, directions, P or H), c (N, directions, H) or None."""

ZeroStates: TypeAlias = Mapping[tuple[int, str], tuple[int, ...]]
"""Initial states held at 0: index of the layer and ``h`` or ``c`` to directions."""

DIRECTIONS = ("forward", "reverse")


@dataclass(frozen=True)
class RecurrentSpec:
    """A recurrent layer.

    Attributes
    ----------
    index
        Place in the config's list of layers, the ``<k>`` of weight names.
    input_size
        Features D it reads.
    cells
        One cell a direction: forward, or forward and reverse.
    return_sequences
        Every step's output, or the last one's only.
    stateful
        Row j of a batch continues row j of the one before.
    dropout, recurrent_dropout
        Rates, used in training only.
    """

    index: int
    input_size: int
    cells: tuple[Cell, ...]
    return_sequences: bool = True
    stateful: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    forget_bias: float = 1.0

    @property
    def kind(self) -> str:
        return self.cells[0].kind

    @property
    def hidden_size(self) -> int:
        return self.cells[0].hidden_size

    @property
    def bias(self) -> bool:
        return self.cells[0].bias

    @property
    def directions(self) -> int:
        return len(self.cells)

    @property
    def output_size(self) -> int:
        return self.directions * self.cells[0].output_size

    def prefix(self, direction: int) -> str:
        """Where this direction's tensors are stored, such as ``layers.0.reverse.``."""
        return f"layers.{self.index}." + ("reverse." if direction else "")

    def parameters(self) -> dict[str, Parameter]:
        """Stored name of every tensor to what it is, forward direction first."""
        return {
            self.prefix(d) + p.name: p
            for d, cell in enumerate(self.cells)
            for p in cell.parameters(self.input_size)
        }


@dataclass(frozen=True)
class DenseSpec:
    """A dense layer, on every step alike; `activation` None is softmax over the units.

    Without `bias` none is stored, and it counts as 0.
    """

    index: int
    input_size: int
    units: int
    activation: Activation | None
    bias: bool = True
    kind: ClassVar[str] = "dense"

    @property
    def output_size(self) -> int:
        return self.units

    @property
    def activation_name(self) -> str:
        return "softmax" if self.activation is None else str(self.activation)

    def parameters(self) -> dict[str, Parameter]:
        """Stored name of every tensor to what it is."""
        F, D, prefix = self.units, self.input_size, f"layers.{self.index}."
        found = {f"{prefix}weight": Parameter("weight", "matrix", "(units, D)", (F, D), (), "W")}
        if self.bias:
            found[f"{prefix}bias"] = Parameter("bias", "bias", "(units,)", (F,), (), "b")
        return found


@dataclass(frozen=True)
class DropoutSpec:
    """Dropout, the identity outside training."""

    index: int
    input_size: int
    rate: float
    kind: ClassVar[str] = "dropout"

    @property
    def output_size(self) -> int:
        return self.input_size

    def parameters(self) -> dict[str, Parameter]:
        """No tensors."""
        return {}


@dataclass(frozen=True)
class FlattenSpec:
    """(N, T, F) to (N, steps * F); sequences shorter than `steps` are padded with zeros."""

    index: int
    input_size: int
    steps: int
    kind: ClassVar[str] = "flatten"

    @property
    def output_size(self) -> int:
        return self.steps * self.input_size

    def parameters(self) -> dict[str, Parameter]:
        """No tensors."""
        return {}


LayerSpec: TypeAlias = RecurrentSpec | DenseSpec | DropoutSpec | FlattenSpec


def lacks_bias(spec: LayerSpec) -> bool:
    """Whether a layer's equations have biases, and it stores none."""
    return isinstance(spec, RecurrentSpec | DenseSpec) and not spec.bias


@lru_cache(maxsize=256)
def biased(spec: LayerSpec) -> LayerSpec:
    """The layer as its equations have it, with biases."""
    if isinstance(spec, RecurrentSpec):
        return replace(spec, cells=tuple(replace(cell, bias=True) for cell in spec.cells))
    return replace(spec, bias=True) if isinstance(spec, DenseSpec) else spec


def with_biases(
    spec: LayerSpec, tensors: Mapping[str, Any], zeros: Callable[[int], Any] | None = None
) -> tuple[LayerSpec, Mapping[str, Any]]:
    """A layer and tensors as all engines compute them: biases that it does not store are 0.

    Parameters
    ----------
    zeros
        Makes a vector of so many zeros; None: NumPy's, in the dtype of the layer's weights.
    """
    if not lacks_bias(spec):
        return spec, tensors
    whole, stored = biased(spec), spec.parameters()
    if zeros is None:
        zeros = partial(np.zeros, dtype=tensors[next(iter(stored))].dtype)
    absent = {n: zeros(*p.shape) for n, p in whole.parameters().items() if n not in stored}
    return whole, {**tensors, **absent}


@dataclass(frozen=True)
class TrainingPass:
    """A forward pass that a backward pass will follow.

    Attributes
    ----------
    seed, update
        Of dropout: equal numbers give equal masks.
    """

    seed: int = 0
    update: int = 0

    def mask(self, spec: LayerSpec, part: int, shape: tuple[int, ...], rate: float) -> Array:
        """What to multiply by: 0 with probability `rate`, else 1 / (1 - rate), in float32.

        From a generator that counts (Philox), by seed, layer, part and update, so that a mask
        depends on nothing that was drawn before.
        """
        counter = [0, 0, spec.index << 8 | part, self.update]
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))
        kept = generator.random(shape, np.float32) >= rate
        return np.asarray(kept * np.float32(1 / (1 - rate)), np.float32)


@dataclass(frozen=True)
class LayerGradients:
    """Derivatives of the loss: for the layer's input, weights by stored name, initial states.

    Those of biases are there whether the layer stores them or not.
    """

    x: Own
    weights: Mapping[str, Own] = field(default_factory=dict)
    state: State | None = None


@dataclass
class LayerResult:
    """What one layer gave.

    Attributes
    ----------
    output
        (N, T, F), or (N, F) after the steps are gone. Padded steps hold 0.
    state
        Final states of a recurrent layer.
    kept
        What was asked to be kept: by direction and name, (N, T, H) or (N, T, P). Steps past
        a sequence's end hold 0.
    logits
        A dense layer's values before its activation.
    seconds
        Time by part, such as ``input projection`` and ``recurrence``.
    tape
        What the engine's `backward` needs, where the pass was for training.
    """

    output: Own
    state: State | None = None
    kept: Mapping[str, Mapping[str, Own]] = field(default_factory=dict)
    logits: Own | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    tape: Any = None


class Engine(Elementwise, Protocol):
    """Computes layers on one device. Explicit, passed along; there is no global one."""

    name: str
    device: str
    dtype: str

    @property
    def threads(self) -> int | None:
        """How many it may use; None if it does not say."""

    def adopt(self, array: Any) -> Own | None:
        """A caller's array that is in this engine's memory already; None: it is not.

        What NumPy holds, any engine reads: this is about memory of another kind.
        """

    def normalized(self, x: Own, mean: Array, scale: Array) -> Own:
        """(x - mean) / scale of what `adopt` took, (N, T, D), in double precision, then cast."""

    def batch(self, x: Own, lengths: Array | None) -> Own:
        """Values of a batch (N, T, D), or (N, D), in the form that layers take and give.

        Parameters
        ----------
        lengths
            (N,) valid steps; None if all T are.
        """

    def laid_out(self, values: Own) -> Own:
        """What a layer gave as an array (N, T, F) or (N, F) in this engine's memory.

        0 in the padding, and for a sequence of length 0.
        """

    def prepare(self, spec: LayerSpec, weights: Mapping[str, Array]) -> Any:
        """Weights of one layer as this engine wants them, made once and used for every batch.

        A layer without biases is prepared as one whose biases are 0; see `with_biases`.
        """

    def forward(
        self,
        spec: LayerSpec,
        prepared: Any,
        x: Own,
        lengths: Array | None,
        state: State | None = None,
        *,
        keep: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult:
        """One layer over a batch. All it gives is in the engine's own memory and form.

        Parameters
        ----------
        x
            Of `batch`, or the layer before: (N, T, D), or (N, D) for a dense or dropout layer
            after the steps are gone.
        lengths
            (N,) valid steps; None if all T are.
        state
            Initial (h, c), in NumPy's memory or the engine's own; None is zeros.
        keep
            Keep gates and states of every step.
        training
            Apply dropout, and keep what `backward` needs.
        """

    def backward(
        self,
        spec: LayerSpec,
        prepared: Any,
        tape: Any,
        d_output: Own,
        *,
        d_logits: bool = False,
    ) -> LayerGradients:
        """Derivatives of the loss through one layer, in the engine's own memory and form.

        Parameters
        ----------
        tape
            Of the forward pass.
        d_output
            Derivative for the layer's output, in its shape; in NumPy's memory or the form that
            layers give.
        d_logits
            `d_output` is for a dense layer's values before the activation.
        """


def array_dtype(engine: Engine) -> str:
    """The dtype of an engine's arrays in NumPy's memory, ``float32`` or ``float64``."""
    return "float64" if engine.dtype == "float64" else "float32"


Layers: TypeAlias = Sequence[LayerSpec]
SUPPORTED_DTYPES = ("float32", "float64")
FLOAT32 = np.dtype(np.float32)
