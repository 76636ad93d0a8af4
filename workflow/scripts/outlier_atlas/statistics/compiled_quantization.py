"""What rounding takes from a tile, in compiled loops: see `compiled.py`.

Each row goes through all formats while the first cache holds it. Channels that are left as they
are, and what fills up the last block of a row, are zeros: they come back as they are from every
format, and raise no scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float32, Float64, Int32, Int64
from outlier_atlas.statistics.compiled import compiled, compiled_as_written
from outlier_atlas.statistics.formats import E2M1, E4M3, FORMATS, INT8, Element

Bool = NDArray[np.bool_]

NVFP4_BLOCK = 16
MX_BLOCK = 32
E8M0_LEAST = np.int32(0x00400000)
"""The bits of 2^-127."""

SIGN = np.int32(0x7FFFFFFF)
EXPONENT = np.int32(0x7F800000)
ZERO, ONE = np.float32(0), np.float32(1)


def maxima(x: Float32, kept: Bool) -> tuple[Int64, Float32]:
    """The tokens that count, all of whose values are finite, and each channel's largest |x| there.

    Args:
        x: (token, channel), contiguous in memory.
        kept: (token,): whether it may count.
    """
    there, by_channel = _maxima(x, kept)
    return np.flatnonzero(there), by_channel.view(np.float32)


def errors(x: Float32, tokens: Int64, by_channel: Float32, rounded: Bool) -> tuple[float, Float64]:
    """The sum of x^2; and (2, format): the sums of |e| and of e^2.

    Args:
        x: (token, channel), contiguous in memory.
        tokens: those that count.
        by_channel: (channel,): its largest |x| there.
        rounded: (channel,): the others are left as they are, and not in the sums.
    """
    channels = len(rounded)
    values = np.zeros(-(-channels // MX_BLOCK) * MX_BLOCK, np.float32)
    of_channels = np.zeros((1, len(values)), np.float32)
    of_channels[0, :channels] = np.where(rounded, by_channel, ZERO)
    blocks = values.view(np.int32).reshape(-1, NVFP4_BLOCK)
    of_blocks = np.empty((len(tokens), len(blocks)), np.int32)
    _block_maxima(x, tokens, rounded, values, blocks, of_blocks)
    scales = _scales(of_channels, of_blocks)
    largest, least, shift = zip(*map(_parameters, FORMATS.values()), strict=True)
    elements = np.array(largest), np.array(least), np.array(shift)
    square, sums = _errors(x, tokens, rounded, values, tuple(scales[f] for f in FORMATS), elements)
    return square, sums


def _scales(of_channels: Float32, of_blocks: Int32) -> dict[tuple[str, str], Float32]:
    """Of each format, (token or 1, scale): neighbouring channels share one, equally many each.

    Args:
        of_channels: (1, channel): the largest |x|.
        of_blocks: (token, block of 16): its bits.
    """
    whole = of_channels.max(keepdims=True)
    of_tokens = of_blocks.view(np.float32).max(axis=1, keepdims=True)
    return {
        ("int8", "tensor"): whole / INT8.largest,
        ("int8", "token"): of_tokens / INT8.largest,
        ("int8", "channel"): of_channels / INT8.largest,
        ("fp8_e4m3", "tensor"): whole / E4M3.largest,
        ("mxfp8", "block of 32"): _mx_scales(of_blocks, E4M3),
        ("mxfp4", "block of 32"): _mx_scales(of_blocks, E2M1),
        ("nvfp4", "block of 16"): _nvfp4_scales(of_blocks.view(np.float32), whole),
    }


def _mx_scales(of_blocks: Int32, element: Element) -> Float32:
    """2^(floor(log2 maximum) - the element's exponent) for two blocks of 16 together."""
    largest = np.maximum(of_blocks[:, ::2], of_blocks[:, 1::2])
    # The exponent bits are floor(log2) + 127. Subnormals, which have none, are far below the
    # smallest scale.
    bits: Int32 = ((largest >> 23) - np.int32(element.exponent)) << 23
    return np.maximum(bits, E8M0_LEAST).view(np.float32)


def _nvfp4_scales(of_blocks: Float32, whole: Float32) -> Float32:
    """The maximum / 6 of each block, rounded to e4m3 under a scale of the tensor's."""
    scales = of_blocks / E2M1.largest
    of_scales = whole[0, 0] / np.float32(E2M1.largest * E4M3.largest)
    _round(scales.ravel(), of_scales, _parameters(E4M3))
    return scales


def _parameters(element: Element) -> tuple[np.float32, np.int32, np.int32]:
    """What `_returned` takes of an element.

    It is passed: what is compiled is made again where its own file is another one, and no other.
    """
    return np.float32(element.largest), np.int32(element.least), np.int32(element.shift)


@compiled
def _maxima(x: Float32, kept: Bool) -> Any:
    rows, channels = x.shape
    bits = x.view(np.int32)
    there, by_channel = np.zeros(rows, np.bool_), np.zeros(channels, np.int32)
    for row in range(rows):
        largest = np.int32(0)
        for c in range(channels):
            largest = max(largest, np.int32(bits[row, c] & SIGN))
        there[row] = kept[row] and largest < EXPONENT
        if there[row]:
            for c in range(channels):
                by_channel[c] = max(by_channel[c], np.int32(bits[row, c] & SIGN))
    return there, by_channel


@compiled
def _block_maxima(
    x: Float32, tokens: Int64, rounded: Bool, values: Float32, blocks: Int32, of_blocks: Int32
) -> None:
    """Write the bits of the largest |x| that is rounded of each block.

    Args:
        values: (channel,): for a row, filled up with zeros.
        blocks: (block, channel): its bits.
        of_blocks: (token, block).
    """
    for row in range(len(tokens)):
        _take(x[tokens[row]], rounded, values)
        of_row = of_blocks[row]
        for block in range(len(blocks)):
            largest = np.int32(0)
            for c in range(blocks.shape[1]):
                largest = max(largest, np.int32(blocks[block, c] & SIGN))
            of_row[block] = largest


@compiled_as_written
def _round(values: Float32, scale: Any, element: Any) -> None:
    """Put what comes back of each value in its place."""
    for i in range(len(values)):
        values[i] = _returned(values[i], scale, element)


@compiled_as_written
def _errors(
    x: Float32, tokens: Int64, rounded: Bool, values: Float32, scales: Any, elements: Any
) -> Any:
    """Row by row, and format by format.

    Args:
        values: (channel,): for a row, filled up with zeros.
        scales: of each format, as `_scales` has them.
        elements: (format,) each: their `_parameters`.
    """
    largest, least, shift = elements
    spread, e = np.empty_like(values), np.empty_like(values)
    squares, sums = 0.0, np.zeros((2, len(scales)))
    for row in range(len(tokens)):
        _take(x[tokens[row]], rounded, values)
        squares += _sums(values)[1]
        for at in range(len(scales)):
            of_row = scales[at][min(row, len(scales[at]) - 1)]
            if len(of_row) < len(values):
                _spread(of_row, spread)
                of_row = spread
            _write_errors(values, of_row, (largest[at], least[at], shift[at]), e)
            absolute, square = _sums(e)
            sums[0, at] += absolute
            sums[1, at] += square
    return squares, sums


@compiled_as_written
def _take(x: Float32, rounded: Bool, values: Float32) -> None:
    """Write a row, 0 where it is not rounded."""
    for c in range(len(x)):
        values[c] = x[c] if rounded[c] else ZERO


@compiled_as_written
def _spread(scales: Float32, by_channel: Float32) -> None:
    """Write its scale for every channel."""
    together = len(by_channel) // len(scales)
    for at in range(len(scales)):
        for c in range(together):
            by_channel[at * together + c] = scales[at]


@compiled_as_written
def _write_errors(values: Float32, scales: Float32, element: Any, e: Float32) -> None:
    """Write what comes back minus what went in: exact, see `formats.exact_errors`."""
    for c in range(len(values)):
        e[c] = _returned(values[c], scales[c], element) - values[c]


@compiled_as_written
def _returned(value: Any, scale: Any, element: Any) -> Any:
    """What comes back of a value; see `formats.Element.round_`."""
    largest, least, shift = element
    quotient = value / (scale if scale > ZERO else ONE)
    held = np.float32(min(max(quotient, -largest), largest))
    exponent = max(np.int32(held.view(np.int32) & EXPONENT), least)
    magic = np.int32(exponent + shift).view(np.float32)
    return ((held + magic) - magic) * scale


@compiled
def _sums(e: Float32) -> tuple[float, float]:
    """Of |e| and of e^2."""
    absolute, square = 0.0, 0.0
    for c in range(len(e)):
        exact = np.float64(e[c])
        absolute += abs(exact)
        square += exact * exact
    return absolute, square
