"""exp, tanh, sigmoid and log1p of vectors, as instructions: no call, no branch, no table.

All but log1p start the same way. With a whole n, x = n ln(2) + r, so e^x = 2^n (1 + expm1(r)). A
polynomial computes expm1(r). The sum of x / ln(2) and a large constant has no bits for a fraction.
So n is in the low bits of the sum, and a shift makes 2^n of n. No float is converted to an integer,
since that is undefined for NaN. Every vector length gets the same instructions, so a result does
not depend on its lane.

Largest measured errors, in units in the last place: exp 1.1, tanh 2.5, sigmoid 2.5, log1p 1.4; over
all floats, and over 8 million random doubles.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lstm_cli.engines.jit.codegen.ir import Function, Value, VectorType, fma


@dataclass(frozen=True)
class _Format:
    """Constants of the functions for ``float`` or ``double``.

    Attributes
    ----------
    fraction
        Number of bits of the fraction, below the exponent.
    bias
        Bias of the exponent.
    ln2
        The natural logarithm of 2 in two parts. The first part is so short that n times it is
        exact.
    exp
        Limits of x, beyond which exp is 0 and infinity.
    sigmoid
        Largest |x| for which e^x and e^-x are normal numbers.
    tanh
        Smallest x whose tanh rounds to 1. For this x, `tanh_fraction` is 1 too, since adding 2 does
        not change expm1(2x).
    expm1
        Coefficients of (expm1(r) - r) / r^2 in r, lowest first.
    log
        Coefficients of (log(1 + f) - 2 s) / s^3 in s^2, where s = f / (2 + f).
    """

    fraction: int
    bias: int
    ln2: tuple[float, float]
    exp: tuple[float, float]
    sigmoid: float
    tanh: float
    expm1: tuple[float, ...]
    log: tuple[float, ...]

    @property
    def magic(self) -> float:
        """A number whose sum with n has no fraction; its low bits are the exponent of 2^n."""
        return 1.5 * 2.0**self.fraction + self.bias


# The tables are fitted by scripts/fit_polynomials.py.
_FORMATS = {
    "float": _Format(
        fraction=23,
        bias=127,
        ln2=(0.693145751953125, 1.4286068203094173e-06),
        exp=(-105.0, 89.0),
        sigmoid=87.33,
        tanh=9.25,
        expm1=(0.5, 0.16666578, 0.041666877, 0.008363138, 0.0013894158),
        log=(0.6666678, 0.39976984, 0.2988487),
    ),
    "double": _Format(
        fraction=52,
        bias=1023,
        ln2=(0.6931471805598903, 5.497923018708371e-14),
        exp=(-746.0, 710.0),
        sigmoid=708.39,
        tanh=19.5,
        expm1=(
            0.5000000000000001,
            0.16666666666666624,
            0.04166666666662299,
            0.008333333333377683,
            0.0013888888917628795,
            0.00019841269721249997,
            2.4801520735704843e-05,
            2.755742501799014e-06,
            2.762033643038911e-07,
            2.5042746384021534e-08,
        ),
        log=(
            0.6666666666666737,
            0.3999999999939758,
            0.28571428745946925,
            0.22222198219836423,
            0.18183582430632897,
            0.15313588628885827,
            0.14800592336847146,
        ),
    ),
}


def at_least(f: Function, x: Value, low: Value) -> Value:
    """The larger of both; `x` if it is NaN. One instruction on x86."""
    return f.select(f.fcompare("ogt", low, x), low, x)


def at_most(f: Function, x: Value, high: Value) -> Value:
    """The smaller of both; `x` if it is NaN. One instruction on x86."""
    return f.select(f.fcompare("olt", high, x), high, x)


def sqrt(f: Function, vector: VectorType, x: Value) -> Value:
    """Square root, correctly rounded; NaN below 0."""
    return f.intrinsic(f"llvm.sqrt.{vector.suffix}", vector.type, x)


def exp(f: Function, vector: VectorType, x: Value) -> Value:
    """e^x: infinity above the range of x, subnormal numbers and 0 below it."""
    format_ = _FORMATS[vector.element]
    low, high = format_.exp
    parts = _Parts.of(f, vector, _limited(f, vector, x, low, high), 1)
    offset = vector.integer(_bits(vector, format_.magic))
    small, large = _power(f, vector, f.binary("sub", parts.bits, offset))
    return f.fmul(fma(f, vector, small, parts.expm1, small), large)


def tanh_fraction(f: Function, vector: VectorType, x: Value) -> tuple[Value, Value]:
    """Numerator and denominator of tanh(x) = expm1(2x) / (expm1(2x) + 2).

    The denominator lies between 2 and the square of e^`_Format.tanh`. The fraction is that of |x|,
    since for negative x the rounding errors of expm1 would count up to twice.
    """
    type_, name = vector.type, vector.suffix
    limit = vector.number(_FORMATS[vector.element].tanh)
    size = at_most(f, f.intrinsic(f"llvm.fabs.{name}", type_, x), limit)
    numerator = _Parts.of(f, vector, size, 2).power_plus(f, -1.0)
    denominator = f.fadd(numerator, vector.number(2.0))
    return f.intrinsic(f"llvm.copysign.{name}", type_, numerator, x), denominator


def tanh(f: Function, vector: VectorType, x: Value) -> Value:
    """Hyperbolic tangent; exactly 1 or -1 for large |x|."""
    return f.fdiv(*tanh_fraction(f, vector, x))


def sigmoid_fraction(f: Function, vector: VectorType, x: Value) -> tuple[Value, Value]:
    """Numerator and denominator of the logistic function, 1 / (1 + e^-x).

    The numerator is 1. The denominator lies between 1 and e^`_Format.sigmoid`. So the function
    never falls to 0, only to 1e-38 for float and 1e-308 for double.
    """
    limit = _FORMATS[vector.element].sigmoid
    parts = _Parts.of(f, vector, _limited(f, vector, x, -limit, limit), -1)
    return vector.number(1.0), parts.power_plus(f, 1.0)


def sigmoid(f: Function, vector: VectorType, x: Value) -> Value:
    """Logistic function; see `sigmoid_fraction` for its smallest value."""
    return f.fdiv(*sigmoid_fraction(f, vector, x))


def log1p(f: Function, vector: VectorType, x: Value) -> Value:
    """log(1 + x), accurate for small x too; -infinity at -1, NaN below."""
    format_, type_ = _FORMATS[vector.element], vector.integers
    one, infinity = vector.number(1.0), vector.number(float("inf"))
    # 1 + x = 2^n (1 + g) with 1 + g from sqrt(1/2) to sqrt(2); g is rounded only once.
    bits = f.convert("bitcast", f.fadd(x, one), type_)
    above = f.binary("sub", bits, vector.integer(_bits(vector, 0.5**0.5)))
    n = f.binary("ashr", above, vector.integer(format_.fraction))
    small, large = _power(f, vector, f.binary("sub", vector.integer(0), n))
    less_one = fma(f, vector, small, large, vector.number(-1.0))
    g = fma(f, vector, f.fmul(x, small), large, less_one)
    # log(1 + g) = g - (g^2/2 - s (g^2/2 + s^2 P(s^2))), whose first term is exact.
    s = f.fdiv(g, f.fadd(g, vector.number(2.0)))
    z, half = f.fmul(s, s), f.fmul(f.fmul(g, g), vector.number(0.5))
    rest = f.fmul(z, _polynomial(f, vector, format_.log, z, f.fmul(z, z)))
    whole, high, low = f.convert("sitofp", n, vector.type), *map(vector.number, format_.ln2)
    tail = fma(f, vector, s, f.fadd(half, rest), f.fmul(whole, low))
    result = fma(f, vector, whole, high, f.fsub(g, f.fsub(half, tail)))
    # A NaN passes through 1 + x; below -1 the result is NaN.
    result = f.select(f.fcompare("oeq", x, infinity), x, result)
    result = f.select(f.fcompare("oeq", x, vector.number(-1.0)), f.fneg(infinity), result)
    return f.select(f.fcompare("oge", x, vector.number(-1.0)), result, vector.number(float("nan")))


@dataclass(frozen=True)
class _Parts:
    """Factors of e^(rate x) = 2^n (1 + expm1); `rate` is a power of two or its negative.

    Attributes
    ----------
    bits
        Integers whose low bits are the biased exponent of 2^n.
    """

    vector: VectorType
    bits: Value
    expm1: Value

    @classmethod
    def of(cls, f: Function, vector: VectorType, x: Value, rate: int) -> _Parts:
        """Split rate x = n ln(2) + rate r."""
        format_ = _FORMATS[vector.element]
        magic, (high, low) = format_.magic, format_.ln2
        per_octave = vector.number(rate * 1.442695040888963407)
        shifted = fma(f, vector, x, per_octave, vector.number(magic))
        n = f.fadd(shifted, vector.number(-magic))
        if vector.element == "float" and rate == 2:
            high, low = high + low, 0.0  # tanh is flat where n is so large that this matters
        r = fma(f, vector, n, vector.number(-high / rate), x)
        if low:
            r = fma(f, vector, n, vector.number(-low / rate), r)
        return cls(
            vector, f.convert("bitcast", shifted, vector.integers), _expm1(f, vector, r, rate)
        )

    def power_plus(self, f: Function, number: float) -> Value:
        """e^(rate x) + number, if 2^n is a normal number."""
        power = _float(f, self.vector, self.bits)
        more = f.fadd(power, self.vector.number(number))
        return fma(f, self.vector, power, self.expm1, more)


def _expm1(f: Function, vector: VectorType, r: Value, rate: int) -> Value:
    """expm1(rate r) = rate r + r^2 Q(r)."""
    table = [c * rate ** (k + 2) for k, c in enumerate(_FORMATS[vector.element].expm1)]
    square = f.fmul(r, r)
    linear = {1: lambda: r, 2: lambda: f.fadd(r, r), -1: lambda: f.fneg(r)}[rate]()
    return fma(f, vector, square, _polynomial(f, vector, table, r, square), linear)


def _polynomial(
    f: Function,
    vector: VectorType,
    coefficients: tuple[float, ...] | list[float],
    x: Value,
    square: Value,
) -> Value:
    """Sum pairs of terms, independently of each other; then use Horner's rule in x^2."""
    pairs = [coefficients[k : k + 2] for k in range(0, len(coefficients), 2)]
    terms = [vector.number(pair[0]) for pair in pairs]
    for k, pair in enumerate(pairs):
        if len(pair) == 2:
            terms[k] = fma(f, vector, x, vector.number(pair[1]), terms[k])
    total = terms.pop()
    while terms:
        total = fma(f, vector, square, total, terms.pop())
    return total


def _limited(f: Function, vector: VectorType, x: Value, low: float, high: float) -> Value:
    return at_most(f, at_least(f, x, vector.number(low)), vector.number(high))


def _power(f: Function, vector: VectorType, n: Value) -> tuple[Value, Value]:
    """Two normal numbers whose product is 2^n. The product may be subnormal or too large."""
    half = f.binary("ashr", n, vector.integer(1))
    bias = vector.integer(_FORMATS[vector.element].bias)
    return (
        _float(f, vector, f.binary("add", half, bias)),
        _float(f, vector, f.binary("add", f.binary("sub", n, half), bias)),
    )


def _float(f: Function, vector: VectorType, exponents: Value) -> Value:
    """Powers of 2 from biased exponents in the low bits; higher bits are ignored."""
    width = vector.integer(_FORMATS[vector.element].fraction)
    return f.convert("bitcast", f.binary("shl", exponents, width), vector.type)


def _bits(vector: VectorType, value: float) -> int:
    number, whole = ("<f", "<i") if vector.element == "float" else ("<d", "<q")
    return int(struct.unpack(whole, struct.pack(number, value))[0])
