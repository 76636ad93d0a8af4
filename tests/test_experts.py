"""Recording of experts inside their fused computation."""

from itertools import product

import numpy as np
import pytest
import tiny
import torch
import transformers as t
from experts import (
    ARCHITECTURES,
    ROWS,
    UNLISTED,
    eager_products,
    experts_of,
    extracted,
    extremes,
    forward,
    grouped_products,
    load,
    name,
)  # fmt: skip
from test_architectures import LISTED, SIZES
from torch.overrides import _get_current_function_mode_stack
from transformers.integrations import moe

from outlier_atlas.roles.architecture import describe
from outlier_atlas.roles.experts import RecordedExperts


@pytest.fixture(params=["grouped_mm", "fallback", "eager"])
def implementation(request, monkeypatch):
    """Parametrize over one product with and without a kernel, and a product per expert."""
    if request.param == "fallback":
        monkeypatch.setattr(moe, "_can_use_grouped_mm", lambda *_: False)
    return request.param


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *UNLISTED, LISTED[4][0]], ids=name)
def test_what_is_recorded_is_what_the_model_computes(architecture, implementation, tmp_path):
    model = load(tiny.checkpoint(tmp_path, architecture))
    assert model.config._experts_implementation == "grouped_mm", "what the plain model runs"
    products = grouped_products
    if implementation == "eager":
        model.set_experts_implementation("eager")
        products = eager_products
    given = {}
    for module in experts_of(model):
        module.register_forward_pre_hook(lambda m, args: given.update({m: args}))
    before = forward(model, ROWS[:2])
    recorded = {module: RecordedExperts(module, "experts") for module in experts_of(model)}
    assert torch.equal(forward(model, ROWS[:2]), before)
    assert recorded
    for module, record in recorded.items():
        hidden, index = given[module][:2]
        with torch.inference_mode():
            want = extremes(products(module, hidden, index), index)
        got = record.take().reshape(len(index), 5, -1).transpose(0, 1).numpy()
        assert np.array_equal(got, want)


def test_the_largest_is_taken_with_its_bias_and_before_the_weight(tmp_path):
    """gpt_oss adds the bias to the product in place."""
    model = load(tiny.checkpoint(tmp_path, ARCHITECTURES[2]))
    experts = experts_of(model)[0]
    with torch.no_grad():
        experts.down_proj.zero_()
        experts.down_proj_bias.zero_()
        experts.down_proj_bias[2, 5] = -48
        experts.down_proj_bias[3, 6] = 56
    recorded = RecordedExperts(experts, "experts")
    hidden, index = torch.randn(3, 32).bfloat16(), torch.tensor([[2, 3], [0, 2], [3, 1]])
    with torch.inference_mode():
        experts(hidden, index, torch.full((3, 2), 0.25).bfloat16())
    values, experts, channels, *_ = recorded.take().reshape(3, 5, 2).transpose(0, 1)
    assert values.tolist() == [[-48, 56], [0, -48], [56, 0]]
    assert experts.tolist() == index.tolist()
    assert channels.tolist() == [[5, 6], [0, 5], [6, 0]]


class InPlace(torch.nn.Module):
    """Experts whose projections share a storage, and whose outputs are weighted in place."""

    def __init__(self):
        super().__init__()
        together = torch.randn(2, 4, 8, 8)
        self.up_proj = torch.nn.Parameter(together[0], requires_grad=False)
        self.down_proj = torch.nn.Parameter(together[1], requires_grad=False)

    def forward(self, hidden, index, weights):
        made = torch.zeros_like(hidden)
        for expert in index.unique().tolist():
            tokens, slots = torch.where(index == expert)
            rows = (hidden[tokens] @ self.up_proj[expert]) @ self.down_proj[expert]
            made.index_add_(0, tokens, rows.mul_(weights[tokens, slots, None]))
        return made


def test_an_output_is_taken_before_it_is_overwritten():
    experts = InPlace()
    recorded = RecordedExperts(experts, "experts")
    hidden, index = torch.randn(3, 8), torch.tensor([[2, 3], [0, 2], [3, 1]])
    experts(hidden, index, torch.full((3, 2), 0.25))
    values, _, channels, *_ = recorded.take().reshape(3, 5, 2).transpose(0, 1)
    for token, slot in product(range(3), range(2)):
        expert = index[token, slot]
        rows = torch.where((index == expert).any(1))[0]
        out = (hidden[rows] @ experts.up_proj[expert]) @ experts.down_proj[expert]
        mine = out[rows.tolist().index(token)]
        channel = mine.abs().argmax()
        assert (values[token, slot], channels[token, slot]) == (mine[channel], channel)


def test_nothing_stays_active_after_an_error(tmp_path, monkeypatch):
    model = load(tiny.checkpoint(tmp_path, ARCHITECTURES[0]))
    experts = experts_of(model)[1]
    recorded = RecordedExperts(experts, "experts")

    def fail(*_):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(experts.act_fn, "forward", fail)
        with pytest.raises(torch.OutOfMemoryError):
            forward(model, ROWS[:1])
    assert _get_current_function_mode_stack() == []
    forward(model, ROWS[:1])
    assert recorded.take().shape == (7, 10)


@pytest.mark.parametrize("change", ["batched_mm", "unbiased", "twice"])
def test_what_cannot_be_followed_is_refused(change, tmp_path, monkeypatch):
    """Tokens are not gathered, a bias is not added, or an expert is chosen twice."""
    model = load(tiny.checkpoint(tmp_path, ARCHITECTURES[2]))
    experts = experts_of(model)[0]
    index = torch.tensor([[2, 3], [0, 2]])
    if change == "batched_mm":
        model.set_experts_implementation("batched_mm")
    elif change == "unbiased":
        monkeypatch.setattr(experts, "has_bias", False)
    else:
        index[1] = 2
    RecordedExperts(experts, "layers.0.mlp.experts")
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts: .* remove expert_out from"):
        experts(torch.ones(2, 32).bfloat16(), index, torch.ones(2, 2).bfloat16())


def test_experts_that_run_on_every_token_are_refused(tmp_path):
    """Llama 4 multiplies the input of the experts with the router's scores."""
    llama4 = t.Llama4TextConfig(**SIZES, head_dim=8, num_local_experts=4, intermediate_size_mlp=64)
    described = describe(llama4)
    assert "mlp_in" in described.taps[1]
    with pytest.raises(ValueError, match="has no expert_out in layer 0 that can be identified"):
        described.check(["expert_out"], range(4))


def test_a_layer_without_experts_is_named(tmp_path):
    folder = tiny.checkpoint(tmp_path / "model", ARCHITECTURES[4])
    with pytest.raises(
        ValueError, match=r"no expert_out in layer 0 .*`layers: \[1, 2, 3\]` have expert_out"
    ):
        extracted(folder, tmp_path, layers="all")
