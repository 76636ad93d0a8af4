"""Ablation of weights of experts."""

import pytest
import tiny
import torch
import transformers as t
from ablated import NOTHING, loss, made, whole


@pytest.mark.parametrize("architecture", [
    t.Qwen3MoeConfig(
        **tiny.SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    t.GptOssConfig(
        **tiny.SIZES | {"intermediate_size": 32}, head_dim=8, num_local_experts=4,
        num_experts_per_tok=2,
    ),
], ids=lambda c: c.model_type)  # fmt: skip
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
    with pytest.raises(ValueError, match="has no mlp_hidden in layer 0 that can be told for sure"):
        run.ablate()
