"""Quantization errors of a tile, in compiled loops; see `compiled.py`.

Each row passes through all formats while it is in the first cache. Channels that are not quantized,
and the padding of the last block of a row, are zeros. Every format returns a zero exactly, and a
zero increases no scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.compiling import compiled, compiled_as_written
from outlier_atlas.statistics.codes import Float32, Float64, Int32, Int64
from outlier_atlas.statistics.elements import E2M1, E4M3, FORMATS, INT8, Element

Bool = NDArray[np.bool_]

NVFP4_BLOCK = 16
MX_BLOCK = 32
E8M0_LEAST = np.int32(0x00400000)
"""The bits of 2^-127."""

SIGN = np.int32(0x7FFFFFFF)
EXPONENT = np.int32(0x7F800000)
ZERO, ONE = np.float32(0), np.float32(1)


def maxima(x: Float32, included: Bool) -> tuple[Int64, Float32]:
    """Return the included tokens without non-finite values, and each channel's largest |x| in them.

    Args:
        x: (token, channel), contiguous in memory.
        included: (token,): whether the token is included.
    """
    finite, by_channel = _maxima(x, included)
    return np.flatnonzero(finite), by_channel.view(np.float32)


def errors(x: Float32, tokens: Int64, by_channel: Float32, rounded: Bool) -> tuple[float, Float64]:
    """Return the sum of x^2, and the sums of |e| and of e^2, (2, format).

    Args:
        x: (token, channel), contiguous in memory.
        tokens: indices of the tokens that are included.
        by_channel: (channel,): the largest |x| of each channel in these tokens.
        rounded: (channel,): whether the channel is quantized; the sums exclude other channels.
    """
    channels = len(rounded)
    values = np.zeros(-(-channels // MX_BLOCK) * MX_BLOCK, np.float32)
    channel_maxima = np.zeros((1, len(values)), np.float32)
    channel_maxima[0, :channels] = np.where(rounded, by_channel, ZERO)
    blocks = values.view(np.int32).reshape(-1, NVFP4_BLOCK)
    block_maxima = np.empty((len(tokens), len(blocks)), np.int32)
    _block_maxima(x, tokens, rounded, values, blocks, block_maxima)
    scales = _scales(channel_maxima, block_maxima)
    largest, least, shift = zip(*map(_parameters, FORMATS.values()), strict=True)
    elements = np.array(largest), np.array(least), np.array(shift)
    square, sums = _errors(x, tokens, rounded, values, tuple(scales[f] for f in FORMATS), elements)
    return square, sums


def _scales(channel_maxima: Float32, block_maxima: Int32) -> dict[tuple[str, str], Float32]:
    """Return the scales of each format, (token or 1, scale).

    A scale is shared by neighbouring channels, the same number for each scale.

    Args:
        channel_maxima: (1, channel): the largest |x| of each channel.
        block_maxima: (token, block of 16): the float32 bits of the largest |x| of each block.
    """
    tensor_maximum = channel_maxima.max(keepdims=True)
    token_maxima = block_maxima.view(np.float32).max(axis=1, keepdims=True)
    return {
        ("int8", "tensor"): tensor_maximum / INT8.largest,
        ("int8", "token"): token_maxima / INT8.largest,
        ("int8", "channel"): channel_maxima / INT8.largest,
        ("fp8_e4m3", "tensor"): tensor_maximum / E4M3.largest,
        ("mxfp8", "block of 32"): _mx_scales(block_maxima, E4M3),
        ("mxfp4", "block of 32"): _mx_scales(block_maxima, E2M1),
        ("nvfp4", "block of 16"): _nvfp4_scales(block_maxima.view(np.float32), tensor_maximum),
    }


def _mx_scales(block_maxima: Int32, element: Element) -> Float32:
    """Return 2^(floor(log2 maximum) - the element's exponent) for pairs of blocks of 16."""
    largest = np.maximum(block_maxima[:, ::2], block_maxima[:, 1::2])
    # The exponent bits are floor(log2) + 127. Those of subnormals are zero, but subnormals are far
    # below the smallest scale.
    bits: Int32 = ((largest >> 23) - np.int32(element.exponent)) << 23
    return np.maximum(bits, E8M0_LEAST).view(np.float32)


def _nvfp4_scales(block_maxima: Float32, tensor_maximum: Float32) -> Float32:
    """Return the maximum / 6 of each block, rounded to e4m3 under the scale of the tensor."""
    scales = block_maxima / E2M1.largest
    tensor_scale = tensor_maximum[0, 0] / np.float32(E2M1.largest * E4M3.largest)
    _round(scales.ravel(), tensor_scale, _parameters(E4M3))
    return scales


def _parameters(element: Element) -> tuple[np.float32, np.int32, np.int32]:
    """Return the parameters of an element for `_returned`.

    They are passed as arguments, because compiled code is rebuilt only if its own file changes.
    """
    return np.float32(element.largest), np.int32(element.least), np.int32(element.shift)


@compiled
def _maxima(x: Float32, included: Bool) -> Any:
    rows, channels = x.shape
    bits = x.view(np.int32)
    finite, by_channel = np.zeros(rows, np.bool_), np.zeros(channels, np.int32)
    for row in range(rows):
        largest = np.int32(0)
        for c in range(channels):
            largest = max(largest, np.int32(bits[row, c] & SIGN))
        finite[row] = included[row] and largest < EXPONENT
        if finite[row]:
            for c in range(channels):
                by_channel[c] = max(by_channel[c], np.int32(bits[row, c] & SIGN))
    return finite, by_channel


@compiled
def _block_maxima(
    x: Float32, tokens: Int64, rounded: Bool, values: Float32, blocks: Int32, maxima: Int32
) -> None:
    """Write the float32 bits of the largest quantized |x| of each block to `maxima`.

    Args:
        values: (channel,): buffer for a row, padded with zeros.
        blocks: (block, channel): the bits of that buffer.
        maxima: (token, block): the output.
    """
    for row in range(len(tokens)):
        _take(x[tokens[row]], rounded, values)
        row_maxima = maxima[row]
        for block in range(len(blocks)):
            largest = np.int32(0)
            for c in range(blocks.shape[1]):
                largest = max(largest, np.int32(blocks[block, c] & SIGN))
            row_maxima[block] = largest


@compiled_as_written
def _round(values: Float32, scale: Any, element: Any) -> None:
    """Replace each value by its quantized and dequantized value."""
    for i in range(len(values)):
        values[i] = _returned(values[i], scale, element)


@compiled_as_written
def _errors(
    x: Float32, tokens: Int64, rounded: Bool, values: Float32, scales: Any, elements: Any
) -> Any:
    """Return the sum of x^2, and the sums of |e| and of e^2, (2, format).

    Args:
        values: (channel,): buffer for a row, padded with zeros.
        scales: the scales of each format, from `_scales`.
        elements: the `_parameters` of each format, (format,) each.
    """
    largest, least, shift = elements
    spread, e = np.empty_like(values), np.empty_like(values)
    squares, sums = 0.0, np.zeros((2, len(scales)))
    for row in range(len(tokens)):
        _take(x[tokens[row]], rounded, values)
        squares += _sums(values)[1]
        for at in range(len(scales)):
            row_scales = scales[at][min(row, len(scales[at]) - 1)]
            if len(row_scales) < len(values):
                _spread(row_scales, spread)
                row_scales = spread
            _write_errors(values, row_scales, (largest[at], least[at], shift[at]), e)
            absolute, square = _sums(e)
            sums[0, at] += absolute
            sums[1, at] += square
    return squares, sums


@compiled_as_written
def _take(x: Float32, rounded: Bool, values: Float32) -> None:
    """Write a row to `values`, with 0 in the channels that are not quantized."""
    for c in range(len(x)):
        values[c] = x[c] if rounded[c] else ZERO


@compiled_as_written
def _spread(scales: Float32, by_channel: Float32) -> None:
    """Write the scale of every channel to `by_channel`."""
    together = len(by_channel) // len(scales)
    for at in range(len(scales)):
        for c in range(together):
            by_channel[at * together + c] = scales[at]


@compiled_as_written
def _write_errors(values: Float32, scales: Float32, element: Any, e: Float32) -> None:
    """Write the dequantized values minus the values, which is exact; see `formats.exact_errors`."""
    for c in range(len(values)):
        e[c] = _returned(values[c], scales[c], element) - values[c]


@compiled_as_written
def _returned(value: Any, scale: Any, element: Any) -> Any:
    """Return the quantized and dequantized value; see `formats.Element.round_`."""
    largest, least, shift = element
    quotient = value / (scale if scale > ZERO else ONE)
    clamped = np.float32(min(max(quotient, -largest), largest))
    exponent = max(np.int32(clamped.view(np.int32) & EXPONENT), least)
    magic = np.int32(exponent + shift).view(np.float32)
    return ((clamped + magic) - magic) * scale


@compiled
def _sums(e: Float32) -> tuple[float, float]:
    """Return the sums of |e| and of e^2."""
    absolute, square = 0.0, 0.0
    for c in range(len(e)):
        exact = np.float64(e[c])
        absolute += abs(exact)
        square += exact * exact
    return absolute, square
