"""Tests of layer measures and quantization errors against naive implementations."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pipeline import Run, config
from searched_formats import E4M3, INT8, returned
from test_formats import arrays
from test_summary import NOT_FINITE

from outlier_atlas.criteria.layer_measures.measure import LayerMeasures
from outlier_atlas.criteria.quantization_error.measure import QuantizationErrors
from outlier_atlas.detection import tiles
from outlier_atlas.statistics.elements import FORMATS
from outlier_atlas.statistics.moments import together
from outlier_atlas.statistics.quantization import ERRORS_VERSION, summarize_quantization
from outlier_atlas.statistics.summary import TileRange, summarize

# --- Errors of formats ----------------------------------------------------------------------------


def test_outlier_channels_are_left_as_they_are():
    x = np.array([[0.5, 90.0, -1.0], [0.3, 1.0, 2.0], [np.nan, 1.0, 1.0]], np.float32)
    got = summarize_quantization(torch.from_numpy(x), TileRange(0, 0, 3), 6.0)
    assert got.outlier_channels == 1
    assert got.values == 6, "without the token of NaN"
    assert got.squares == pytest.approx((x[:2].astype(np.float64) ** 2).sum(), rel=1e-15)
    rest = x[:2, [0, 2]]
    e = returned("int8", "tensor", rest).astype(np.float64) - rest
    assert got.square_errors[1] == pytest.approx((e**2).sum(), rel=1e-15)
    assert got.errors[1] == pytest.approx(np.abs(e).sum(), rel=1e-15)
    assert got.square_errors[1] < got.square_errors[0] / 100
    nothing = summarize_quantization(torch.from_numpy(x[2:]), TileRange(0, 0, 1), 6.0)
    assert (nothing.values, nothing.square_errors.sum()) == (0, 0)
    sums = QuantizationErrors(1)
    sums.update(got)
    sums.merge(QuantizationErrors(1))
    assert sums.outlier_channels.tolist() == [1]
    assert np.array_equal(sums.square_errors, got.square_errors)


def assert_errors(got, x, threshold, kept):
    """Check a summary against a search among all numbers of each format."""
    y = x[kept & np.isfinite(x).all(axis=1)]
    outliers = (np.abs(y) >= np.float32(threshold)).any(axis=0)
    assert got.outlier_channels == outliers.sum()
    assert got.values == y.size
    exact = y.astype(np.float64)
    assert got.squares == pytest.approx(math.fsum((exact**2).ravel()), rel=1e-13, abs=0)
    # Sums of some hundred float64 numbers in another order. To take another number than the nearest
    # changes them by more, if only by the last bits of one float32 where both are next to a tie.
    near = {"rel": 1e-13, "abs": 0}
    errors, square_errors = (s.reshape(-1, 2) for s in (got.errors, got.square_errors))
    for without, part in enumerate((y, np.where(outliers, np.float32(0), y))):
        exact = part.astype(np.float64)
        for at, (name, scale_of) in enumerate(FORMATS if len(y) else ()):
            with np.errstate(over="ignore"):  # what is rounded up from the largest float32
                e = (returned(name, scale_of, part) - exact).ravel()
            assert errors[at, without] == pytest.approx(math.fsum(abs(e)), **near), name
            assert square_errors[at, without] == pytest.approx(math.fsum(e * e), **near), name
    if not len(y):
        assert not (errors.any() or square_errors.any() or got.squares)


@settings(deadline=None, max_examples=60)
@given(arrays(4, 50), st.sampled_from([1e-3, 6.0, 1e30]), st.data())
def test_errors_of_a_tile_are_those_of_a_search(x, threshold, data):
    kept = data.draw(hnp.arrays(np.bool_, len(x)))
    if data.draw(st.booleans()):
        x[data.draw(st.integers(0, len(x) - 1)), -1] = data.draw(st.sampled_from(NOT_FINITE))
    got = summarize_quantization(torch.from_numpy(x), TileRange(0, 0, len(x)), threshold, kept)
    assert_errors(got, x, threshold, kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("numbers", "parts"), [(INT8, 127), (E4M3, 448), (E4M3, 6 * 448)])
def test_errors_of_what_is_next_to_a_tie(seed, numbers, parts):
    """Values between two numbers, under a rounded scale that is not a power of two.

    Multiplying by a reciprocal instead of dividing would give other errors. The last case has ties
    of NVFP4's scales.
    """
    random = np.random.default_rng(seed)
    largest = np.float32(random.lognormal(sigma=9))
    ties = np.array([(a + b) / 2 for a, b in pairwise(numbers)]) * (6 if parts == 6 * 448 else 1)
    x = np.zeros((4, 16 * len(ties) + 1), np.float32)
    x[:3, :-1:16] = ties * (largest / np.float32(parts)) * random.choice([-1, 1], (3, len(ties)))
    x[0], x[2] = np.nextafter(x[0], np.float32(0)), np.nextafter(x[2], 2 * x[2])
    x[3, -1] = largest
    got = summarize_quantization(torch.from_numpy(x), TileRange(0, 0, 4), np.inf)
    assert_errors(got, x, np.inf, np.ones(4, bool))


@pytest.mark.parametrize("exponent", range(-149, -110))
def test_errors_of_tiny_values(exponent):
    """Some values are too small for the smallest scale, and some scales are subnormal."""
    x = np.random.default_rng(-exponent).integers(-9, 10, (2, 33)).astype(np.float32)
    x *= np.float32(2.0**exponent)
    got = summarize_quantization(torch.from_numpy(x), TileRange(0, 0, 2), 6.0)
    assert_errors(got, x, 6.0, np.ones(2, bool))


def test_errors_have_the_same_bits_beside_others_and_in_any_order_in_memory():
    random = np.random.default_rng(0)
    values = [
        torch.from_numpy(random.normal(0, 2, (300, 96 + 7 * tile)).astype(np.float32)).bfloat16()
        for tile in range(6)
    ]

    def summary(tile):
        return {k: np.asarray(v).tobytes() for k, v in asdict(summarized(tile)).items()}

    def summarized(tile):
        return summarize_quantization(tile, TileRange(0, 0, 300), 6.0)

    want = [summary(tile.float()) for tile in values]
    with ThreadPoolExecutor(3) as threads:
        assert [*threads.map(summary, values)] == want
        assert [*threads.map(summary, [tile.T.contiguous().T for tile in values])] == want


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
        place = TileRange(int(a >= 25), int(a), int(b - a))
        halves[index % 2].update(summarize(torch.from_numpy(x[a:b]), place, 1.0))
    halves[0].merge(halves[1])
    got = halves[0]
    # float64 on both sides, added up in another order.
    near = {"rel": 1e-11}
    assert together([got.moments]).kurtosis[0] == pytest.approx(dumb_kurtosis(x.ravel()), **near)
    of_channels = [dumb_kurtosis(x[:, c]) for c in range(7)]
    assert got.moments.kurtosis.tolist() == pytest.approx(of_channels, **near)
    of_tokens = [dumb_kurtosis(row) for row in x]
    assert got.kurtosis_sum.sum() == pytest.approx(sum(of_tokens), **near)
    assert got.kurtosis_sum[1] == pytest.approx(sum(of_tokens[25:]), **near)
    assert got.kurtosis_max == pytest.approx([max(of_tokens[:25]), max(of_tokens[25:])], **near)
    s = np.sqrt((x.astype(np.float64) ** 2).mean(axis=0))
    assert got.kurtosis_of_rms == pytest.approx((s**4).mean() / (s**2).mean() ** 2, **near)
    ratios = np.abs(x).max(axis=1).astype(np.float64) / np.median(np.abs(x), axis=1)
    assert got.ratio_max.tolist() == [ratios[:25].max(), ratios[25:].max()]
    assert got.ratios.quantiles(0.5)[0] == pytest.approx(np.sort(ratios)[19], rel=2**-9)
    norms = np.sort(np.linalg.norm(x.astype(np.float64), axis=1))
    assert got.norms.quantiles(0.25)[0] == pytest.approx(norms[9], rel=2**-9)


def test_measures_of_nothing_and_of_constants_are_nan():
    got = LayerMeasures(2, 1)
    assert np.isnan([*got.kurtosis_max, *got.ratio_max, got.kurtosis_of_rms]).all()
    got.update(summarize(torch.zeros(3, 2), TileRange(0, 0, 3), 1.0))
    assert np.isnan([*got.kurtosis_max, *got.ratio_max, got.kurtosis_of_rms]).all()
    assert np.isnan(together([got.moments]).kurtosis[0])
    assert got.norms.quantiles(0.5)[0] == 0


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
            count += part.size
            rounded = returned(row["format"], row["scale_of"], part)
            error += (rounded.astype(np.float64) - part).ravel().tolist()
            signal += (tile.astype(np.float64) ** 2).sum()
        squares = sum(e * e for e in error)
        assert row["values"] == count
        assert row["rmse"] == pytest.approx(math.sqrt(squares / count), rel=1e-12)
        assert row["mae"] == pytest.approx(sum(map(abs, error)) / count, rel=1e-12)
        assert row["sqnr"] == pytest.approx(10 * math.log10(signal / squares), rel=1e-12)


def test_errors_of_another_version_are_made_anew(measured, monkeypatch):
    """A new version of the errors recomputes them and nothing else."""
    before = {p: p.read_bytes() for p in (measured.folder / "summaries").rglob("*.safetensors")}
    monkeypatch.setattr(tiles, "ERRORS_VERSION", ERRORS_VERSION + 1)
    measured.detect()
    anew = {path for path, content in before.items() if path.read_bytes() != content}
    assert anew == {path for path in before if "-quantization" in str(path)} != set()
