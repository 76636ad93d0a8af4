"""Tests of intervals over sequences against draws that are evaluated one by one."""

import functools
import itertools

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline import Run, config

from outlier_atlas import tables
from outlier_atlas.criteria.llm_int8.tables import SHARES
from outlier_atlas.criteria.tables import TABLES
from outlier_atlas.statistics import largest_sequences
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.largest_sequences import LargestSequences
from outlier_atlas.tables.losses import ENOUGH_SEQUENCES

RESAMPLES, SEED, LEVEL = 200, 3, 0.9


def drawn(sequences, resamples=RESAMPLES):
    """Return the sequences of each draw."""
    random = np.random.default_rng(SEED)
    counts = random.multinomial(sequences, [1 / sequences] * sequences, resamples)
    return [[s for s, count in enumerate(draw) for _ in range(count)] for draw in counts]


def interval(of_draw, sequences, level=LEVEL):
    """Return the interval of a number, given a function of a draw's sequences; None without one."""
    numbers = sorted(number for draw in drawn(sequences) if not np.isnan(number := of_draw(draw)))
    if not numbers:
        return None
    tail = (1 - level) / 2
    ranks = (np.ceil(len(numbers) * share - 1) for share in (tail, 1 - tail))
    return tuple(float(numbers[max(0, int(rank))]) for rank in ranks)


def accumulated(of_sequences, order, split):
    """Add (sequence, part, channel) maxima in some order to two accumulators, and merge these."""
    _, parts, channels = of_sequences.shape
    both = LargestSequences(channels), LargestSequences(channels)
    for index, place in enumerate(order):
        sequence, part = divmod(int(place), parts)
        values = of_sequences[sequence, part]
        values = np.where(np.isnan(values), np.float32(-1), values)
        both[index < split].update(values, sequence)
    both[0].merge(both[1])
    return both[0]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.integers(0, 2**31), st.sampled_from([0.5, 0.9, 0.95]), st.data())
def test_a_channels_maximum_has_the_interval_of_its_draws(sequences, seed, level, data):
    random = np.random.default_rng(seed)
    x = random.integers(0, 12, (sequences, 2, 5)).astype(np.float32)  # with many equals
    x[random.random(x.shape) < 0.3] = np.nan
    x[:, :, 4] = np.nan
    order = random.permutation(sequences * 2)
    got = accumulated(x, order, data.draw(st.integers(0, 2 * sequences)))
    low, high = got.intervals(Bootstrap(sequences, RESAMPLES, SEED, level))
    largest = np.fmax(x[:, 0], x[:, 1])
    for channel in range(5):
        wanted = interval(
            lambda draw, c=channel: np.fmax.reduce(largest[draw, c]), sequences, level
        )
        ends = (low[channel], high[channel])
        assert ends == wanted if wanted else np.isnan(ends).all()


@pytest.mark.parametrize("kept", [3, 16])
def test_any_order_keeps_the_same_sequences(kept, monkeypatch):
    monkeypatch.setattr(largest_sequences, "KEPT", kept)
    random = np.random.default_rng(0)
    x = random.integers(0, 6, (9, 3, 4)).astype(np.float32)
    each = [accumulated(x, random.permutation(27), int(split)) for split in range(0, 28, 9)]
    for other in each[1:]:
        assert np.array_equal(other.values, each[0].values)
        assert np.array_equal(other.sequences, each[0].sequences)
    assert ((each[0].values >= 0).sum(axis=0) == min(kept, 9)).all()


def test_one_sequence_has_no_interval():
    got = accumulated(np.ones((1, 2, 3), np.float32), [0, 1], 1)
    assert np.isnan(got.intervals(Bootstrap(1, RESAMPLES, SEED, LEVEL))).all()


def test_an_infinite_maximum_is_a_number_of_its_draws():
    """A ratio to a median of 0, which is frequent in models with ReLU, is infinite."""
    of_sequences = np.array([np.inf, 2.0, np.nan, 3.0])
    want = interval(lambda draw: np.fmax.reduce(of_sequences[draw]), 4)
    assert want == (2.0, np.inf)
    assert Bootstrap(4, RESAMPLES, SEED, LEVEL).maxima(of_sequences) == want


