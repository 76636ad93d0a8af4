"""Tests of tile summaries against float64 computations, with values that break naive formulas."""

import dataclasses
from fractions import Fraction
from itertools import pairwise
from unittest import mock

import numba.core.caching
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from outlier_atlas.criteria.systematic_outliers.measure import systematic_outliers
from outlier_atlas.criteria.token_norms.measure import TokenNorms
from outlier_atlas.criteria.token_outliers.measure import token_outliers
from outlier_atlas.statistics import compiled, summary
from outlier_atlas.statistics.codes import magnitude_codes
from outlier_atlas.statistics.moments import Moments, merged, together
from outlier_atlas.statistics.sequences import BySequence
from outlier_atlas.statistics.summary import TileRange, summarize
from outlier_atlas.store import summaries
from outlier_atlas.store.summaries import DamagedSummaryError

HARD = [
    0.0, -0.0, 1e-45, -1e-40, 0.1, -0.1, 1.0, 3.0, -6.0, 64.0, 999.0, 1000.0, 1001.0, 16777216.0,
    -3e38, 3.4e38,
]  # fmt: skip
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


def held(values):
    return [float(np.float32(value)) for value in values]


NINE = st.integers(1, 9)
MOMENTS = ("count", "mean", "m2", "m3", "m4")


def arrays(values, tokens=NINE):
    return hnp.arrays(
        np.float32,
        st.tuples(tokens, st.integers(1, 5)),
        elements=st.sampled_from(held(values)),
    )


def made(x, floor=4.0, kept=None):
    return summarize(torch.from_numpy(x), TileRange(3, 70, len(x)), floor, kept)


def exact_moments(values):
    """Return number, mean and sums of powers of deviations, in exact arithmetic."""
    numbers = [Fraction(float(value)) for value in values]
    if not numbers:
        return 0, 0.0, 0.0, 0.0, 0.0
    mean = sum(numbers) / len(numbers)
    return len(numbers), float(mean), *(
        float(sum((n - mean) ** power for n in numbers)) for power in (2, 3, 4)
    )  # fmt: skip


def assert_moments(got, values):
    """Check equality up to float64 rounding, relative to the largest deviation from the mean."""
    want = exact_moments(values)
    size = max(map(abs, map(float, values)), default=0.0)
    assert got[0] == want[0]
    for power, (mine, theirs) in enumerate(zip(got[1:], want[1:], strict=True), 1):
        # Cancellation leaves some 2^-52 of the largest power that is added up.
        assert mine == pytest.approx(theirs, rel=1e-12, abs=1e-13 * size**power * len(values))


@pytest.mark.parametrize("on_host", [True, False], ids=["on the host", "as on a device"])
@settings(deadline=None, max_examples=200)
@given(arrays(HARD + NOT_FINITE), st.data())
def test_a_summary_is_what_a_loop_finds(on_host, x, data):
    with mock.patch.object(summary, "on_host", lambda _: on_host):
        check_summary(x, data)


