"""Tests of every key of the configuration with absurd values, and with the largest and smallest
accepted ones."""

import copy
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline import Run, config
from refused import TECHNICAL

from outlier_atlas import staleness
from outlier_atlas.checkpoint.source import fetch
from outlier_atlas.extraction.print_plan import print_plan
from outlier_atlas.settings.configuration import load

KEYS = list(staleness.keys())
LEAST = {"model": {"source": "./model"}, "dataset": {"source": "./text.txt"}}
# Keys that are refused alone, each with what it needs beside it.
COMPANY = {
    "model.revision": {"model.source": "a/b"},
    "dataset.revision": {"dataset.source": "a/b"},
    "dataset.subset": {"dataset.source": "a/b"},
    "dataset.min_length": {"dataset.packing": "document"},
    "extraction.sequence_shards": {"dataset.sequences": 2**31 - 1},
    "extraction.layer_groups": {"extraction.perplexity": True},
}
NUMBERS = [
    0, 1, 2, -1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 10**400, 0.0, -0.0, 0.5, 0.999, 1.5,
    5e-324, 1e-300, 2.0**-149, 2.0**-126, 2.0**128 - 2.0**104, 2.0**128, 1e300, math.nan, math.inf,
    -math.inf,
]  # fmt: skip
OTHERS = [
    None, True, False, "", " ", "\n", "\0", "\ud800", "x" * 5000, "0", "0x1", "nan", "1:30", "0GiB",
    "0.0MiB", "1e9GiB", "\u0663GiB", "24GiB\n", "9" * 400 + "GiB", b"x", (1, 2), {1, 2}, {},
    {"a": 1}, [], [[]], [[[]]], [{}], [None], [True], [0], [0, 0], [-1], [0.5], [math.nan],
    [10**400],
    ["x"], ["x", "x"], [[0, 1]], [[0, 1, 2, 3, 4]], [[0, 1, True]], [["resid_post", 0, 0.5]],
    [["resid_post", "all"]], [["resid_post", "all", 3]] * 2, [[0, 1, 2]] * 2, [[0, 1, 2, 3]] * 2,
    [["resid_post"] * 3], [[0, 1, 10**400]],
]  # fmt: skip

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
    st.sampled_from(NUMBERS),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


def configured(base, keys):
    made = copy.deepcopy(base)
    for key, value in keys.items():
        *path, last = key.split(".")
        section = made
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return made


def check(key, value):
    """Load a value of a key, and check that every fault is a line that names the key."""
    try:
        load(configured(LEAST, COMPANY.get(key, {}) | {key: value}), "run")
    except ValueError as error:
        for line in str(error).split("\n"):
            assert all(re.search(rf"\b{name}\b", line) for name in key.split(".")), line
            assert not re.search("Input should|validation error|Decimal|[Tt]uple", line), line
            assert not TECHNICAL.search(line.replace(repr(value), "")), line
            assert len(line) < 400, line
            assert line.isprintable()


@pytest.mark.parametrize("key", KEYS)
def test_a_bad_value_is_a_line_that_names_the_key(key):
    for value in (*NUMBERS, *OTHERS):
        check(key, value)


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(KEYS), values)
def test_whatever_is_given_is_read_or_refused_in_a_line(key, value):
    check(key, value)


def accepted(base, key):
    """Yield the numbers that a key accepts."""
    for value in NUMBERS:
        given = configured(base, COMPANY.get(key, {}) | {key: value})
        try:
            load(given, "run")
        except ValueError:
            continue
        yield value, given


def test_every_number_has_a_least_and_a_largest():
    for key in KEYS:
        taken = [value for value, _ in accepted(LEAST, key)]
        most = 2**32 if all(isinstance(value, int) for value in taken) else 2.0**128
        assert all(0 <= value < most for value in taken), key


@pytest.fixture(scope="module")
def planned(llama, tmp_path_factory):
    """A fetched model and its configuration."""
    folder = tmp_path_factory.mktemp("planned")
    base = {
        "model": {"source": str(llama)},
        "dataset": {"source": "./t.txt", "sequence_length": 16},
    }
    run = Run(folder, base)
    fetch(run.settings.model, run.resources, run.model_record)
    run.folder.mkdir(parents=True)
    return run, base


@pytest.mark.parametrize("packing", ["concat", "document"])
@pytest.mark.parametrize(
    "key", [key for key in KEYS if key.split(".")[0] in ("dataset", "extraction", "execution")]
)
def test_an_accepted_number_is_planned_or_refused_in_a_line(key, packing, planned, capsys):
    run, base = planned
    taken = dict(accepted(configured(base, {"dataset.packing": packing}), key))
    for value in {min(taken, default=None), max(taken, default=None)} - {None}:
        settings = load(taken[value], "run")
        try:
            print_plan(settings, run.stored)
        except ValueError as error:
            assert "\n" not in str(error)
            assert not TECHNICAL.search(str(error))
            assert key.rsplit(".", 1)[1] in str(error) or "GiB" in str(error), str(error)


DETECTION = [key for key in KEYS if key.startswith("detection.") and ".exclude." not in key]
SITES = ["attn_in", "mlp_in", "mlp_hidden", "down_proj_out", "resid_post", "attn_sink"]


@pytest.mark.parametrize("least", [True, False])
@pytest.mark.parametrize("store", ["all", []])
def test_detection_with_the_least_and_the_largest_of_every_number(least, store, llama, tmp_path):
    rows = [[5, 17, 200, 9] * 2, [40, 6, 7, 80]]
    keys = {"extraction.sites": SITES, "extraction.store": store}
    ends = {}
    for key in DETECTION:
        taken = [value for value, _ in accepted(LEAST, key)]
        if taken and key != "detection.bootstrap.level":
            ends[key] = min(taken) if least else max(taken)
    ends["detection.bootstrap.resamples"] = 40 if least else 2000
    ends["detection.bootstrap.level"] = 0.025 if least else 0.999
    if not store:
        for key, floor in ("llm_int8.threshold", 4.0), ("massive_activations.absolute", 64.0):
            ends[f"detection.{key}"] = max(ends[f"detection.{key}"], floor)
    base = config(llama, rows, tmp_path / "data")
    run = Run(tmp_path, configured(base, keys | ends))
    run.all()
    features = run.table("llm_int8_features")
    assert bool(features) == (least and bool(store)), "nothing is as large as the largest number"
