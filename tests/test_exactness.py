"""Tests that membership is exact, with values as near to a threshold as their type allows."""

from itertools import pairwise
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline import Run, config

from outlier_atlas.criteria.massive_activations.measure import massive_activations
from outlier_atlas.criteria.super_experts.measure import super_experts
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.statistics import summary
from outlier_atlas.statistics.codes import bits_of_code, from_code, magnitude_codes
from outlier_atlas.statistics.medians import needs_median, sequence_median
from outlier_atlas.statistics.sequences import WholeSequence
from outlier_atlas.statistics.summary import TileRange, summarize

DTYPES = {"float32": np.float32, "float16": np.float16}


def lower_median(x):
    magnitudes = np.sort(np.abs(x[np.isfinite(x)].astype(np.float64)))
    return magnitudes[(len(magnitudes) - 1) // 2]


def next_to(number, dtype):
    """Return the least number of a type that is not below `number`, and the largest that is."""
    above = dtype(number)
    while float(above) < number:
        above = np.nextafter(above, dtype(np.inf))
    while float(np.nextafter(above, dtype(0))) >= number:
        above = np.nextafter(above, dtype(0))
    return above, np.nextafter(above, dtype(0))


def at_the_edge(seed, tokens, channels, dtype, ratio=1000.0):
    """Return values with two next to `ratio` times the median, of which only one is massive."""
    random = np.random.default_rng(seed)
    x = (random.standard_normal((tokens, channels)) * random.uniform(0.2, 5)).astype(dtype)
    for column in (0, 1):  # large before the median is taken, so that it stays where it is
        x[-1, column] = 60000
    x[-1, :2] = next_to(ratio * lower_median(x), dtype)
    return x


@pytest.mark.parametrize("on_host", [True, False], ids=["on the host", "as on a device"])
@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(DTYPES)),
    st.integers(2, 30),
    st.integers(2, 40),
    st.lists(st.integers(1, 29), max_size=3),
    st.booleans(),
)
def test_massive_activations_are_those_of_the_definition(
    on_host, seed, dtype, tokens, channels, cuts, not_finite
):
    x = at_the_edge(seed, tokens, channels, DTYPES[dtype])
    if not_finite and tokens > 3:
        x[0, 0], x[1, 1] = np.nan, np.inf
        x[-1, :2] = 60000
        x[-1, :2] = next_to(1000 * lower_median(x), DTYPES[dtype])
    values = torch.from_numpy(x)
    edges = sorted({0, tokens, *(cut % tokens for cut in cuts)})
    with mock.patch.object(summary, "on_host", lambda _: on_host):
        tiles = [summarize(values[a:b], TileRange(0, a, b - a), 64.0) for a, b in pairwise(edges)]
        found = massive_activations(
            WholeSequence(tuple(tiles)), 100.0, 1000.0, "tensor",
            lambda tile: values[tile.start : tile.stop],
        )  # fmt: skip
        found = list(found)
    wide = np.abs(x.astype(np.float64))
    with np.errstate(invalid="ignore"):
        massive = np.isfinite(wide) & (wide > 100) & (wide >= 1000 * lower_median(x))
    assert [(a.token, a.channel) for a in found] == [*map(tuple, np.argwhere(massive))]
    assert all(a.tensor_median == lower_median(x) for a in found)


@settings(deadline=None)
@given(st.integers(0, 2**16 - 2))
def test_the_bits_of_a_code_are_all_that_are_rounded_to_it(code):
    first, stop = bits_of_code(code)
    bits = np.array([first, stop - 1, max(first - 1, 0), stop], np.uint32)
    finite = bits < 0x7F800000
    codes = magnitude_codes(bits.view(np.float32)[finite])
    assert [int(c) == code for c in codes] == [first <= int(b) < stop for b in bits[finite]], (
        from_code(code)
    )


def test_bfloat16_needs_no_second_look():
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) * 100
    assert needs_median(summarize(x, TileRange(0, 0, 40), 64.0))
    assert not needs_median(summarize(x, TileRange(0, 0, 40), 1e9)), "nothing to compare"
    rounded = summarize(x.bfloat16(), TileRange(0, 0, 40), 64.0)
    assert not needs_median(rounded)
    whole = WholeSequence((rounded,)).median()
    assert whole == lower_median(x.bfloat16().float().numpy())


def test_a_median_beyond_the_largest_code_is_finite():
    largest = torch.full((3, 2), float(np.finfo(np.float32).max))
    largest[0, 0] = torch.inf
    assert sequence_median([largest]) == np.finfo(np.float32).max
    assert np.isnan(sequence_median([torch.full((2, 2), torch.nan)]))


# --- From configuration to tables -----------------------------------------------------------------

TOKENS = 12
ROW = list(range(5, 5 + TOKENS))


