"""Measures of layers and quantization errors against dumb implementations of their formulas."""

import math
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pipeline import Run, config

from outlier_atlas.statistics.measures import LayerMeasures, QuantizationErrors
from outlier_atlas.statistics.quantization import FORMATS, summarize_quantization
from outlier_atlas.statistics.summary import Place, summarize

# --- Formats, value by value ----------------------------------------------------------------------


def codes(exponents, mantissas, bias, most):
    """All non-negative values of a format with so many bits, in the order of their codes."""
    values = []
    for exponent in range(2**exponents):
        for mantissa in range(2**mantissas):
            part = mantissa / 2**mantissas
            small = exponent == 0
            values.append((part if small else 1 + part) * 2.0 ** (max(exponent, 1) - bias))
    return [value for value in values if value <= most]


E4M3 = codes(4, 3, 7, 448)
E2M1 = codes(2, 1, 1, 6)


def nearest(value, grid):
    """The nearest of a grid; of two the one with the even code; the largest beyond it."""
    distance = min(abs(abs(value) - g) for g in grid)
    found = [i for i, g in enumerate(grid) if abs(abs(value) - g) == distance]
    index = next((i for i in found if i % 2 == 0), found[0])
    return math.copysign(grid[index], value)


def integer(value):
    low = math.floor(value)
    rest = value - low
    return low if rest < 0.5 or (rest == 0.5 and low % 2 == 0) else low + 1


F = np.float32


def dumb_int8(values):
    scale = F(max(map(abs, values))) / F(127)
    rounded = [max(-127, min(127, integer(float(F(v) / (scale or F(1)))))) for v in values]
    return [F(code) * (scale or F(1)) for code in rounded]


def dumb_fp8(values):
    scale = F(max(map(abs, values))) / F(448)
    return [F(nearest(float(F(v) / scale), E4M3)) * scale if scale else F(v) for v in values]


def dumb_mx(values, grid, emax):
    largest = max(map(abs, values))
    if not largest:
        return values
    exponent = max(-127, math.floor(math.log2(float(largest))) - emax)  # what E8M0 holds
    return [F(nearest(float(v) / 2.0**exponent, grid) * 2.0**exponent) for v in values]


def dumb_nvfp4(values, whole):
    scale = F(nearest(float(F(max(map(abs, values))) / F(6) / whole), E4M3)) * whole
    return [F(nearest(float(F(v) / scale), E2M1)) * scale if scale else F(0) for v in values]


def dumb(name, x):
    flat, rows, columns = x.ravel().tolist(), len(x), x.shape[1]

    def blocks(row, size, rounded):
        return [v for i in range(0, columns, size) for v in rounded(row[i : i + size].tolist())]

    whole = F(max(map(abs, flat))) / F(448 * 6) or F(1)
    made = {
        ("int8", "tensor"): lambda: np.reshape(dumb_int8(flat), x.shape),
        ("int8", "token"): lambda: [dumb_int8(row.tolist()) for row in x],
        ("int8", "channel"): lambda: np.array([dumb_int8(c.tolist()) for c in x.T]).T,
        ("fp8_e4m3", "tensor"): lambda: np.reshape(dumb_fp8(flat), x.shape),
        ("mxfp8", "block of 32"): lambda: [blocks(r, 32, lambda v: dumb_mx(v, E4M3, 8)) for r in x],
        ("mxfp4", "block of 32"): lambda: [blocks(r, 32, lambda v: dumb_mx(v, E2M1, 2)) for r in x],
        ("nvfp4", "block of 16"): lambda: [
            blocks(r, 16, lambda v: dumb_nvfp4(v, whole)) for r in x
        ],
    }[name]()
    return np.array(made, np.float32).reshape(rows, columns)


