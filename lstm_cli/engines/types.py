"""Types that engines share: layer specifications, weights without biases, results of a pass.

The protocols that engines implement are in ``protocols.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeVar

from lstm_cli.cells import Activation, Cell, Parameter

if TYPE_CHECKING:
    pass

Array: TypeAlias = NDArray[Any]
"""An array in NumPy's memory."""

EngineArray: TypeAlias = Any
"""An array, or the values of a batch, of an engine that the code does not know."""

A = TypeVar("A", default=EngineArray)
"""Array in the engine's memory."""

V = TypeVar("V", default=EngineArray)
"""Values of a batch in the engine's memory and layout."""

Values: TypeAlias = Mapping[str, A | Array | float]
"""Values of symbols by name: arrays and numbers."""

Deferred: TypeAlias = Callable[[], float]
"""A number that may still be in computation. The call waits for it."""

State: TypeAlias = tuple[A, A | None]
"""(h, c) of one recurrent layer: h (N, directions, P or H), c (N, directions, H) or None."""

ZeroStates: TypeAlias = Mapping[tuple[int, str], tuple[int, ...]]
"""Initial states fixed at 0: direction numbers by layer index and state name, ``h`` or ``c``."""

SUPPORTED_DTYPES = ("float32", "float64")
"""Dtypes that every engine computes in."""

DIRECTIONS = ("forward", "reverse")


# Layers


@dataclass(frozen=True)
class RecurrentSpec:
    """A recurrent layer.

    Attributes
    ----------
    index
        Position in the config's list of layers, the ``<k>`` of weight names.
    input_size
        Number of input features D.
    cells
        One cell per direction: forward, or forward and reverse.
    return_sequences
        True: the output has every step. False: the output has the last step alone.
    stateful
        Row j of a batch continues row j of the previous batch.
    dropout, recurrent_dropout
        Dropout rates, used in training only.
    forget_bias
        Initial bias of an lstm's forget gate.
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
        """Prefix of the stored names of a direction's tensors, such as ``layers.0.reverse.``."""
        return f"layers.{self.index}." + ("reverse." if direction else "")

    def parameters(self) -> dict[str, Parameter]:
        """Description of every stored tensor by its name, forward direction first."""
        return {
            self.prefix(d) + p.name: p
            for d, cell in enumerate(self.cells)
            for p in cell.parameters(self.input_size)
        }


