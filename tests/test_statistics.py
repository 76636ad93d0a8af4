"""Tests of accumulators against direct computations on whole arrays, for any split and order."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from outlier_atlas.criteria.llm_int8.accumulator import OutlierFeatures
from outlier_atlas.criteria.massive_activations.measure import massive_activations
from outlier_atlas.statistics.codes import NOT_FINITE as NO_CODE
from outlier_atlas.statistics.codes import from_code, magnitude_codes
from outlier_atlas.statistics.experts import ExpertMagnitudes, summarize_experts
from outlier_atlas.statistics.magnitudes import Magnitudes
from outlier_atlas.statistics.sequences import BySequence
from outlier_atlas.statistics.summary import TileRange, summarize

CHANNELS = 4

# Values that bfloat16 represents exactly, so that every statistic has one correct value.
EXACT = [0.0, -0.0, 1e-40, 0.5, -1.0, 1.0, 3.0, -6.0, 6.0, 8.0, -100.0, 104.0, -2048.0, 3e38]
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


def as_bfloat16(values):
    return torch.tensor(values, dtype=torch.float32).bfloat16().float().numpy()


def arrays(values):
    held = [float(value) for value in as_bfloat16(values)]
    return hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.just(CHANNELS)),
        elements=st.sampled_from(held),
    )


def places(length, cuts, starts=(0,)):
    """Yield the tiles of `length` tokens, cut before the tokens `cuts` and at each sequence."""
    edges = sorted({*starts, length, *(cut % length for cut in cuts)})
    for a, b in pairwise(edges):
        yield TileRange(sum(start <= a for start in starts) - 1, a, b - a)


def tiles(x, cuts, starts=(0,), floor=1.0):
    """Return the summaries of the tiles of x."""
    return [
        summarize(torch.from_numpy(x[p.start : p.start + p.tokens]), p, floor)
        for p in places(len(x), cuts, starts)
    ]


def accumulate(make, pieces, order, split):
    """Add the pieces in some order to two accumulators, and merge these."""
    pieces = [pieces[i] for i in np.argsort(order[: len(pieces)])]
    first, second = make(), make()
    for index, piece in enumerate(pieces):
        (first if index < split else second).update(piece)
    second.merge(first)
    return second


splits = st.lists(st.integers(0, 100), max_size=4)
orders = st.permutations(range(12)).map(np.array)


@settings(deadline=None, max_examples=300)
@given(arrays(EXACT + NOT_FINITE), splits, orders, st.integers(0, 5))
def test_magnitudes_of_any_split_are_those_of_the_whole(x, cuts, order, split):
    got = accumulate(lambda: Magnitudes(CHANNELS, 1), tiles(x, cuts), order, split)
    finite = np.isfinite(x)
    magnitudes = np.sort(np.abs(x[finite]))
    assert got.values == x.size
    assert got.nan == np.isnan(x).sum()
    assert got.infinite == np.isinf(x).sum()
    assert got.top == magnitudes[::-1][:3].tolist()
    if finite.any():
        assert got.median == magnitudes[(len(magnitudes) - 1) // 2]
    else:
        assert np.isnan(got.median)
        assert got.largest_channel is None
    for channel in range(CHANNELS):
        rows = np.flatnonzero(finite[:, channel])
        if not len(rows):
            assert np.isnan(got.maxima[channel])
            assert got.tokens[channel] == -1
            continue
        row = min(rows, key=lambda r: (-abs(x[r, channel]), r))
        assert got.tokens[channel] == row
        assert got.maxima[channel] == x[row, channel]
    if finite.any():
        token, channel = min(
            zip(*np.nonzero(finite), strict=True), key=lambda p: (-abs(x[p]), p[0], p[1])
        )
        assert got.largest_channel == channel
        assert got.tokens[channel] == token


@settings(deadline=None, max_examples=200)
@given(arrays(EXACT), arrays(EXACT), splits, st.integers(0, 5))
def test_outlier_features_of_any_split_are_those_of_the_whole(x, y, cuts, split):
    length = min(len(x), len(y))
    tensors = {("attn_in", 0): x[:length], ("mlp_in", 0): y[:length], ("attn_in", 1): y[:length]}
    halves = [OutlierFeatures(list(tensors), CHANNELS, 6.0, 1) for _ in range(2)]
    for index, _ in enumerate(tiles(x[:length], cuts)):
        half = halves[index >= split]
        for tensor, values in tensors.items():
            half.update(tensor, tiles(values, cuts)[index])
        half.close()
    halves[0].merge(halves[1])
    got = {feature.channel: feature for feature in halves[0].features()}
    stacked = np.stack(list(tensors.values()))
    outliers = np.abs(stacked) >= 6
    assert set(got) == set(np.flatnonzero(outliers.any(axis=(0, 1))))
    for channel, feature in got.items():
        mask, values = outliers[:, :, channel], stacked[:, :, channel]
        shares = mask.mean(axis=1)
        assert feature.layers == int((mask[0] | mask[1]).any()) + int(mask[2].any())
        assert feature.tensors == mask.any(axis=1).sum()
        assert feature.layer_share["layers"] == feature.layers / 2
        assert feature.layer_share["tensors"] == feature.tensors / 3
        assert feature.position_share["union"] == mask.any(axis=0).mean()
        # One rounding more or less than numpy's mean of means.
        assert feature.position_share["mean"] == pytest.approx(shares[shares > 0].mean(), rel=1e-15)
        assert feature.position_share["max"] == shares.max()
        assert feature.outlier_values == mask.sum()
        assert feature.positive_share == (values[mask] > 0).mean()
        ordered = np.sort(values[mask])
        ranks = [int(q * (len(ordered) - 1)) for q in (0.25, 0.5, 0.75)]
        assert feature.quartiles == tuple(ordered[rank] for rank in ranks)
        assert abs(feature.value) == np.abs(ordered).max()


@settings(deadline=None, max_examples=200)
@given(st.data(), splits, orders, st.integers(0, 5))
def test_expert_magnitudes_of_any_split_are_those_of_a_loop(data, cuts, order, split):
    tokens, experts, routed = data.draw(st.integers(1, 12)), 5, 2

    def drawn(elements):
        return data.draw(hnp.arrays(np.float32, (tokens, routed), elements=elements))

    x = drawn(st.sampled_from(EXACT + NOT_FINITE).map(lambda value: float(as_bfloat16(value))))
    # Two unlike experts a token, and not the last one.
    first = drawn(st.integers(0, experts - 2))[:, 0]
    chosen = np.stack([first, (first + 1) % (experts - 1)], axis=1)
    channels = drawn(st.integers(0, 2**20))
    inputs, input_channels = drawn(st.integers(0, 99)), drawn(st.integers(0, 2**20))
    numbers = np.concatenate([x, chosen, channels, inputs, input_channels], axis=1)
    pieces = [
        summarize_experts(torch.from_numpy(numbers[p.start : p.start + p.tokens]), p, experts)
        for p in places(tokens, cuts)
    ]
    got = accumulate(lambda: ExpertMagnitudes(experts, 1), pieces, order, split)
    for expert in range(experts):
        mine = [*zip(*np.nonzero(chosen == expert), strict=True)]
        assert got.routed[0, expert] == len(mine)
        assert got.nan[expert] == sum(np.isnan(x[place]) for place in mine)
        assert got.infinite[expert] == sum(np.isinf(x[place]) for place in mine)
        finite = [place for place in mine if np.isfinite(x[place])]
        if not finite:
            assert np.isnan(got.values[expert])
            assert (got.tokens[expert], got.channels[expert]) == (-1, -1)
            assert got.spike(expert) is None
            continue
        best = min(finite, key=lambda place: (-abs(x[place]), place[0]))
        assert got.values[expert] == x[best]
        assert got.tokens[expert] == best[0]
        assert got.channels[expert] == channels[best]
        spike = got.spike(expert)
        assert (spike.input, spike.column) == (inputs[best], input_channels[best])


MASSIVE = [0.0, 0.01, 0.1, -0.1, 1.0, 100.0, -100.5, 101.0, -1000.0, 4096.0]


@settings(deadline=None, max_examples=300)
@given(
    arrays(MASSIVE + NOT_FINITE),
    splits,
    splits,
    orders,
    st.integers(0, 5),
    st.sampled_from(["tensor", "token"]),
)
def test_massive_activations_of_any_split_are_those_of_the_whole(
    x, cuts, sequences, order, split, median
):
    starts = np.array(sorted({0, len(x), *(cut % len(x) for cut in sequences)}), np.int64)
    decide = partial(massive_activations, absolute=100.0, ratio=1000.0, median=median)
    pieces = tiles(x, cuts, starts[:-1].tolist())
    got = accumulate(lambda: BySequence(starts, decide), pieces, order, split).results()
    want = []
    for a, b in pairwise(starts):
        whole = lower_median(x[a:b])
        for token in range(a, b):
            own = lower_median(x[token])
            for channel in range(CHANNELS):
                value = x[token, channel]
                least = 1000.0 * {"tensor": whole, "token": own}[median]
                if np.isfinite(value) and abs(value) > 100 and abs(value) >= least:
                    want.append((token, channel, value, whole, own))
    assert [(m.token, m.channel, m.value, m.tensor_median, m.token_median) for m in got] == want


def lower_median(values):
    magnitudes = np.sort(np.abs(values[np.isfinite(values)]))
    return float(magnitudes[(len(magnitudes) - 1) // 2]) if len(magnitudes) else float("nan")


@given(hnp.arrays(np.float32, 8, elements=st.floats(2.0**-126, 2.0**127, width=32)))
def test_codes_have_eight_bits_of_mantissa(values):
    mantissa, exponent = np.frexp(values.astype(np.float64))  # of which the first bit is 1
    want = np.ldexp(np.round(np.ldexp(mantissa, 9)), exponent - 9)  # numpy rounds to even
    got = np.array([from_code(int(code)) for code in magnitude_codes(values)])
    assert got.tolist() == want.tolist()
    assert (np.abs(got - values) <= values * 2.0**-9).all()
    assert (np.diff(magnitude_codes(np.sort(values)).astype(int)) >= 0).all()


@given(hnp.arrays(np.float32, 8, elements=st.floats(0, float(np.finfo(np.float32).max), width=32)))
def test_codes_hold_bfloat16(values):
    held = torch.from_numpy(values).bfloat16().float().numpy()
    codes = magnitude_codes(held)
    assert [from_code(int(code)) for code in codes] == held.tolist()
    assert (codes < NO_CODE).all()


def test_a_threshold_is_compared_as_the_criterion_says():
    just_below = np.nextafter(np.float32(6), np.float32(0))
    features = OutlierFeatures([("attn_in", 0)], 2, 6.0, 1)
    features.update(("attn_in", 0), *tiles(np.array([[6.0, just_below]], np.float32), []))
    features.close()
    assert [feature.channel for feature in features.features()] == [0]


def test_a_quarter_of_the_tensors_is_in():
    tensors = [("attn_in", layer) for layer in range(60)]
    features = OutlierFeatures(tensors, 1, 6.0, 1)
    for tensor in tensors:
        value = 7.0 if tensor[1] < 15 else 0.0
        features.update(tensor, *tiles(np.full((1, 1), value, np.float32), []))
    features.close()
    (feature,) = features.features()
    assert feature.passes(0.25, 0.06, "tensors", "union")
    assert not feature.passes(0.2501, 0.06, "tensors", "union")
