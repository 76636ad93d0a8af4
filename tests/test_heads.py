"""Queries, keys and values are those that attention gets, whatever computes them."""

import sys

import pytest
import tiny
import torch
import transformers as t
from test_architectures import GPT2, LINEAR, LISTED, MOE, ONE_HEAD_KIND, SIZES
from torch import nn
from torch.nn import functional

from outlier_atlas.roles.architecture import describe
from outlier_atlas.roles.attention_heads import HeadChannels
from outlier_atlas.roles.residual_trace import trace_residual

FALCON = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip

# Each with the name of what gets (query, key, value, ...) last before the products.
EACH = [
    *((config, "eager_attention_forward") for config, _ in LISTED),
    (t.GPTBigCodeConfig(**GPT2), "eager_attention_forward"),
    (t.GPTBigCodeConfig(**GPT2, multi_query=False), "eager_attention_forward"),
    (t.PersimmonConfig(**ONE_HEAD_KIND, qk_layernorm=False), "eager_attention_forward"),
    (t.CodeGenConfig(**GPT2, rotary_dim=4), "CodeGenAttention._attn"),
    (t.CodeGenConfig(**(GPT2 | {"n_head": 8}), rotary_dim=4), "CodeGenAttention._attn"),
    (t.FalconConfig(**FALCON), "F.scaled_dot_product_attention"),
    (t.FalconConfig(**FALCON, multi_query=False), "F.scaled_dot_product_attention"),
    (
        t.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
        "F.scaled_dot_product_attention",
    ),
]


def intercept(monkeypatch, model, name, keep):
    """Pass the first three tensors in calls of the named function to `keep`."""
    *owner, function = name.split(".")
    where = sys.modules[type(model).__module__]
    for part in owner:
        where = getattr(where, part)
    before = getattr(where, function)

    def spy(*args, **kwargs):
        keep([a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)][:3])
        return before(*args, **kwargs)

    monkeypatch.setattr(where, function, spy)


@pytest.mark.parametrize(
    ("config", "name"), EACH, ids=lambda value: getattr(value, "model_type", "")
)
def test_they_are_what_attention_gets(config, name, monkeypatch):
    """Queries and keys are compared at the first position, which is not rotated; values at all."""
    described = describe(config)
    model = tiny.perturbed(config, "sdpa" if "scaled" in name else "eager")
    got, taken = [], {}

    def keep(tap):
        def hook(module, args, made):
            taken[tap.site, tap.layer] = tap.take(made, 2, 5)

        return hook

    intercept(monkeypatch, model, name, got.append)
    layers = [layer for layer, taps in enumerate(described.taps) if "q" in taps]
    for layer in layers:
        for site in "qkv":
            tap = described.taps[layer][site]
            model.get_submodule(f"{described.decoder}.{tap.module}").register_forward_hook(
                keep(tap)
            )
    with torch.inference_mode():
        model(torch.randint(4, 300, (2, 5)), use_cache=False)
    assert len(got) == len(layers) > 0
    stack = model.get_submodule(f"{described.decoder}.{described.stack}")
    # YaRN's factor, on a cosine of 1.
    rotary = getattr(model.get_submodule(described.decoder), "rotary_emb", None)
    turned = getattr(rotary, "attention_scaling", 1.0)
    for layer, tensors in zip(layers, got, strict=True):
        for site, tensor_BHTD in zip("qkv", tensors, strict=True):
            ours_BHTD = handed_on(stack[layer], site, taken[site, layer], tensor_BHTD)
            ours_BHTD = ours_BHTD if site == "v" else ours_BHTD * turned
            first = slice(None) if site == "v" else slice(1)
            assert ours_BHTD[..., first, :].abs().min() > 0
            assert torch.equal(ours_BHTD[..., first, :], tensor_BHTD[..., first, :])


@torch.inference_mode()
def handed_on(block, site, ours_BTC, tensor_BHTD):
    """Return what a block computes from a projection's output at the first position.

    A block may norm and scale the output.
    """
    attention = getattr(block, "self_attn", None)
    norm = getattr(attention, f"{site}_norm", None)
    over_all = norm is not None and norm.weight.shape == ours_BTC.shape[-1:]
    ours_BTC = norm(ours_BTC) if over_all else ours_BTC
    ours_BTHD = ours_BTC.unflatten(-1, (-1, tensor_BHTD.shape[-1]))
    ours_BTHD = norm(ours_BTHD) if norm is not None and not over_all else ours_BTHD
    if site == "q" and type(attention).__name__ == "OPTAttention":
        ours_BTHD = ours_BTHD * attention.scaling
    # A key or value that several queries share may have been repeated for each of them.
    repeats = tensor_BHTD.shape[1] // ours_BTHD.shape[2]
    return ours_BTHD.transpose(1, 2).repeat_interleave(repeats, dim=1)