GRIDS = st.sampled_from(
    [0.0, -0.0, 1e-3, 0.25, -0.75, 1.25, 1.75, 2.5, -3.5, 5.0, 5.5, 6.0, 7.9, 100.0, -448.0, 3e4]
)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 3), st.integers(1, 37)),
        elements=st.one_of(GRIDS, st.floats(-10, 10)).map(lambda v: float(np.float32(v))),
    )
)  # fmt: skip
def test_formats_are_those_of_a_table_of_their_values(x):
    for name, quantize in FORMATS.items():
        got = quantize(torch.from_numpy(x)).numpy()
        assert np.array_equal(got, dumb(name, x)), name


def test_the_tables_of_values_are_those_of_the_specifications():
    assert E2M1 == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert (len(E4M3), E4M3[1], E4M3[-1]) == (127, 2.0**-9, 448)
    bits = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert bits.tolist() == E4M3


def test_outlier_channels_are_left_as_they_are():
    x = np.array([[0.5, 90.0, -1.0], [0.3, 1.0, 2.0], [np.nan, 1.0, 1.0]], np.float32)
    got = summarize_quantization(torch.from_numpy(x), Place(0, 0, 3), 6.0)
    assert got.outlier_channels == 1
    assert got.values.tolist() == [6, 4], "without the token of NaN"
    rest = x[:2, [0, 2]]
    assert got.squares.tolist() == [
        pytest.approx((x[:2].astype(np.float64) ** 2).sum(), rel=1e-15),
        pytest.approx((rest.astype(np.float64) ** 2).sum(), rel=1e-15),
    ]
    e = dumb(("int8", "tensor"), rest).astype(np.float64) - rest
    assert got.square_errors[1] == pytest.approx((e**2).sum(), rel=1e-15)
    assert got.errors[1] == pytest.approx(np.abs(e).sum(), rel=1e-15)
    assert got.square_errors[1] < got.square_errors[0] / 100
    nothing = summarize_quantization(torch.from_numpy(x[2:]), Place(0, 0, 1), 6.0)
    assert (nothing.values.sum(), nothing.square_errors.sum()) == (0, 0)
    sums = QuantizationErrors()
    sums.update(got)
    sums.merge(QuantizationErrors())
    assert np.array_equal(sums.square_errors, got.square_errors)


# --- Measures -------------------------------------------------------------------------------------


def dumb_kurtosis(values):
    d = np.asarray(values, np.float64) - np.mean(values, dtype=np.float64)
    return (d**4).mean() / (d**2).mean() ** 2


@pytest.mark.parametrize("seed", range(3))
def test_measures_of_any_split_are_the_formulas(seed):
    random = np.random.default_rng(seed)
    x = (random.standard_t(3, (40, 7)) * random.lognormal(size=7)).astype(np.float32)
    cuts = sorted({0, 25, 40, *random.integers(1, 40, 4)})
    halves = [LayerMeasures(7, 2), LayerMeasures(7, 2)]
    for index, (a, b) in enumerate(pairwise(cuts)):
        place = Place(int(a >= 25), int(a), int(b - a))
        halves[index % 2].update(summarize(torch.from_numpy(x[a:b]), place, 1.0))
    halves[0].merge(halves[1])
    got = halves[0]
    # float64 on both sides, added up in another order.
    near = {"rel": 1e-11}
    assert got.moments.together().kurtosis[0] == pytest.approx(dumb_kurtosis(x.ravel()), **near)
    of_channels = [dumb_kurtosis(x[:, c]) for c in range(7)]
    assert got.moments.kurtosis.tolist() == pytest.approx(of_channels, **near)
    of_tokens = [dumb_kurtosis(row) for row in x]
    assert got.kurtosis_sum.sum() == pytest.approx(sum(of_tokens), **near)
    assert got.kurtosis_sum[1] == pytest.approx(sum(of_tokens[25:]), **near)
    assert got.kurtosis_max == pytest.approx(max(of_tokens), **near)
    s = np.sqrt((x.astype(np.float64) ** 2).mean(axis=0))
    assert got.kurtosis_of_rms == pytest.approx((s**4).mean() / (s**2).mean() ** 2, **near)
    ratios = np.abs(x).max(axis=1).astype(np.float64) / np.median(np.abs(x), axis=1)
    assert got.ratio_max == ratios.max()
    assert got.ratios.quantile(0.5) == pytest.approx(np.sort(ratios)[19], rel=2**-8)
    norms = np.sort(np.linalg.norm(x.astype(np.float64), axis=1))
    assert got.norms.quantile(0.25) == pytest.approx(norms[9], rel=2**-8)


