"""exp, tanh, sigmoid and log1p of vectors, as instructions: no call, no branch, no table.

All but log1p have one core. x = n ln(2) + r with a whole n, so that e^x = 2^n (1 + expm1(r)) with
expm1(r) from a polynomial; n comes as the low bits of a float to which so much was added that no
bits are left for a fraction, and a shift makes 2^n of them. No float is ever converted to a whole
number, which would be undefined for NaN. The same instructions serve every number of lanes, so
a number's result does not depend on the lane that it is in.

Largest errors measured, in units in the last place: exp 1.1, tanh 2.5, sigmoid 2.5, log1p 1.4; over
all floats, and over 8 million random doubles.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lstm_cli.engines.jit.codegen.ir import Function, Lanes, Value, fma


@dataclass(frozen=True)
class _Format:
    """What the functions need to know of ``float`` or ``double``.

    Attributes
    ----------
    fraction
        Bits of a number below its exponent.
    bias
        Of the exponent.
    ln2
        The logarithm of 2 in two parts; the first so short that n times it is exact.
    exp
        Beyond these, exp is 0 and infinity.
    sigmoid
        Up to here in either direction e^x and its reciprocal are normal numbers.
    tanh
        From here on tanh rounds to 1, and its fraction is 1 too: e^2x - 1 is not changed by 2.
    expm1
        (expm1(r) - r) / r^2 in r, lowest coefficient first.
    log
        (log(1 + f) - 2 s) / s^3 in s^2, where s = f / (2 + f).
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
        """Added to a number, leaves it whole, with the biased exponent of 2^n as low bits."""
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
    """The larger of both; `x` where it is NaN. One instruction on x86."""
    return f.select(f.fcompare("ogt", low, x), low, x)


def at_most(f: Function, x: Value, high: Value) -> Value:
    """The smaller of both; `x` where it is NaN. One instruction on x86."""
    return f.select(f.fcompare("olt", high, x), high, x)


def sqrt(f: Function, lanes: Lanes, x: Value) -> Value:
    """Square root, correctly rounded; NaN below 0."""
    return f.intrinsic(f"llvm.sqrt.{lanes.suffix}", lanes.type, x)


def exp(f: Function, lanes: Lanes, x: Value) -> Value:
    """e^x: to infinity above the range, to subnormal numbers and 0 below it."""
    format_ = _FORMATS[lanes.element]
    low, high = format_.exp
    parts = _Parts.of(f, lanes, _limited(f, lanes, x, low, high), 1)
    offset = lanes.integer(_bits(lanes, format_.magic))
    small, large = _power(f, lanes, f.binary("sub", parts.bits, offset))
    return f.fmul(fma(f, lanes, small, parts.expm1, small), large)


def tanh_fraction(f: Function, lanes: Lanes, x: Value) -> tuple[Value, Value]:
    """Numerator and denominator of tanh(x) = expm1(2x) / (expm1(2x) + 2).

    The denominator lies between 2 and the square of e^`tanh`, the limit above. x is taken without
    its sign: for negative x the rounding errors of expm1 would count up to twice.
    """
    one, name = lanes.type, lanes.suffix
    limit = lanes.number(_FORMATS[lanes.element].tanh)
    size = at_most(f, f.intrinsic(f"llvm.fabs.{name}", one, x), limit)
    numerator = _Parts.of(f, lanes, size, 2).power_plus(f, -1.0)
    denominator = f.fadd(numerator, lanes.number(2.0))
    return f.intrinsic(f"llvm.copysign.{name}", one, numerator, x), denominator


def tanh(f: Function, lanes: Lanes, x: Value) -> Value:
    """Hyperbolic tangent; exactly 1 and -1 far out."""
    return f.fdiv(*tanh_fraction(f, lanes, x))


def sigmoid_fraction(f: Function, lanes: Lanes, x: Value) -> tuple[Value, Value]:
    """Numerator and denominator of the logistic function, 1 / (1 + e^-x).

    The numerator is 1. The denominator lies between 1 and e^`sigmoid`, the limit above; so
    the function never falls to 0, only to 1e-38 for float and 1e-308 for double.
    """
    limit = _FORMATS[lanes.element].sigmoid
    parts = _Parts.of(f, lanes, _limited(f, lanes, x, -limit, limit), -1)
    return lanes.number(1.0), parts.power_plus(f, 1.0)


def sigmoid(f: Function, lanes: Lanes, x: Value) -> Value:
    """Logistic function; see `sigmoid_fraction` for how far it falls."""
    return f.fdiv(*sigmoid_fraction(f, lanes, x))


