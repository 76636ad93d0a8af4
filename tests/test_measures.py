"""Measures of layers and quantization errors against dumb implementations of their formulas."""

import math
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from pipeline import Run, config
from searched_formats import returned

from outlier_atlas.statistics import quantization
from outlier_atlas.statistics.measures import LayerMeasures, QuantizationErrors
from outlier_atlas.statistics.moments import together
from outlier_atlas.statistics.quantization import FORMATS, summarize_quantization
from outlier_atlas.statistics.summary import Place, summarize

# --- Errors of formats ----------------------------------------------------------------------------


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
    e = returned("int8", "tensor", rest).astype(np.float64) - rest
    assert got.square_errors[1] == pytest.approx((e**2).sum(), rel=1e-15)
    assert got.errors[1] == pytest.approx(np.abs(e).sum(), rel=1e-15)
    assert got.square_errors[1] < got.square_errors[0] / 100
    nothing = summarize_quantization(torch.from_numpy(x[2:]), Place(0, 0, 1), 6.0)
    assert (nothing.values.sum(), nothing.square_errors.sum()) == (0, 0)
    sums = QuantizationErrors(1)
    sums.update(got)
    sums.merge(QuantizationErrors(1))
    assert sums.outlier_channels.tolist() == [1]
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
    got.update(summarize(torch.zeros(3, 2), Place(0, 0, 3), 1.0))
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
                count += 8 * int((~outliers).sum())
            else:
                count += part.size
            rounded = returned(row["format"], row["scale_of"], part)
            error += (rounded.astype(np.float64) - part).ravel().tolist()
            signal += (part.astype(np.float64) ** 2).sum()
        squares = sum(e * e for e in error)
        assert row["values"] == count
        assert row["rmse"] == pytest.approx(math.sqrt(squares / count), rel=1e-12)
        assert row["mae"] == pytest.approx(sum(map(abs, error)) / count, rel=1e-12)
        assert row["sqnr"] == pytest.approx(10 * math.log10(signal / squares), rel=1e-12)


@pytest.mark.parametrize("largest", [3.0, 40.0])
def test_a_tensor_is_rounded_in_blocks_as_it_is_whole(largest, monkeypatch):
    """With outlier channels and without; scales of tensor and channel are of the whole tensor."""
    x = torch.from_numpy(np.random.default_rng(3).normal(0, 0.5, (37, 70)).astype(np.float32))
    x[30, 5] = largest
    whole = asdict(summarize_quantization(x, Place(0, 0, 37), 6.0))
    monkeypatch.setattr(quantization, "BLOCK", 4 * 70 + 3)
    in_blocks = asdict(summarize_quantization(x, Place(0, 0, 37), 6.0))
    assert whole["outlier_channels"] == (largest > 6)
    for name, value in whole.items():
        assert np.array_equal(in_blocks[name], value), name
