"""Vector functions of the kernels against NumPy in a wider format."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from compiled_ir import COUNTS, Array, math_function

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "log1p": np.log1p,
    "sqrt": np.sqrt,
}
WORST = {"exp": 1.1, "tanh": 2.5, "sigmoid": 2.5, "log1p": 1.5, "sqrt": 0.5}
"""Largest errors, in units in the last place."""
WIDE = {"float": np.dtype("f8"), "double": np.dtype(np.longdouble)}
DTYPES = {"float": np.dtype("f4"), "double": np.dtype("f8")}
LEAST = {"float": -87.33, "double": -708.39}
"""Value of x below which sigmoid falls no further."""

needs_more_than_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 60, reason="nothing here is more exact than float64"
)
ELEMENTS = ["float", pytest.param("double", marks=needs_more_than_double)]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def whole(x: Array) -> Array:
    """The first numbers of x, a multiple of every vector length."""
    return x[: len(x) // 16 * 16]


def float_samples() -> Array:
    """Every 997th float, with NaN and infinity, and all floats near special places."""
    bits = np.arange(0, 2**32, 997, dtype=np.uint32).view("f4")
    special = [0, 1e-38, 2e-4, 0.0625, 0.17, 0.3466, 0.5, 1, 2, 9.01, 9.25, 16.6, 87.3, 88.4, 88.73]
    special += [103.3, 104, *2.0 ** np.arange(-30, 7), *(np.log(2) / 2 * np.arange(1, 250, 2))]
    centres = np.array([*special, *np.negative(special)], "f4").view(np.int32)
    near = (centres[:, None] + np.arange(-30, 31)).astype(np.int32).view("f4").ravel()
    return whole(np.concatenate([near, bits]))


def double_samples() -> Array:
    rng = np.random.default_rng(17)
    signs = rng.choice([-1.0, 1.0], 100_000)
    powers = signs * np.exp2(rng.uniform(-1074, 1024, 100_000))
    middle = signs * np.exp2(rng.uniform(-40, 10, 100_000))
    near_minus_one = -1 + np.exp2(rng.uniform(-53, 0, 100_000))
    linear = [rng.uniform(-limit, limit, 200_000) for limit in (2, 40, 750)]
    return whole(np.concatenate([powers, middle, near_minus_one, *linear]))


@pytest.fixture(scope="module")
def samples() -> dict[str, Array]:
    return {"float": float_samples(), "double": double_samples()}


def errors(actual: Array, exact: Array) -> Array:
    """Errors in units in the last place; infinite where only one of both is finite."""
    near = exact.astype(actual.dtype)
    distance = np.abs(actual.astype(exact.dtype) - exact) / np.spacing(np.abs(near))
    equal = same(actual, near)
    return np.where(
        equal & ~np.isfinite(near), 0, np.where(np.isfinite(distance), distance, np.inf)
    )


def same(a: Array, b: Array) -> Array:
    """Equality element by element; a NaN equals a NaN."""
    return (a == b) | (np.isnan(a) & np.isnan(b))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error(name: str, element: str, samples: dict[str, Array]) -> None:
    x = samples[element]
    if name == "sigmoid":
        x = whole(x[~(x < LEAST[element])])
    actual = math_function(name, element, COUNTS[element][-1])(x)
    exact = FUNCTIONS[name](x.astype(WIDE[element]))
    error = errors(actual, exact)
    k = int(np.argmax(error))
    assert error[k] <= WORST[name], f"{name}({x[k]!r}) = {actual[k]!r}, not {exact[k]!r}"


@pytest.mark.parametrize("element", COUNTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_bits_for_every_vector_length(
    name: str, element: str, samples: dict[str, Array]
) -> None:
    x = samples[element][:40_000]
    first, *others = (math_function(name, element, lanes)(x) for lanes in COUNTS[element])
    for other in others:
        np.testing.assert_array_equal(first.view(np.uint8), other.view(np.uint8))


@pytest.mark.parametrize("element", COUNTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(name: str, element: str) -> None:
    high = float(np.finfo(DTYPES[element]).max)
    special = [
        np.nan,
        -np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
        high,
        -high,
        -1.0,
        -1.5,
        -1e-300,
        1e-300,
    ]
    x = np.resize(np.array(special, DTYPES[element]), 16)
    actual = math_function(name, element, 4)(x)
    least = float(np.exp(LEAST[element])) * (1 + 1e-5) if name == "sigmoid" else 0
    exact = FUNCTIONS[name](x.astype(WIDE[element])).astype(x.dtype)
    np.testing.assert_allclose(actual, exact, rtol=1e-6, atol=least)
    if name != "sigmoid":
        np.testing.assert_array_equal(actual == 0, exact == 0)


@pytest.mark.parametrize("element", COUNTS)
def test_sigmoid_falls_below_every_number_that_matters_and_never_rises(element: str) -> None:
    x = np.linspace(-3, 3, 4096, dtype=DTYPES[element]) * abs(LEAST[element])
    y = math_function("sigmoid", element, 4)(x)
    assert y[0] == y[1000] < {"float": 1.2e-38, "double": 2.3e-308}[element]
    assert y[-1] == 1
    assert (np.diff(y) >= 0).all()


@pytest.mark.parametrize("element", COUNTS)
def test_tanh_is_odd_and_reaches_one(element: str) -> None:
    x = np.concatenate(
        [np.geomspace(1e-40, 30, 4080), [9.1, 19.4, 20, 1e3, 1e6, 1e30, 0, 0, 0] + [5] * 7]
    )
    x = x.astype(DTYPES[element])
    tanh = math_function("tanh", element, 4)
    actual, mirrored = tanh(x), tanh(-x)
    np.testing.assert_array_equal(actual, -mirrored)
    np.testing.assert_array_equal(np.signbit(mirrored), ~np.signbit(actual))
    assert (actual <= 1).all()
    assert (actual[x >= {"float": 9.1, "double": 19.2}[element]] == 1).all()
    assert (actual[x < 8] < 1).all()
