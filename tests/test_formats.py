"""Number formats against searches among all their numbers, in exact arithmetic or float64."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from outlier_atlas.statistics import formats

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


def test_the_numbers_are_those_of_the_specifications():
    assert E2M1 == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert codes.tolist() == E4M3


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


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Ties of every format under a scale of 1 or a power of two, zeros, and float32's own ends.
HARD = st.sampled_from(
    [
        0.0,
        -0.0,
        0.25,
        0.75,
        1.25,
        2.5,
        -3.5,
        5.0,
        6.0,
        7.0,
        63.5,
        127.0,
        448.0,
        464.0,
        -17.0,
        2.0**-7,
        2.0**-9,
        2.0**-10,
        3 * 2.0**-10,
        1e-38,
        1e-45,
        -3e38,
        3.4028234663852886e38,
    ]
)
arrays = hnp.arrays(
    F32, st.tuples(st.integers(1, 3), st.integers(1, 70)), elements=st.one_of(FINITE, HARD)
)
SCALES = {"int8": (127.0, INT8), "fp8_e4m3": (448.0, E4M3)}


@pytest.mark.parametrize("granularity", ["tensor", "row", "column"])
@pytest.mark.parametrize("name", SCALES)
@settings(deadline=None, max_examples=60)
@given(x=arrays)
def test_formats_with_a_scale(name, granularity, x):
    axes = {"tensor": (0, 1), "row": 1, "column": 0}[granularity]
    values = torch.from_numpy(x)
    got = getattr(formats, name)(values, formats.largest(values, granularity))
    np.testing.assert_array_equal(got.numpy(), with_scales(x, axes, *SCALES[name]))


@settings(deadline=None, max_examples=150)
@given(x=arrays)
def test_block_formats(x):
    values = torch.from_numpy(x)
    before = values.clone()
    whole = formats.largest(values, "tensor")
    np.testing.assert_array_equal(formats.mxfp8(values), by_row(x, 32, lambda b: mx(b, E4M3, 8)))
    np.testing.assert_array_equal(formats.mxfp4(values), by_row(x, 32, lambda b: mx(b, E2M1, 2)))
    np.testing.assert_array_equal(
        formats.nvfp4(values, whole), by_row(x, 16, lambda b: nvfp4_block(b, whole.item()))
    )
    assert torch.equal(values, before), "the values are left as they were"


def test_every_number_of_a_format_and_every_tie_between_two():
    """The largest is in each block and row, so that scales are 1 and nothing else is rounded."""
    for name, table in {"mxfp8": E4M3, "mxfp4": E2M1}.items():
        ties = [(a + b) / 2 for a, b in pairwise(table)]
        for value in table + ties:
            values = torch.tensor([[value, -value, table[-1]]])
            expected = [nearest(value, table), nearest(-value, table), table[-1]]
            assert getattr(formats, name)(values).tolist() == [expected]


def test_a_block_of_tiny_values_has_the_smallest_scale():
    """2^-121 is 64 times the smallest scale of E8M0, and a block of it alone has no smaller one."""
    for value, back in ((2.0**-121, 2.0**-121), (2.0**-137, 0.0), (3 * 2.0**-137, 2.0**-135)):
        assert formats.mxfp8(torch.tensor([[value]])).item() == back


def test_a_part_of_a_tensor_comes_back_as_it_does_from_the_whole():
    x = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    whole = formats.largest(x, "tensor")
    for quantized in (formats.int8, formats.fp8_e4m3, formats.nvfp4):
        parts = [quantized(part, whole) for part in x.split(2)]
        assert torch.equal(torch.cat(parts), quantized(x, whole))


def test_errors_are_those_of_float64():
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    y = formats.int8(x, formats.largest(x, "row"))
    parts = zip(x.split(7), y.split(7), strict=True)
    got = sum((formats.error_sums(a, b) for a, b in parts), formats.NO_ERROR)
    exact, error = x.numpy().astype(float), x.numpy().astype(float) - y.numpy()
    # Sums of 2,000 float64 numbers in another order differ by less than 2,000 x 2^-53.
    close = pytest.approx
    assert got.rmse == close(np.sqrt((error**2).mean()), rel=1e-12)
    assert got.mae == close(np.abs(error).mean(), rel=1e-12)
    assert got.sqnr == close(10 * np.log10((exact**2).sum() / (error**2).sum()), rel=1e-12)


def test_errors_at_the_ends():
    """No error is an infinite ratio; a tensor of zeros has none at all."""
    ones, zeros = torch.ones(2, 2), torch.zeros(2, 2)
    assert formats.error_sums(ones, ones).sqnr == math.inf
    assert math.isnan(formats.error_sums(zeros, zeros).sqnr)
    assert math.isnan(formats.NO_ERROR.rmse)