@pytest.mark.parametrize("above", [
    [1.0, np.inf, 5.0, 2.5], [1.0, -np.inf, 5.0, -np.inf], [-np.inf, np.inf, 5.0, 2.5],
])  # fmt: skip
def test_an_infinite_part_is_in_the_draws_that_hold_its_sequence_alone(above):
    """An infinite loss of a token leaves the means of the other sequences finite."""
    above, below = np.array(above), np.array([3, 2, 4, 6])

    def mean(draw):
        with np.errstate(invalid="ignore"):
            return above[draw].sum() / below[draw].sum()

    want = interval(mean, 4)
    assert np.isinf(want).any()
    got = Bootstrap(4, RESAMPLES, SEED, LEVEL).ratios(above, below)
    assert got == pytest.approx(want, rel=1e-15)  # sums in another order
    assert Bootstrap(4, RESAMPLES, SEED, LEVEL).ratios(np.full(4, np.nan), below) is None


ROWS = [[5, 17, 200, 9, 33], [40, 6, 7, 80, 90, 11, 12], [60, 61, 5], [7, 7, 99, 100, 280, 14]]
BOUNDS = [*itertools.pairwise(np.cumsum([0, *map(len, ROWS)]))]
BOOTSTRAP = {"resamples": 40, "seed": SEED, "level": LEVEL}
SINK_TOKENS = 4
SINK = 0.52  # of four tokens that attend evenly the first receives (1 + 1/2 + 1/3 + 1/4) / 4


def measured(folder, model, sites, **detection):
    extraction = {"sites": sites, "advanced": {"sink_tokens": SINK_TOKENS}, "perplexity": True}
    detection |= {
        "bootstrap": BOOTSTRAP,
        "massive_activations": {"absolute": 0.03, "ratio": 2.0},
        "attention_sinks": {"threshold": SINK},
    }
    run = Run(folder, config(model, ROWS, folder / "d", extraction=extraction, detection=detection))
    run.prepare()
    run.measure_weights()
    run.extract()
    run.detect()
    return run


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    sites = [
        "attn_in", "mlp_in", "mlp_hidden", "down_proj_out", "mlp_out", "resid_post", "attn_sink",
    ]  # fmt: skip
    return measured(
        folder, tiny.llama(folder / "model"), sites, llm_int8={"threshold": 2.5},
        quantization_error={"sites": ["mlp_in"], "threshold": 2.0},
    )  # fmt: skip


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    criterion = {"quantile": 0.5, "ratio": 0.01, "growth": 0.01}
    return measured(
        folder, tiny.qwen3_moe(folder / "model"), ["expert_out", "resid_post"],
        super_experts=criterion,
    )  # fmt: skip


def holds(run, table, makers):
    """Check every interval of a table against its draws; the table must have varying numbers.

    Args:
        makers: for each column a function that computes it for one row from a draw's sequences.
    """
    known = {name[:-4] for name in run.table(table)[0] if name.endswith("_low")}
    assert known == set(makers)
    rows = run.table(table)
    # Equal draws are evaluated only once.
    every = [tuple(draw) for draw in drawn(len(ROWS), BOOTSTRAP["resamples"])]
    tail = (1 - LEVEL) / 2
    for name, maker in makers.items():
        varied = False
        for row in rows:
            made = {draw: maker(row, list(draw)) for draw in set(every)}
            numbers = sorted(made[draw] for draw in every if not np.isnan(made[draw]))
            got = row[f"{name}_low"], row[f"{name}_high"]
            if not numbers:
                assert got == (None, None)
                continue
            count = len(numbers)
            ranks = [int(np.ceil(count * share - 1)) for share in (tail, 1 - tail)]
            # Sums of float64 in another order; maxima and counts come out equal.
            assert got == pytest.approx([numbers[max(rank, 0)] for rank in ranks], rel=1e-12)
            varied |= got[0] < got[1]
        assert varied, name


