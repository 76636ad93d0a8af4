"""The numbers of docs/validation.md: the real built-in model, worked out apart from the library."""

from pathlib import Path

import dumb_llama
import numpy as np
import pytest
from dumb_llama import SITES
from pipeline import Run, config
from real import MODEL, TEXT, built_in

from outlier_atlas.data.tokens import TokenStore

RESOURCES = Path(__file__).parents[1] / "resources"
LENGTH = 72
"""Tokens of a sequence: more than attention sinks are measured on."""


def assert_close(run, want, limit):
    """Each site of each token, within a part of the token's largest value.

    The library computes in float32, the other in float64. Prints the largest difference of each.
    """
    for site in SITES:
        got, expected = run.array(site).astype(np.float64), want[site]
        assert got.shape == expected.shape, site
        assert np.array_equal(np.isnan(got), np.isnan(expected)), site
        got, expected = np.nan_to_num(got), np.nan_to_num(expected)
        largest = np.abs(expected).max(axis=2, keepdims=True)
        off = np.abs(got - expected)
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.where(off > 0, off / largest, 0).max()
        print(f"{site:12} {difference:.1e}")
        assert difference <= limit, site


def worked_out(model, run):
    """Each site, (layer, token, channel), of all sequences one after the other."""
    tokens = TokenStore.open(run.tokens)
    loaded = dumb_llama.load(model)
    each = [
        dumb_llama.forward(loaded, tokens.sequence(s).tolist()) for s in range(tokens.sequences)
    ]
    return {site: np.concatenate([one[site] for one in each], axis=1) for site in SITES}


def test_a_tiny_llama_is_what_is_written_out(llama, tmp_path):
    rows = [[5, 17, 200, 9, 33, 41, 7, 250, 11, 19], [40, 6, 6, 90]]
    data = config(llama, rows, tmp_path / "data", extraction={"sites": list(SITES)})
    data["model"]["dtype"] = "float32"
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    assert_close(run, worked_out(llama, run), 1e-5)


@pytest.fixture(scope="module")
def model():
    return built_in(RESOURCES)


@pytest.mark.slow
def test_a_single_token_is_as_massive_as_it_is_known_to_be(model):
    resid = dumb_llama.forward(dumb_llama.load(model), [1])["resid_post"][:, 0]
    # Given to two decimals, from a run in float32, whose step at 24,826 is 0.002.
    for channel, value in ((507, 24926.22), (247, 1825.05), (14, 915.61)):
        assert resid[11, channel] == pytest.approx(value, abs=0.01)
    for layer, value in ((2, 769.28), (20, 24826.88), (27, 24538.33), (29, 4426.68)):
        assert resid[layer, 507] == pytest.approx(value, abs=0.01)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    run = Run(
        tmp_path_factory.mktemp("validation"),
        {
            "model": {"source": MODEL, "dtype": "float32"},
            "dataset": {"source": TEXT, "sequences": 2, "sequence_length": LENGTH},
            "extraction": {"sites": list(SITES), "layer_groups": 2, "perplexity": True},
            "ablation": {
                "sequences": 1,
                "targets": ["super_weights", "outlier_features"],
                "search_rounds": 0,
                "random_draws": 0,
                "interventions": ["zero"],
            },
        },
        RESOURCES,
    )
    run.all()
    return run


@pytest.fixture(scope="module")
def want(model, run):
    return worked_out(model, run)


@pytest.mark.slow
def test_every_site_of_the_real_model_is_what_is_written_out(run, want):
    assert_close(run, want, 5e-5)


@pytest.mark.slow
def test_its_outlier_features_are_counted_right(run, want):
    both = np.stack([np.abs(want[site]) for site in ("attn_in", "mlp_in")])
    # So near the threshold float32 and float64 may be on either side of it.
    assert (np.abs(both - 6) > 1e-4).all(), "a value so near that the count is not certain"
    above = both >= 6
    layers, positions = above.any(axis=(0, 2)), above.any(axis=(0, 1))
    rows = run.table("llm_int8_features")
    assert {row["channel"] for row in rows} == {*np.flatnonzero(layers.any(0)).tolist()}
    for row in rows:
        channel = row["channel"]
        assert row["outlier_values"] == above[..., channel].sum()
        assert row["layers"] == layers[:, channel].sum()
        assert row["tensors"] == above[..., channel].any(2).sum()
        assert row["position_share_union"] == positions[:, channel].mean()
        passes = layers[:, channel].mean() >= 0.25 and positions[:, channel].mean() >= 0.06
        assert row["outlier_feature"] is bool(passes)
    assert any(row["outlier_feature"] for row in rows)


