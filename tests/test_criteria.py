"""Planted super weights, super experts and outlier tokens, from a model to the tables."""

import numpy as np
import pytest
import tiny
from pipeline import Run, config
from safetensors.torch import load_file, save_file

from outlier_atlas.criteria.measure import define
from outlier_atlas.criteria.measures import MEASURES
from outlier_atlas.data.classes import token_class
from outlier_atlas.settings.detection import DetectionSettings

EMBEDDING = "model.embed_tokens.weight"
ROWS = [[9] + [11] * 15, [11] * 16, [11, 11, 9, 11, 9] + [11] * 11]
AT = [(0, 0), (2, 2), (2, 4)]  # sequence and position of token 9
SITES = ["attn_in", "mlp_in", "mlp_hidden", "down_proj_out", "resid_post"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """In layer 2, where token 9 stands, the MLP's hidden channel 5 writes into channel 7."""
    folder = tmp_path_factory.mktemp("super")
    model, weights = tiny.silent(folder / "model", layers=4)
    weights[EMBEDDING][:, 3] = 0
    weights[EMBEDDING][9, 3] = 1
    for name in ("gate_proj", "up_proj"):
        weights[f"model.layers.2.mlp.{name}.weight"][5] = 0
        weights[f"model.layers.2.mlp.{name}.weight"][5, 3] = 16
    weights["model.layers.2.mlp.down_proj.weight"][7, 5] = -16  # about -16 x 16 x 16 = -4,096
    tiny.save_weights(model, weights)
    run = Run(folder, config(model, ROWS, folder / "data", extraction={"sites": SITES}))
    run.all()
    return run


def again(run, tmp_path, **detection):
    other = Run(tmp_path, {**run.settings.model_dump(), "detection": detection})
    other.folder, other.store_record, other.tokens = run.folder, run.store_record, run.tokens
    other.model_record = run.model_record
    other.detect()
    return other


def findings(run):
    return {row["criterion"]: row["findings"] for row in run.table("criteria")}


def test_the_super_weight_is_found_where_it_is(planted, tmp_path):
    rows = planted.table("super_weights")
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    assert [row["layer"] for row in rows if row["super_weight"]] == [2]
    row = rows[2]
    assert (row["row"], row["column"], row["weight"]) == (7, 5, -16)
    assert (row["sequence"], row["position"], row["token_id"]) == (0, 0, 9)
    assert row["input"] == planted.array("mlp_hidden")[2, 0, 5]
    assert row["output"] == planted.array("down_proj_out")[2, 0, 7] < -1000
    assert row["share"] == row["weight"] * row["input"] / row["output"] > 0.9
    assert findings(planted)["super_weights"] == 1
    higher = again(planted, tmp_path, super_weights={"threshold": abs(row["input"])})
    assert findings(higher)["super_weights"] == 0, "both are above it, and not at it"


def test_systematic_outliers_are_the_planted_tokens_with_their_class(planted):
    rows = planted.table("systematic_outliers")
    assert findings(planted)["systematic_outliers"] == len(rows) == 0
    stored = planted.array("resid_post")
    lower = again(planted, planted.folder / "lower", systematic_outliers={"ratio": 100.0})
    rows = lower.table("systematic_outliers")
    places = [(r["layer"], r["sequence"], r["position"]) for r in rows]
    assert places == [(layer, *place) for layer in (2, 3) for place in AT]
    for row in rows:
        first = row["sequence"] * 16
        assert row["value"] == stored[row["layer"], row["token_index"], 7]
        mean = np.abs(stored[row["layer"], first : first + 16].astype(np.float64)).mean()
        assert row["mean"] == pytest.approx(mean, rel=1e-14)  # additions in another order
        assert row["channel"] == 7
    assert {r["token_class"] for r in rows if r["position"] == 0} == {"initial"}


def test_token_outliers_are_held_against_the_median_token(planted):
    rows = planted.table("token_outliers")
    stored = np.abs(planted.array("mlp_hidden")).max(axis=2)
    want = []
    for layer in range(4):
        for sequence in range(3):
            largest = stored[layer, 16 * sequence : 16 * (sequence + 1)]
            median = np.sort(largest)[7]
            want += [
                (layer, sequence, position)
                for position in range(16)
                if largest[position] > 64 * median
            ]
    assert [(r["layer"], r["sequence"], r["position"]) for r in rows] == want
    assert {(r["sequence"], r["position"]) for r in rows if r["layer"] == 2} == {*AT}


def test_norms_name_the_tokens_that_are_longest(planted):
    rows = [row for row in planted.table("token_norms") if row["layer"] == 3]
    norms = np.linalg.norm(planted.array("resid_post")[3].astype(np.float64), axis=1)
    order = sorted(range(48), key=lambda token: (-norms[token], token))
    assert [row["token_index"] for row in rows] == order[:20]
    assert [row["rank"] for row in rows] == [*range(1, 21)]
    assert rows[0]["norm"] == pytest.approx(norms.max(), rel=1e-14)


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ({"token_ids": [9]}, []),
        ({"first_positions": 1}, AT[1:]),
        ({"first_positions": 3}, AT[2:]),
        ({"special_tokens": True}, AT),
    ],
)
def test_left_out_tokens_are_left_out_of_every_number(planted, tmp_path, exclude, left):
    run = again(planted, tmp_path, exclude=exclude)
    places = [(r["layer"], r["sequence"], r["position"]) for r in run.table("massive_activations")]
    assert places == [(layer, *place) for layer in (2, 3) for place in left]
    kept = np.array(
        [
            position >= exclude.get("first_positions", 0)
            and token not in exclude.get("token_ids", [])
            for row in ROWS
            for position, token in enumerate(row)
        ]
    )
    for row in run.table("layer_magnitudes"):
        stored = planted.array(row["site"])[row["layer"]][kept]
        assert row["values"] == stored.size
        assert row["top1"] == np.abs(stored).max()
        assert kept[row["token_index"]]
    words = {
        "token_ids": "token ids 9",
        "first_positions": "positions",
        "special_tokens": "special",
    }
    for row in run.table("criteria"):
        if row["criterion"] == "attention_sinks":
            assert "No token is left out of this" in row["definition"]
            continue
        assert all(words[key] in row["definition"] for key in exclude)
        assert "Left out" in row["definition"]
    assert not any("Left out" in row["definition"] for row in planted.table("criteria"))