def check_summary(x, data):
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x))))
    got = made(x, kept=None if kept.all() else kept)
    tokens = np.flatnonzero(kept)
    y = x[tokens]
    finite = np.isfinite(y)
    magnitudes = np.sort(np.abs(y[finite]))
    assert (got.sequence, got.start, got.tokens, got.stop) == (3, 70, len(x), 70 + len(x))
    assert (got.values, got.nan, got.infinite) == (y.size, np.isnan(y).sum(), np.isinf(y).sum())
    assert got.token.tolist() == tokens.tolist()
    assert got.top.tolist() == magnitudes[::-1][:3].tolist()
    assert got.magnitudes == pytest.approx(
        float(sum(map(Fraction, magnitudes.tolist()))), rel=1e-14
    )
    codes, counts = np.unique(magnitude_codes(np.abs(y[finite])), return_counts=True)
    assert (got.codes.tolist(), got.code_counts.tolist()) == (codes.tolist(), counts.tolist())
    for row, token in enumerate(tokens):
        mine = x[token][finite[row]]
        assert got.token_square[row] == pytest.approx(
            float(sum(Fraction(float(v)) ** 2 for v in mine)), rel=1e-14
        )
        if not len(mine):
            assert np.isnan([got.token_value[row], got.token_median[row]]).all()
            assert got.token_channel[row] == -1
            continue
        assert got.token_channel[row] == min(
            np.flatnonzero(finite[row]), key=lambda c: (-abs(x[token, c]), c)
        )
        assert got.token_value[row] == x[token, got.token_channel[row]]
        assert got.token_median[row] == np.sort(np.abs(mine))[(len(mine) - 1) // 2]
        n, _, m2, _, m4 = exact_moments(mine)
        if len({*mine.tolist()}) > 1 and m2 > 1e-12 * float(np.abs(mine).max()) ** 2:
            assert got.token_kurtosis[row] == pytest.approx(n * m4 / m2**2, rel=1e-9)
        if len({*mine.tolist()}) == 1:
            assert np.isnan(got.token_kurtosis[row])
    for channel in range(x.shape[1]):
        there = tokens[finite[:, channel]]
        assert_moments(
            [getattr(got, f"channel_{name}")[channel] for name in MOMENTS], x[there, channel]
        )
        if not len(there):
            assert np.isnan(got.channel_value[channel])
            assert got.channel_token[channel] == -1
            continue
        first = min(there, key=lambda t: (-abs(x[t, channel]), t))
        assert got.channel_token[channel] == first
        assert got.channel_value[channel] == x[first, channel]
    high = [
        (token, channel, x[token, channel])
        for row, token in enumerate(tokens)
        for channel in range(x.shape[1])
        if finite[row, channel] and abs(x[token, channel]) >= 4.0
    ]
    assert [*zip(got.high_token, got.high_channel, got.high_value, strict=True)] == high


WIDE = [
    lambda random, size: random.standard_normal(size) * np.exp(9 * random.standard_normal(size)),
    lambda random, size: random.standard_normal(size) * 1e-42,  # subnormal
    lambda random, size: random.integers(-3, 3, size),  # with many equals
    lambda random, size: 1 + random.integers(0, 2**18, size) * 2.0**-23,  # of eight codes
    lambda random, size: 1 + random.choice([1, 3, 3, 5], size) * 2.0**-9,  # halfway between two
    lambda random, size: random.choice(held(HARD + NOT_FINITE), size),
    lambda random, size: np.full(size, random.choice(held(HARD + NOT_FINITE))),
]


@pytest.mark.parametrize("on_host", [True, False], ids=["on the host", "as on a device"])
@settings(deadline=None, max_examples=60)
@given(st.integers(1, 700), st.lists(st.sampled_from(WIDE), min_size=1), st.integers(0, 2**32 - 1))
def test_a_tokens_median_is_that_of_sorting(on_host, channels, rows, seed):
    """The medians are exact if values change by many powers of ten from row to row."""
    random = np.random.default_rng(seed)
    x = np.stack([row(random, channels) for row in rows]).astype(np.float32)
    with mock.patch.object(summary, "on_host", lambda _: on_host):
        got = made(x, floor=64.0)
    for row, median in zip(np.abs(x), got.token_median, strict=True):
        finite = np.sort(row[np.isfinite(row)])
        wanted = finite[(len(finite) - 1) // 2] if len(finite) else np.nan
        assert np.array_equal(median, wanted, equal_nan=True)
    assert np.array_equal(got.high_value, x[np.isfinite(x) & (np.abs(x) >= 64)])


@pytest.mark.parametrize("tokens", [4095, 4096, 4097, 9000])
def test_all_tokens_of_a_long_tile_are_counted(tokens):
    x = np.random.default_rng(tokens).integers(0, 3, (tokens, 2)).astype(np.float32)
    got = made(x)
    wanted = np.unique(x, return_counts=True)[1]
    assert got.code_counts.tolist() == wanted.tolist()
    assert got.code_counts.sum() == x.size


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    assert compiled.compiled(lambda x: x + 1)(1) == 2


@settings(deadline=None, max_examples=200)
@given(arrays(HARD), st.lists(st.integers(0, 8), max_size=4), st.randoms())
def test_moments_merge_in_any_split_and_order(x, cuts, random):
    edges = sorted({0, len(x), *(cut % len(x) for cut in cuts)})
    parts = [made(x[a:b]) for a, b in pairwise(edges)]
    random.shuffle(parts)
    halves = [Moments.none(x.shape[1]), Moments.none(x.shape[1])]
    for index, part in enumerate(parts):
        halves[index % 2].update(
            (part.channel_count, part.channel_mean, part.channel_m2, part.channel_m3,
             part.channel_m4)
        )  # fmt: skip
    halves[0].merge(halves[1])
    for channel in range(x.shape[1]):
        assert_moments([power[channel] for power in halves[0].powers], x[:, channel])
    assert_moments([power[0] for power in together([halves[0]]).powers], x.ravel())


def test_moments_far_from_zero_keep_their_digits():
    """E[x^2] - E[x]^2 in float32 gives 1.06 here."""
    x = np.random.default_rng(0).normal(1000, 1, (1000, 1)).astype(np.float32)
    got = made(x)
    want = x[:, 0].astype(np.float64)
    # Two-pass float64 on both sides: only the order of additions differs.
    assert got.channel_m2[0] / 1000 == pytest.approx(want.var(), rel=1e-12)
    nothing = Moments.none(1).powers
    assert all(np.array_equal(a, b) for a, b in zip(merged(nothing, nothing), nothing, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bits_do_not_depend_on_threads_or_the_order_in_memory(threads, dtype):
    x = torch.randn(700, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = summarize(x.float(), TileRange(0, 0, 700), 1.0)
        torch.set_num_threads(threads)
        got = summarize(x.T.contiguous().T, TileRange(0, 0, 700), 1.0)
    finally:
        torch.set_num_threads(before)
    for field in dataclasses.fields(got):
        mine, theirs = getattr(got, field.name), getattr(want, field.name)
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes(), field.name


@settings(deadline=None, max_examples=200)
@given(
    arrays([0.0, 0.5, -1.0, 1.0, 64.0, -65.0, 1e4, float("nan")], st.integers(1, 12)),
    st.lists(st.integers(0, 11), max_size=3),
    st.lists(st.integers(0, 11), max_size=3),
    st.randoms(),
)
def test_token_criteria_of_any_split_are_those_of_the_whole(x, sequences, cuts, random):
    starts = sorted({0, *(s % len(x) for s in sequences)})
    edges = sorted({*starts, len(x), *(c % len(x) for c in cuts)})
    tiles = [
        summarize(
            torch.from_numpy(x[a:b]), TileRange(sum(s <= a for s in starts) - 1, a, b - a), 1.0
        )
        for a, b in pairwise(edges)
    ]
    random.shuffle(tiles)
    bounds = np.array([*starts, len(x)], np.int64)
    halves = [
        (
            BySequence(bounds, lambda s: systematic_outliers(s, 3.0)),
            BySequence(bounds, lambda s: token_outliers(s, 3.0)),
            TokenNorms(2),
        )
        for _ in range(2)
    ]
    for index, tile in enumerate(tiles):
        for accumulator in halves[index % 2]:
            accumulator.update(tile)
    for mine, theirs in zip(*halves, strict=True):
        mine.merge(theirs)
    systematic, outliers, norms = halves[0]
    want = {"mean": [], "median": []}
    for a, b in pairwise(bounds):
        part = np.abs(x[a:b].astype(np.float64))
        largest = [np.nanmax(row) if not np.isnan(row).all() else np.nan for row in part]
        known = sorted(v for v in largest if not np.isnan(v))
        if not known:
            continue
        for token, value in enumerate(largest, a):
            want["mean"] += [token] * bool(value > 3 * np.nanmean(part))
            want["median"] += [token] * bool(value > 3 * known[(len(known) - 1) // 2])
    assert [o.token for o in systematic.results()] == want["mean"]
    assert [o.token for o in outliers.results()] == want["median"]
    lengths = np.sqrt(np.nansum(x.astype(np.float64) ** 2, axis=1))
    some = np.flatnonzero(~np.isnan(x).all(axis=1))
    order = sorted(some, key=lambda t: (-lengths[t], t))
    assert norms.tokens.tolist() == order[:2]


def test_a_file_holds_what_was_written_or_says_so(tmp_path):
    x = np.array([[1.0, -5.0], [8.0, np.nan], [0.0, 2.0]], np.float32)
    tiles = [made(x), made(x[:1]), made(x, kept=np.zeros(3, bool))]
    path = tmp_path / "a" / "summary.safetensors"
    summaries.write(path, "now", tiles)
    for got, want in zip(summaries.read(path, type(tiles[0]), "now"), tiles, strict=True):
        for field in dataclasses.fields(want):
            mine, theirs = getattr(got, field.name), getattr(want, field.name)
            assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()
            assert np.asarray(mine).dtype == np.asarray(theirs).dtype
    with pytest.raises(DamagedSummaryError, match="another configuration"):
        summaries.read(path, type(tiles[0]), "then")
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(DamagedSummaryError):
            summaries.read(path, type(tiles[0]), "now")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedSummaryError):
        summaries.read(path, type(tiles[0]), "now")
    path.unlink()
    with pytest.raises(DamagedSummaryError):
        summaries.read(path, type(tiles[0]), "now")