@dataclass(frozen=True)
class DenseSpec:
    """A dense layer, applied to every step.

    Attributes
    ----------
    index
        Position in the config's list of layers.
    input_size, units
        Numbers of input features D and output features F.
    activation
        Activation of each unit. None is softmax over the units.
    bias
        False: no bias is stored, and the layer computes with a bias of 0.
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
        """Description of every stored tensor by its name."""
        F, D, prefix = self.units, self.input_size, f"layers.{self.index}."
        tensors = {f"{prefix}weight": Parameter("weight", "matrix", "(units, D)", (F, D), (), "W")}
        if self.bias:
            tensors[f"{prefix}bias"] = Parameter("bias", "bias", "(units,)", (F,), (), "b")
        return tensors


@dataclass(frozen=True)
class DropoutSpec:
    """A dropout layer: the identity outside training."""

    index: int
    input_size: int
    rate: float
    kind: ClassVar[str] = "dropout"

    @property
    def output_size(self) -> int:
        return self.input_size

    def parameters(self) -> dict[str, Parameter]:
        """An empty mapping: the layer stores no tensors."""
        return {}


@dataclass(frozen=True)
class FlattenSpec:
    """A layer from (N, T, F) to (N, steps * F). Zeros fill sequences shorter than `steps`."""

    index: int
    input_size: int
    steps: int
    kind: ClassVar[str] = "flatten"

    @property
    def output_size(self) -> int:
        return self.steps * self.input_size

    def parameters(self) -> dict[str, Parameter]:
        """An empty mapping: the layer stores no tensors."""
        return {}


LayerSpec: TypeAlias = RecurrentSpec | DenseSpec | DropoutSpec | FlattenSpec
Layers: TypeAlias = Sequence[LayerSpec]


def lacks_bias(spec: LayerSpec) -> bool:
    """Whether the equations of a layer have biases that the layer does not store."""
    return isinstance(spec, RecurrentSpec | DenseSpec) and not spec.bias


@lru_cache(maxsize=256)
def biased(spec: LayerSpec) -> LayerSpec:
    """The layer with stored biases, as its equations have them."""
    if isinstance(spec, RecurrentSpec):
        return replace(spec, cells=tuple(replace(cell, bias=True) for cell in spec.cells))
    return replace(spec, bias=True) if isinstance(spec, DenseSpec) else spec


def with_biases(
    spec: LayerSpec, tensors: Mapping[str, Array]
) -> tuple[LayerSpec, Mapping[str, Array]]:
    """A layer and its tensors as all engines compute them: absent biases become 0."""
    dtype = tensors[next(iter(spec.parameters()))].dtype if lacks_bias(spec) else None
    return add_biases(spec, tensors, partial(np.zeros, dtype=dtype))


def add_biases(
    spec: LayerSpec, tensors: Mapping[str, A], zeros: Callable[[int], A]
) -> tuple[LayerSpec, Mapping[str, A]]:
    """`with_biases` for arrays in any memory.

    Parameters
    ----------
    zeros
        Function from a length to a vector of zeros.
    """
    if not lacks_bias(spec):
        return spec, tensors
    whole, stored = biased(spec), spec.parameters()
    absent = {n: zeros(*p.shape) for n, p in whole.parameters().items() if n not in stored}
    return whole, {**tensors, **absent}


# One pass over a layer


@dataclass(frozen=True)
class TrainingPass:
    """A forward pass that a backward pass will follow.

    Attributes
    ----------
    seed, update, micro_batch
        Seed of dropout, number of the update, and number of the micro-batch. Equal numbers give
        equal masks.
    """

    seed: int = 0
    update: int = 0
    micro_batch: int = 0

    def mask(self, spec: LayerSpec, part: int, shape: tuple[int, ...], rate: float) -> Array:
        """Dropout mask in float32: 0 with probability `rate`, else 1 / (1 - rate).

        A counter-based generator (Philox) draws it from these, layer and part. So a mask
        depends on no earlier draw.

        Parameters
        ----------
        part
            Number of the mask within its layer: 0 for the input, 1 + direction number for
            recurrent dropout.
        """
        counter = [0, 0, spec.index << 8 | part, self.update]
        philox = np.random.Philox(key=self.seed | self.micro_batch << 64, counter=counter)
        survives = np.random.Generator(philox).random(shape, np.float32) >= rate
        return np.asarray(survives * np.float32(1 / (1 - rate)), np.float32)


class LayerTape:
    """Values of a layer's forward pass that its backward pass needs.

    Each kind of layer of each engine derives its own class.
    """


Tape = TypeVar("Tape", bound=LayerTape)


def own_tape(tape: LayerTape, kind: type[Tape]) -> Tape:
    """The tape as one that this layer made.

    Raises
    ------
    TypeError
        Another kind of layer made it.
    """
    if not isinstance(tape, kind):
        raise TypeError(f"a {type(tape).__name__} instead of a {kind.__name__}")
    return tape


@dataclass(frozen=True)
class LayerGradients(Generic[A, V]):
    """Derivatives of the loss for one layer.

    Attributes
    ----------
    x
        Derivative for the layer's input, in its shape.
    weights
        Derivatives by stored name, also for biases of 0 that the layer does not store.
    state
        Derivatives for the initial states of a recurrent layer.
    """

    x: V
    weights: Mapping[str, A] = field(default_factory=dict)
    state: State[A] | None = None


@dataclass
class LayerResult(Generic[A, V]):
    """Result of one layer's forward pass.

    Attributes
    ----------
    output
        (N, T, F), or (N, F) of a layer that returns one row per sequence. Padded steps are 0.
    state
        Final states of a recurrent layer.
    gates
        Gates and states of every step, if requested, by direction and name: (N, T, H), or
        (N, T, P) for h. Padded steps are 0.
    logits
        Values of a dense layer before its activation.
    seconds
        Seconds by part, such as ``input projection`` and ``recurrence``.
    tape
        Values that `Layer.backward` needs. Set after a pass for training.
    """

    output: V
    state: State[A] | None = None
    gates: Mapping[str, Mapping[str, V]] = field(default_factory=dict)
    logits: V | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    tape: LayerTape | None = None


@dataclass(frozen=True)
class RowsLoss(Generic[A]):
    """Loss of the valid rows of a batch, and its derivative.

    Attributes
    ----------
    total
        Deferred sum over rows of the loss times the row's weight.
    gradient
        Derivative of the mean for the rows, (rows, F).
    weight
        Divisor of the mean: the number of rows, or the sum of the class weights of the rows.
    scale
        Factor from `total` to the mean. It is 0 if no row counts.
    """

    total: Deferred
    gradient: A
    weight: float
    scale: float


# Peak rates


@dataclass(frozen=True)
class ReadBandwidth:
    """Read bandwidth of memory of one size that is read repeatedly.

    Attributes
    ----------
    bytes
        Bytes that all threads together read. Each thread reads its own share.
    gbytes
        Bandwidth of all threads together, in 10⁹ bytes per second.
    """

    bytes: int
    gbytes: float


@dataclass(frozen=True)
class MachinePeaks:
    """Measured peak rates of a machine with all of an engine's threads.

    Attributes
    ----------
    gflops
        10⁹ floating-point operations per second in multiply-adds, which are two operations each.
    reads
        Read bandwidth for each requested size.
    """

    gflops: float
    reads: tuple[ReadBandwidth, ...] = ()

    @classmethod
    def best(cls, measured: Iterable[MachinePeaks]) -> MachinePeaks:
        """The highest measured value of each rate, since interference only lowers a rate."""
        peak, reads = 0.0, dict[int, float]()
        for peaks in measured:
            peak = max(peak, peaks.gflops)
            for read in peaks.reads:
                reads[read.bytes] = max(reads.get(read.bytes, 0.0), read.gbytes)
        return cls(peak, tuple(ReadBandwidth(size, speed) for size, speed in reads.items()))
