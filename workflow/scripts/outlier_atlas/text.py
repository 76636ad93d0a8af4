"""Formatting of numbers and foreign text for readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from outlier_atlas.sanitize import visible


def quoted(text: str | None) -> str:
    """Return the text of a token in quotation marks, for a sentence."""
    return f"“{visible(text)}”" if text else "without text"


def number(value: float) -> str:
    """Return a number with at least four significant digits: 23,808, 31.5, 0.01234."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def times(ratio: float) -> str:
    """Return a ratio; one close to 1 has two significant digits of its difference from 1.

    So only 1 itself is `1`.
    """
    difference = abs(ratio - 1)
    if not 0 < difference < 0.01:
        return number(ratio)
    return f"{ratio:.{1 - math.floor(math.log10(difference))}f}"


def interval(row: Mapping[str, Any], name: str, show: Callable[[float], str]) -> str:
    """Return the interval over sequences of a number: `170 to 179`; empty if it has none."""
    low, high = (row[f"{name}_{end}"] for end in ("low", "high"))
    return "" if low is None else f"{show(low).removesuffix(' %')} to {show(high)}"


def spanned(row: Mapping[str, Any], name: str, show: Callable[[float], str]) -> str:
    """Return a magnitude with its interval over sequences, if any: `179 (170 to 179)`."""
    return "none" if row[name] is None else show(abs(row[name])) + bracketed(row, name, show)


def bracketed(row: Mapping[str, Any], name: str, show: Callable[[float], str]) -> str:
    """Return the interval of a number in brackets, to follow the number; empty if it has none."""
    ends = interval(row, name, show)
    return f" ({ends})" if ends else ""


def percent(share: float) -> str:
    """Return a share in %, rounded so that only 1 gives 100 % and only 0 gives 0 %."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    return f"{min(max(share * 100, 0.01), 99.99):.3g} %" if share < 0.9995 else "over 99.9 %"


def percentage(hundredths: float) -> str:
    """Return a number of percent in the format of `percent`."""
    return percent(hundredths / 100)


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 channel`, `4,096 channels`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as ascending ranges: `2, 5 and 7 to 9`."""
    ordered = sorted(set(numbers))
    breaks = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(ordered)) if b != a + 1), len(ordered)]
    runs = [ordered[a:b] for a, b in pairwise(breaks)]
    return listed(
        part
        for run in runs
        for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))
    )


def listed(parts: Iterable[str]) -> str:
    """Return a list as text: `a`, `a and b`, `a, b and c`."""
    *most, last = [*parts] or ["none"]
    return f"{', '.join(most)} and {last}" if most else last


def layers(numbers: Iterable[int]) -> str:
    """Return layers as text: `layer 3`, `layers 11 to 28`."""
    ordered = sorted(set(numbers))
    return f"{'layer' if len(ordered) == 1 else 'layers'} {ranges(ordered)}"


def channels(numbers: Iterable[int], most: int = 8) -> str:
    """Return channels as text: `channel 7`, `channels 14 and 507`, `channels 1, 2 and 40 more`."""
    ordered = list(dict.fromkeys(numbers))
    word = "channel" if len(ordered) == 1 else "channels"
    if len(ordered) <= most:
        return f"{word} {listed(map(str, ordered))}"
    return f"{word} {', '.join(map(str, ordered[:most]))} and {len(ordered) - most:,} more"


def shown(total: int, rows: int, noun: str) -> str:
    """Return the note under a table that does not show all of its rows; empty if it does."""
    if total <= rows:
        return ""
    return f"The first {rows:,} of {count(total, noun)} are shown; the table has them all."
