"""Runs some of whose values are NaN or infinite: no number of them without a word."""

import numpy as np
import pytest
import tiny
import torch
from pipeline import Run, config
from safetensors.torch import load_file
from test_report import rendered

from outlier_atlas.criteria.llm_int8.accumulator import OutlierFeatures
from outlier_atlas.criteria.show import Finiteness
from outlier_atlas.report import not_finite
from outlier_atlas.statistics.summary import TileRange, summarize

SITES = ["attn_in", "mlp_in", "mlp_hidden", "mlp_out", "resid_post", "attn_sink"]
ROWS = [[5, 17, 200, 9, 33, 41, 7, 8], [40, 6, 7, 80, 90, 11, 12, 13]]
DETECTION = {
    "quantization_error": {"sites": ["attn_in"], "threshold": 2.0},
    "llm_int8": {"threshold": 2.0},
    "massive_activations": {"absolute": 64.0, "ratio": 100.0},
}


@pytest.fixture(scope="module")
def overflown(tmp_path_factory):
    """In float16 the MLP of layer 1 of 4 overflows, for every token."""
    folder = tmp_path_factory.mktemp("overflown")
    model = tiny.llama(folder / "model")
    weights = load_file(model / "model.safetensors")
    for name in ("gate", "up"):
        weights[f"model.layers.1.mlp.{name}_proj.weight"].mul_(20000)
    weights["model.embed_tokens.weight"][9] = 1e3  # massive in layer 0
    weights["model.embed_tokens.weight"][9, :30] = 0.01
    tiny.save_weights(model, weights)
    settings = config(
        model, ROWS, folder / "data",
        extraction={"sites": SITES, "perplexity": True},
        detection=DETECTION,
    )  # fmt: skip
    settings["model"]["dtype"] = "float16"
    run = Run(folder, settings)
    run.all()
    return run


def test_layers_that_overflow_are_the_first_thing_that_is_said(overflown):
    html, told = rendered(overflown)
    alarm = told["alarms"][0]
    assert alarm.startswith("No value is finite in layers 2 and 3 at attn_in")
    assert "The first are at mlp_hidden of layer 1." in alarm
    assert "float16, whose largest number is 65,504" in alarm
    assert "bfloat16 or float32 (model.dtype)" in alarm
    assert html.index("No value is finite") < html.index('class="findings')
    text = " ".join(finding["text"] for finding in told["findings"])
    assert "No value is finite in layers 1 to 3, which could not be looked at." in text
    assert "nan" not in text
    assert "none: the loss of 14 tokens is NaN" in html


def test_shares_count_layers_that_could_be_measured(overflown):
    rows = overflown.table("llm_int8_features")
    assert rows
    for row in rows:
        assert row["layer_share_layers"] == row["layers"] / 2, "attn_in and mlp_in of 0 and 1"
        assert row["layer_share_tensors"] == row["tensors"] / 4
    criteria = {row["criterion"]: row for row in overflown.table("criteria")}
    assert criteria["llm_int8"]["layers_not_finite"] == "2 3"
    assert criteria["massive_activations"]["layers_not_finite"] == "1 2 3"
    assert criteria["massive_activations"]["findings"] > 0
    assert criteria["massive_activations"]["not_finite"] == 3 * 16 * 32
    assert criteria["super_experts"]["layers_not_finite"] == ""
    assert criteria["super_experts"]["not_finite"] is None


def test_nothing_is_a_plausible_number_where_nothing_is_finite(overflown):
    for name in ("layer_magnitudes", "layer_measures"):
        for row in overflown.table(name):
            if row["site"] == "resid_post":
                counted = {"site", "layer", "values", "nan", "infinite", "tokens"}
                numbers = [value for key, value in row.items() if key not in counted]
                finite = all(v is not None for v in numbers)
                assert finite if row["layer"] == 0 else not any(v is not None for v in numbers)
    for row in overflown.table("quantization_error"):
        assert (row["sqnr"] is None) == (row["rmse"] is None) == (row["layer"] > 1)
        assert row["values"] == (0 if row["layer"] > 1 else 16 * 32)
    *_, whole = overflown.table("perplexity")
    assert (whole["nan"], whole["loss"], whole["perplexity"]) == (14, None, None)
    assert whole["perplexity_low"] is whole["perplexity_high"] is None
    for row in overflown.table("attention_sinks"):
        assert (row["sink_metric"] is None) == (row["layer"] > 1)
    for name in ("token_outliers", "systematic_outliers", "massive_activations", "token_norms"):
        for row in overflown.table(name):
            assert np.isfinite([v for v in row.values() if isinstance(v, float)]).all(), name


