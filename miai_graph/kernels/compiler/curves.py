"""Exponentials, logarithms, sines and their kin on vectors, to within two units in the last place.

Arguments are reduced to a small range by exact steps, and a power series is summed there (Muller, "Elementary
Functions", chapter 11; the logarithm follows fdlibm's e_log.c).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from miai_graph.kernels.compiler.vectors import BOOL, FLOAT32, FLOAT64, Vector, polynomial


class _Format(NamedTuple):
    """What depends on the dtype.

    terms : of the power series of exp, and of that of the inverse hyperbolic tangent
    ln2_high, ln2_low : the logarithm of 2 in two parts, of which the first times an exponent is exact
    least, greatest : beyond these exp is 0 and inf
    flat : from here on tanh is 1
    shift : adding it rounds to an integer, found in the lowest bits
    mantissa, bias : of the floating-point format
    """

    terms: int
    log_terms: int
    ln2_high: float
    ln2_low: float
    least: float
    greatest: float
    flat: float
    shift: float
    mantissa: int
    bias: int


class _Circle(NamedTuple):
    """What sines and cosines depend on.

    Attributes
    ----------
    quarter : of a turn, in parts
    terms : of each of the power series
    """

    quarter: tuple[float, ...]
    terms: int


_CIRCLES = {
    FLOAT32: _Circle((1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15), 5),
    FLOAT64: _Circle((1.5707963267948966, 6.123233995736766e-17), 9),
}

_FORMATS = {
    FLOAT32: _Format(7, 5, 0.693359375, -2.12194440e-4, -104.0, 89.0, 10.0, 1.5 * 2**23, 23, 127),
    FLOAT64: _Format(
        13, 11, 6.93145751953125e-1, 1.42860682030941723212e-6, -746.0, 710.0, 20.0, 1.5 * 2**52, 52, 1023
    ),
}


def exp(x: Vector) -> Vector:
    """The exponential. inf and 0 at the ends; nan stays."""
    format, zero = _FORMATS[x.dtype], x.as_same(0.0)
    # Products that vanish would take the processor ten times as long.
    vanishes = x.compare("olt", format.least)
    bounded = vanishes.choose(zero, x.call("minimum", x.as_same(format.greatest)))
    exponent, rest = _reduced(bounded)
    series = _series(rest)
    # In two steps: the power itself may be too large, or too small, where the product is not.
    half = x.integer("ashr", exponent, 1)
    result = series * _power_of_two(x, half) * _power_of_two(x, x.integer("sub", exponent, half))
    return vanishes.choose(zero, result)


def decay(x: Vector) -> Vector:
    """The exponential of what is not above 0: of no more instructions than that takes. 0 where the exponential has not
    all its digits; nan stays."""
    format = _FORMATS[x.dtype]
    vanishes = x.compare("olt", math.log(float(np.finfo(x.dtype).tiny)))
    # Rounding to an integer leaves the power's bits, bias and all, at the low end.
    shift = x.as_same(format.shift + format.bias)
    shifted = x.multiply_add(1 / math.log(2), shift)
    power = x.from_bits(x.integer("shl", shifted.bits(), format.mantissa))
    return vanishes.choose(x.as_same(0.0), _series(_rest(x, shifted - shift)) * power)


def expm1(x: Vector) -> Vector:
    """exp(x) - 1, exact near 0 too."""
    format = _FORMATS[x.dtype]
    bounded = x.call("minimum", x.as_same(format.greatest)).call("maximum", x.as_same(format.least))
    exponent, rest = _reduced(bounded)
    series = polynomial(rest, [1 / math.factorial(power) for power in range(format.terms, 0, -1)]) * rest
    half = x.integer("ashr", exponent, 1)
    first, second = _power_of_two(x, half), _power_of_two(x, x.integer("sub", exponent, half))
    # (series + 1) · 2ⁿ - 1, where 2ⁿ - 1 is exact as long as it matters.
    return (series * first + (first - 1.0 / second)) * second


def tanh(x: Vector) -> Vector:
    """The hyperbolic tangent, of (exp(2x) - 1) / (exp(2x) + 1)."""
    flat = _FORMATS[x.dtype].flat
    bounded = x.call("minimum", x.as_same(flat)).call("maximum", x.as_same(-flat))
    grown = expm1(bounded + bounded)
    return grown / (grown + 2.0)


def sigmoid(x: Vector) -> Vector:
    """The logistic function, as its op defines it."""
    return tanh(x * 0.5) * 0.5 + 0.5


def log(x: Vector) -> Vector:
    """The natural logarithm: -inf of 0, nan below."""
    format = _FORMATS[x.dtype]
    tiny = x.compare("olt", float(np.finfo(x.dtype).tiny))
    lift = format.mantissa + 2
    normal = tiny.choose(x * 2.0**lift, x)
    bits = normal.bits()
    start = int(np.asarray(math.sqrt(0.5), x.dtype).view(f"i{x.dtype.itemsize}"))
    exponent = x.integer("ashr", x.integer("sub", bits, start), format.mantissa)
    mantissa = x.from_bits(x.integer("sub", bits, x.integer("shl", exponent, format.mantissa)))
    shift = x.as_same(format.shift)
    raised = x.from_bits(x.integer("add", exponent, shift.bits())) - shift
    power = tiny.choose(raised - float(lift), raised)
    f = mantissa - 1.0
    s = f / (f + 2.0)
    z = s * s
    series = z * polynomial(z, [2 / (2 * term + 1) for term in range(format.log_terms, 0, -1)])
    half_square = f * f * 0.5
    low = s.multiply_add(half_square + series, power * format.ln2_low)
    result = power * format.ln2_high - ((half_square - low) - f)
    result = x.compare("oeq", 0.0).choose(x.as_same(-math.inf), result)
    result = x.compare("oeq", math.inf).choose(x, result)
    return x.compare("ult", 0.0).choose(x.as_same(math.nan), result)


def cosine_and_sine(x: Vector) -> tuple[Vector, Vector]:
    """Of angles of up to a few turns."""
    circle, sign_place = _CIRCLES[x.dtype], 8 * x.dtype.itemsize - 2
    shift = x.as_same(_FORMATS[x.dtype].shift)
    shifted = x.multiply_add(2 / math.pi, shift)
    quarters, count = shifted.bits(), shifted - shift
    rest = x
    for part in circle.quarter:
        rest = count.multiply_add(-part, rest)
    square = rest * rest
    signs = [(-1.0) ** power for power in range(circle.terms, 0, -1)]
    places = range(2 * circle.terms, 0, -2)
    of_cosine = [sign / math.factorial(place) for sign, place in zip(signs, places, strict=True)]
    of_sine = [sign / math.factorial(place + 1) for sign, place in zip(signs, places, strict=True)]
    cosine = polynomial(square, of_cosine).multiply_add(square, 1.0)
    sine = (polynomial(square, of_sine) * square).multiply_add(rest, rest)
    odd = x.integer("icmp ne", x.integer("and", quarters, 1), 0)
    is_odd = Vector(x.lines, odd, BOOL)

    def with_sign(vector: Vector, turned: str) -> Vector:
        """Negative in the second half of a turn."""
        sign = x.integer("shl", x.integer("and", turned, 2), sign_place)
        return x.from_bits(x.integer("xor", vector.bits(), sign))

    return (
        with_sign(is_odd.choose(sine, cosine), x.integer("add", quarters, 1)),
        with_sign(is_odd.choose(cosine, sine), quarters),
    )


def _reduced(x: Vector) -> tuple[str, Vector]:
    """n and r with x = n · ln 2 + r, |r| ≤ ½ ln 2; n as integers."""
    format = _FORMATS[x.dtype]
    shift = x.as_same(format.shift)
    shifted = x.multiply_add(1 / math.log(2), shift)
    exponent = x.integer("sub", shifted.bits(), shift.bits())
    return exponent, _rest(x, shifted - shift)


def _rest(x: Vector, count: Vector) -> Vector:
    """x - count · ln 2"""
    format = _FORMATS[x.dtype]
    return count.multiply_add(-format.ln2_low, count.multiply_add(-format.ln2_high, x))


def _series(rest: Vector) -> Vector:
    """The power series of exp."""
    terms = _FORMATS[rest.dtype].terms
    return polynomial(rest, [1 / math.factorial(power) for power in range(terms, -1, -1)])


def _power_of_two(x: Vector, exponent: str) -> Vector:
    format = _FORMATS[x.dtype]
    return x.from_bits(x.integer("shl", x.integer("add", exponent, format.bias), format.mantissa))
