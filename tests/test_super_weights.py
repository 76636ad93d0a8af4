"""Super weights: at one token, of the down projection itself, and most of its output."""

from itertools import pairwise

import numpy as np
import planted
import pytest
import tiny
import torch
import transformers as t
from pipeline import Run, config
from planted import MARKED, MARKER, PLACES, ROWS
from safetensors.torch import load_file
from test_architectures import SIZES
from transformers import AutoModelForCausalLM

from outlier_atlas.statistics.summary import TileRange, summarize
from outlier_atlas.statistics.super_weights import LargestOutput

DENSE = ["mlp_hidden", "down_proj_out"]
OTHER = 20
"""A token at position 0 of the second sequence, and nowhere else."""


def detected(folder, tmp_path, sites=DENSE, dtype="bfloat16", **detection):
    data = config(
        folder, ROWS, tmp_path / "data", detection=detection,
        extraction={"sites": [*sites], "layer_groups": 2, "sequence_shards": 2},
    )  # fmt: skip
    data["model"]["dtype"] = dtype
    run = Run(tmp_path, data)
    run.all()
    return run


def changed(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    tiny.save_weights(folder, weights)


def test_spikes_at_two_tokens_are_no_super_weight(tmp_path):
    """One token has the large input, and another one, from inputs below 50, the large output."""
    folder, weight = planted.super_weight(tmp_path / "model")
    mlp = f"model.layers.{weight.layer}.mlp"

    def change(weights):
        weights[f"{mlp}.down_proj.weight"][weight.output, weight.input] = 0.25
        embedding = weights["model.embed_tokens.weight"]
        embedding[:, MARKER + 1] = 0
        embedding[OTHER, MARKER + 1] = 1
        for channel in range(20, 28):
            for name in ("gate_proj", "up_proj"):
                weights[f"{mlp}.{name}.weight"][channel] = 0
                weights[f"{mlp}.{name}.weight"][channel, MARKER + 1] = 6
            weights[f"{mlp}.down_proj.weight"][9, channel] = 4

    changed(folder, change)
    run = detected(folder, tmp_path)
    row = run.table("super_weights")[weight.layer]
    inputs = np.abs(run.array("mlp_hidden")[weight.layer])
    assert inputs.max() > 200
    assert row["token_id"] == OTHER
    assert abs(row["output"]) > 500
    assert abs(row["input"]) == inputs[row["token_index"]].max() < 50
    assert row["super_weight"] is False


def test_a_weight_that_makes_little_of_the_output_is_none(tmp_path):
    """Nine inputs make the output, each its part."""
    folder, weight = planted.super_weight(tmp_path / "model")
    mlp = f"model.layers.{weight.layer}.mlp"

    def change(weights):
        for channel in range(20, 28):
            for name in ("gate_proj", "up_proj"):
                source = weights[f"{mlp}.{name}.weight"]
                source[channel] = source[weight.input]
            weights[f"{mlp}.down_proj.weight"][weight.output, channel] = weight.value

    changed(folder, change)
    run = detected(folder, tmp_path)
    row = run.table("super_weights")[weight.layer]
    assert min(abs(row["input"]), abs(row["output"])) > 200
    assert row["share"] == pytest.approx(1 / 9, rel=2**-8), "outputs are rounded to bfloat16"
    assert row["super_weight"] is False
    assert not any(r["super_weight"] for r in run.table("super_weights"))


def test_a_weight_against_the_output_is_none(tmp_path):
    folder, weight = planted.super_weight(tmp_path / "model")
    mlp = f"model.layers.{weight.layer}.mlp"

    def change(weights):
        for name in ("gate_proj", "up_proj"):
            source = weights[f"{mlp}.{name}.weight"]
            source[20] = source[weight.input] * 0.875
        weights[f"{mlp}.down_proj.weight"][weight.output, 20] = -4 * weight.value

    changed(folder, change)
    row = detected(folder, tmp_path).table("super_weights")[weight.layer]
    assert row["share"] < 0
    assert row["super_weight"] is False


def test_the_share_is_of_the_weight_that_the_run_computes_with(tmp_path):
    folder, weight = planted.super_weight(tmp_path / "model")

    def change(weights):
        for name in weights:
            weights[name] = weights[name].float()
        down = weights[f"model.layers.{weight.layer}.mlp.down_proj.weight"]
        down[weight.output, weight.input] = 16 + 2**-5

    changed(folder, change)
    row = detected(folder, tmp_path).table("super_weights")[weight.layer]
    assert row["weight"] == 16 + 2**-5
    assert row["share"] == 1, "in bfloat16 it is 16"


def routed(folder):
    """A mixture in which one weight of expert 6 of layer 1 makes the marked token's output."""
    folder, expert = planted.super_expert(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        experts = model.model.layers[expert.layer].mlp.experts
        experts.gate_up_proj[expert.expert] = 0
        half = experts.gate_up_proj.shape[1] // 2
        for row in (5, half + 5):
            experts.gate_up_proj[expert.expert, row, MARKER] = 16
        experts.down_proj[expert.expert] = 0
        experts.down_proj[expert.expert, 7, 5] = -16
    model.save_pretrained(folder)
    return folder, expert


@pytest.mark.parametrize("store", ["all", []])
def test_routed_experts_are_searched(store, tmp_path):
    folder, expert = routed(tmp_path / "model")
    data = config(
        folder, ROWS, tmp_path / "data",
        extraction={"sites": ["expert_out"], "store": store, "layer_groups": 2},
    )  # fmt: skip
    run = Run(tmp_path, data)
    run.all()
    (row,) = run.table("super_weights")
    assert (row["layer"], row["expert"]) == (expert.layer, expert.expert)
    assert (row["row"], row["column"], row["weight"]) == (7, 5, -16)
    assert row["output"] == -16 * row["input"] < -1000
    assert (row["share"], row["super_weight"]) == (1, True)
    assert (row["token_id"], row["sequence"], row["position"]) == (MARKED, *PLACES[0])
    (criterion,) = (r for r in run.table("criteria") if r["criterion"] == "super_weights")
    assert (criterion["measured"], criterion["findings"]) == (True, 1)
    assert criterion["sites"] == "expert_out"


@pytest.mark.parametrize("made", [
    t.Gemma2Config(**SIZES, head_dim=8, sliding_window=4),
    t.Olmo2Config(**SIZES),
    t.LlamaConfig(**SIZES),
    t.GraniteConfig(**SIZES, residual_multiplier=0.25),
], ids=lambda c: c.model_type)  # fmt: skip
def test_the_output_is_that_of_the_projection_itself(made, tmp_path):
    """Before a norm that follows the MLP, and before a factor."""
    folder = tiny.checkpoint(tmp_path / "model", made)
    scaled = made.model_type == "granite"
    run = detected(folder, tmp_path, DENSE if scaled else [*DENSE, "mlp_out"], super_weights={
        "threshold": 1e-6, "min_share": 1e-6,
    })  # fmt: skip
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    outputs = run.array("down_proj_out")
    for layer, inputs in enumerate(run.array("mlp_hidden")):
        down = whole.model.layers[layer].mlp.down_proj
        with torch.inference_mode():
            # In the sequences of the run: a product's last bits depend on its rows.
            for start in (0, 64):
                rows = torch.from_numpy(inputs[start : start + 64]).bfloat16()[None]
                assert np.array_equal(down(rows)[0].float().numpy(), outputs[layer][start:][:64])
        row = run.table("super_weights")[layer]
        token = row["token_index"]
        assert abs(row["output"]) == np.abs(outputs[layer]).max()
        assert outputs[layer][token, row["row"]] == row["output"]
        assert abs(row["input"]) == np.abs(inputs[token]).max()
        weight = down.weight[row["row"], row["column"]].item()
        assert row["share"] == weight * row["input"] / row["output"]
    if not scaled:
        same = np.array_equal(outputs, run.array("mlp_out"))
        assert same == (made.model_type == "llama")


def test_any_split_into_tiles_and_any_order_give_the_same():
    """Tiles of the two sites arrive one after the other, sequences cut by chunks."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = torch.randn(2, 48, 8, generator=generator).mul(9).round()
    inputs[3, 2] = torch.nan
    starts = np.array([0, 20, 23, 48])

    def tiles(x, cuts):
        for sequence, (first, stop) in enumerate(pairwise(starts.tolist())):
            ends = [first, *(c for c in cuts if first < c < stop), stop]
            for start, end in pairwise(ends):
                place = TileRange(sequence, start, end - start)
                yield summarize(x[start:end], place, 1000.0)

    found = set()
    for seed, (left, right) in enumerate([((), ()), ((7, 21, 40), (7, 30)), (range(48), (5,))]):
        taken = [(True, t) for t in tiles(inputs, left)] + [
            (False, t) for t in tiles(outputs, right)
        ]
        np.random.default_rng(seed).shuffle(taken)
        largest = LargestOutput(starts)
        for is_input, tile in taken:
            (largest.take_input if is_input else largest.take_output)(tile)
        found.add(largest.spike)
    (spike,) = found
    assert abs(spike.output) == outputs.abs().max()
    assert abs(spike.input) == inputs[spike.token].abs().nan_to_num().max()
    assert spike.token == int(outputs.abs().amax(1).argmax())
