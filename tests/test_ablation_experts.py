"""Ablation of weights of experts, and of whole ones."""

import pytest
import tiny
import torch
import transformers as t
from ablated import NOTHING, loss, made, whole
from safetensors.torch import load_file
from test_report import _section, rendered

ARCHITECTURES = [
    t.Qwen3MoeConfig(
        **tiny.SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    t.GptOssConfig(
        **tiny.SIZES | {"intermediate_size": 32}, head_dim=8, num_local_experts=4,
        num_experts_per_tok=2,
    ),
]  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda c: c.model_type)
def test_a_weight_of_an_expert_set_to_zero_is_that_of_the_whole_model(architecture, tmp_path):
    """Experts are as wide as the residual stream: shapes do not say what is row and column."""
    model = tiny.checkpoint(tmp_path / "model", architecture)
    run = made(
        model, tmp_path, 2, expert_weights=[[1, 2, 5, 30], [3, 0, 31, 0]], targets=[],
        random_draws=2,
    )  # fmt: skip
    run.ablate()
    rows = run.table("ablations")
    assert [row["target"] for row in rows] == ["none", *["expert_weight"] * 6]
    assert [row["intervention"] for row in rows[1:4]] == ["zero", "random", "random"]
    assert [row["expert"] for row in rows] == [None, 2, 2, 2, 0, 0, 0]
    assert rows[1]["row"] == 5
    for row in rows[1:]:
        loaded = whole(model)
        experts = loaded.get_submodule(f"model.layers.{row['first_layer']}.mlp.experts")
        place = (row["row"], row["column"])
        with torch.no_grad():
            turned = architecture.model_type == "gpt_oss"
            experts.down_proj[(row["expert"], *(place[::-1] if turned else place))] = 0
        assert row["loss"] == loss(loaded)
    assert len({row["loss"] for row in rows}) > 2, "they do change the loss"


def ablated(model, folder, quantile, **ablation):
    """A run in which whatever is above a quantile is a super expert, and the loss of each row."""
    run = made(
        model, folder, 2, extraction={"sites": ["expert_out", "resid_post"]},
        detection={
            "super_experts": {"quantile": quantile, "ratio": 1e-6, "growth": 1e-6},
            "massive_activations": {"absolute": 1e-6, "ratio": 1.5},
        },
        targets=["super_experts"], **ablation,
    )  # fmt: skip
    run.ablate()
    return run, run.table("ablations")[1:], run.table("super_experts")


def experts_of(model):
    return len(whole(model).get_submodule("model.layers.1.mlp.experts").down_proj)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda c: c.model_type)
def test_a_super_expert_taken_away_is_one_that_the_router_gives_no_weight(architecture, tmp_path):
    """Also where experts have biases; and each beside another expert of its layer."""
    model = tiny.checkpoint(tmp_path / "model", architecture)
    weights = load_file(model / "model.safetensors")
    for name in (name for name in weights if name.endswith("proj_bias")):
        weights[name] += torch.arange(weights[name].numel()).sin().reshape_as(weights[name])
    tiny.save_weights(model, weights)
    _, rows, found = ablated(model, tmp_path, 0.5, most=2, random_draws=2)
    largest = sorted(found, key=lambda row: -abs(row["value"]))[:2]
    taken = [(row["first_layer"], row["expert"]) for row in rows if row["draw"] is None]
    assert taken == sorted((row["layer"], row["expert"]) for row in largest)
    assert len(found) > 2
    assert {row["target"] for row in rows} == {"super_expert"}
    super_experts = {(row["layer"], row["expert"]) for row in found}
    # As many draws as are asked for, or all other experts of the layer, none of them twice.
    in_layer = [sum(each == layer for each, _ in super_experts) for layer, _ in taken]
    draws = [min(2, experts_of(model) - number) for number in in_layer]
    wanted = [["zero", *["random"] * number] for number in draws]
    assert [row["intervention"] for row in rows] == [how for each in wanted for how in each]
    starts = [at for at, row in enumerate(rows) if row["draw"] is None]
    for start, number in zip(starts, draws, strict=True):
        assert len({row["expert"] for row in rows[start : start + number + 1]}) == number + 1
    for index, row in enumerate(rows):
        layer, expert = row["first_layer"], row["expert"]
        assert layer == row["last_layer"] == taken[sum(at <= index for at in starts) - 1][0]
        assert ((layer, expert) in super_experts) == (row["draw"] is None)
        loaded = whole(model)
        experts = loaded.get_submodule(f"model.layers.{layer}.mlp.experts")
        forward = experts.forward

        def without(hidden, chosen, weights, forward=forward, expert=expert):
            return forward(hidden, chosen, weights.masked_fill(chosen == expert, 0))

        experts.forward = without
        assert row["loss"] == loss(loaded)
    assert len({row["loss"] for row in rows}) > 3, "they do change the loss"


def test_where_all_experts_of_a_layer_are_super_there_is_no_other(qwen3_moe, tmp_path):
    _, rows, found = ablated(qwen3_moe, tmp_path, 1e-9, most=1000, random_draws=1)
    every = dict.fromkeys(range(4), 0)
    for row in found:
        every[row["layer"]] += 1
    whole_layers = {layer for layer, experts in every.items() if experts == 8}
    random = {row["first_layer"] for row in rows if row["draw"] is not None}
    assert random == {*every} - whole_layers
    assert random
    assert whole_layers


def test_the_report_names_a_super_expert_that_was_taken_away(qwen3_moe, tmp_path):
    run, rows, _ = ablated(qwen3_moe, tmp_path, 0.9, most=1, random_draws=4)
    assert len({row["expert"] for row in rows[1:]}) > 1, "another draw each time"
    page, _ = rendered(run, ablations=True)
    where = f"expert {rows[0]['expert']}, layer {rows[0]['first_layer']}"
    cells = f'<td class="left">super expert</td><td class="left wrap">{where}</td>'
    assert cells in _section(page, "ablation")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ([0, 8, 0, 0], r"layer 0 has 8 experts, whose .* 32 rows and 16 columns.*\[8, 0, 0\]"),
        ([0, 0, 32, 0], r"no weight \[0, 32, 0\]"),
        ([0, 0, 0, 16], r"no weight \[0, 0, 16\]"),
        ([4, 0, 0, 0], r"has no routed experts in layer 4"),
    ],
)
def test_an_experts_weight_that_there_is_not_is_said(qwen3_moe, place, said, tmp_path):
    run = made(qwen3_moe, tmp_path, **NOTHING, expert_weights=[place])
    with pytest.raises(ValueError, match=said):
        run.ablate()


def test_a_dense_model_has_no_experts_to_take_a_weight_of(llama, tmp_path):
    run = made(llama, tmp_path, **NOTHING, expert_weights=[[0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no routed experts in layer 0"):
        run.ablate()


def test_a_mixture_has_no_down_projection_to_take_a_weight_of(qwen3_moe, tmp_path):
    run = made(qwen3_moe, tmp_path, **NOTHING, weights=[[0, 1, 1]])
    with pytest.raises(ValueError, match="has no mlp_hidden in layer 0 that can be identified"):
        run.ablate()
