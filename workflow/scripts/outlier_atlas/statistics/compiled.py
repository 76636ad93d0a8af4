"""The pass over a tile on the host: loops that numba compiles at their first call.

Each row passes through all loops while it is in the first cache. Compiled code is cached next to
Python's bytecode, and rebuilt if this file, numba or the processor changes. So all loops of the
pass are in one file. A change to a constant from another file (`CODES`, `NOT_FINITE`, `TOP`) also
requires a change to this file.

Magnitudes are compared as the bits of float32, whose order is that of the non-negative numbers; -1
stands for NaN and infinity.

The count of a row is explicitly kept in 32 bits, `np.int32(n + ...)`. Sums of numba have 64 bits,
and the processor then adds half as many at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.compiling import compiled
from outlier_atlas.statistics.codes import CODES, NOT_FINITE, Float32, Float64, Int32, Int64
from outlier_atlas.statistics.one_pass import TOP, OnePass

UInt16 = NDArray[np.uint16]

SIGN = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
NAN = np.int32(0x7FC00000)
NONE = np.int32(-1)
LOW_BITS = np.int32(0x7FFF)
"""The bits of a magnitude that rounding to a code removes."""

TOGETHER = 4096
"""Number of tokens that are counted in 32 bits, which cannot overflow below 2^19 channels.

