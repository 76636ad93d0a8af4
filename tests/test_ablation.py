"""Ablation: each variant equals an edit of the whole model."""

import numpy as np
import pytest
import tiny
import torch
import transformers as t
from ablated import NOTHING, PLACES, loss, made, set_channel, whole
from pipeline import Run, config
from planted import ROWS as MARKED_ROWS
from planted import super_weight
from safetensors.torch import load_file
from test_report import rendered


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_unaltered_chain_is_the_whole_model(llama, qwen3_moe, groups, tmp_path):
    for model in (llama, qwen3_moe):
        run = made(model, tmp_path / model.name, groups, **NOTHING)
        run.ablate()
        (row,) = run.table("ablations")
        assert row["loss"] == loss(whole(model))
        assert row["perplexity"] == np.exp(row["loss"])
        assert (row["target"], row["intervention"], row["ratio"]) == ("none", "none", 1.0)
        assert row["tokens"] == 9 + 7


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_channels_set_to_zero_and_to_their_mean_are_hooks_on_the_whole_model(
    llama, groups, tmp_path
):
    places = [
        [site, layer, 3] for site in PLACES for layer in ((0, 3) if "resid" in site else (2,))
    ]
    run = made(
        llama, tmp_path, groups, extraction={"sites": list(PLACES)},
        channels=[*places, ["mlp_in", "all", 7]], **NOTHING,
    )  # fmt: skip
    run.ablate()
    rows = run.table("ablations")[1:]
    assert len(rows) == 2 * (len(places) + 1)
    for index, row in enumerate(rows):
        site, layer, channel = [*places, ["mlp_in", "all", 7]][index // 2]
        loaded = whole(llama)
        for each in range(4) if layer == "all" else [layer]:
            mean = run.array(site)[each, :, channel].astype(np.float64).mean()
            value = 0.0 if row["intervention"] == "zero" else mean
            set_channel(loaded, site, each, channel, value)
        assert row["loss"] == loss(loaded), (site, layer, row["intervention"])
        assert (row["target"], row["site"], row["channels"]) == ("channel", site, str(channel))
    assert [row["intervention"] for row in rows[:2]] == ["zero", "mean"]
    assert (rows[-1]["first_layer"], rows[-1]["last_layer"]) == (0, 3)
    assert len({row["loss"] for row in rows}) > len(rows) // 2, "they do change the loss"


@pytest.mark.parametrize("architecture", [
    t.LlamaConfig(**tiny.SIZES),
    t.GPT2Config(vocab_size=320, n_embd=32, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=1),
], ids=lambda c: c.model_type)  # fmt: skip
def test_a_weight_set_to_zero_is_that_of_the_whole_model(architecture, tmp_path):
    """Row and column are output and input channel, also where a matrix is stored transposed."""
    model = tiny.checkpoint(tmp_path / "model", architecture)
    gpt2 = architecture.model_type == "gpt2"
    run = made(model, tmp_path, 2, weights=[[2, 5, 40], [0, 31, 63]], targets=[], random_draws=2)
    run.ablate()
    rows = run.table("ablations")
    assert [row["target"] for row in rows] == ["none", *["weight"] * 6]
    assert [row["intervention"] for row in rows[1:4]] == ["zero", "random", "random"]
    path = "transformer.h.{}.mlp.c_proj" if gpt2 else "model.layers.{}.mlp.down_proj"
    for row in rows[1:]:
        loaded = whole(model)
        weight = loaded.get_submodule(path.format(row["first_layer"])).weight
        with torch.no_grad():
            index = (row["row"], row["column"])
            weight[index[::-1] if gpt2 else index] = 0
        assert row["loss"] == loss(loaded)


def planted(folder):
    """A llama with one weight of layer 1 that carries far more than all others."""
    tiny.llama(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][9, 21] = 60
    weights["model.layers.1.mlp.up_proj.weight"][21] += 0.5
    tiny.save_weights(folder, weights)
    return folder


def test_a_planted_super_weight_matters_more_than_random_ones(tmp_path):
    model = planted(tmp_path / "model")
    run = made(
        model, tmp_path, 2, weights=[[1, 9, 21]], channels=[["resid_post", 1, 9]], targets=[],
        random_draws=4, interventions=["zero"],
    )  # fmt: skip
    run.ablate()
    effect = {}
    for row in run.table("ablations"):
        effect.setdefault((row["target"], row["intervention"]), []).append(
            abs(np.log(row["ratio"]))
        )
    for target in ("weight", "channel"):
        assert min(effect[target, "zero"]) > 2 * max(effect[target, "random"])


def test_a_super_weight_that_the_run_found_is_taken_away(tmp_path):
    """And the largest weights of other layers, which are none, are not."""
    model, weight = super_weight(tmp_path / "model")
    data = config(
        model, [*MARKED_ROWS, *MARKED_ROWS], tmp_path / "data", dataset={"sequences": 2},
        extraction={"sites": ["mlp_hidden", "down_proj_out"]},
        ablation={"sequences": 2, "random_draws": 0, "targets": ["super_weights"]},
    )  # fmt: skip
    run = Run(tmp_path, data)
    run.all()
    run.ablate()
    (row,) = (r for r in run.table("ablations") if r["target"] != "none")
    assert len(run.table("super_weights")) > 1
    assert row["target"] == "super_weight"
    found = (row["first_layer"], row["row"], row["column"])
    assert found == (weight.layer, weight.output, weight.input)


def test_findings_of_the_run_are_taken_away(llama, tmp_path):
    detection = {
        "llm_int8": {"threshold": 2.7, "sites": ["attn_in"]},
        "massive_activations": {"absolute": 0.02, "ratio": 3.5},
    }
    run = made(
        llama, tmp_path, 2, extraction={"sites": ["attn_in", "resid_post"]}, detection=detection,
        most=2, random_draws=2,
    )  # fmt: skip
    run.ablate()
    rows = run.table("ablations")
    features = sorted(r["channel"] for r in run.table("llm_int8_features") if r["outlier_feature"])
    together = [row for row in rows if row["target"] == "outlier_features"]
    assert 0 < len(features) < 16
    assert [row["intervention"] for row in together] == ["zero", "mean", "random", "random"]
    assert together[0]["channels"] == " ".join(map(str, features))
    assert {(row["site"], row["first_layer"], row["last_layer"]) for row in together} == {
        ("attn_in", 0, 3)
    }
    massive = [row for row in rows if row["target"] == "massive_channel"]
    found = run.table("massive_channels")
    assert len(massive) == 2 * 4
    outliers = {*features, *(int(row["channels"]) for row in massive if row["draw"] is None)}
    for row in massive:
        own = [r["layer"] for r in found if str(r["channel"]) == row["channels"]]
        assert row["draw"] is not None or row["first_layer"] == row["last_layer"] == min(own)
    for row in [*together, *massive]:
        drawn = {int(channel) for channel in row["channels"].split()}
        assert row["draw"] is None or not drawn & outliers
    assert len({row["channels"] for row in together}) == 3, "another draw each time"
    loaded = whole(llama)
    for layer in range(4):
        for channel in features:
            set_channel(loaded, "attn_in", layer, channel, 0)
    assert together[0]["loss"] == loss(loaded)
    before = [dict(row) for row in rows]
    run.ablate()
    assert run.table("ablations") == before


def test_of_many_findings_the_largest_are_taken_away(llama, tmp_path):
    """And not the first: the largest super weight may lie in a late layer."""
    detection = {
        "super_weights": {"threshold": 1e-6, "min_share": 1e-6},
        "massive_activations": {"absolute": 0.02, "ratio": 3.0},
    }
    run = made(
        llama, tmp_path, 2, extraction={"sites": ["mlp_hidden", "down_proj_out", "resid_post"]},
        detection=detection, most=2, random_draws=0, interventions=["zero"],
        targets=["super_weights", "massive_channels"],
    )  # fmt: skip
    run.ablate()
    weights = run.table("super_weights")
    outputs = sorted((abs(row["output"]) for row in weights if row["super_weight"]), reverse=True)
    largest = [row["layer"] for row in weights if abs(row["output"]) in outputs[:2]]
    assert len(outputs) == 4
    assert largest != [0, 1], "they are not the first ones"
    values = {}
    for row in run.table("massive_channels"):
        values[row["channel"]] = max(abs(row["value"]), values.get(row["channel"], 0))
    massive = sorted(values, key=lambda channel: -values[channel])[:2]
    first = list(dict.fromkeys(row["channel"] for row in run.table("massive_channels")))[:2]
    assert {*massive} != {*first}
    rows = run.table("ablations")[1:]
    assert [row["first_layer"] for row in rows if row["target"] == "super_weight"] == largest
    taken = {int(row["channels"]) for row in rows if row["target"] == "massive_channel"}
    assert taken == {*massive}


@pytest.mark.parametrize(
    ("ablation", "said"),
    [
        ({"channels": [["resid_post", 4, 3]]}, "the model has no layer 4; it has 4"),
        ({"channels": [["resid_post", 1, 32]]}, "resid_post has 32 channels, and no channel 32"),
        ({"weights": [[1, 32, 0]]}, "has 32 rows and 64 columns, and no weight"),
        ({"channels": [["mlp_in", 1, 3]]}, r"the mean of mlp_in in layer 1 is not known.*measured"),
    ],
)
def test_what_cannot_be_taken_away_is_said_in_a_sentence(llama, ablation, said, tmp_path):
    run = made(llama, tmp_path, **NOTHING, **ablation)
    with pytest.raises(ValueError, match=said):
        run.ablate()


def test_other_tokens_or_another_model_leave_nothing_of_before(llama, tmp_path):
    run = made(llama, tmp_path, **NOTHING)
    run.ablate()
    (before,) = (run.folder / "ablation").iterdir()
    rows = run.folder.parents[1] / "data" / "rows.jsonl"
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([*lines[:2], *lines[:1:-1]]))
    run.ablate()
    (after,) = (run.folder / "ablation").iterdir()
    assert before != after


def test_the_report_shows_the_table_and_random_draws_as_a_range(llama, tmp_path):
    run = made(llama, tmp_path, 2, channels=[["resid_post", 1, 3]], targets=[], random_draws=3)
    run.ablate()
    html, _ = rendered(run)
    assert "Ablated" not in html
    html, _ = rendered(run, ablations=True)
    assert "channel 3 of resid_post, layer 1" in html
    assert "3 random draws of as many" in html
