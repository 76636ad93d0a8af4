"""Ticks of axes, and the numbers next to them."""

from __future__ import annotations

import math

MOST = 8
"""Maximum number of labelled ticks of a value axis, roughly."""


def labelled(value: float) -> str:
    """Return a number of an axis: 1,000,000 and 0.01, without exponents."""
    return f"{value:,.12g}"


def linear(low: float, high: float, most: int = MOST) -> list[float]:
    """Return ticks at multiples of 1, 2 or 5 times a power of ten, within a range."""
    step = _step((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def whole(low: float, high: float, most: int = 10) -> list[int]:
    """Return ticks at whole numbers within a range."""
    step = max(1, round(_step((high - low) / most)))
    return list(range(-(-math.ceil(low) // step) * step, math.floor(high) + 1, step))


def logarithmic(low: float, high: float) -> list[float]:
    """Return ticks at powers of ten within a range, and between them if there are few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, -(-(last - first) // MOST))
    powers = [10.0**power for power in range(first, last + 1, step)]
    if len(powers) > 2:
        return powers
    between = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
    between = [value for value in between if low <= value <= high]
    return between if len(between) > 1 else linear(low, high)


def _step(least: float) -> float:
    """Return the smallest step of 1, 2 or 5 times a power of ten that is not below a number."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