def log1p(f: Function, lanes: Lanes, x: Value) -> Value:
    """log(1 + x), accurate for small x too; -infinity at -1, NaN below."""
    format_, type_ = _FORMATS[lanes.element], lanes.integers
    one, infinity = lanes.number(1.0), lanes.number(float("inf"))
    # 1 + x = 2^n (1 + g) with 1 + g from sqrt(1/2) to sqrt(2); g is rounded only once.
    bits = f.convert("bitcast", f.fadd(x, one), type_)
    above = f.binary("sub", bits, lanes.integer(_bits(lanes, 0.5**0.5)))
    n = f.binary("ashr", above, lanes.integer(format_.fraction))
    small, large = _power(f, lanes, f.binary("sub", lanes.integer(0), n))
    less_one = fma(f, lanes, small, large, lanes.number(-1.0))
    g = fma(f, lanes, f.fmul(x, small), large, less_one)
    # log(1 + g) = g - (g^2/2 - s (g^2/2 + s^2 P(s^2))), the first term of it exact.
    s = f.fdiv(g, f.fadd(g, lanes.number(2.0)))
    z, half = f.fmul(s, s), f.fmul(f.fmul(g, g), lanes.number(0.5))
    rest = f.fmul(z, _polynomial(f, lanes, format_.log, z, f.fmul(z, z)))
    whole, high, low = f.convert("sitofp", n, lanes.type), *map(lanes.number, format_.ln2)
    tail = fma(f, lanes, s, f.fadd(half, rest), f.fmul(whole, low))
    result = fma(f, lanes, whole, high, f.fsub(g, f.fsub(half, tail)))
    # NaN in, NaN out: 1 + x is what carries it, and NaN below -1.
    result = f.select(f.fcompare("oeq", x, infinity), x, result)
    result = f.select(f.fcompare("oeq", x, lanes.number(-1.0)), f.fneg(infinity), result)
    return f.select(f.fcompare("oge", x, lanes.number(-1.0)), result, lanes.number(float("nan")))


@dataclass(frozen=True)
class _Parts:
    """e^(rate x) = 2^n (1 + expm1), where `rate` is a power of two or its negative.

    Attributes
    ----------
    bits
        Those of a number whose low ones are the biased exponent of 2^n.
    """

    lanes: Lanes
    bits: Value
    expm1: Value

    @classmethod
    def of(cls, f: Function, lanes: Lanes, x: Value, rate: int) -> _Parts:
        """rate x = n ln(2) + rate r."""
        format_ = _FORMATS[lanes.element]
        magic, (high, low) = format_.magic, format_.ln2
        per_octave = lanes.number(rate * 1.442695040888963407)
        shifted = fma(f, lanes, x, per_octave, lanes.number(magic))
        n = f.fadd(shifted, lanes.number(-magic))
        if lanes.element == "float" and rate == 2:
            high, low = high + low, 0.0  # tanh is flat where n is so large that this matters
        r = fma(f, lanes, n, lanes.number(-high / rate), x)
        if low:
            r = fma(f, lanes, n, lanes.number(-low / rate), r)
        return cls(lanes, f.convert("bitcast", shifted, lanes.integers), _expm1(f, lanes, r, rate))

    def power_plus(self, f: Function, number: float) -> Value:
        """e^(rate x) + number, where 2^n is a normal number."""
        power = _float(f, self.lanes, self.bits)
        more = f.fadd(power, self.lanes.number(number))
        return fma(f, self.lanes, power, self.expm1, more)


def _expm1(f: Function, lanes: Lanes, r: Value, rate: int) -> Value:
    """expm1(rate r) = rate r + r^2 Q(r)."""
    table = [c * rate ** (k + 2) for k, c in enumerate(_FORMATS[lanes.element].expm1)]
    square = f.fmul(r, r)
    linear = {1: lambda: r, 2: lambda: f.fadd(r, r), -1: lambda: f.fneg(r)}[rate]()
    return fma(f, lanes, square, _polynomial(f, lanes, table, r, square), linear)


def _polynomial(
    f: Function,
    lanes: Lanes,
    coefficients: tuple[float, ...] | list[float],
    x: Value,
    square: Value,
) -> Value:
    """Pairs of terms first, which do not wait for one another; then Horner's rule in x^2."""
    pairs = [coefficients[k : k + 2] for k in range(0, len(coefficients), 2)]
    terms = [lanes.number(pair[0]) for pair in pairs]
    for k, pair in enumerate(pairs):
        if len(pair) == 2:
            terms[k] = fma(f, lanes, x, lanes.number(pair[1]), terms[k])
    total = terms.pop()
    while terms:
        total = fma(f, lanes, square, total, terms.pop())
    return total


def _limited(f: Function, lanes: Lanes, x: Value, low: float, high: float) -> Value:
    return at_most(f, at_least(f, x, lanes.number(low)), lanes.number(high))


def _power(f: Function, lanes: Lanes, n: Value) -> tuple[Value, Value]:
    """Two normal numbers whose product is 2^n, for n so large that it need not be one itself."""
    half = f.binary("ashr", n, lanes.integer(1))
    bias = lanes.integer(_FORMATS[lanes.element].bias)
    return (
        _float(f, lanes, f.binary("add", half, bias)),
        _float(f, lanes, f.binary("add", f.binary("sub", n, half), bias)),
    )


def _float(f: Function, lanes: Lanes, exponents: Value) -> Value:
    """2 to powers that are given with their bias; higher bits of them are not looked at."""
    width = lanes.integer(_FORMATS[lanes.element].fraction)
    return f.convert("bitcast", f.binary("shl", exponents, width), lanes.type)


def _bits(lanes: Lanes, value: float) -> int:
    """The bits of a number, as a whole number."""
    number, whole = ("<f", "<i") if lanes.element == "float" else ("<d", "<q")
    return int(struct.unpack(whole, struct.pack(number, value))[0])
