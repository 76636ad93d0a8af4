"""Every criterion finds what was planted, through the whole pipeline, and nothing else."""

import planted
import pytest
from pipeline import Run, config
from planted import MARKED, PLACES, ROWS


def detected(folder, tmp_path, *sites, **sections):
    extraction = {"sites": list(sites), "layer_groups": 2, "sequence_shards": 2}
    run = Run(tmp_path, config(folder, ROWS, tmp_path / "data", extraction=extraction, **sections))
    run.all()
    return run


def findings(run, criterion):
    return next(r["findings"] for r in run.table("criteria") if r["criterion"] == criterion)


def test_an_outlier_feature(tmp_path):
    folder, channel, layers = planted.outlier_feature(tmp_path / "model")
    run = detected(folder, tmp_path, "attn_in", "mlp_in")
    (row,) = run.table("llm_int8_features")
    assert (row["channel"], row["outlier_feature"], row["layers"]) == (channel, True, len(layers))
    assert (row["layer_share_layers"], row["position_share_union"]) == (0.25, 1)
    assert row["outlier_values"] == len(layers) * sum(map(len, ROWS))
    assert findings(run, "llm_int8") == 1


@pytest.fixture(scope="module")
def massive(tmp_path_factory):
    root = tmp_path_factory.mktemp("massive")
    folder, weight = planted.super_weight(root / "model")
    return detected(folder, root, "mlp_hidden", "down_proj_out", "resid_post"), weight


def test_a_massive_activation(massive):
    run, weight = massive
    rows = run.table("massive_activations")
    assert [(r["layer"], r["sequence"], r["position"], r["channel"]) for r in rows] == [
        (layer, *place, weight.output) for layer in range(weight.layer, 8) for place in PLACES
    ]
    assert {r["token_id"] for r in rows} == {MARKED}
    assert all(r["tensor_median"] == 1 and 3500 < r["value"] < 4200 for r in rows)


def test_a_super_weight(massive):
    run, weight = massive
    (row,) = (r for r in run.table("super_weights") if r["super_weight"])
    assert (row["layer"], row["row"], row["column"]) == (weight.layer, weight.output, weight.input)
    assert row["weight"] == weight.value
    assert row["output"] == row["input"] * weight.value
    assert row["share"] == 1
    assert (row["sequence"], row["position"]) == PLACES[0]
    assert findings(run, "super_weights") == 1


def test_systematic_outliers(massive):
    run, weight = massive
    rows = run.table("systematic_outliers")
    assert [(r["layer"], r["sequence"], r["position"], r["channel"]) for r in rows] == [
        (layer, *place, weight.output) for layer in range(weight.layer, 8) for place in PLACES
    ]
    assert all(r["token_class"] == "initial" for r in rows if r["position"] == 0)


def test_token_outliers(massive):
    run, weight = massive
    rows = [r for r in run.table("token_outliers") if r["layer"] <= weight.layer]
    assert [(r["layer"], r["sequence"], r["position"], r["channel"]) for r in rows] == [
        (weight.layer, *place, weight.input) for place in PLACES
    ]


def test_a_super_expert(tmp_path):
    folder, expert = planted.super_expert(tmp_path / "model")
    run = detected(folder, tmp_path, "expert_out", "resid_post")
    first, second, *_ = sorted(
        (r for r in run.table("expert_magnitudes") if r["value"] is not None),
        key=lambda r: -abs(r["value"]),
    )
    assert (first["layer"], first["expert"]) == (expert.layer, expert.expert)
    assert (first["tokens"], first["token_id"]) == (len(PLACES), MARKED)
    assert abs(first["value"]) > 1000 * abs(second["value"])
    (row,) = run.table("super_experts")
    assert (row["layer"], row["expert"]) == (expert.layer, expert.expert)
    assert findings(run, "super_experts") == 1
    rows = run.table("massive_activations")
    assert {r["layer"] for r in rows} == {*range(expert.layer, 4)}
    assert {(r["sequence"], r["position"]) for r in rows} == {*PLACES}


def test_an_attention_sink(tmp_path):
    folder, layer = planted.attention_sink(tmp_path / "model")
    run = detected(folder, tmp_path, "attn_sink")
    rows = run.table("attention_sinks")
    assert {r["layer"]: r["sink_metric"] for r in rows if r["sink_metric"]} == {layer: 50}
    (row,) = (r for r in rows if r["layer"] == layer)
    assert (row["heads"], row["sequences"]) == (4, 2)
    assert (row["sequence"], row["position"], row["token_id"]) == (*PLACES[0], MARKED)
    assert row["value"] == pytest.approx(1, abs=1e-6), "softmax leaves e^-90 to the others"
    heads = run.table("attention_sink_heads")
    assert {(r["layer"], r["head"]) for r in heads if r["sink_share"]} == {
        (layer, head) for head in range(4)
    }
    assert findings(run, "attention_sinks") == row["sink_heads"] == 4
    # Of one sequence the marked token is the first, of the other the second.
    first, second = run.table("attention_sink_positions")[:2]
    assert first["sink_metric"] == second["sink_metric"] == 100 / 8 / 2
