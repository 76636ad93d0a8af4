"""Loops that numba compiles: codes of 8 and 4 bits, and blocks of GGUF files, become weights.

Each function takes rows of codes, computes their values in float32 as the formats define them, one
rounding per operation, and rounds them once to the target. A row passes through the first cache.
All functions are in one file because of the cache of compiled code (`compiling.py`).

`target` is `FLOAT32`, `BFLOAT16` or `FLOAT16`. `out` holds the bits of the result as 16-bit
numbers, two for each float32. Rounding is to nearest, ties to even. NaN stays NaN, with any bits.

Numbers of 32 bits are cast explicitly, because integers have 64 bits in numba otherwise, and the
processor computes half as many at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.compiling import compiled_as_written

Bytes = NDArray[np.uint8]
Bits = NDArray[np.uint16]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

U64 = np.uint64
"""Type of indices that numba need not check for negative values, which makes loops faster."""

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
"""Targets."""

ABS = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)
E4M3_BIAS = np.uint32(120 << 23)
E4M3_NAN = np.uint32(0x7F)
E4M3_BITS = np.int32(-0x78100000)
"""Mask of the sign, and of exponent and mantissa, when a code is shifted to their place."""
E4M3_SHIFT, E4M3_QUICK = np.float32(2.0**120), np.float32(2.0**7)
"""Factor between a code's value and that of its bits, and the scales that it can be merged with."""
E4M3_LEAST = np.float32(2.0**-6)
"""Smallest normal number of FP8 e4m3."""
HALF_LEAST = np.uint32(113 << 23)
HALF_TOO_LARGE = np.uint32(143 << 23)
"""Float32 bits of the smallest normal number of float16, and of 2^16, which is too large."""
HALF_STEP = np.float32(2.0**-24)
"""Smallest subnormal number of float16."""
ALIGN, ALIGN_BITS = np.float32(0.5), np.uint32(126 << 23)
"""Number whose last bit in float32 is worth one step of float16's subnormal numbers."""
TILE = 128
"""Rows of packed codes that are transposed at a time."""


@compiled_as_written
def _number(bits: np.uint32) -> np.float32:
    return np.uint32(bits).view(np.float32)


@compiled_as_written
def _bits(number: np.float32) -> np.uint32:
    return np.float32(number).view(np.uint32)


# --- Rounding to the target ----------------------------------------------------------------------


@compiled_as_written
def _store(line: Float32, target: int, out: Bits) -> None:
    """Round a line of values to the target."""
    if target == BFLOAT16:
        _bfloat16(line.view(np.uint32), out)
    elif target == FLOAT16:
        _float16(line.view(np.uint32), out)
    else:
        out.view(np.float32)[:] = line


@compiled_as_written
def _bfloat16(bits: NDArray[np.uint32], out: Bits) -> None:
    for c in range(len(bits)):
        b = bits[c]
        rounded = np.uint32(b + np.uint32(np.uint32(0x7FFF) + np.uint32((b >> 16) & 1))) >> 16
        out[c] = np.uint16(0x7FC0) if (b & ABS) > INFINITY else np.uint16(rounded)


@compiled_as_written
def _finite_bfloat16(bits: NDArray[np.uint32], out: Bits) -> None:
    for c in range(len(bits)):
        b = bits[c]
        rounded = np.uint32(b + np.uint32(np.uint32(0x7FFF) + np.uint32((b >> 16) & 1)))
        out[c] = np.uint16(rounded >> 16)


@compiled_as_written
def _float16(bits: NDArray[np.uint32], out: Bits) -> None:
    for c in range(len(bits)):
        magnitude = np.uint32(bits[c] & ABS)
        odd = np.uint32((magnitude >> 13) & 1)
        normal = np.uint32(np.uint32(magnitude - np.uint32((112 << 23) - 0xFFF)) + odd) >> 13
        aligned = np.float32(_number(magnitude) + ALIGN)
        subnormal = np.uint32(_bits(aligned) - ALIGN_BITS)
        value = np.uint32(normal) if magnitude >= HALF_LEAST else subnormal
        value = np.uint32(0x7C00) if magnitude >= HALF_TOO_LARGE else value
        value = np.uint32(0x7E00) if magnitude > INFINITY else value
        out[c] = np.uint16(value | ((bits[c] >> 16) & 0x8000))