@pytest.fixture(scope="module", params=DTYPES)
def edge(request, tmp_path_factory):
    """A model whose residual stream has planted values, two of them at the edge."""
    dtype = request.param
    folder, weights = tiny.silent(tmp_path_factory.mktemp(dtype) / "model", layers=2)
    # A seed for which the median's code is on the far side of the median from the edge.
    for seed in range(100):
        x = at_the_edge(seed, TOKENS, 32, DTYPES[dtype])
        median = lower_median(x)
        rounded = from_code(int(magnitude_codes(np.array([median], np.float32))[0]))
        if rounded < median:
            break
    weights = {name: weight.float() for name, weight in weights.items()}
    weights["model.embed_tokens.weight"][ROW] = torch.from_numpy(x.astype(np.float32))
    tiny.save_weights(folder, weights)
    return folder, dtype, median


@pytest.mark.parametrize("detection", [{}, {"exclude": {"token_ids": [200]}}])
@pytest.mark.parametrize("chunk", [12, 5])
@pytest.mark.parametrize("store", ["all", []])
def test_a_run_finds_the_value_at_the_edge_alone(edge, store, chunk, detection, tmp_path):
    if detection and store != "all":
        pytest.skip("tokens are left out of what is stored alone")
    folder, dtype, median = edge
    rows = [[*ROW, 200, 200] if detection else ROW, [200, 201, 202, 203]]
    extraction = {"sites": ["resid_post"], "store": store, "advanced": {"chunk_tokens": chunk}}
    settings = config(folder, rows, tmp_path / "data", extraction=extraction, detection=detection)
    settings["model"]["dtype"] = dtype
    run = Run(tmp_path, settings)
    run.all()
    found = run.table("massive_activations")
    assert [(r["layer"], r["sequence"], r["position"], r["channel"]) for r in found] == [
        (0, 0, TOKENS - 1, 0),
        (1, 0, TOKENS - 1, 0),
    ]
    assert {row["tensor_median"] for row in found} == {np.float32(median)}


# --- Super experts --------------------------------------------------------------------------------


def scanned(values, tops):
    """Return the inputs of `super_experts`: outputs, massive activations and the largest |x|."""
    experts = {
        layer: SimpleNamespace(
            values=np.array(of_layer, np.float32), channels=np.zeros(len(of_layer), np.int64),
            tokens=np.zeros(len(of_layer), np.int64),
        )
        for layer, of_layer in enumerate(values)
    }  # fmt: skip
    massive = {layer: SimpleNamespace(results=lambda: [1]) for layer in experts}
    return (
        experts,
        massive,
        {("resid_post", layer): SimpleNamespace(top=top) for layer, top in tops.items()},
    )


def test_an_expert_just_above_the_quantile_is_above_it():
    """In float32, the quantile between two neighbouring numbers would be one of them."""
    above = np.float32(3)
    below = np.nextafter(above, np.float32(0))
    settings = DetectionSettings.model_validate({"super_experts": {"quantile": 0.75}})
    found = super_experts(*scanned([[below, above]], {0: [9.0]}), settings)
    assert [expert.expert for expert in found] == [1]
    assert float(below) < found[0].quantile < float(above)


def test_a_layer_of_which_nothing_is_finite_is_none_to_grow_from():
    scan = scanned([[1.0, 2.0], [1.0, 2.0], [1.0, 900.0]], {0: [9.0], 1: [], 2: [9.5]})
    (found,) = super_experts(*scan, DetectionSettings())
    assert (found.layer, found.expert, found.growth) == (2, 1, None)


@pytest.mark.parametrize(
    ("criterion", "found"),
    [
        # The quantile of 1, 2, 3, 4 and 5 at 0.75 is 4.
        ({"quantile": 0.75, "ratio": 0.125, "growth": 1.25}, [(1, 5.0)]),
        ({"quantile": 0.5, "ratio": 0.125, "growth": 1.25}, [(1, 4.0), (1, 5.0)]),
        # 0.8 of 5 is 4, also in floating point.
        ({"quantile": 0.25, "ratio": 0.8, "growth": 1.25}, [(1, 5.0)]),
        ({"quantile": 0.25, "ratio": 0.75, "growth": 1.25}, [(1, 4.0), (1, 5.0)]),
        # The residual stream grows from 4 to 5: by 1.25, and by no more.
        ({"quantile": 0.75, "ratio": 0.125, "growth": np.nextafter(1.25, 2)}, []),
    ],
)
def test_an_expert_at_a_threshold_is_not_above_it(criterion, found):
    """Quantile and ratio must be exceeded, and the growth reached."""
    settings = DetectionSettings.model_validate({"super_experts": criterion})
    scan = scanned([[1.0, 2.0, 3.0], [4.0, -5.0]], {0: [4.0], 1: [5.0]})
    experts = super_experts(*scan, settings)
    # The first measured layer has none before it: of its experts none is large enough.
    assert [(e.layer, abs(e.value)) for e in experts if e.layer] == found
    assert all(abs(e.value) == 3 for e in experts if not e.layer)
