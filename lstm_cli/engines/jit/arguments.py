"""What a kernel is called with: a block of numbers and addresses, by name on both sides."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from lstm_cli.engines.jit.ir import Function, Value
from lstm_cli.engines.types import Array


class Arguments:
    """A layout of entries, 8 bytes each.

    Parameters
    ----------
    numbers, addresses, reals
        Their names: whole numbers, addresses, and numbers in double precision.
    """

    def __init__(
        self, numbers: Sequence[str], addresses: Sequence[str] = (), reals: Sequence[str] = ()
    ) -> None:
        self.names = (*numbers, *addresses, *reals)
        self._types = ["i64"] * len(numbers) + ["ptr"] * len(addresses) + ["double"] * len(reals)
        self._format = struct.Struct("q" * (len(numbers) + len(addresses)) + "d" * len(reals))
        self._starts: dict[Arguments, int] = {self: 0}

    @classmethod
    def joined(cls, *parts: Arguments) -> Arguments:
        """Layouts one after another, each of which can be filled by itself."""
        made = cls(())
        made._starts = {}
        for part in parts:
            made._starts[part] = 8 * len(made.names)
            made.names += part.names
            made._types += part._types
        return made

    @cached_property
    def _places(self) -> dict[str, int]:
        """Which entry a name is."""
        return {name: k for k, name in enumerate(self.names)}

    def read(self, f: Function, block: Value) -> dict[str, Value]:
        """Every entry, as a kernel loads it from the block's address."""
        pairs = enumerate(zip(self.names, self._types, strict=True))
        return {n: f.load(t, f.at(block, k, "i64"), 8) for k, (n, t) in pairs}

    def place(self, f: Function, block: Value, name: str) -> Value:
        """The address of an entry, for a kernel that writes one."""
        return f.at(block, self.names.index(name), "i64")

    def empty(self) -> Array:
        """A block to be filled part by part."""
        return np.zeros(len(self.names), np.int64)

    def pack(self, values: Mapping[str, float]) -> bytes:
        """The entries as they stand in memory."""
        return self._format.pack(*[values[name] for name in self.names])

    def fill(self, block: Array, part: Arguments, packed: bytes) -> None:
        """Put what a joined part packed in its place."""
        start = self._starts[part]
        block.view(np.uint8)[start : start + len(packed)] = np.frombuffer(packed, np.uint8)

    def put(self, block: Array, values: Mapping[str, int]) -> None:
        """Write some of the whole numbers and addresses into a block that stays as it is else."""
        for name, value in values.items():
            block[self._places[name]] = value

    def block(self, values: Mapping[str, float]) -> Array:
        """A block filled at once."""
        return np.frombuffer(bytearray(self.pack(values)), np.int64)
