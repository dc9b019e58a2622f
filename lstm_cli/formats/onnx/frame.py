"""The free axes of a graph's input: which is the batch, which are the steps, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx.calls import MOST_OPEN, Call
from lstm_cli.formats.onnx.sizes import Number, Size, product
from lstm_cli.formats.onnx.values import (
    ALL,
    FEATURES,
    REVERSED,
    Axis,
    Constant,
    RefusedError,
    Step,
    Value,
    Vector,
)


class Frame:
    """What is known about the free axes; it grows while operators are evaluated.

    Attributes
    ----------
    sizes
        By name; None where the file leaves it open.
    names
        Free axes as messages name them.
    guessed
        A size that the file leaves open was taken from a number somewhere in it.
    batch, time
        Names of the axes that turned out to be these.
    picked
        What single steps were picked of.
    """

    def __init__(
        self, sizes: dict[str, int | None], names: Mapping[str, str], *, guessed: bool = False
    ) -> None:
        self.sizes, self.names, self.guessed = sizes, names, guessed
        self.batch: str | None = None
        self.time: str | None = None
        self.picked: list[Vector] = []

    def open_error(self, call: Call, error: Exception) -> WeightsError:
        """An operator that calculates with a size which the file leaves open."""
        arrays = [value.array for value in call.inputs if isinstance(value, Constant)]
        entries = [n for a in arrays if a.dtype == object for n in a.reshape(-1)[:MOST_OPEN]]
        used = {n for size in entries if isinstance(size, Size) for n in size.names}
        still = [name for name, size in self.sizes.items() if size is None]
        found = [self.names[name] for name in still if name in used] or [
            self.names[name] for name in still
        ]
        reason = f": {error}" if isinstance(error, RefusedError) else ""
        return WeightsError(
            f"{call.where} calculates with a size that the model leaves open{reason}",
            expected="a number",
            found=" and ".join(found) or "an open size",
            where=str(call.path),
            hint="export the model with this size fixed (torch.onnx.export without dynamic_axes or "
            "dynamic_shapes): lstm-cli runs any number of sequences all the same",
        )

    @property
    def steps(self) -> int | None:
        """T, if it is known."""
        return None if self.time is None else self.sizes[self.time]

    def size(self, name: str) -> Number:
        """Of a free axis."""
        known = self.sizes[name]
        return Size.of(name) if known is None else known

    def dims(self, value: Value) -> list[Number]:
        """Sizes of a value's axes."""
        features = iter(value.pick.shape)
        return [
            product(next(features) if part == FEATURES else self.size(part) for part in axis)
            for axis in value.axes
        ]

    def is_time(self, name: str) -> bool:
        """Take an axis for the steps, unless it is known to be the batch.

        Raises
        ------
        RefusedError
            Another axis has been taken for the steps.
        """
        if name == self.batch:
            return False
        if self.time not in (None, name):
            raise RefusedError("two axes are used as steps")
        self.time = name
        if len(self.sizes) == 2:
            self.batch = next(other for other in self.sizes if other != name)
        return True

    def claim(self, time: Axis, batch: Axis) -> None:
        """Take these axes for the steps and the batch.

        Raises
        ------
        RefusedError
            They are used otherwise elsewhere.
        """
        if len(time) != 1 or len(batch) > 1 or FEATURES in time + batch:
            raise RefusedError("its input is not laid out as steps, sequences and features")
        if not self.is_time(time[0]) or (batch and batch[0] != (self.batch or batch[0])):
            raise RefusedError("it takes for steps what is the batch elsewhere")

    def index(self, step: Number) -> Step:
        """A step's number, counted from the end if it is given so and T is open.

        Raises
        ------
        RefusedError
            There is no such step, or it cannot be said which it is.
        """
        if isinstance(step, Size):
            offset = step.offset
            if offset is None or offset[0] != self.time or offset[1] >= 0:
                raise RefusedError("it picks a step that depends on the sizes")
            step = offset[1]
        if self.guessed:
            if step > 0:
                raise RefusedError(f"it picks step {step} of any number of them")
        elif self.steps is not None:
            if not -self.steps <= step < self.steps:
                raise RefusedError(f"it picks step {step} of {self.steps}")
            return step % self.steps
        return int(step)

    def last(self, step: Step) -> bool:
        """Whether this is the last step."""
        return step == -1 or (self.steps is not None and step == self.steps - 1)

    def first(self, step: Step) -> bool:
        """Whether this is step 0."""
        return step == 0 or (self.steps is not None and step == -self.steps)


def merged(axes: Sequence[Axis]) -> Axis:
    """Several axes as one, neighbouring features as one."""
    found: list[str] = []
    for part in (part for axis in axes for part in axis):
        if part != FEATURES or found[-1:] != [FEATURES]:
            found.append(part)
    return tuple(found)


def every(step: Step) -> bool:
    """Whether this is all steps."""
    return step in (ALL, REVERSED)
