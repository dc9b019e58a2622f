"""The protocols of engines: operations on arrays, layers, prepared passes, and the engine.

An engine computes layers on one device. `ArrayOperations` has its operations on arrays, and
`Engine` adds `Engine.layer`, which makes a `Layer` from a specification and its weights. The
engines in ``reference/``, ``jit/`` and ``cuda/`` implement them.

The protocols have two type parameters: `A` for arrays in the engine's memory, and `V` for the
values of a batch in the layout that layers take and return. Code that computes with any engine
leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

from lstm_cli.cells.expression import Expression
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.feed import Feed
from lstm_cli.engines.types import (
    A,
    Array,
    Deferred,
    LayerGradients,
    LayerResult,
    Layers,
    LayerSpec,
    LayerTape,
    MachinePeaks,
    RowsLoss,
    State,
    TrainingPass,
    V,
    Values,
)


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