def test_one_sequence_has_no_intervals_and_several_have_those_of_the_draws(planted, tmp_path):
    lower = again(planted, tmp_path, llm_int8={"threshold": 1.0})
    for row in lower.table("llm_int8_features"):
        for share in ("position_share_union", "layer_share_layers", "positive_share"):
            assert row[f"{share}_low"] <= row[share] <= row[f"{share}_high"]
    tops = [row for row in planted.table("layer_magnitudes") if row["site"] == "resid_post"]
    of_sequences = np.abs(planted.array("resid_post")[3].reshape(3, -1)).max(axis=1)
    assert tops[3]["top1_low"] in of_sequences
    assert tops[3]["top1_high"] == of_sequences.max() > tops[3]["top1_low"]
    alone = Run(tmp_path / "alone", config(
        planted.folder.parents[1] / "model", ROWS[:1], tmp_path / "data",
        detection={"llm_int8": {"threshold": 1.0}},
    ))  # fmt: skip
    alone.all()
    rows = alone.table("llm_int8_features") + alone.table("layer_magnitudes")
    ends = [value for row in rows for key, value in row.items() if key.endswith(("_low", "_high"))]
    assert ends
    assert not any(value is not None for value in ends)


@pytest.mark.parametrize(
    ("text", "position", "special", "found"),
    [
        ("the", 0, False, "initial"),
        ("<|bos|>", 0, True, "initial"),
        ("<|eos|>", 4, True, "other"),
        (".", 4, False, "strong_delimiter"),
        (" ...", 4, False, "strong_delimiter"),
        ("\n\n", 4, False, "strong_delimiter"),
        (",", 4, False, "weakly_semantic"),
        (" The", 4, False, "weakly_semantic"),
        (" ", 4, False, "weakly_semantic"),
        ("", 4, False, "weakly_semantic"),
        (" union", 4, False, "other"),
        ("a.b", 4, False, "other"),
    ],
)
def test_classes_of_tokens(text, position, special, found):
    assert token_class(text, position, special) == found


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A mixture whose expert of layer 1, scaled up, makes the residual stream massive there."""
    folder = tmp_path_factory.mktemp("mixture")
    model = tiny.qwen3_moe(folder / "model")
    planted, expert = None, None
    for path in sorted(model.glob("*.safetensors")):
        weights = load_file(path)
        for name in weights:
            if "layers.1.mlp.experts.3.down_proj" in name:
                weights[name] *= 3e6
                planted, expert = 1, 3
        save_file(weights, path, metadata={"format": "pt"})
    assert planted is not None
    rows = [[*range(5, 37)], [*range(40, 72)], [*range(80, 112)]]
    extraction = {"sites": ["expert_out", "resid_post"]}
    detection = {"massive_activations": {"ratio": 20.0}, "super_experts": {"quantile": 0.9}}
    run = Run(folder, config(model, rows, folder / "d", extraction=extraction, detection=detection))
    run.all()
    return run, planted, expert


def test_the_super_expert_is_the_planted_one(mixture, tmp_path):
    run, layer, expert = mixture
    (row,) = run.table("super_experts")
    assert (row["layer"], row["expert"]) == (layer, expert)
    magnitudes = {(r["layer"], r["expert"]): r for r in run.table("expert_magnitudes")}
    known = [abs(r["value"]) for r in magnitudes.values() if r["value"] is not None]
    assert row["value"] == magnitudes[layer, expert]["value"]
    assert row["quantile"] == np.quantile(np.array(known, np.float64), 0.9)
    assert row["largest_share"] == 1
    assert findings(run)["super_experts"] == 1
    steeper = again(run, tmp_path, massive_activations={"ratio": 20.0},
                    super_experts={"quantile": 0.9, "growth": 2 * row["growth"]})  # fmt: skip
    assert findings(steeper)["super_experts"] == 0, "no massive activations form there"
    for at_most in {"quantile": 1.0}, {"quantile": 0.9, "ratio": 1.0}:
        at = again(run, tmp_path, massive_activations={"ratio": 20.0}, super_experts=at_most)
        assert findings(at)["super_experts"] == 0, "the largest of all is not above itself"


def test_a_criterion_that_was_not_measured_says_so(planted, mixture):
    assert findings(planted)["super_experts"] is None
    run, *_ = mixture
    assert findings(run)["token_outliers"] is None
    assert findings(run)["super_weights"] == 0, "routed experts are searched"
    missing = define(MEASURES, DetectionSettings(), ["mlp_hidden", "mlp_out"], 64)["super_weights"]
    assert (missing.measured, missing.missing) == (False, ("down_proj_out",))
    assert run.table("super_weights") == run.table("token_outliers") == []


STATED = {
    "llm_int8": ["attn_in and mlp_in", "|x| >= 6 in at least 25 % of", "no less than 6 % of the"],
    "massive_activations": ["of resid_post is massive if |x| > 100 and |x| >= 1000 times the med"],
    "super_weights": ["Where both are > 50,", "at least 50 % of that output"],
    "super_experts": [
        "is above the 99.5 % quantile",
        ", above 0.1 times the largest",
        "largest |x| of resid_post is at least 1.25 times that of the measured layer before",
    ],
    "systematic_outliers": ["token of resid_post", "largest |x| > 1000 times the mean of |x|"],
    "token_outliers": ["token of mlp_hidden", "largest |x| > 64 times the median"],
    "attention_sinks": ["receives more than 0.3 of attention", "T is 64 or", "above the threshold"],
}
CHANGED = {
    "llm_int8": {"threshold": 6.00000001, "layer_share": 0.2512345678, "position_share": 0.07},
    "massive_activations": {"absolute": 1000000.5, "ratio": 1234567.0, "site": "mlp_out"},
    "super_weights": {"threshold": 50.00000001, "min_share": 0.3},
    "super_experts": {"quantile": 0.99912345678, "ratio": 0.123456789, "growth": 3.0},
    "systematic_outliers": {"ratio": 1e-30, "site": "mlp_in"},
    "token_outliers": {"ratio": 2e30, "site": "mlp_in"},
    "attention_sinks": {"threshold": 0.30000001},
}
STATED_OF_CHANGED = {
    "llm_int8": ["|x| >= 6.00000001 in at least 25.12345678 % of", "no less than 7 % of the"],
    "massive_activations": ["of mlp_out is massive if |x| > 1000000.5 and |x| >= 1234567 times"],
    "super_weights": ["Where both are > 50.00000001,", "at least 30 % of that output"],
    "super_experts": [
        "the 99.912345678 % quantile", "above 0.123456789 times", "of mlp_out is at least 3 times",
    ],
    "systematic_outliers": ["token of mlp_in", "largest |x| > 1e-30 times the mean of |x|"],
    "token_outliers": ["token of mlp_in", "largest |x| > 2e+30 times the median"],
    "attention_sinks": ["receives more than 0.30000001 of attention", "T is 32 or"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "sink_tokens", "stated"),
    [({}, 64, STATED), (CHANGED, 32, STATED_OF_CHANGED)],
    ids=["default", "changed"],
)
def test_a_definition_states_each_threshold_exactly_and_how_it_compares(
    settings, sink_tokens, stated
):
    found = define(MEASURES, DetectionSettings.model_validate(settings), [], sink_tokens)
    assert set(found) == set(stated)
    for name, parts in stated.items():
        for part in parts:
            assert part in found[name].definition, name