The caches hold half as many counts of 64 bits.
"""

WALK = 2
"""Maximum number of ranks that are passed value by value to reach the requested rank."""

HALVE = 6
"""Number of guesses after which `_bracket` bisects once, so that it ends soon for any values."""

BLOCK = 64
"""Number of channels that are searched together for a value."""


def one_pass(x: Float32, floor: float) -> OnePass:
    """Return the results of the pass over a tile.

    Args:
        x: (token, channel), contiguous in memory.
        floor: least |x| of an exceedance, see `Summary.floor`.
    """
    least = np.float32(floor).view(np.int32)
    codes, tokens, channels, top = _Codes.of(x), _Tokens.of(x), _Channels.of(x), np.full(TOP, NONE)
    nan, finite, magnitudes, low_bits = _pass(x, least, codes, tokens, channels, top)
    counts = codes.many if len(codes.many) else codes.some
    occurring = np.flatnonzero(counts[:NOT_FINITE])
    high_row, high_channel, high_value = _exceedances(x, tokens.high, tokens.channel, least)
    return OnePass(
        nan=nan,
        infinite=x.size - finite - nan,
        magnitudes=magnitudes,
        top=top[top >= 0].view(np.float32),
        codes=occurring.astype(np.uint16),
        code_counts=counts[occurring].astype(np.int64, copy=False),
        codes_are_exact=not low_bits,
        channel_value=channels.value,
        channel_row=channels.row,
        channel_count=len(x) - channels.missing,
        channel_mean=channels.mean,
        channel_m2=channels.m2,
        channel_m3=channels.m3,
        channel_m4=channels.m4,
        token_value=tokens.value,
        token_channel=tokens.channel,
        token_square=tokens.square,
        token_median=tokens.median.view(np.float32),
        token_kurtosis=tokens.kurtosis,
        high_row=high_row,
        high_channel=high_channel,
        high_value=high_value,
    )


# numpy makes the arrays of the pass, because numba takes seconds to compile the allocations.


class _Codes(NamedTuple):
    """Codes of a row, and counts of codes: of some rows in 32 bits, and of many rows."""

    row: UInt16
    some: Int32
    many: Int64

    @classmethod
    def of(cls, x: Float32) -> _Codes:
        rows, channels = x.shape
        some, many = np.zeros(CODES, np.int32), np.zeros(CODES * (rows > TOGETHER), np.int64)
        return cls(np.empty(channels, np.uint16), some, many)


class _Tokens(NamedTuple):
    """Results by token, (token,) each; `high` is the number of exceedances."""

    value: Float32
    channel: Int32
    median: Int32
    high: Int32
    square: Float64
    kurtosis: Float64

    @classmethod
    def of(cls, x: Float32) -> _Tokens:
        rows = len(x)
        return cls(
            np.empty(rows, np.float32), np.empty(rows, np.int32), np.full(rows, NAN),
            np.zeros(rows, np.int32), np.empty(rows), np.empty(rows),
        )  # fmt: skip


class _Channels(NamedTuple):
    """Results by channel, (channel,) each, after two buffers for a row."""

    magnitudes: Int32
    values: Float64
    value: Float32
    largest: Int32
    row: Int32
    missing: Int64
    total: Float64
    mean: Float64
    m2: Float64
    m3: Float64
    m4: Float64

    @classmethod
    def of(cls, x: Float32) -> _Channels:
        channels = x.shape[1]
        return cls(
            np.empty(channels, np.int32), np.empty(channels), np.empty(channels, np.float32),
            np.full(channels, NONE), np.full(channels, NONE), np.zeros(channels, np.int64),
            np.zeros(channels), np.empty(channels), *np.zeros((3, channels)),
        )  # fmt: skip


@compiled
def code_counts(x: Float32) -> Int64:
    """Return the count of each code among the finite values, (CODES,)."""
    rows, channels = x.shape
    bits = x.view(np.int32)
    a, codes = np.empty(channels, np.int32), np.empty(channels, np.uint16)
    some, counts = np.zeros(CODES, np.int32), np.zeros(CODES, np.int64)
    for row in range(rows):
        _magnitudes(bits[row], a)
        _count(a, codes, some)
        if row % TOGETHER == TOGETHER - 1 or row == rows - 1:
            counts += some
            some[:] = 0
    counts[NOT_FINITE] = 0
    return counts


@compiled
def bits_within(x: Float32, first: np.int32, stop: np.int32) -> Int32:
    """Return the bits of |x| that are in [first, stop), in any order."""
    rows, channels = x.shape
    bits = x.view(np.int32)
    counts = np.zeros(rows, np.int32)
    for row in range(rows):
        n = np.int32(0)
        for c in range(channels):
            magnitude = bits[row, c] & SIGN
            n = np.int32(n + ((first <= magnitude) & (magnitude < stop)))
        counts[row] = n
    index, within = 0, np.empty(counts.sum(), np.int32)
    for row in range(rows):
        last, channel = index + counts[row], 0
        while index < last:
            magnitude = bits[row, channel] & SIGN
            if first <= magnitude < stop:
                within[index] = magnitude
                index += 1
            channel += 1
    return within


@compiled
def _pass(
    x: Float32, least: np.int32, codes: _Codes, tokens: _Tokens, channels: _Channels, top: Int32
) -> tuple[int, int, float, int]:
    """Run the whole pass in one call, so that the interpreter lock is released and taken once.

    Args:
        least: the float32 bits of the floor.
        codes, tokens, channels: the results that the pass writes.
        top: the largest magnitudes, descending.

    Returns:
        The number of NaN and of finite values, the sum of |x|, and whether a low bit is set.
    """
    rows, width = x.shape
    bits = x.view(np.int32)
    a, many = channels.magnitudes, rows > TOGETHER
    nan, finite, magnitudes, gap, low_bits = 0, 0, 0.0, 1.0, np.int32(0)
    code = int(np.int64(0))  # a literal has a type of its own, so the median would compile twice
    for row in range(rows):
        n = _magnitudes(bits[row], a)
        finite += n
        low_bits_of_row = np.int32(_set_bits(bits[row]) & LOW_BITS)
        low_bits |= low_bits_of_row
        if n < width:
            nan += _nans(bits[row])
            _add_missing(a, channels.missing)
        plain, squares, absolute = _sums(x[row], a, channels.values, channels.total)
        magnitudes += absolute
        tokens.square[row] = squares  # not from the moments, so that equal norms stay equal
        tokens.kurtosis[row] = _kurtosis(a, channels.values, plain / max(n, 1), n)
        first = _first_of_largest(a)
        tokens.channel[row], tokens.value[row] = first, x[row, first] if n else np.nan
        if n and a[first] > top[-1]:
            _take_top(a, top)
        if n and a[first] >= least:
            tokens.high[row] = _count_high(a, least)
        _count(a, codes.row, codes.some)
        if n:
            exact = low_bits_of_row == 0
            median, code, gap = _lower_median(a, codes.row, n, code, gap, exact)
            tokens.median[row] = median
        if many and (row % TOGETHER == TOGETHER - 1 or row == rows - 1):
            for c in range(CODES):
                codes.many[c] += codes.some[c]
                codes.some[c] = 0
        _take_largest(a, row, channels.largest, channels.row)
    for c in range(width):
        largest = channels.row[c]
        channels.value[c] = x[largest, c] if largest >= 0 else np.nan
        channels.mean[c] = channels.total[c] / max(rows - channels.missing[c], 1)
    _powers(x, channels.mean, channels.m2, channels.m3, channels.m4)
    return nan, finite, magnitudes, int(low_bits)


@compiled
def _set_bits(bits: Int32) -> np.int32:
    """Return the bits that are set in any of the values."""
    union = np.int32(0)
    for c in range(len(bits)):
        union |= bits[c]
    return union


@compiled
def _magnitudes(bits: Int32, a: Int32) -> int:
    """Write |x| to `a`, and return the number of finite values."""
    n = np.int32(0)
    for c in range(len(a)):
        magnitude = bits[c] & SIGN
        finite = magnitude < INFINITY
        a[c] = magnitude if finite else NONE
        n = np.int32(n + finite)
    return int(n)


@compiled
def _nans(bits: Int32) -> int:
    n = 0
    for c in range(len(bits)):
        n += (bits[c] & SIGN) > INFINITY
    return n


@compiled
def _sums(x: Float32, a: Int32, values: Float64, total: Float64) -> tuple[float, float, float]:
    """Write x in float64 to `values`, add it to the channels' sums `total`, and return sums.

    Values that are not finite count as 0.

    Returns:
        The sums of x, of x^2 and of |x|.
    """
    plain, squares, magnitudes = 0.0, 0.0, 0.0
    for c in range(len(a)):
        value = np.float64(x[c]) if a[c] >= 0 else 0.0
        values[c] = value
        total[c] += value
        plain += value
        squares += value * value
        magnitudes += abs(value)
    return plain, squares, magnitudes


@compiled
def _kurtosis(a: Int32, values: Float64, mean: float, n: int) -> float:
    """Return mu4 / sigma^4; NaN if all values are equal."""
    m2, m4 = 0.0, 0.0
    for c in range(len(a)):
        distance = values[c] - mean if a[c] >= 0 else 0.0
        square = distance * distance
        m2 += square
        m4 += square * square
    return n * m4 / (m2 * m2)


@compiled
def _first_of_largest(a: Int32) -> int:
    """Return the first channel with the largest magnitude; -1 if none is finite."""
    largest = NONE
    for c in range(len(a)):
        largest = np.int32(max(largest, a[c]))
    if largest < 0:
        return -1
    first = 0
    while not _among(a[first : first + BLOCK], largest):
        first += BLOCK
    while a[first] != largest:
        first += 1
    return first


@compiled
def _among(a: Int32, value: np.int32) -> bool:
    present = False
    for c in range(len(a)):
        present |= a[c] == value
    return present


@compiled
def _take_top(a: Int32, top: Int32) -> None:
    """Insert the values into `top`, the largest magnitudes, descending."""
    for c in range(len(a)):
        if a[c] > top[-1]:
            index = len(top) - 1
            while index and a[c] > top[index - 1]:
                top[index] = top[index - 1]
                index -= 1
            top[index] = a[c]


@compiled
def _count(a: Int32, codes: UInt16, counts: Int32) -> None:
    """Write the codes and count them; see `codes.magnitude_codes`."""
    for c in range(len(a)):
        code = (a[c] + 0x3FFF + ((a[c] >> 15) & 1)) >> 15
        codes[c] = code if a[c] >= 0 else NOT_FINITE
    for c in range(len(a)):
        counts[codes[c]] += 1


@compiled
def _add_missing(a: Int32, missing: Int64) -> None:
    for c in range(len(a)):
        missing[c] += a[c] < 0


@compiled
def _take_largest(a: Int32, row: int, largest: Int32, channel_row: Int32) -> None:
    # Everything is written again, because masked stores of vectors take ten times as long on some
    # processors.
    this = np.int32(row)
    for c in range(len(a)):
        earlier = largest[c]
        largest[c] = max(a[c], earlier)
        channel_row[c] = this if a[c] > earlier else channel_row[c]


@compiled
def _lower_median(
    a: Int32, codes: UInt16, n: int, guess: int, gap: float, exact: bool
) -> tuple[np.int32, int, float]:
    """Return the lower of the two middle finite values.

    Counting the values below a guess takes a fraction of the time of sorting, and counting codes
    half of the time of counting values. Starting from the median of the previous row takes only a
    few guesses.

    Args:
        n: number of finite values.
        guess: code to begin with.
        gap: approximate distance between codes of neighbouring ranks.
        exact: whether every code stands for one value, as in bfloat16.

    Returns:
        The value, its code or a code near it, and the updated gap.
    """
    rank = (n - 1) // 2
    low, below, high, above, gap = _bracket(codes, rank, (0, 0, NOT_FINITE, n), guess, gap)
    if exact:
        # Codes need half the memory of values, and those that are not finite come last.
        code = low if high - low == 1 else _code_of(codes, rank, low)
        return np.int32(code << 15), low, gap
    missing = len(a) - n  # values that are not finite are -1 and precede the others
    first = _first_of_code(low)
    value = _from(a, rank + missing, first, WALK + 1)
    if value < 0:  # many values have this code
        bracket = first, below + missing, _first_of_code(high), above + missing
        first = _bracket(a, rank + missing, bracket, -1, gap)[0]
        value = _from(a, rank + missing, first, len(a))
    return value, low, gap


@compiled
def _code_of(codes: UInt16, rank: int, bound: int) -> int:
    """Return the code of a rank, going up from a bound that is at most `WALK` ranks below it."""
    while True:
        n, following, limit = np.int32(0), np.uint16(NOT_FINITE), np.uint16(bound)
        for c in range(len(codes)):
            n = np.int32(n + (codes[c] <= limit))
            beyond = codes[c] if codes[c] > limit else np.uint16(NOT_FINITE)
            following = np.uint16(min(following, beyond))
        if n > rank:
            return bound
        bound = int(following)


@compiled
def _first_of_code(code: int) -> int:
    """Return the bits of the least magnitude that is rounded to a code.

    The midpoint between two codes is rounded to the even code.
    """
    return max((code << 15) - 0x4000 + (code & 1), 0)


@compiled
def _bracket(
    a: Int32 | UInt16, rank: int, bracket: tuple[int, int, int, int], guess: int, gap: float
) -> tuple[int, int, int, int, float]:
    """Narrow a bracket around the value of a rank.

    Args:
        rank: number of values that precede the value.
        bracket: a bound that is not above the value, the number of values below this bound, a bound
            above the value, and the number of values below that bound.
        guess: bound to begin with; -1 if the bounds are near.
        gap: approximate distance between values of neighbouring ranks.

    Returns:
        A bracket with at most `WALK` values before the value, or of a single value; and the updated
        gap.
    """
    low, below, high, above = bracket
    low_is_near = high_is_near = guess < 0
    guesses = 0
    while high - low > 1 and not (low_is_near and rank - below <= WALK):
        guesses += 1
        if guesses % HALVE == 0:
            guess = low + (high - low) // 2
        elif low_is_near and high_is_near:
            between = (high - low) / (above - below)
            gap += (between - gap) / 16
            guess = low + int(between * (rank - below - WALK / 2))
        guess = min(max(guess, low + 1), high - 1)
        count = _below(a, guess)
        if count <= rank:
            low, below, low_is_near = guess, count, True
        else:
            high, above, high_is_near = guess, count, True
        guess += int(gap * (rank - count - WALK / 2))
    return low, below, high, above, gap


@compiled
def _from(a: Int32, rank: int, bound: int, steps: int) -> np.int32:
    """Return the value of a rank, going up from a bound below it; -1 after too many steps."""
    below, value = _below_and_least(a, bound)
    for _ in range(steps):
        if below == rank:
            return value
        beyond, following = _below_and_least(a, int(value) + 1)
        if beyond > rank:
            return value
        below, value = beyond, following
    return NONE


@compiled
def _below(a: Int32 | UInt16, bound: int) -> int:
    n = np.int32(0)
    limit = a.dtype.type(bound)
    for c in range(len(a)):
        n = np.int32(n + (a[c] < limit))
    return int(n)


@compiled
def _below_and_least(a: Int32, bound: int) -> tuple[int, np.int32]:
    """Return the number of values below a bound, and the least value that is not below it."""
    n, least = np.int32(0), INFINITY
    limit = np.int32(bound)
    for c in range(len(a)):
        n = np.int32(n + (a[c] < limit))
        least = np.int32(min(least, a[c] if a[c] >= limit else INFINITY))
    return int(n), least


@compiled
def _powers(x: Float32, mean: Float64, m2: Float64, m3: Float64, m4: Float64) -> None:
    """Add the second to fourth powers of the deviations to sums, (channel,) each."""
    rows, channels = x.shape
    bits = x.view(np.int32)
    fours = rows - rows % 4
    for row in range(0, fours, 4):  # four rows at once read and write the sums only once
        for c in range(channels):
            d2, d3, d4 = 0.0, 0.0, 0.0
            for four in range(4):
                distance = _distance(x[row + four, c], bits[row + four, c], mean[c])
                square = distance * distance
                d2, d3, d4 = d2 + square, d3 + square * distance, d4 + square * square
            m2[c], m3[c], m4[c] = m2[c] + d2, m3[c] + d3, m4[c] + d4
    for row in range(fours, rows):
        for c in range(channels):
            distance = _distance(x[row, c], bits[row, c], mean[c])
            square = distance * distance
            m2[c] += square
            m3[c] += square * distance
            m4[c] += square * square


@compiled
def _distance(value: np.float32, bits: np.int32, mean: float) -> float:
    return np.float64(value) - mean if bits & SIGN < INFINITY else 0.0


@compiled
def _exceedances(
    x: Float32, counts: Int32, channels: Int32, least: np.int32
) -> tuple[Int32, Int32, Float32]:
    """Return rows, channels and values of the exceedances, ordered by row, (exceedance,) each.

    Args:
        counts: (token,): number of exceedances of the token.
        channels: (token,): channel of the token's largest |x|.
        least: the float32 bits of the floor.
    """
    bits, number = x.view(np.int32), 0
    for row in range(len(x)):
        number += counts[row]
    high_rows, high_channels = np.empty(number, np.int32), np.empty(number, np.int32)
    values = np.empty(number, np.float32)
    index = 0
    for row in range(len(x)):
        last = index + counts[row]
        # Most rows with exceedances have only one, the largest value.
        channel = channels[row] if counts[row] == 1 else 0
        while index < last:
            if least <= bits[row, channel] & SIGN < INFINITY:
                high_rows[index], high_channels[index] = row, channel
                values[index] = x[row, channel]
                index += 1
            channel += 1
    return high_rows, high_channels, values


@compiled
def _count_high(a: Int32, least: np.int32) -> int:
    n = np.int32(0)
    for c in range(len(a)):
        n = np.int32(n + (a[c] >= least))
    return int(n)
