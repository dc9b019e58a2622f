"""Which steps are valid: what the input ``lengths`` says, as masks."""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np

from lstm_cli.formats.onnx.builder import GraphBuilder
from lstm_cli.formats.onnx.messages import INT32, INT64


class Masks:
    """The input ``lengths`` (N,) of a graph, and what follows from it, made when first needed.

    Values are chosen, never multiplied, so that NaN in the padding does not spread.
    """

    def __init__(self, builder: GraphBuilder, x: str) -> None:
        self.builder, self._x = builder, x
        self.lengths = builder.input("lengths", ("N",), INT32)
        self.valid = cache(self._valid)
        self.filled = cache(self._filled)

    @cached_property
    def zero(self) -> str:
        """The number."""
        with self.builder.scope("lengths"):
            return self.builder.constant("zero", np.float32(0))

    @cached_property
    def _counts(self) -> str:
        """(N,) int64."""
        return self.builder.add("Cast", self.lengths, to=INT64)

    @cached_property
    def _steps(self) -> str:
        """(T,): 0, 1, ..."""
        add, constant = self.builder.add, self.builder.constant
        steps = add("Gather", add("Shape", self._x), constant("axis", np.int64(1)), axis=0)
        first, stride = constant("first", np.int64(0)), constant("stride", np.int64(1))
        return add("Range", first, steps, stride)

    def _valid(self, *, time_first: bool) -> str:
        """Which steps are before a sequence's end: (N, T, 1), or (T, N, 1)."""
        with self.builder.scope("lengths"):
            add, at = self.builder.add, self.builder.integers
            steps = add("Unsqueeze", self._steps, at(1 if time_first else 0))
            counts = add("Unsqueeze", self._counts, at(0 if time_first else 1))
            return add("Unsqueeze", add("Less", steps, counts), at(2))

    def _filled(self, rank: int) -> str:
        """Which sequences have a step: (N, 1, ...) of this rank."""
        with self.builder.scope("lengths"):
            add = self.builder.add
            none = self.builder.constant("none", np.int64(0))
            some = add("Greater", self._counts, none)
            return add("Unsqueeze", some, self.builder.integers(*range(1, rank)))