def joined(values, draw):
    """Return the rows of the tokens in the sequences of a draw."""
    return np.concatenate([values[slice(*BOUNDS[s])] for s in draw])


@functools.cache
def stored(run, site):
    return run.array(site).astype(np.float64)


def layer_of(run, row, draw, site=None):
    return joined(stored(run, site or row["site"])[row["layer"]], draw)


def test_intervals_of_largest_values(dense):
    holds(dense, "layer_magnitudes", {"top1": lambda r, d: np.abs(layer_of(dense, r, d)).max()})
    arrays = {site: np.abs(dense.array(site)).astype(np.float64) for site in ("attn_in", "mlp_out")}
    maxima = {
        (site, layer): np.stack([x[layer, slice(*bounds)].max(axis=0) for bounds in BOUNDS])
        for site, x in arrays.items()
        for layer in range(4)
    }
    rows = [row for row in dense.table("channel_maxima") if (row["site"], row["layer"]) in maxima]

    class Some:
        def table(self, name):
            return rows

    holds(Some(), "channel_maxima", {
        "value": lambda r, d: maxima[r["site"], r["layer"]][d, r["channel"]].max()
    })  # fmt: skip
    holds(dense, "super_weights", {
        "output": lambda r, d: np.abs(layer_of(dense, r, d, "down_proj_out")).max()
    })  # fmt: skip
    ends = {
        (row["site"], row["layer"], row["channel"]): (row["value_low"], row["value_high"])
        for row in dense.table("channel_maxima")
    }
    scales = dense.table("smoothquant_scales")
    assert scales
    for row in scales:
        wanted = ends[row["site"], row["layer"], row["channel"]]
        assert (row["activation_max_low"], row["activation_max_high"]) == wanted


def test_intervals_of_outlier_features(dense):
    tensors = [(site, layer) for site in ("attn_in", "mlp_in") for layer in range(4)]
    arrays = {(site, layer): dense.array(site)[layer] for site, layer in tensors}

    def of(row, draw):
        return np.stack([joined(arrays[t][:, row["channel"]], draw) for t in tensors])

    def outliers(row, draw):
        return np.abs(of(row, draw)) >= 2.5

    def layers(row, draw):
        affected = outliers(row, draw).any(axis=1)
        return np.mean([any(affected[[t[1] == layer for t in tensors]]) for layer in range(4)])

    def mean(row, draw):
        shares = outliers(row, draw).mean(axis=1)
        return shares[shares > 0].mean() if shares.any() else 0.0

    def positive(row, draw):
        values = of(row, draw)[outliers(row, draw)]
        return np.mean(values > 0) if len(values) else np.nan

    holds(dense, "llm_int8_features", {
        "layer_share_layers": layers,
        "layer_share_tensors": lambda r, d: outliers(r, d).any(axis=1).mean(),
        "position_share_union": lambda r, d: outliers(r, d).any(axis=0).mean(),
        "position_share_mean": mean,
        "position_share_max": lambda r, d: outliers(r, d).mean(axis=1).max(),
        "positive_share": positive,
        "value": lambda r, d: np.abs(of(r, d)).max(),
    })  # fmt: skip


def test_a_draw_without_a_position_that_counts_has_no_share(tmp_path):
    """If only one of two sequences has included tokens, all draws with a share have the same."""
    detection = {
        "bootstrap": BOOTSTRAP, "llm_int8": {"threshold": 2.5}, "exclude": {"first_positions": 2},
    }  # fmt: skip
    extraction = {"sites": ["attn_in", "mlp_in"]}
    model, rows = tiny.llama(tmp_path / "model"), [[60, 61], ROWS[1]]
    data = config(model, rows, tmp_path / "d", extraction=extraction, detection=detection)
    run = Run(tmp_path, data)
    run.all()
    assert [0, 0] in drawn(2, BOOTSTRAP["resamples"])
    features = run.table("llm_int8_features")
    assert features
    for row in features:
        for share in SHARES:
            assert row[share] == row[f"{share}_low"] == row[f"{share}_high"], share


