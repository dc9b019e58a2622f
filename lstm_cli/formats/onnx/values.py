"""What flows through a graph, told by where it comes from.

An `Atom` is something computed: the input, a recurrent direction, a linear map, an activation.
A `Vector` is some of an atom's features at one or at all steps; a `Value` is a vector laid out
over a tensor's axes. Whatever only moves numbers about (Transpose, Reshape, Slice, Gather, ...)
changes which features, which step, or the axes, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array
from lstm_cli.errors import LstmCliError

ALL, REVERSED = "all", "reversed"
"""Every step in order, or from the last to the first."""

Step: TypeAlias = "int | str | None"
"""One step (from the end, where it is negative), `ALL`, `REVERSED`, or None: there are none."""

Axis: TypeAlias = "tuple[str, ...]"
"""What one axis of a tensor runs over: names of free axes, and ``f`` for an axis of features."""

FEATURES = "f"

MOST_FEATURES = 1 << 22
"""Features of the widest value; what is wider is a slip, or hostile."""


class RefusedError(ValueError):
    """A graph does what cannot be represented: the message, a clause, says what."""


@dataclass(frozen=True)
class Origin:
    """A stored tensor that a constant comes from."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not depend on the input.

    Attributes
    ----------
    array
        Its numbers; of dtype object where some are open sizes.
    origins
        The stored tensors it comes from.
    change
        What was done to them: nothing, ``transposed``, or ``computed``.
    stretched
        An open size stands as 1 in the shape: all that lies along it is equal.
    """

    array: Any
    origins: tuple[Origin, ...] = ()
    change: str = ""
    stretched: bool = False


@dataclass(frozen=True)
class Side:
    """A graph input other than the sequences, or a view of one: a state, or lengths.

    It is `computed` where its numbers may have become others.
    """

    name: str
    computed: bool = False


@dataclass(frozen=True, eq=False)
class Exceeds:
    """Where each of a value's features is larger than a limit."""

    vector: Vector
    limit: float


@dataclass(frozen=True)
class Unknown:
    """What cannot be represented; an error only if the output depends on it."""

    what: str
    error: LstmCliError | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Atom:
    """Something computed, `size` features; one vector a step if it is `timed`."""

    size: int
    timed: bool
    where: str

    def __repr__(self) -> str:
        """Short: an atom holds all that it was computed from."""
        return f"{type(self).__name__}({self.size}) of {self.where}"


@dataclass(frozen=True, eq=False)
class Vector:
    """Features `pick` (n,) of an atom, at a step."""

    atom: Atom
    step: Step
    pick: Array


@dataclass(frozen=True, eq=False)
class Value:
    """A vector over a tensor's axes: `pick` has one axis for each ``f`` in `axes`, in order."""

    atom: Atom
    step: Step
    pick: Array
    axes: tuple[Axis, ...]

    @property
    def vector(self) -> Vector:
        """The features alone."""
        return Vector(self.atom, self.step, self.pick.reshape(-1))


Anything: TypeAlias = "Value | Constant | Side | Exceeds | Unknown"


@dataclass(frozen=True, eq=False, repr=False)
class Input(Atom):
    """The sequences."""


@dataclass(frozen=True, eq=False, repr=False)
class Zeros(Atom):
    """A state before the first step."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix (in, out), or the diagonal of one (n,), and where it was stored.

    `columns` are those of the stored tensor that it takes; None: all, or it cannot be said.
    """

    array: Array
    origins: tuple[Origin, ...] = ()
    change: str = ""
    columns: tuple[int, int] | None = None

    @property
    def diagonal(self) -> bool:
        """Whether it only scales."""
        return bool(self.array.ndim == 1)

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return self.diagonal and bool((self.array == 1).all())


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of a linear map."""

    source: Vector
    weight: Weight


@dataclass(frozen=True, eq=False, repr=False)
class Linear(Atom):
    """The sum of `terms` and `bias` (n,)."""

    terms: tuple[Term, ...] = ()
    bias: Weight | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Activated(Atom):
    """An activation, element by element."""

    source: Vector
    activation: Activation


@dataclass(frozen=True, eq=False, repr=False)
class Softmaxed(Atom):
    """Softmax over all of `source`."""

    source: Vector


@dataclass(frozen=True, eq=False, repr=False)
class Product(Atom):
    """Two vectors multiplied element by element."""

    left: Vector
    right: Vector


@dataclass(frozen=True, eq=False, repr=False)
class Joined(Atom):
    """Vectors side by side; none of them of a `Joined`."""

    parts: tuple[Vector, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Flattened(Atom):
    """All of a vector's steps side by side, features of a step next to each other."""

    source: Vector
    steps: int


@dataclass(frozen=True)
class Guess:
    """A parameter of an activation that a file leaves open, or that others read differently.

    Attributes
    ----------
    role, letter
        The layer's option, such as ``cell_activation``, and ``alpha`` or ``beta``.
    name
        The activation's name in the file.
    value, other
        The number it is read with, and the one that it may have been meant to have.
    why
        Where the other number comes from.
    """

    role: str
    letter: str
    name: str
    value: float
    other: float
    why: str


@dataclass(frozen=True, eq=False, repr=False)
class Recurrent(Atom):
    """One direction of a recurrent layer.

    Attributes
    ----------
    kind, options
        As the config has them, activations one by one, hidden size left out.
    source
        What it reads, at `ALL` steps in order.
    reverse
        From the last step to the first; output k is that of step k all the same.
    tensors
        In native order under native names without layer and direction.
    stored
        Where they stood, native names likewise; of type `Stored`.
    fed
        States, ``h`` and ``c``, that the graph takes from its inputs.
    guesses
        Parameters of its activations that may have been meant otherwise.
    ragged
        The graph takes the sequences' lengths from its inputs.
    """

    kind: str
    options: Mapping[str, Any]
    source: Vector
    reverse: bool
    tensors: Mapping[str, Array]
    stored: tuple[Any, ...] = field(default=())
    fed: frozenset[str] = frozenset()
    guesses: tuple[Guess, ...] = ()
    ragged: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class CellState(Atom):
    """Final c of a recurrent direction: an output that nothing else may read."""