def test_of_layers_of_mixed_kinds_those_with_attention_have_them():
    config = t.Qwen3NextConfig(
        **SIZES, **MOE, **LINEAR, head_dim=8, shared_expert_intermediate_size=16
    )
    described = describe(config)
    assert described.check(["q", "k", "v"], [3]) == {"q": 32, "k": 16, "v": 16}
    # q_proj makes a gate besides, head by head.
    assert described.taps[3]["q"].ranges == ((0, 8), (16, 24), (32, 40), (48, 56))
    with pytest.raises(ValueError, match=r"has no q in layer 0 .*; it has resid_pre, attn_in"):
        described.check(["q"], [0, 3])


def test_clamped_before_it_is_cut_it_is_still_the_projection():
    attention = {"model_type": "", "clip_qkv": 3.0}
    config = t.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=320, attn_config=attention)
    assert [describe(config).taps[0][s].ranges for s in "qkv"] == [
        ((0, 32),), ((32, 64),), ((64, 96),),
    ]  # fmt: skip


class Block(nn.Module):
    """Attention over 2 heads of 3 channels, with a function that the test defines."""

    def __init__(self, attend):
        super().__init__()
        self.one, self.other = (nn.Linear(6, 18, bias=False, device="meta") for _ in range(2))
        self.out = nn.Linear(6, 6, bias=False, device="meta")
        self.attend = attend

    def forward(self, hidden_states):
        return hidden_states + self.out(self.attend(self, hidden_states).reshape(1, -1, 6))


class Model(nn.Module):
    dtype = torch.float32

    def __init__(self, attend):
        super().__init__()
        self.embed = nn.Embedding(9, 6, device="meta")
        self.blocks = nn.ModuleList([Block(attend)])

    def forward(self, input_ids, use_cache, attention_mask=None):
        return self.blocks[0](self.embed(input_ids))


def heads(attend):
    model = Model(attend)
    return trace_residual(model, model.blocks).blocks[0].heads


def cut(made_BTC):
    """Split (batch, token, head, 3 x 3 channels) into three tensors."""
    return made_BTC.view(1, -1, 2, 9).transpose(1, 2).split(3, dim=-1)


def attention(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


FIRST, SECOND, THIRD = (
    HeadChannels("one", 6, ((at, at + 3), (at + 9, at + 12))) for at in (0, 3, 6)
)


def test_the_way_tells_and_not_the_order():
    def turned(block, hidden):
        v, q, k = cut(block.one(hidden))
        return attention(q, k.clone(), v)

    assert heads(turned) == {"q": SECOND, "k": THIRD, "v": FIRST}


@pytest.mark.parametrize("axis", [-1, -2])
def test_products_tell_if_a_softmax_over_the_keys_is_between(axis):
    def by_hand(block, hidden):
        q, k, v = cut(block.one(hidden))
        weights = torch.softmax(q @ k.mT / 2 + 1, dim=axis)
        return (weights @ v).transpose(1, 2)

    assert heads(by_hand) == ({"q": FIRST, "k": SECOND, "v": THIRD} if axis == -1 else {})


def without_softmax(block, hidden):
    q, k, v = cut(block.one(hidden))
    return (q @ k.mT @ v).transpose(1, 2)


def turned_scores(block, hidden):
    q, k, v = cut(block.one(hidden))
    return (torch.softmax((q @ k.mT).mT, dim=-1) @ v).transpose(1, 2)


def of_two_projections(block, hidden):
    q, k, v = (a + b for a, b in zip(cut(block.one(hidden)), cut(block.other(hidden)), strict=True))
    return attention(q, k, v)


def channel_by_channel(block, hidden):
    """Arrange the heads of a channel next to each other, instead of the channels of a head."""
    q, k, v = (
        part.unflatten(-1, (3, 2)).permute(0, 3, 1, 2) for part in block.one(hidden).split(6, -1)
    )
    return attention(q, k, v)


def normed_before_it_is_cut(block, hidden):
    q, k, v = cut(functional.layer_norm(block.one(hidden), (18,)))
    return attention(q, k, v)


def overwritten(block, hidden):
    q, k, v = cut(block.one(hidden))
    for mine, other in zip((q, k, v), cut(block.other(hidden)), strict=True):
        mine[..., 1:] = other[..., 1:]
    return attention(q, k, v)


def projected_again_by_hand(block, hidden):
    q, k, v = cut(block.one(hidden))
    turn = torch.ones(3, 3, device="meta")
    return attention(q @ turn, k @ turn, v @ turn)


def twice_and_differently(block, hidden):
    q, k, v = cut(block.one(hidden))
    return attention(q, k, v) + attention(k, v, q)


def one_projection_twice(block, hidden):
    q, k, v = cut(block.one(hidden))
    return attention(q, k, v) + attention(*cut(block.one(hidden + 1)))


@pytest.mark.parametrize(
    "attend",
    [
        without_softmax, turned_scores, of_two_projections, channel_by_channel,
        normed_before_it_is_cut, overwritten, projected_again_by_hand, twice_and_differently,
        one_projection_twice,
    ],
)  # fmt: skip
def test_what_cannot_be_told_for_sure_is_not_offered(attend):
    assert heads(attend) == {}