# --- Codes of 8 bits, with a scale for each block -------------------------------------------------


@compiled_as_written
def scaled_e4m3(
    codes: Bytes, scales: Float32, block: tuple[int, int], first: int, target: int, out: Bits
) -> None:
    """Write FP8 e4m3 codes times their scales.

    Args:
        codes: (row, column).
        scales: (block of rows, block of columns), of the whole weight.
        block: rows and columns of a block; blocks at the edges may be cut.
        first: row of the weight that `codes` begin with.
    """
    height, width = block
    line = np.empty(codes.shape[1], np.float32)
    for row in range(len(codes)):
        factors = scales[(first + row) // height]
        values = out[row].view(np.float32) if target == FLOAT32 else line
        finite = not _has_nan(codes[row])
        for j in range(len(factors)):
            finite &= abs(factors[j]) < E4M3_QUICK
        for j in range(len(factors)):
            start, factor = j * width, factors[j]
            run, part = codes[row, start : start + width], values[start : start + width]
            if finite:
                _quick_e4m3(run, np.float32(factor * E4M3_SHIFT), part)
            else:
                _times_e4m3(run, factor, part)
        if finite and target == BFLOAT16:
            _finite_bfloat16(line.view(np.uint32), out[row])
        elif target != FLOAT32:
            _store(line, target, out[row])


@compiled_as_written
def _has_nan(codes: Bytes) -> bool:
    found = False
    for c in range(len(codes)):
        found |= np.uint8(codes[c] & np.uint8(0x7F)) == np.uint8(0x7F)
    return found


@compiled_as_written
def _quick_e4m3(codes: Bytes, factor: np.float32, line: Float32) -> None:
    """Write codes that are not NaN times a factor, which is 2^120 times the scale.

    The bits of a code are those of a float32 that is 2^120 times smaller.
    """
    for c in range(len(codes)):
        bits = np.int32(np.int32(np.int8(codes[c])) << 20) & E4M3_BITS
        line[c] = _number(np.uint32(bits)) * factor


@compiled_as_written
def _times_e4m3(codes: Bytes, factor: np.float32, line: Float32) -> None:
    for c in range(len(codes)):
        code = np.uint32(codes[c])
        magnitude = np.uint32(code & np.uint32(0x7F))
        # Bits of a float32 with another bias. A subnormal code counts steps above 2^-6 instead.
        is_subnormal = magnitude < np.uint32(8)
        bias = np.uint32(E4M3_BIAS + np.uint32(1 << 23)) if is_subnormal else E4M3_BIAS
        value = _number(np.uint32(np.uint32(magnitude << 20) + bias))
        offset = E4M3_LEAST if is_subnormal else np.float32(0)
        value = np.float32(value - offset)
        bits = np.uint32(_bits(value) | np.uint32((code & np.uint32(0x80)) << 24))
        bits = np.uint32(0x7FC00000) if magnitude == E4M3_NAN else bits
        line[c] = _number(bits) * factor


@compiled_as_written
def scaled_by_table(
    codes: Bytes,
    scales: Float32,
    block: tuple[int, int],
    first: int,
    target: int,
    out: Bits,
    table: Float32,
) -> None:
    """Write codes of 8 bits in any format times their scales; see `scaled_e4m3`.

    Args:
        table: value of each code.
    """
    height, width = block
    line = np.empty(codes.shape[1], np.float32)
    for row in range(len(codes)):
        factors = scales[(first + row) // height]
        for column in range(len(line)):
            line[column] = table[codes[row, column]] * factors[column // width]
        _store(line, target, out[row])


# --- MXFP4, with a power of two for 32 values ----------------------------------------------------


@compiled_as_written
def transposed_mxfp4(
    blocks: Bytes, exponents: Bytes, first: int, stop: int, target: int, out: Bits
) -> None:
    """Write rows `first` to `stop - 1` of a packed matrix as columns.

    Args:
        blocks: (out, block, 16), two codes a byte, the low one first.
        exponents: (out, block), in the format E8M0.
        out: (in, out), where `in` is 32 times the number of blocks.
    """
    width = 2 if target == FLOAT32 else 1
    tile, line = np.empty((16, TILE), np.uint8), np.empty(TILE, np.float32)
    factors, bases = np.empty(TILE, np.float32), np.empty(TILE, np.uint16)
    least, most = (2, 252) if target == BFLOAT16 else (114, 140)
    shift, bias = (7, 126) if target == BFLOAT16 else (10, 14)
    for start in range(first, stop, TILE):
        n = min(TILE, stop - start)
        for block in range(blocks.shape[1]):
            quick = target != FLOAT32
            for row in range(n):
                exponent = int(exponents[start + row, block])
                factors[row] = _half_power(exponent)
                bases[row] = np.uint16((exponent - 127 + bias) << shift)
                quick = quick and least <= exponent <= most
            _transpose(blocks[start : start + n, block], tile)
            for j in range(16):
                for high in range(2):
                    part = out[32 * block + 2 * j + high, width * start : width * (start + n)]
                    if quick:
                        _quick_e2m1(tile[j], 4 * high, bases, shift, part)
                    else:
                        _times_e2m1(tile[j, :n], 4 * high, factors, line)
                        _store(line[:n], target, part)


@compiled_as_written
def _transpose(blocks: Bytes, tile: Bytes) -> None:
    for row in range(len(blocks)):
        block = blocks[row]
        for j in range(np.uint64(16)):
            tile[j, np.uint64(row)] = block[j]


@compiled_as_written
def _quick_e2m1(codes: Bytes, move: int, bases: Bits, shift: int, out: Bits) -> None:
    """Write codes of FP4 e2m1 in a format of 16 bits, for normal numbers.

    Args:
        move: 4 for the high codes of the bytes, 0 for the low ones.
        bases: bits of half of each scale.
        shift: bits of the format's mantissa.
    """
    by, up, place = np.uint8(move), np.uint16(shift - 1), np.uint16(12)
    for c in range(len(out)):
        code = np.uint16((codes[c] >> by) & np.uint8(15))
        magnitude = np.uint16(code & np.uint16(7))
        value = np.uint16(np.uint16(magnitude << up) + bases[c])
        value = bases[c] if magnitude == np.uint16(1) else value
        value = np.uint16(0) if magnitude == np.uint16(0) else value
        out[c] = np.uint16(value | np.uint16(np.uint16(code & np.uint16(8)) << place))


@compiled_as_written
def _half_power(exponent: int) -> np.float32:
    """Return half of the power of two of an exponent in the format E8M0."""
    bits = 0x200000 << exponent if exponent < 2 else (exponent - 1) << 23
    bits = 0x7FC00000 if exponent == 255 else bits
    return _number(np.uint32(bits))


@compiled_as_written
def _times_e2m1(codes: Bytes, shift: int, factors: Float32, line: Float32) -> None:
    """Write codes of FP4 e2m1 times factors, which are half of the scales."""
    move = np.uint32(shift)
    for c in range(len(codes)):
        code = np.uint32(np.uint32(codes[c]) >> move)
        mantissa = np.uint32(code & np.uint32(1))
        exponent = np.uint32((code >> 1) & 3)
        doubled = np.uint32(np.uint32(mantissa + np.uint32(2)) << exponent) >> 1
        doubled = np.uint32(doubled) if exponent else mantissa
        value = _bits(np.float32(np.int32(doubled)))
        signed = np.uint32(value | np.uint32((code & np.uint32(8)) << 28))
        line[c] = _number(signed) * factors[c]


# --- Blocks of GGUF files ------------------------------------------------------------------------
#
# `raw` has the bytes of rows, (row, byte); `rows` the row of `raw` for each row of `out`. All
# numbers of more than a byte are little-endian. Sums and products are those of the gguf package.


@compiled_as_written
def _half(raw: Bytes, at: int) -> np.float32:
    """Return the float16 number at a position."""
    bits = np.uint32(raw[at]) | (np.uint32(raw[at + 1]) << 8)
    magnitude = np.uint32((bits & 0x7FFF) << 13)
    if (bits & 0x7C00) == 0:
        value = _bits(np.float32(np.float32(np.int32(bits & 0x3FF)) * HALF_STEP))
    elif (bits & 0x7C00) == 0x7C00:
        value = np.uint32(magnitude + np.uint32(224 << 23))
    else:
        value = np.uint32(magnitude + np.uint32(112 << 23))
    return _number(np.uint32(value | np.uint32((bits & 0x8000) << 16)))


@compiled_as_written
def q4_0(raw: Bytes, rows: Int64, target: int, out: Bits) -> None:
    """Write rows of Q4_0: d, 16 bytes of two codes."""
    line = np.empty(raw.shape[1] // 18 * 32, np.float32)
    for i in range(len(rows)):
        for b in range(len(line) // 32):
            block, y = raw[rows[i], 18 * b : 18 * b + 18], line[32 * b : 32 * b + 32]
            d, q = _half(block, 0), block[2:18]
            for k in range(16):
                y[k] = d * np.float32(np.int32(q[k] & 15) - np.int32(8))
                y[16 + k] = d * np.float32(np.int32(q[k] >> 4) - np.int32(8))
        _store(line, target, out[i])


@compiled_as_written
def q4_1(raw: Bytes, rows: Int64, target: int, out: Bits) -> None:
    """Write rows of Q4_1: d, m, 16 bytes of two codes."""
    line = np.empty(raw.shape[1] // 20 * 32, np.float32)
    for i in range(len(rows)):
        for b in range(len(line) // 32):
            block, y = raw[rows[i], 20 * b : 20 * b + 20], line[32 * b : 32 * b + 32]
            d, m, q = _half(block, 0), _half(block, 2), block[4:20]
            for k in range(16):
                y[k] = d * np.float32(np.int32(q[k] & 15)) + m
                y[16 + k] = d * np.float32(np.int32(q[k] >> 4)) + m
        _store(line, target, out[i])


@compiled_as_written
def q5_0(raw: Bytes, rows: Int64, target: int, out: Bits) -> None:
    """Write rows of Q5_0: d, 4 bytes of fifth bits, 16 bytes of two codes."""
    line = np.empty(raw.shape[1] // 22 * 32, np.float32)
    codes = np.empty(32, np.int32)
    for i in range(len(rows)):
        for b in range(len(line) // 32):
            block, y = raw[rows[i], 22 * b : 22 * b + 22], line[32 * b : 32 * b + 32]
            _fives(block[2:6], block[6:22], codes)
            d = _half(block, 0)
            for k in range(32):
                y[k] = d * np.float32(np.int32(codes[k] - np.int32(16)))
        _store(line, target, out[i])


@compiled_as_written
def q5_1(raw: Bytes, rows: Int64, target: int, out: Bits) -> None:
    """Write rows of Q5_1: d, m, 4 bytes of fifth bits, 16 bytes of two codes."""
    line = np.empty(raw.shape[1] // 24 * 32, np.float32)
    codes = np.empty(32, np.int32)
    for i in range(len(rows)):
        for b in range(len(line) // 32):
            block, y = raw[rows[i], 24 * b : 24 * b + 24], line[32 * b : 32 * b + 32]
            _fives(block[4:8], block[8:24], codes)
            d, m = _half(block, 0), _half(block, 2)
            for k in range(32):
                y[k] = d * np.float32(codes[k]) + m
        _store(line, target, out[i])


@compiled_as_written
def _fives(fifth: Bytes, q: Bytes, codes: NDArray[np.int32]) -> None:
    """Write 32 codes of five bits."""
    bits = np.uint32(fifth[0]) | (np.uint32(fifth[1]) << 8)
    bits = np.uint32(bits | (np.uint32(fifth[2]) << 16) | (np.uint32(fifth[3]) << 24))
    for k in range(16):
        low = np.uint32(np.uint32(bits >> np.uint32(k)) & np.uint32(1))
        high = np.uint32(np.uint32(bits >> np.uint32(k + 16)) & np.uint32(1))
        codes[k] = np.int32(np.uint32(q[k] & 15) | np.uint32(low << 4))
        codes[16 + k] = np.int32(np.uint32(q[k] >> 4) | np.uint32(high << 4))


@compiled_as_written
def q8_0(raw: Bytes, rows: Int64, target: int, out: Bits) -> None:
    """Write rows of Q8_0: d, 32 codes of 8 bits."""
    line = np.empty(raw.shape[1] // 34 * 32, np.float32)
    for i in range(len(rows)):
        for b in range(len(line) // 32):
            block, y = raw[rows[i], 34 * b : 34 * b + 34], line[32 * b : 32 * b + 32]
            d, q = _half(block, 0), block[2:34].view(np.int8)
            for k in range(32):
                y[k] = np.float32(np.int32(q[k])) * d
        _store(line, target, out[i])


@compiled_as_written
def q2_k(raw: Bytes, rows: Int64, target: int, out: Bits) -> None:
    """Write rows of Q2_K: 16 scales and minima, 64 bytes of four codes, d, dmin."""
    line = np.empty(raw.shape[1] // 84 * 256, np.float32)
    for i in range(len(rows)):
        for b in range(len(line) // 256):
            block, y = raw[rows[i], 84 * b : 84 * b + 84], line[256 * b : 256 * b + 256]
            d, dmin = _half(block, 80), _half(block, 82)
            for g in range(16):
                scale = d * np.float32(block[g] & 15)
                least = dmin * np.float32(block[g] >> 4)
                at, to = U64(16 + 32 * (g // 8) + 16 * (g % 2)), U64(16 * g)
                move = np.uint8(2 * (g // 2 % 4))
                for k in range(U64(16)):
                    code = np.int32((block[at + k] >> move) & 3)
                    y[to + k] = scale * np.float32(code) - least
        _store(line, target, out[i])


@compiled_as_written
def q3_k(raw: Bytes, rows: Int64, target: int, out: Bits) -> None:
    """Write rows of Q3_K: 32 bytes of third bits, 64 of four codes, 16 scales of 6 bits, d."""
    line = np.empty(raw.shape[1] // 110 * 256, np.float32)
    for i in range(len(rows)):
        for b in range(len(line) // 256):
            block, y = raw[rows[i], 110 * b : 110 * b + 110], line[256 * b : 256 * b + 256]
            d, packed = _half(block, 108), block[96:108]
            for g in range(16):
                low = np.int32(packed[g % 8] >> np.uint8(4 * (g // 8))) & 15
                high = np.int32(packed[8 + g % 4] >> np.uint8(2 * (g // 4))) & 3
                scale = d * np.float32(np.int32(low | (high << 4)) - np.int32(32))
                mask, place = U64(16 * (g % 2)), np.uint8(g // 2)
                at, move = U64(32 + 32 * (g // 8) + 16 * (g % 2)), np.uint8(2 * (g // 2 % 4))
                to = U64(16 * g)
                for k in range(U64(16)):
                    missing = np.int32(((block[mask + k] >> place) & 1) ^ 1)
                    code = np.int32((block[at + k] >> move) & 3)
                    y[to + k] = scale * np.float32(np.int32(code - np.int32(missing << 2)))
        _store(line, target, out[i])


@compiled_as_written
def _scale_and_least(packed: Bytes, g: int) -> tuple[int, int]:
    """Return the scale and the minimum, of 6 bits each, of a group in Q4_K and Q5_K."""
    if g < 4:
        return packed[g] & 63, packed[4 + g] & 63
    scale = (packed[4 + g] & 15) | ((packed[g - 4] >> 2) & 0x30)
    return scale, (packed[4 + g] >> 4) | ((packed[g] >> 2) & 0x30)


@compiled_as_written
def q4_k(raw: Bytes, rows: Int64, target: int, out: Bits) -> None:
    """Write rows of Q4_K: d, dmin, 8 scales and minima of 6 bits, 128 bytes of two codes."""
    line = np.empty(raw.shape[1] // 144 * 256, np.float32)
    for i in range(len(rows)):
        for b in range(len(line) // 256):
            block, y = raw[rows[i], 144 * b : 144 * b + 144], line[256 * b : 256 * b + 256]
            d, dmin = _half(block, 0), _half(block, 2)
            for g in range(8):
                scale, least = _scale_and_least(block[4:16], g)
                factor, offset = d * np.float32(scale), dmin * np.float32(least)
                at, to, move = U64(16 + 32 * (g // 2)), U64(32 * g), np.uint8(4 * (g % 2))
                for k in range(U64(32)):
                    code = np.int32((block[at + k] >> move) & 15)
                    y[to + k] = factor * np.float32(code) - offset
        _store(line, target, out[i])


@compiled_as_written
def q5_k(raw: Bytes, rows: Int64, target: int, out: Bits) -> None:
    """Write rows of Q5_K: as Q4_K, with 32 bytes of fifth bits before the codes."""
    line = np.empty(raw.shape[1] // 176 * 256, np.float32)
    for i in range(len(rows)):
        for b in range(len(line) // 256):
            block, y = raw[rows[i], 176 * b : 176 * b + 176], line[256 * b : 256 * b + 256]
            d, dmin, fifth = _half(block, 0), _half(block, 2), block[16:48]
            for g in range(8):
                scale, least = _scale_and_least(block[4:16], g)
                factor, offset = d * np.float32(scale), dmin * np.float32(least)
                first, move, place = 48 + 32 * (g // 2), np.uint8(4 * (g % 2)), np.uint8(g)
                q, z = block[first : first + 32], y[32 * g : 32 * g + 32]
                for k in range(32):
                    code = ((q[k] >> move) & 15) | (((fifth[k] >> place) & 1) << 4)
                    z[k] = factor * np.float32(np.int32(code)) - offset
        _store(line, target, out[i])


@compiled_as_written
def q6_k(raw: Bytes, rows: Int64, target: int, out: Bits) -> None:
    """Write rows of Q6_K: 128 bytes of low bits, 64 of high bits, 16 scales, d."""
    line = np.empty(raw.shape[1] // 210 * 256, np.float32)
    for i in range(len(rows)):
        for b in range(len(line) // 256):
            block, y = raw[rows[i], 210 * b : 210 * b + 210], line[256 * b : 256 * b + 256]
            d, scales = _half(block, 208), block[192:208].view(np.int8)
            for g in range(16):
                factor = d * np.float32(np.int32(scales[g]))
                low, move = U64(64 * (g // 8) + 16 * (g % 4)), np.uint8(4 * (g // 4 % 2))
                high, lift = U64(128 + 32 * (g // 8) + 16 * (g % 2)), np.uint8(2 * (g // 2 % 4))
                to = U64(16 * g)
                for k in range(U64(16)):
                    bits = np.int32((block[high + k] >> lift) & 3)
                    code = np.int32((block[low + k] >> move) & 15) | np.int32(bits << 4)
                    y[to + k] = factor * np.float32(np.int32(code - np.int32(32)))
        _store(line, target, out[i])