def test_intervals_of_massive_channels(dense):
    massive = dense.table("massive_activations")

    def of(row, draw):
        place = (row["layer"], row["channel"])
        mine = [m for m in massive if (m["layer"], m["channel"]) == place]
        return [m for s in draw for m in mine if m["sequence"] == s]

    holds(dense, "massive_channels", {
        "first_position_share": lambda r, d: (
            np.mean([m["position"] == 0 for m in of(r, d)]) if of(r, d) else np.nan
        ),
        "value": lambda r, d: max((abs(m["value"]) for m in of(r, d)), default=np.nan),
    })  # fmt: skip


def kurtosis(token):
    d = token - token.mean()
    return (d**4).mean() / (d**2).mean() ** 2


def ratio(token):
    magnitudes = np.sort(np.abs(token))
    return magnitudes[-1] / magnitudes[(len(token) - 1) // 2]


def test_intervals_of_measures(dense):
    def tokens(of_token, combine):
        return lambda r, d: combine([of_token(token) for token in layer_of(dense, r, d)])

    holds(dense, "layer_measures", {
        "kurtosis_token": tokens(kurtosis, np.mean),
        "kurtosis_token_max": tokens(kurtosis, max),
        "mmr_max": tokens(ratio, max),
        "infinity_norm": lambda r, d: np.mean(
            [np.abs(layer_of(dense, r, [s])).max() for s in d]
        ),
    })  # fmt: skip
    holds(dense, "quantization_error", {
        "most_outlier_channels": lambda r, d: max(
            (np.abs(layer_of(dense, r, [s])) >= 2).any(axis=0).sum() for s in d
        )
    })  # fmt: skip


def test_intervals_of_attention_sinks(dense):
    x = dense.array("attn_sink").astype(np.float64)  # (layer, token, head); NaN from T on

    def first(row, draw):
        return np.stack([x[row["layer"], BOUNDS[s][0]] for s in draw])

    def at(row, draw):
        lengths = [(s, stop - start) for s, (start, stop) in enumerate(BOUNDS)]
        there = [s for s, length in lengths if length > row["position"]]
        values = [x[:, BOUNDS[s][0] + row["position"]] for s in draw if s in there]
        return np.stack(values) if values else np.full(1, np.nan)

    def metric(values):
        return np.nan if np.isnan(values).all() else 100 * np.mean(values > SINK)

    holds(dense, "attention_sinks", {
        "sink_metric": lambda r, d: metric(first(r, d)),
        "value": lambda r, d: np.nanmax(joined(x[r["layer"]], d)),
    })  # fmt: skip
    holds(dense, "attention_sink_heads", {
        "mean": lambda r, d: first(r, d)[:, r["head"]].mean(),
        "sink_share": lambda r, d: np.mean(first(r, d)[:, r["head"]] > SINK),
    })  # fmt: skip
    holds(dense, "attention_sink_positions", {
        "sink_metric": lambda r, d: metric(at(r, d)),
        "mean": lambda r, d: at(r, d).mean(),
    })  # fmt: skip


def test_intervals_of_perplexity(dense):
    losses = dense.array("token_loss").astype(np.float64).ravel()
    *own, together = dense.table("perplexity")
    assert all(row["loss_low"] is row["perplexity_high"] is None for row in own)

    class Whole:
        def table(self, name):
            return [together]

    def loss(_, draw):
        return np.concatenate([losses[BOUNDS[s][0] + 1 : BOUNDS[s][1]] for s in draw]).mean()

    holds(Whole(), "perplexity", {
        "loss": loss, "perplexity": lambda r, d: np.exp(loss(r, d)),
    })  # fmt: skip


def test_intervals_of_experts(mixture):
    parts = ("expert_out", "expert_out_expert", "expert_out_channel")
    values, chosen, _ = (mixture.array(part) for part in parts)
    lengths = [len(row) for row in ROWS]

    def largest(row, draw):
        mine = joined(chosen[row["layer"]], draw) == row["expert"]
        return np.abs(joined(values[row["layer"]], draw)[mine]).max(initial=-1)

    def number(row, draw):
        return (joined(chosen[row["layer"]], draw) == row["expert"]).sum()

    def or_nan(value):
        return np.nan if value < 0 else float(value)

    holds(mixture, "expert_magnitudes", {
        "token_share": lambda r, d: number(r, d) / sum(lengths[s] for s in d),
        "value": lambda r, d: or_nan(largest(r, d)),
    })  # fmt: skip
    holds(mixture, "super_experts", {
        "value": lambda r, d: or_nan(largest(r, d)),
        "largest_share": lambda r, d: or_nan(largest(r, d))
        / max(np.abs(joined(layer, d)).max() for layer in values.astype(np.float64)),
    })  # fmt: skip


def test_files_name_the_settings_that_their_numbers_depend_on(dense, mixture):
    named = {}
    for run in (dense, mixture):
        for table in (*TABLES, *tables.WEIGHT_TABLES):
            named |= {(run, table.name): tables.parameters(run.tables, table)}
            if table.has_intervals:
                assert named[run, table.name]["bootstrap"] == BOOTSTRAP, table.name
    for table, block, key, value in (
        ("criteria", "llm_int8", "threshold", 2.5),
        ("llm_int8_features", "llm_int8", "threshold", 2.5),
        ("llm_int8_variants", "llm_int8", "position_share", 0.06),
        ("massive_activations", "massive_activations", "absolute", 0.03),
        ("massive_channels", "massive_activations", "median", "tensor"),
        ("super_weights", "super_weights", "threshold", 50.0),
        ("systematic_outliers", "systematic_outliers", "ratio", 1000.0),
        ("token_outliers", "token_outliers", "ratio", 64.0),
        ("token_norms", "token_norms", "top", 20),
        ("quantization_error", "quantization_error", "threshold", 2.0),
        ("attention_sinks", "attention_sinks", "threshold", SINK),
        ("attention_sink_heads", "attention_sinks", "threshold", SINK),
        ("attention_sink_positions", "attention_sinks", "threshold", SINK),
        ("smoothquant_scales", "smoothquant", "alpha", 0.5),
    ):
        assert named[dense, table][block][key] == value, table
    assert named[mixture, "super_experts"]["super_experts"]["quantile"] == 0.5
    assert named[mixture, "super_experts"]["massive_activations"]["ratio"] == 2.0
    assert named[mixture, "expert_magnitudes"]["experts"] == {"min_tokens": 1}


SINGLE = {"massive_activations", "systematic_outliers", "token_outliers", "token_norms"}
OTHERWISE = {
    ("layer_magnitudes", "value"),  # top1 with its sign
    ("super_weights", "weight"),
    ("super_experts", "quantile"),
    ("super_experts", "growth"),
    ("layer_measures", "kurtosis_channel_max"),
}


def test_every_share_and_maximum_has_an_interval_or_a_reason():
    for table in TABLES:
        names = {column.name for column in table.columns}
        for column in table.columns:
            largest = column.name in ("value", "top1") or column.name.endswith("_max")
            if column.name.endswith(("_low", "_high")) or table.name in SINGLE:
                continue
            if (largest or column.unit in ("share", "%")) and column.type != "int64":
                said = {f"{column.name}_low", f"{column.name}_high"} <= names
                assert said != ((table.name, column.name) in OTHERWISE), (table.name, column.name)


def test_an_interval_of_enough_sequences_is_wrong_at_most_twice_as_often_as_it_says():
    """The coverage of a mean's interval for normally distributed sequences is as documented.

    It agrees with docs/validation.md within 2 %, at least three standard errors of the repetitions.
    """
    covered = {}
    for sequences in (2, 4, ENOUGH_SEQUENCES, 20):
        bootstrap = Bootstrap(sequences, 1000, 0, 0.95)
        values = np.random.default_rng(0).standard_normal((5000, sequences))
        means = values @ (bootstrap.weights.T / sequences)
        low, high = np.quantile(means, bootstrap.ends, axis=1, method="inverted_cdf")
        covered[sequences] = float(((low <= 0) & (high >= 0)).mean())
    print(covered)
    assert covered == pytest.approx({2: 0.50, 4: 0.81, 10: 0.90, 20: 0.93}, abs=0.02)
