"""Attention that first tokens receive: equal to attention maps, with an unchanged forward pass."""

import numpy as np
import pytest
import tiny
import torch
import transformers as t
from sinks import ROWS, alpha, extracted, reference
from test_architectures import GPT2, HEADS, LATENT, LINEAR, LISTED, LOCAL, MOE, OPT, ROUTED, SIZES
from test_heads import FALCON
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from outlier_atlas.roles.architecture import describe
from outlier_atlas.roles.attention import AttentionCall, RecordedAttention

ARCHITECTURES = [
    t.LlamaConfig(**SIZES),
    t.GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True),
    t.Gemma2Config(**SIZES, head_dim=8, sliding_window=3, attn_logit_softcapping=2.0),
    t.GptOssConfig(**SIZES, **LOCAL, head_dim=8, sliding_window=3),
    t.Qwen3Config(**SIZES, head_dim=8),
    t.Qwen3MoeConfig(**SIZES, **MOE, head_dim=8),
    t.MistralConfig(**SIZES, head_dim=8, sliding_window=3),
    t.OPTConfig(**OPT),
    t.DeepseekV3Config(**HEADS, **ROUTED, **LATENT, n_group=2),
    t.GPTBigCodeConfig(**GPT2),
]


QUERIES = (
    "q_proj",
    "q_norm",
    "k_norm",
    "k_proj",
    "c_attn",
    "q_b",
    "kv_b",
    "sinks",
    "qkv",
    "query_key",
)


