"""Tests of number formats against searches among all their numbers, exactly or in float64."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from searched_formats import E2M1, E4M3, SCALES, nearest, returned

from outlier_atlas.statistics import formats


def test_the_numbers_are_those_of_the_specifications():
    assert E2M1 == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert codes.tolist() == E4M3


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


def arrays(rows=3, channels=70):
    shapes = st.tuples(st.integers(1, rows), st.integers(1, channels))
    return hnp.arrays(np.float32, shapes, elements=st.one_of(FINITE, HARD))


@pytest.mark.parametrize(
    ("granularity", "scale_of"), [("tensor", "tensor"), ("row", "token"), ("column", "channel")]
)
@pytest.mark.parametrize("name", SCALES)
@settings(deadline=None, max_examples=60)
@given(x=arrays())
def test_formats_with_a_scale(name, granularity, scale_of, x):
    values = torch.from_numpy(x)
    got = getattr(formats, name)(values, formats.largest(values, granularity))
    np.testing.assert_array_equal(got.numpy(), returned(name, scale_of, x))


@settings(deadline=None, max_examples=150)
@given(x=arrays())
def test_block_formats(x):
    values = torch.from_numpy(x)
    before = values.clone()
    whole = formats.largest(values, "tensor")
    np.testing.assert_array_equal(formats.mxfp8(values), returned("mxfp8", "block", x))
    np.testing.assert_array_equal(formats.mxfp4(values), returned("mxfp4", "block", x))
    np.testing.assert_array_equal(formats.nvfp4(values, whole), returned("nvfp4", "block", x))
    assert torch.equal(values, before), "the values are left as they were"


def test_every_number_of_a_format_and_every_tie_between_two():
    """Each block and row has the largest number, so that scales are 1 and nothing is rounded."""
    for name, table in {"mxfp8": E4M3, "mxfp4": E2M1}.items():
        ties = [(a + b) / 2 for a, b in pairwise(table)]
        for value in table + ties:
            values = torch.tensor([[value, -value, table[-1]]])
            expected = [nearest(value, table), nearest(-value, table), table[-1]]
            assert getattr(formats, name)(values).tolist() == [expected]


def test_a_block_of_tiny_values_has_the_smallest_scale():
    """2^-121 is 64 times the smallest scale of E8M0, which is the scale of a block of it."""
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
    """The ratio is infinite without an error, and NaN for a tensor of zeros."""
    ones, zeros = torch.ones(2, 2), torch.zeros(2, 2)
    assert formats.error_sums(ones, ones).sqnr == math.inf
    assert math.isnan(formats.error_sums(zeros, zeros).sqnr)
    assert math.isnan(formats.NO_ERROR.rmse)
