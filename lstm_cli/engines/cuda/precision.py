"""What the cuda engine computes in: the type of sums, and the type of what is multiplied."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """A dtype in the kernels' words.

    Attributes
    ----------
    name
        ``float32``, ``tf32``, ``float16``, ``bfloat16`` or ``float64``.
    real
        NumPy's name of the type of states, gates, sums and everything between layers.
    element
        NumPy's name of the type in which the operands of products are stored; 16-bit floats are
        ``uint16``.
    derivatives
        The precision whose operands products of derivatives have. Derivatives leave the range of
        float16, so its backward pass multiplies in TF32, and no loss need be scaled.
    """

    name: str
    real: str
    element: str
    derivatives: str

    @property
    def narrow(self) -> bool:
        """Whether operands are stored in another type than sums."""
        return self.element != self.real

    @property
    def tensor_cores(self) -> bool:
        """Whether the tensor cores multiply it."""
        return self.name in ("tf32", "float16", "bfloat16")

    @property
    def c_real(self) -> str:
        """The C type of `real`."""
        return {"float32": "float", "float64": "double"}[self.real]

    @property
    def backward(self) -> Precision:
        """What the backward pass computes in."""
        return PRECISIONS[self.derivatives]


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