def sharpened(model, factor):
    """Scale queries and keys, so that attention is uneven, and draw sinks that differ."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in QUERIES):
                weight.mul_(factor)
    return model


@pytest.mark.parametrize(
    "architecture", [*ARCHITECTURES, *(c for c, _ in LISTED)], ids=lambda c: c.model_type
)
def test_it_is_what_whole_attention_maps_give(architecture):
    ids, described = torch.tensor([ROWS[0], ROWS[0][::-1]]), describe(architecture)
    layers = {layer: taps["attn_sink"] for layer, taps in enumerate(described.taps)
              if "attn_sink" in taps}  # fmt: skip
    with torch.inference_mode():
        eager = sharpened(tiny.perturbed(architecture, "eager"), 4)
        maps = eager(ids, output_attentions=True, use_cache=False).attentions
    assert len(maps) == len(layers) > 0
    for tokens in (5, 64):
        model = sharpened(tiny.perturbed(architecture), 4)
        decoder = model.get_submodule(described.decoder)
        recorded = [
            RecordedAttention(decoder.get_submodule(tap.module), tap.module, tokens)
            for tap in layers.values()
        ]
        with torch.inference_mode():
            decoder(ids, use_cache=False)
        got = np.stack([record.take().numpy() for record in recorded])
        want = np.array([[alpha(one.numpy(), tokens) for one in layer] for layer in maps])
        assert np.array_equal(np.isnan(got), np.isnan(want))
        # Another kernel for attention itself (sdpa here, eager there) gives other last bits.
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        assert np.nanmax(np.ptp(want, axis=-1)) > 0.05, "of even attention all heads have the same"


@pytest.mark.parametrize("architecture", ARCHITECTURES[2:4], ids=lambda c: c.model_type)
@pytest.mark.parametrize("tokens", [5, 64])
def test_of_sequences_of_any_length_it_is_in_the_store(architecture, tokens, tmp_path):
    folder = tiny.checkpoint(tmp_path / "model", architecture)
    model = t.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    sharpened(model, 30).save_pretrained(folder)
    run = extracted(folder, tmp_path, tokens=tokens, execution={"batch_size": 2})
    got, want = run.array("attn_sink"), reference(folder, tokens)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    # As above.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert np.nanmax(want[:, : len(ROWS[0])]) - np.nanmin(want) > 0.5, "far from even"


SITES = ["attn_in", "q", "attn_hidden", "attn_out", "resid_mid", "resid_post"]


@pytest.mark.parametrize("architecture", ARCHITECTURES[:5], ids=lambda c: c.model_type)
def test_every_other_site_is_the_same_beside_it_bit_for_bit(architecture, tmp_path):
    folder = tiny.checkpoint(tmp_path / "model", architecture)
    extraction = {"sites": SITES, "verify": "first_batch"}
    alone = extracted(folder, tmp_path, "alone", dtype="bfloat16", extraction=extraction)
    extraction["sites"] = [*SITES, "attn_sink"]
    beside = extracted(folder, tmp_path, "beside", dtype="bfloat16", extraction=extraction)
    for site in SITES:
        assert np.array_equal(alone.array(site), beside.array(site))


def test_layer_groups_shards_and_chunks_give_the_same_bits(llama, tmp_path):
    want = extracted(llama, tmp_path, "whole", dtype="bfloat16").array("attn_sink")
    cut = {"sites": ["attn_sink"], "layer_groups": 3, "sequence_shards": 2}
    for name, chunk in (("cut", 2), ("cut-otherwise", 7)):
        cut["advanced"] = {"sink_tokens": 5, "chunk_tokens": chunk}
        run = extracted(llama, tmp_path, name, dtype="bfloat16", extraction=cut)
        assert np.array_equal(run.array("attn_sink"), want, equal_nan=True)


def test_of_a_batch_each_sequence_has_the_bits_it_has_alone(llama, tmp_path):
    rows = [ROWS[1], ROWS[1][::-1], ROWS[1]]
    alone, together = (
        extracted(llama, tmp_path, f"in-{size}", rows, execution={"batch_size": size})
        for size in (1, 3)
    )
    got = together.array("attn_sink")
    assert np.array_equal(got, alone.array("attn_sink"), equal_nan=True)
    assert np.array_equal(got[:, :7], got[:, 14:], equal_nan=True)


def test_another_number_of_tokens_makes_it_stale_and_nothing_else(llama, tmp_path):
    extraction = {"sites": ["resid_post", "attn_sink"], "advanced": {"sink_tokens": 2}}
    run = extracted(llama, tmp_path, extraction=extraction)
    chunk = run.activations / "resid_post" / "c" / "1" / "0" / "0"
    before = chunk.stat().st_mtime_ns
    extraction["advanced"]["sink_tokens"] = 5
    run = extracted(llama, tmp_path, extraction=extraction)
    np.testing.assert_allclose(run.array("attn_sink"), reference(llama, 5), rtol=1e-4, atol=1e-5)
    assert chunk.stat().st_mtime_ns == before


def test_a_damaged_chunk_is_made_anew(llama, tmp_path):
    run = extracted(llama, tmp_path)
    want = run.array("attn_sink")
    (run.activations / "attn_sink" / "c" / "2" / "1" / "0").unlink()
    with pytest.raises(ValueError, match=r"attn_sink, layer 2, chunk 1: damaged .* run again"):
        run.detect()
    run.extract()
    assert np.array_equal(run.array("attn_sink"), want, equal_nan=True)


def test_layers_without_it_are_refused_and_those_with_it_are_named():
    mixed = describe(
        t.Qwen3NextConfig(**SIZES, **MOE, **LINEAR, head_dim=8, shared_expert_intermediate_size=16)
    )
    with pytest.raises(
        ValueError, match=r"no attn_sink in layer 0 .*`layers: \[3\]` have attn_sink"
    ):
        mixed.check(["attn_sink"], range(4))
    assert mixed.check(["attn_sink"], [3]) == {"attn_sink": 4}
    own = describe(t.FalconConfig(**FALCON))
    with pytest.raises(ValueError, match=r"has no attn_sink in layer 0 .*; it has resid_pre"):
        own.check(["attn_sink"], range(2))


def call(query, key, mask=None, module=None, **others):
    return AttentionCall(module or torch.nn.Identity(), query, key, mask, others)


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("kind", ["none", "added", "boolean"])
def test_every_kind_of_mask_says_the_same(kind):
    query, key = random(2, 4, 9, 6), random(2, 2, 9, 6)
    allowed = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.bfloat16).min)
    mask = {"none": None, "added": added, "boolean": allowed}[kind]
    scores = query @ key.repeat_interleave(2, 1).mT * 6**-0.5
    maps = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    got = call(query, key, mask).received(9)
    for sequence in range(2):
        want = alpha(maps[sequence].numpy(), 9)
        # Sums of float32 in another order.
        np.testing.assert_allclose(got[sequence], want, rtol=2e-6)


def test_a_mask_of_each_sequence_is_its_own():
    query, key = random(2, 1, 4, 6), random(2, 1, 4, 6)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    mask[1, :, 1:, 0] = False
    got = call(query, key, mask).received(4)
    assert got[1, 0] == 0.25, "all of the first query's attention, and none of three others'"
    assert got[0, 0] > 0.25


@pytest.mark.parametrize(
    "unknown",
    [
        {"position_bias": random(1, 2, 4, 4)},
        {"is_causal": False},
        {"key": random(1, 2, 5, 6)},
        {"query": random(1, 3, 4, 6)},
        {"mask": torch.ones(1, 4)},
    ],
    ids=lambda unknown: next(iter(unknown)),
)
def test_what_is_not_known_is_not_followed(unknown):
    known = {"query": random(1, 2, 4, 6), "key": random(1, 2, 4, 6), "softcap": None}
    assert call(**known).is_supported()
    assert not call(**known | unknown).is_supported()


class Attends(torch.nn.Module):
    """Module that calls the attention function a number of times; None calls once and fails."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, hidden):
        attend = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
        for _ in range(1 if self.times is None else self.times):
            made, _ = attend(self, hidden, hidden, hidden, None, scaling=1.0)
        if self.times is None:
            raise torch.OutOfMemoryError
        return made if self.times else hidden


@pytest.mark.parametrize("times", [0, 2])
def test_attention_that_is_not_seen_once_is_an_error(times):
    module = Attends(times)
    RecordedAttention(module, "layers.3.self_attn", 4)
    said = r"^layers\.3\.self_attn: .* cannot be traced.*remove attn_sink from extraction\.sites$"
    with pytest.raises(ValueError, match=said):
        module(random(1, 2, 4, 6))


def test_nothing_stays_changed_after_an_error():
    """Without enough memory a batch is halved, and the same module runs again."""
    before = AttentionInterface.get_interface
    module, hidden = Attends(None), random(1, 2, 4, 6)
    recorded = RecordedAttention(module, "attention", 4)
    with pytest.raises(torch.OutOfMemoryError):
        module(hidden)
    assert AttentionInterface.get_interface is before
    module.times = 1
    assert torch.equal(module(hidden), Attends(1)(hidden))
    assert recorded.take().shape == (1, 4, 2)
    assert AttentionInterface.get_interface is before
