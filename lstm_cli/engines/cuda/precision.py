"""Precisions of the cuda engine: the type of sums, and the type of the products' operands."""

from __future__ import annotations

from dataclasses import dataclass

C_TYPES = {"float32": "float", "float64": "double"}
"""C++ names of accumulator types, by NumPy's names."""

_BYTES = {"uint16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Precision:
    """A dtype of the engine, as the kernels see it.

    Attributes
    ----------
    name
        ``float32``, ``tf32``, ``float16``, ``bfloat16`` or ``float64``.
    accumulator
        NumPy's name of the type of states, gates, sums and all values between layers.
    operand
        NumPy's name of the type that stores operands of products. 16-bit floats are ``uint16``.
    backward_name
        Name of the precision that multiplies derivatives. With float16 it is TF32, since
        derivatives may leave the range of float16. So the loss needs no scaling.
    """

    name: str
    accumulator: str
    operand: str
    backward_name: str

    @property
    def narrow(self) -> bool:
        """True if operands have another type than sums."""
        return self.operand != self.accumulator

    @property
    def tensor_cores(self) -> bool:
        """True if tensor cores multiply the operands."""
        return self.name in ("tf32", "float16", "bfloat16")

    @property
    def c_accumulator(self) -> str:
        """C++ name of the accumulator type."""
        return C_TYPES[self.accumulator]

    @property
    def accumulator_bytes(self) -> int:
        """Bytes per number of the accumulator type."""
        return _BYTES[self.accumulator]

    @property
    def operand_bytes(self) -> int:
        """Bytes per operand."""
        return _BYTES[self.operand]

    @property
    def backward(self) -> Precision:
        """Precision of the backward pass."""
        return PRECISIONS[self.backward_name]


PRECISIONS = {
    p.name: p
    for p in (
        Precision("float32", "float32", "float32", "float32"),
        Precision("tf32", "float32", "float32", "tf32"),
        Precision("float16", "float32", "uint16", "tf32"),
        Precision("bfloat16", "float32", "uint16", "bfloat16"),
        Precision("float64", "float64", "float64", "float64"),
    )
}
