"""The contract of engines: layer specifications, batches, results, and the protocols.

An engine computes layers on one device. The protocol `ArrayOperations` has its operations on
arrays. `Engine` adds `Engine.layer`, which makes a `Layer` from a specification and its weights.
The engines in ``reference/``, ``jit/`` and ``cuda/`` implement all three.

The protocols have two type parameters: `A` for arrays in the engine's memory, and `V` for the
values of a batch in the layout that layers take and return. Code that computes with any engine
leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeVar

from lstm_cli.cells import Activation, Cell, Parameter
from lstm_cli.cells.expression import Expression
from lstm_cli.engines.explanation import Explanation

if TYPE_CHECKING:
    from lstm_cli.engines.feed import Feed

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


# Protocols


class ArrayOperations(Protocol[A, V]):
    """Operations of an engine on its arrays, element by element.

    Array arguments may be in NumPy's memory or in the engine's. All arrays of one call have one
    shape and no gaps between their numbers. The same array may be passed twice. Pass numbers that
    change between calls as values of symbols, since an engine may compile the expressions.
    """

    def evaluate(
        self,
        roots: Mapping[str, Expression],
        values: Values[A],
        out: Mapping[str, A | Array],
    ) -> None:
        """Compute every root into its array of `out`, which may be one of the inputs.

        Parameters
        ----------
        roots
            Expressions to compute, by name.
        values
            A value for every symbol. Arrays have the dtype of `out`.
        out
            Writable arrays, one for each root.
        """

    def total(self, root: Expression, values: Values[A]) -> float:
        """Sum over all elements. Each is computed and added in double precision."""

    def totals(self, root: Expression, many: Sequence[Values[A]]) -> Sequence[Deferred]:
        """The `total` for each entry of `many`."""

    def all_finite(self, arrays: Sequence[A | Array]) -> bool:
        """Whether all numbers of these arrays are finite."""

    def convert_like(self, array: A | Array, other: A | Array) -> A | Array:
        """`array` in the memory and dtype of `other`, without gaps; a copy only where needed."""

    def copy(self, array: Array) -> A:
        """A writable copy in this engine's memory, without gaps."""

    def zeros_like(self, array: A) -> A:
        """Zeros in the memory, shape and dtype of `array`."""

    def empty_like(self, array: A) -> A:
        """Uninitialized array in the memory, shape and dtype of `array`."""

    def download(self, array: A) -> Array:
        """A copy in NumPy's memory."""

    def to_host(self, values: A | V) -> Array:
        """An array, or values over a batch, in NumPy's memory: (N, T, F) or (N, F)."""

    def gather_valid(self, values: V | Array, rows: Array | None) -> A:
        """The valid rows of values (N, T, F) or (N, F), as one array (rows, F).

        Parameters
        ----------
        rows
            (N, T) or (N,), True for valid rows. False is allowed for padding only. None: all rows
            are valid.
        """

    def scatter_valid(self, gathered: A, values: V | Array, rows: Array | None) -> V | Array:
        """The inverse of `gather_valid`: rows in the layout of `values`, and 0 elsewhere."""

    def match_layout(self, array: A | Array, values: V | Array) -> A | None:
        """An array in the engine's memory, converted to the layout of `values`.

        None: the array is in NumPy's memory, or its shape differs from that of `values`, or some
        rows do not count. The caller then selects the valid rows in NumPy's memory.
        """

    def cross_entropy(
        self,
        logits: A,
        targets: Array,
        class_weights: Array | None,
        label_smoothing: float,
    ) -> RowsLoss[A]:
        """Cross-entropy of the softmax of logits (rows, F).

        Parameters
        ----------
        targets
            In NumPy's memory: classes (rows,) int64, or probabilities of classes (rows, F).
        class_weights
            (F,) weight of each class. None: all weights are 1.
        label_smoothing
            Share of each target that is spread over all classes.
        """