@pytest.mark.slow
def test_its_massive_activations_are_those_found_by_hand(run, want):
    found = {}
    for sequence in range(2):
        values = want["resid_post"][:, sequence * LENGTH : (sequence + 1) * LENGTH]
        for layer, of_layer in enumerate(values):
            ordered = np.sort(np.abs(of_layer), axis=None)
            median = ordered[(ordered.size - 1) // 2]
            massive = (np.abs(of_layer) > 100) & (np.abs(of_layer) >= 1000 * median)
            for position, channel in np.argwhere(massive).tolist():
                found[layer, sequence, position, channel] = of_layer[position, channel]
    rows = run.table("massive_activations")
    got = {(r["layer"], r["sequence"], r["position"], r["channel"]): r["value"] for r in rows}
    assert got == pytest.approx(found, rel=1e-5)
    assert {layer for layer, *_, channel in found if channel == 507} >= {*range(11, 28)}


@pytest.mark.slow
def test_its_attention_sinks_are_those_of_whole_maps(run, want):
    received = want["attn_sink"].reshape(30, 2, LENGTH, 9)
    for position, row in enumerate(run.table("attention_sink_positions")):
        share = (received[:, :, position] > 0.3).mean()
        assert row["sink_metric"] == pytest.approx(100 * share, rel=1e-12)
        assert row["mean"] == pytest.approx(received[:, :, position].mean(), rel=1e-5)
    assert position == 63
    for row, layer in zip(run.table("attention_sinks"), received, strict=True):
        assert row["sink_metric"] == pytest.approx(100 * (layer[:, 0] > 0.3).mean(), rel=1e-12)
        assert row["value"] == pytest.approx(np.nanmax(layer), rel=1e-5)


# Of a mean loss of about 4, worked out in float32 and in float64.
LOSS = 1e-5


@pytest.mark.slow
def test_its_perplexity_is_that_of_losses_written_out(run, model):
    tokens, loaded = TokenStore.open(run.tokens), dumb_llama.load(model)
    each = [dumb_llama.losses(loaded, tokens.sequence(s).tolist()) for s in range(2)]
    for row, own in zip(run.table("perplexity"), [*each, np.concatenate(each)], strict=True):
        assert row["tokens"] == len(own)
        print(f"sequence {row['sequence']}: {row['loss']:.7f}, written out {own.mean():.7f}")
        assert row["loss"] == pytest.approx(own.mean(), rel=LOSS)
        assert row["perplexity"] == pytest.approx(np.exp(own.mean()), rel=5 * LOSS)


@pytest.mark.slow
def test_what_is_taken_away_costs_what_is_written_out(run, model):
    run.ablate()
    (config, weights), held = dumb_llama.load(model), TokenStore.open(run.heldout)
    ids = held.sequence(0).tolist()
    effects = {}
    found = [row for row in run.table("super_weights") if row["super_weight"]]
    known = [(row["layer"], row["row"], row["column"]) for row in found]
    for row in run.table("ablations"):
        altered = dict(weights)
        zero = [(row["first_layer"], row["row"], row["column"])]
        zero = known if row["target"] == "super_weights" else zero
        if row["target"] in ("super_weight", "super_weights"):
            for layer, output, channel in zero:
                name = f"model.layers.{layer}.mlp.down_proj.weight"
                altered[name] = weights[name].copy()
                altered[name][output, channel] = 0
        elif row["target"] == "outlier_features":
            # A norm's weight of 0 makes a 0 of what the layers behind it read.
            for name in weights:
                if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
                    altered[name] = weights[name].copy()
                    altered[name][[int(channel) for channel in row["channels"].split()]] = 0
        want = dumb_llama.losses((config, altered), ids).mean()
        print(f"{row['target']}, {row['first_layer']}: {row['loss']:.7f}, written out {want:.7f}")
        assert row["loss"] == pytest.approx(want, rel=LOSS), row["target"]
        effects.setdefault(row["target"], []).append(row["ratio"])
    assert effects.keys() == {"none", "super_weight", "super_weights", "outlier_features"}
    for row in found:
        print(f"super weight of layer {row['layer']}: share {row['share']:.4f}")
    assert max(effects["super_weight"]) > 1.1
    assert effects["outlier_features"][0] > 2
