"""The pass over a tile on the host: loops that are compiled when they are first called.

Each row goes through all of them while the first cache holds it. What is compiled is kept beside
Python's own bytecode, and made again where the source, numba or the processor is another one.

Magnitudes are compared as the bits of float32, which are in the order of the numbers where those
are not negative; -1 stands for what is NaN or infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import CODES, Float32, Float64, Int32
from outlier_atlas.statistics.one_pass import TOP, OnePass

UInt16 = NDArray[np.uint16]
Function = TypeVar("Function", bound=Callable[..., Any])

SIGN = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
NAN = np.int32(0x7FC00000)
NONE = np.int32(-1)

TOGETHER = 4096
"""Tokens that are counted in 32 bits, which cannot overflow with fewer than 2^19 channels: with
counts of 64 bits the caches hold half as many."""

WALK = 2
"""Ranks below the wanted one from which `_of_rank` goes from value to value."""

HALVE = 6
"""Every so many guesses, `_of_rank` halves what is left: it ends, whatever the values are."""


def compiled(function: Function) -> Function:
    """A function of numpy's arrays as machine code; other threads run beside it.

    It may add up in another order than is written, but always in the same one.
    """
    return _compiled(function, fastmath={"reassoc", "contract"})


def compiled_as_written(function: Function) -> Function:
    """The same, of which every operation rounds as it does in numpy."""
    return _compiled(function)


def _compiled(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return cast(Function, njit(cache=True, **options)(function))
    except RuntimeError:  # there is no folder to keep it in
        return cast(Function, njit(**options)(function))


def one_pass(x: Float32, floor: float) -> OnePass:
    """All that is found in a tile.

    Args:
        x: (token, channel), contiguous in memory.
        floor: see `Summary.floor`.
    """
    (nan, finite, magnitudes), top, counts, by_token, by_channel = _pass(x)
    token_channel, token_square, token_median, token_kurtosis = by_token
    channel_row, number, mean = by_channel
    token_value = _at(x, np.arange(len(x)), token_channel)
    rows, channels = _exceedances(x, np.abs(token_value), np.array([floor], np.float32))
    return OnePass(
        nan=nan,
        infinite=x.size - finite - nan,
        magnitudes=magnitudes,
        top=top[top >= 0].view(np.float32),
        code_counts=counts[:CODES],
        channel_value=_at(x, channel_row, np.arange(x.shape[1])),
        channel_row=channel_row,
        powers=np.stack([number, mean, *_powers(x, mean)]),
        token_value=token_value,
        token_channel=token_channel,
        token_square=token_square,
        token_median=token_median.view(np.float32),
        token_kurtosis=token_kurtosis,
        high_row=rows,
        high_channel=channels,
        high_value=x[rows, channels],
    )


def _at(x: Float32, rows: NDArray[Any], channels: NDArray[Any]) -> Float32:
    """The values at some places, NaN where there is none."""
    values = np.full(len(rows), np.nan, np.float32)
    there = (rows >= 0) & (channels >= 0)
    values[there] = x[rows[there], channels[there]]
    return values


@compiled
def _pass(x: Float32) -> Any:
    """Everything but what needs the means of the channels first."""
    rows, channels = x.shape
    bits = x.view(np.int32)
    a, codes, values = (
        np.empty(channels, np.int32),
        np.empty(channels, np.uint16),
        np.empty(channels),
    )
    counts, some = np.zeros(CODES + 1, np.int64), np.zeros(CODES + 1, np.int32)
    token_channel, token_median = np.empty(rows, np.int32), np.full(rows, NAN)
    token_square, token_kurtosis = np.empty(rows), np.empty(rows)
    largest, channel_row = np.full(channels, NONE), np.full(channels, NONE)
    number, total = np.zeros(channels), np.zeros(channels)
    top = np.full(TOP, NONE)
    nan, finite, magnitudes, median, gap = 0, 0, 0.0, 0, 1.0
    for row in range(rows):
        n = _magnitudes(bits[row], a)
        finite += n
        if n < channels:
            nan += _nans(bits[row])
        sum_of_values, sum_of_squares, sum_of_magnitudes = _sums(x[row], a, values)
        magnitudes += sum_of_magnitudes
        token_square[row] = sum_of_squares  # not from the moments: equal norms are to be equal
        token_kurtosis[row] = _kurtosis(a, values, sum_of_values / max(n, 1), n)
        token_channel[row] = _first_of_largest(a)
        if n and a[token_channel[row]] > top[-1]:
            _take_top(a, top)
        if n:
            # What is not finite has the lowest ranks.
            rank = channels - n + (n - 1) // 2
            median, gap = _of_rank(a, rank, median, gap)
            token_median[row] = median
        _count(a, codes, some)
        if row % TOGETHER == TOGETHER - 1 or row == rows - 1:
            counts += some
            some[:] = 0
        _add(a, values, number, total)
        _take_largest(a, row, largest, channel_row)
    by_token = (token_channel, token_square, token_median, token_kurtosis)
    by_channel = (channel_row, number, total / np.maximum(number, 1))
    return (nan, finite, magnitudes), top, counts, by_token, by_channel


@compiled
def _magnitudes(bits: Int32, a: Int32) -> int:
    """Write |x|, and count what is finite."""
    n = 0
    for c in range(len(a)):
        magnitude = bits[c] & SIGN
        finite = magnitude < INFINITY
        a[c] = magnitude if finite else NONE
        n += finite
    return n


@compiled
def _nans(bits: Int32) -> int:
    n = 0
    for c in range(len(bits)):
        n += (bits[c] & SIGN) > INFINITY
    return n


@compiled
def _sums(x: Float32, a: Int32, values: Float64) -> tuple[float, float, float]:
    """Write x in float64, 0 where it is not finite; the sums of x, of x^2 and of |x|."""
    plain, squares, magnitudes = 0.0, 0.0, 0.0
    for c in range(len(a)):
        value = np.float64(x[c]) if a[c] >= 0 else 0.0
        values[c] = value
        plain += value
        squares += value * value
        magnitudes += abs(value)
    return plain, squares, magnitudes


@compiled
def _kurtosis(a: Int32, values: Float64, mean: float, n: int) -> float:
    """mu4 / sigma^4; NaN where all are equal."""
    m2, m4 = 0.0, 0.0
    for c in range(len(a)):
        distance = values[c] - mean if a[c] >= 0 else 0.0
        square = distance * distance
        m2 += square
        m4 += square * square
    return n * m4 / (m2 * m2)


@compiled
def _first_of_largest(a: Int32) -> int:
    """Its channel, -1 where none is finite."""
    largest = NONE
    for c in range(len(a)):
        largest = max(largest, a[c])
    if largest < 0:
        return -1
    first = 0
    while a[first] != largest:
        first += 1
    return first


@compiled
def _take_top(a: Int32, top: Int32) -> None:
    """Keep the largest, descending."""
    for c in range(len(a)):
        if a[c] > top[-1]:
            place = len(top) - 1
            while place and a[c] > top[place - 1]:
                top[place] = top[place - 1]
                place -= 1
            top[place] = a[c]


@compiled
def _count(a: Int32, codes: UInt16, counts: Int32) -> None:
    """Count the bfloat16 codes, see `codes.bfloat16_codes`; what is not finite becomes the last."""
    for c in range(len(a)):
        code = (a[c] + 0x7FFF + ((a[c] >> 16) & 1)) >> 16
        codes[c] = code if a[c] >= 0 else CODES
    for c in range(len(a)):
        counts[codes[c]] += 1


@compiled
def _add(a: Int32, values: Float64, number: Float64, total: Float64) -> None:
    for c in range(len(a)):
        number[c] += a[c] >= 0
        total[c] += values[c]


@compiled
def _take_largest(a: Int32, row: int, largest: Int32, channel_row: Int32) -> None:
    for c in range(len(a)):
        if a[c] > largest[c]:
            largest[c] = a[c]
            channel_row[c] = row


@compiled
def _of_rank(a: Int32, rank: int, guess: int, gap: float) -> tuple[int, float]:
    """The value that as many others precede as `rank` says.

    Counting what lies below a guess takes a fraction of what sorting takes, and from the median of
    the row before it takes only a few guesses.

    Args:
        guess: where to begin.
        gap: distance between values of neighbouring ranks, roughly.

    Returns:
        The value, and the gap that was found.
    """
    low, high = 0, int(INFINITY)  # the value is in [low, high)
    below_low, below_high = -1, len(a)
    guesses = 0
    while high - low > 1 and not 0 <= rank - below_low <= WALK:
        guess = min(max(guess, low + 1), high - 1)
        below = _below(a, guess)
        if below <= rank:
            low, below_low = guess, below
        else:
            high, below_high = guess, below
        guesses += 1
        if guesses % HALVE == 0:
            guess = low + (high - low) // 2
        elif below_low >= 0 and below_high < len(a):
            between = (high - low) / (below_high - below_low)
            gap += (between - gap) / 16
            guess = low + int(between * (rank - below_low - WALK / 2))
        else:
            guess += int(gap * (rank - below - WALK / 2))
    value = _least(a, low)
    while _below(a, value + 1) <= rank:
        value = _least(a, value + 1)
    return value, gap


@compiled
def _below(a: Int32, bound: int) -> int:
    n = np.int32(0)
    limit = np.int32(bound)
    for c in range(len(a)):
        n += np.int32(a[c] < limit)
    return int(n)


@compiled
def _least(a: Int32, bound: int) -> int:
    """The least that is not below a bound."""
    least = INFINITY
    limit = np.int32(bound)
    for c in range(len(a)):
        least = min(least, a[c] if a[c] >= limit else INFINITY)
    return int(least)


@compiled
def _powers(x: Float32, mean: Float64) -> tuple[Float64, Float64, Float64]:
    """(channel,): the sums of powers of the distances from the mean."""
    rows, channels = x.shape
    bits = x.view(np.int32)
    m2, m3, m4 = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for row in range(rows):
        for c in range(channels):
            finite = (bits[row, c] & SIGN) < INFINITY
            distance = np.float64(x[row, c]) - mean[c] if finite else 0.0
            square = distance * distance
            m2[c] += square
            m3[c] += square * distance
            m4[c] += square * square
    return m2, m3, m4


@compiled
def _exceedances(x: Float32, largest: Float32, floor: Float32) -> tuple[Int32, Int32]:
    """(exceedance,): rows and channels, by row.

    Args:
        largest: (token,): |x|; NaN where there is none.
        floor: (1,).
    """
    bits, least = x.view(np.int32), floor.view(np.int32)[0]
    counts = np.empty(len(x), np.int32)
    for row in range(len(x)):
        counts[row] = _count_high(bits[row], least) if largest[row] >= floor[0] else 0
    high_row, high_channel = np.empty(counts.sum(), np.int32), np.empty(counts.sum(), np.int32)
    found = 0
    for row in range(len(x)):
        channel, last = 0, found + counts[row]
        while found < last:
            if least <= bits[row, channel] & SIGN < INFINITY:
                high_row[found], high_channel[found] = row, channel
                found += 1
            channel += 1
    return high_row, high_channel


@compiled
def _count_high(bits: Int32, least: np.int32) -> int:
    n = np.int32(0)
    for c in range(len(bits)):
        magnitude = bits[c] & SIGN
        n += np.int32((magnitude >= least) & (magnitude < INFINITY))
    return int(n)
