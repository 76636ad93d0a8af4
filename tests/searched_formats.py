"""Number formats, value by value: the nearest of all numbers that a format has."""

import math

import numpy as np

F32 = np.float32


def numbers(mantissa, bias, codes):
    """Every number of a small floating-point format, from its definition, by code."""
    found = []
    for code in range(codes):
        exponent, fraction = code >> mantissa, code % 2**mantissa
        if exponent == 0:
            found.append(fraction * 2.0 ** (1 - bias - mantissa))
        else:
            found.append((1 + fraction / 2**mantissa) * 2.0 ** (exponent - bias))
    return found


E4M3 = numbers(3, 7, 127)  # code 127 is NaN
E2M1 = numbers(1, 1, 8)
INT8 = [float(code) for code in range(128)]
SCALES = {"int8": (127.0, INT8), "fp8_e4m3": (448.0, E4M3)}


def nearest(value, numbers_of_format):
    """The nearest number, the one with the even code of two; the largest beyond it."""
    size = min(abs(float(value)), numbers_of_format[-1])
    distance = [abs(size - number) for number in numbers_of_format]
    least = min(distance)
    code = min((c for c, d in enumerate(distance) if d == least), key=lambda c: c % 2)
    return math.copysign(numbers_of_format[code], value)


def scaled(values, scale, numbers_of_format):
    scale = F32(scale)
    if scale == 0:
        return [F32(0) for _ in values]
    with np.errstate(over="ignore"):
        return [F32(nearest(F32(v) / scale, numbers_of_format)) * scale for v in values]


def mx(block, numbers_of_format, exponent_of_largest):
    largest = max(abs(float(value)) for value in block)
    if largest == 0:
        return [F32(0) for _ in block]
    exponent = max(math.frexp(largest)[1] - 1 - exponent_of_largest, -127)
    return scaled(block, 2.0**exponent, numbers_of_format)


def nvfp4_block(block, largest):
    scale = F32(largest) / F32(6 * 448)
    block_scale = scaled([F32(max(abs(block))) / F32(6)], scale, E4M3)[0]
    return scaled(block, block_scale, E2M1)


def by_row(values, size, quantized):
    rows = []
    for row in values:
        blocks = [row[start : start + size] for start in range(0, len(row), size)]
        rows.append([value for block in blocks for value in quantized(block)])
    return np.array(rows, F32)


def with_scales(x, axes, divisor, numbers_of_format):
    """Each value under the scale of its own tensor, row or column."""
    largest = np.broadcast_to(np.abs(x).max(axis=axes, keepdims=True), x.shape)
    flat = [
        scaled([value], maximum / F32(divisor), numbers_of_format)[0]
        for value, maximum in zip(x.ravel(), largest.ravel(), strict=True)
    ]
    return np.array(flat, F32).reshape(x.shape)


def returned(name, scale_of, x):
    """What comes back of an array, (row, channel), by the name of a format and of its scales."""
    if name in SCALES:
        axes = {"tensor": (0, 1), "token": 1, "channel": 0}[scale_of]
        return with_scales(x, axes, *SCALES[name])
    size, block = {
        "mxfp8": (32, lambda b: mx(b, E4M3, 8)),
        "mxfp4": (32, lambda b: mx(b, E2M1, 2)),
        "nvfp4": (16, lambda b: nvfp4_block(b, np.abs(x).max())),
    }[name]
    return by_row(x, size, block)