class Layer(Protocol[A, V]):
    """A layer with its weights on an engine.

    Results are in the engine's memory and layout.
    """

    @property
    def spec(self) -> LayerSpec:
        """Specification of the layer."""

    def forward(
        self,
        x: V,
        lengths: Array | None,
        state: State[A | Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[A, V]:
        """Forward pass over a batch.

        Parameters
        ----------
        x
            Result of `Engine.from_padded` or of the previous layer: (N, T, D). Dense and dropout
            layers also take (N, D).
        lengths
            (N,) valid steps. None: all T steps are valid.
        state
            Initial (h, c) in NumPy's memory or the engine's. None: the states are zeros.
        return_gates
            Return gates and states of every step.
        training
            Apply dropout, and store the values that `backward` needs.
        """

    def backward(
        self, tape: LayerTape, d_output: V | Array, *, d_logits: bool = False
    ) -> LayerGradients[A, V]:
        """Derivatives of the loss through the layer.

        Parameters
        ----------
        tape
            `LayerResult.tape` of the forward pass.
        d_output
            Derivative for the layer's output, in the shape of the output. It is in NumPy's memory,
            or in the layout in which layers return values.
        d_logits
            True: `d_output` is the derivative for a dense layer's values before the activation.
        """


@dataclass(frozen=True)
class ProgramResult(Generic[A]):
    """Result of a `NetworkProgram`.

    Attributes
    ----------
    outputs, logits
        Values of the last layer, and those before the activation of a dense one; else None.
    states
        Final states of each recurrent layer.
    seconds
        Seconds by layer index and part.
    """

    outputs: A
    states: Sequence[State[A]]
    logits: A | None
    seconds: Mapping[int, Mapping[str, float]]


class NetworkProgram(Protocol[A]):
    """A forward pass of all layers over batches of one shape, prepared for many calls.

    It holds memory for one call at a time. Results are those of the layers, to the bit.
    """

    def run(
        self, x: A, states: Sequence[State[A | Array] | None] | None = None
    ) -> ProgramResult[A]:
        """Forward pass over inputs (N, T, D).

        Parameters
        ----------
        states
            Initial states of each recurrent layer. None is zeros, for all layers or for one.
        """


class Stepper(Protocol[A]):
    """A pass of all layers over one step at a time, which keeps the states between the steps."""

    def step(self, x: Array, out: Array) -> None:
        """Read one step (N, D), and write its outputs (N, F)."""

    def reset(self) -> None:
        """Set all states to 0."""

    @property
    def states(self) -> list[State[A]]:
        """Copies of the states of each recurrent layer."""

    def set_states(self, states: Sequence[State[Array]]) -> None:
        """Replace the states by others of their shapes."""


class Accelerator(Protocol):
    """A device with memory of its own, which computes while the host goes on.

    Attributes
    ----------
    title
        Product name, such as ``NVIDIA H200``.
    """

    title: str

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of its driver and libraries, by name."""

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""

    def record_event(self) -> Event:
        """Record an event after all earlier work."""

    def wait(self) -> None:
        """Wait until all work is done."""


class Event(Protocol):
    """A moment in an accelerator's work."""

    def wait(self) -> None:
        """Wait until all work before the event is done."""

    def seconds_since(self, earlier: Event) -> float:
        """Seconds between two events, for which this waits."""


class Engine(ArrayOperations[A, V], Protocol[A, V]):
    """An engine computes layers on one device. Callers pass it as an argument.

    Attributes
    ----------
    name
        ``reference``, ``jit`` or ``cuda``.
    device
        ``cpu``, or ``cuda:N``.
    dtype
        Dtype that it computes in, a name of `lstm_cli.engines.selection.DTYPES`.
    bits_ignore_threads
        Whether results have the same bits for any number of threads.
    ignores_padding
        Whether recurrent layers read no inputs past a sequence's end.
    """

    name: str
    device: str
    dtype: str
    bits_ignore_threads: bool
    ignores_padding: bool

    @property
    def kernels_title(self) -> str:
        """Kernels and the kind of machine that they are made for: equal titles give equal bits."""

    @property
    def threads(self) -> int | None:
        """Number of threads it may use. None if it sets no number."""

    @property
    def accelerator(self) -> Accelerator | None:
        """The device that computes. None: the CPU, in NumPy's memory."""

    @property
    def workspace_bytes(self) -> int | None:
        """Bytes of working memory between calls, without weights. None: the engine counts none."""

    def feed(self) -> Feed[A]:
        """Copies of inputs and results, beside computing."""

    def program(self, layers: Sequence[Layer[A, V]], N: int, T: int) -> NetworkProgram[A] | None:
        """A forward pass for N sequences of T steps. None: it runs layer by layer."""

    def stepper(self, layers: Sequence[Layer[A, V]], N: int) -> Stepper[A] | None:
        """A pass of one step for N sequences. None: it runs layer by layer."""

    def explain(
        self, layers: Layers, N: int, T: int, *, training: bool = False
    ) -> Mapping[int, Explanation]:
        """Choice of kernels for each recurrent layer by layer index, for N sequences of T steps.

        It is empty if the engine has no choice.
        """

    def measure_peaks(self, sizes: Sequence[int] = ()) -> MachinePeaks | None:
        """Measured rates of multiply-adds and of reads; some 10 ms per size.

        None: the engine cannot measure them.

        Parameters
        ----------
        sizes
            Sizes in bytes of the memory that all threads together read repeatedly. By default
            two, per thread: half of a core's second-level cache, and four such caches.
        """

    def from_device_array(self, array: object) -> A | None:
        """A caller's array that is already in this engine's memory. None for other arrays.

        The result is None for a NumPy array, too: every engine reads NumPy arrays.
        """

    def normalize(self, x: A, mean: Array, scale: Array) -> A:
        """(x - mean) / scale in double precision, then cast.

        `x` (N, T, D) is a result of `from_device_array`.
        """

    def from_padded(self, x: A | Array, lengths: Array | None) -> V:
        """Values of a batch (N, T, D) or (N, D) in the layout that layers take and return.

        Parameters
        ----------
        lengths
            (N,) valid steps. None: all T steps are valid.
        """

    def to_padded(self, values: V | A) -> A:
        """Values of a layer as an array (N, T, F) or (N, F) in this engine's memory.

        Padding is 0, and so are sequences of length 0.
        """

    def layer(self, spec: LayerSpec, weights: Mapping[str, A | Array]) -> Layer[A, V]:
        """A layer with its weights, for any number of batches.

        A layer without biases computes with biases of 0; see `with_biases`.
        """


def array_dtype(engine: Engine) -> str:
    """Dtype of an engine's arrays in NumPy's memory: ``float32`` or ``float64``."""
    return "float64" if engine.dtype == "float64" else "float32"