def test_measures_of_nothing_and_of_constants_are_nan():
    got = LayerMeasures(2, 1)
    assert np.isnan([got.kurtosis_max, got.ratio_max, got.kurtosis_of_rms]).all()
    got.update(summarize(torch.zeros(3, 2), Place(0, 0, 3), 1.0))
    assert np.isnan([got.kurtosis_max, got.ratio_max, got.kurtosis_of_rms]).all()
    assert np.isnan(got.moments.together().kurtosis[0])
    assert got.norms.quantile(0.5) == 0


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    model = tiny.llama(folder / "model")
    rows = [[5, 17, 200, 9, 33, 41, 7, 8], [40, 6, 7, 80, 90, 11, 12, 13]]
    detection = {"quantization_error": {"sites": ["mlp_in"], "threshold": 2.0}}
    run = Run(folder, config(model, rows, folder / "data", detection=detection))
    run.all()
    return run


def test_the_table_of_measures_has_the_formulas(measured):
    rows = measured.table("layer_measures")
    assert len(rows) == 3 * 4
    for row in rows:
        x = measured.array(row["site"])[row["layer"]].astype(np.float64)
        largest = np.abs(x.reshape(2, -1)).max(axis=1)
        rms = np.sqrt((x**2).mean())
        assert row["tokens"] == 16
        near = {"rel": 1e-11}  # additions in another order
        assert row["kurtosis_token"] == pytest.approx(np.mean([*map(dumb_kurtosis, x)]), **near)
        assert row["kurtosis_channel"] == pytest.approx(np.mean([*map(dumb_kurtosis, x.T)]), **near)
        assert row["infinity_norm"] == largest.mean()
        assert (row["infinity_norm_low"], row["infinity_norm_high"]) == (*sorted(largest),)
        assert row["rms"] == pytest.approx(rms, **near)
        assert row["crest_factor"] == pytest.approx(largest.max() / rms, **near)
        assert row["kurtosis_token_low"] <= row["kurtosis_token"] <= row["kurtosis_token_high"]


def test_the_table_of_quantization_errors_has_the_formulas(measured):
    rows = measured.table("quantization_error")
    assert len(rows) == 4 * len(FORMATS) * 2
    for row in rows:
        x = measured.array("mlp_in")[row["layer"]]
        error, signal, count = [], 0.0, 0
        for tile in (x[:8], x[8:]):
            outliers = (np.abs(tile) >= 2).any(axis=0)
            part = tile.copy()
            if row["outlier_channels"] == "kept":
                part[:, outliers] = 0
                count += 8 * int((~outliers).sum())
            else:
                count += part.size
            rounded = dumb((row["format"], row["scale_of"]), part)
            error += (rounded.astype(np.float64) - part).ravel().tolist()
            signal += (part.astype(np.float64) ** 2).sum()
        squares = sum(e * e for e in error)
        assert row["values"] == count
        assert row["rmse"] == pytest.approx(math.sqrt(squares / count), rel=1e-12)
        assert row["mae"] == pytest.approx(sum(map(abs, error)) / count, rel=1e-12)
        assert row["sqnr"] == pytest.approx(10 * math.log10(signal / squares), rel=1e-12)


def test_a_site_that_is_not_stored_cannot_be_rounded(llama, tmp_path):
    run = Run(tmp_path, config(
        llama, [[5, 6]], tmp_path / "data", extraction={"sites": ["mlp_in"], "store": []},
        detection={"quantization_error": {"sites": ["mlp_in"]}},
    ))  # fmt: skip
    run.prepare()
    run.extract()
    with pytest.raises(ValueError, match=r"quantization_error\.sites: mlp_in is not stored"):
        run.detect()
