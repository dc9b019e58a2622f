"""Fit the polynomials of lstm_cli/engines/jit/codegen/vector_math.py and print them as tables.

    python scripts/fit_polynomials.py

expm1's polynomial is (e^r - 1 - r) / r^2 for |r| <= ln(2)/2, and a little beyond, since r is
rounded. log's polynomial is (log(1 + f) - 2 s) / s^3 in z = s^2, where s = f / (2 + f), for 1 + f
from sqrt(1/2) to sqrt(2). Both are least-squares fits at Chebyshev's nodes. They minimize the
relative error of the function; expm1's is divided by |r|, since tanh needs most precision near 0.
The fits need extended precision, which longdouble has on x86. Coefficients are rounded one by one
from the lowest, and the others are fitted again each time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.longdouble]
NODES = 400


def expm1_rest(r: Array) -> Array:
    """Values of (e^r - 1 - r) / r^2 by its series."""
    total, term = np.zeros_like(r), np.full_like(r, 0.5)
    for k in range(3, 40):
        total, term = total + term, term * r / k
    return total


def log_rest(z: Array) -> Array:
    """Values of (log(1 + f) - 2 s) / s^3 by its series in z = s^2."""
    return sum((2 * z**k / np.longdouble(2 * k + 3) for k in range(60)), np.zeros_like(z))


def first(A: Array, b: Array) -> np.longdouble:
    """The first coefficient of the least-squares solution of A x = b.

    It belongs to the part of its column that is orthogonal to all other columns.
    """
    basis: list[Array] = []
    for column in A.T[::-1]:
        own = column.copy()
        for q in basis * 2:  # twice, since the first pass leaves rounding errors
            own = own - (q @ own) * q
        basis.append(own / np.sqrt(own @ own))
    return np.longdouble((basis[-1] @ b) / (basis[-1] @ A[:, 0]))


def fit(y: Array, x: Array, weight: Array, count: int, dtype: type) -> tuple[list[float], float]:
    """Rounded coefficients of y(x), lowest first, and the largest error that they leave."""
    left, rounded = y, []
    for k in range(count):
        powers = np.column_stack([x**n for n in range(k, count)])
        c = dtype(first(powers * weight[:, None], left * weight))
        rounded.append(c)
        left = left - np.longdouble(c) * x**k
    return rounded, float(np.max(abs(weight * left)) / np.finfo(dtype).eps)


def main() -> None:
    """Print every table and the largest of the minimized errors."""
    cosines = np.cos(np.pi * (np.arange(NODES) + np.longdouble(0.5)) / NODES)
    r = cosines * np.log(np.longdouble(2)) / 2 * np.longdouble(1.002)
    z = (cosines + 1) / 2 * (np.sqrt(np.longdouble(2)) - 1) ** 4 * np.longdouble(1.002)
    for name, x, y, weight, counts in (
        ("expm1", r, expm1_rest(r), abs(r / np.expm1(r)), {np.float32: 5, np.float64: 10}),
        ("log", z, log_rest(z), z / 2, {np.float32: 3, np.float64: 7}),
    ):
        for dtype, count in counts.items():
            table, error = fit(y, x, weight, count, dtype)
            print(f"{name}, {dtype.__name__}, error {error:.3f} eps")
            print("".join(f"    {c!s},\n" for c in table))


if __name__ == "__main__":
    main()