def test_one_sequence_of_nan_and_one_infinite_channel(tmp_path):
    model, weights = tiny.silent(tmp_path / "model", layers=2)
    weights = {name: weight.float() for name, weight in weights.items()}
    weights["model.embed_tokens.weight"][9] = torch.nan
    weights["model.embed_tokens.weight"][11, 2] = torch.inf
    weights["model.embed_tokens.weight"][12, 3] = 4000.0
    tiny.save_weights(model, weights)
    extraction = {"sites": ["attn_in", "mlp_in", "resid_post"]}
    detection = {"llm_int8": {"threshold": 5.0}}
    rows = [[9, 9, 9], [12, 13, 14], [11, 11]]
    settings = config(model, rows, tmp_path / "data", extraction=extraction, detection=detection)
    settings["model"]["dtype"] = "float32"
    run = Run(tmp_path, settings)
    run.all()
    (feature,) = run.table("llm_int8_features")
    assert feature["channel"] == 3
    values = np.stack([run.array(site) for site in ("attn_in", "mlp_in")])
    finite = np.isfinite(values).any(axis=-1)  # (site, layer, token)
    assert 0 < finite.any(axis=(0, 1)).sum() < 8
    there = finite.any(axis=(0, 1)).sum()
    outliers = np.abs(np.nan_to_num(values[..., 3], posinf=0, neginf=0)) >= 5
    assert feature["position_share_union"] == outliers.any(axis=(0, 1)).sum() / there
    affected = outliers.any(axis=-1)
    assert feature["layer_share_tensors"] == affected.sum() / finite.any(axis=-1).sum()
    (massive, *_) = run.table("massive_activations")
    assert (massive["layer"], massive["channel"], massive["tensor_median"]) == (0, 3, 1.0)
    for row in run.table("layer_magnitudes"):
        lost = ~np.isfinite(run.array(row["site"])[row["layer"]])
        assert row["nan"] + row["infinite"] == lost.sum() > 0
    _, told = rendered(run)
    assert told["alarms"][-1].startswith("The first are at attn_in of layer 0. The model ran in fl")
    assert "look for weights that are not finite" in told["alarms"][-1]
    assert any("values of resid_post are NaN or infinite, and left" in f["text"]
               for f in told["findings"])  # fmt: skip


def test_nothing_finite_at_all_is_no_finding(tmp_path):
    model, weights = tiny.silent(tmp_path / "model", layers=2)
    weights["model.embed_tokens.weight"].fill_(torch.nan)
    tiny.save_weights(model, weights)
    run = Run(tmp_path, config(model, ROWS, tmp_path / "data", extraction={"sites": SITES}))
    run.all()
    _, told = rendered(run)
    assert told["alarms"][0].startswith("No value is finite in layers 0 and 1 at attn_in,")
    said = [finding["text"] for finding in told["findings"]]
    assert any(s.startswith("Nothing is known of massive activations: no value") for s in said)
    assert any(s.startswith("Nothing is known of LLM.int8() outlier features") for s in said)
    assert not any("No channel" in s or "No value of the" in s for s in said)
    assert "No value of any site with channels is finite." in said
    rows = run.table("criteria")
    assert all(row["findings"] is None for row in rows)


def test_positions_that_are_finite_in_no_tensor_are_in_no_share():
    """Brute force over tensors, sequences and draws of values that may be NaN."""
    random = np.random.default_rng(0)
    tensors = [(site, layer) for layer in range(3) for site in ("attn_in", "mlp_in")]
    x = random.normal(0, 4, (len(tensors), 2, 5, 3)).astype(np.float32)
    x[2:, 0] = np.nan  # the first sequence, from layer 1 on
    x[4:] = np.nan  # layer 2
    x[:, 1, 4] = np.nan  # a token in all tensors
    found = OutlierFeatures(tensors, 3, 6.0, 2)
    for index, tensor in enumerate(tensors):
        for sequence in range(2):
            place = TileRange(sequence, 5 * sequence, 5)
            found.update(tensor, summarize(torch.from_numpy(x[index, sequence]), place, 1.0))
    found.close()
    finite = np.isfinite(x).any(axis=-1)  # (tensor, sequence, token)
    measured, positions = finite.sum(axis=(1, 2)), finite.any(axis=0).sum()
    assert (positions, measured.tolist()) == (9, [9, 9, 4, 4, 0, 0])
    features = found.features()
    assert features
    for feature in features:
        outliers = np.abs(np.nan_to_num(x[..., feature.channel])) >= 6
        counts = outliers.sum(axis=(1, 2))
        layers = counts.reshape(3, 2).any(axis=1).sum()
        assert feature.layer_share == {"layers": layers / 2, "tensors": (counts > 0).sum() / 4}
        shares = counts[counts > 0] / measured[counts > 0]
        assert feature.position_share["union"] == outliers.any(axis=0).sum() / positions
        assert feature.position_share["mean"] == pytest.approx(shares.mean(), rel=1e-15)
        assert feature.position_share["max"] == pytest.approx(shares.max(), rel=1e-15)


def test_what_is_not_finite_elsewhere_is_no_overflow():
    rows = [Finiteness("resid_post", 3, nan=1, infinite=0, some=True)]
    counts, cause = not_finite.alarms(rows, "bfloat16")
    assert counts == (
        "resid_post holds 1 NaN and 0 infinite values, in layer 3: every number here leaves them "
        "out."
    )
    assert cause.startswith("The first are at resid_post of layer 3. The model ran in bfloat16")
    assert not_finite.alarms([Finiteness("k", 0, nan=0, infinite=0, some=True)], "") == []
