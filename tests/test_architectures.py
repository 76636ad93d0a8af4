"""Sites of every architecture by role, and the store equal to hooks in any layer groups."""

import json
import re

import numpy as np
import pytest
import tiny
import transformers as t
from pipeline import Run, config, hooked

from outlier_atlas.checkpoint.folder import weight_files
from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.loading.shards import unknown_parts
from outlier_atlas.roles.architecture import describe
from outlier_atlas.roles.cached_architecture import from_json, to_json
from outlier_atlas.settings.sites import CHANNEL_SITES, EXPERT_OUT, SITES

SIZES = tiny.SIZES | {"pad_token_id": 0}
ONE_HEAD_KIND = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
HEADS = SIZES | {"num_key_value_heads": 4}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
          "n_shared_experts": 1, "first_k_dense_replace": 1, "topk_group": 1}  # fmt: skip
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
          "v_head_dim": 8}  # fmt: skip
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
          "linear_value_head_dim": 8}  # fmt: skip
GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 4, "n_head": 4,
        "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
OPT = {"vocab_size": 320, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64,
       "num_hidden_layers": 4, "num_attention_heads": 4}  # fmt: skip

DENSE = {*SITES} - {"router_logits", EXPERT_OUT}
MIXED = {*SITES} - {"mlp_hidden", "down_proj_out"}
PARALLEL = DENSE - {"resid_mid"}

# Each with the sites that it has in every layer.
LISTED = [
    (t.LlamaConfig(**SIZES), DENSE),
    (t.Qwen2Config(**SIZES), DENSE),
    (t.Qwen3Config(**SIZES, head_dim=8), DENSE),
    (t.Qwen3MoeConfig(**SIZES, **MOE, head_dim=8), MIXED),
    (
        t.Qwen3NextConfig(**SIZES, **MOE, **LINEAR, head_dim=8, shared_expert_intermediate_size=16),
        MIXED - {"q", "k", "v", "attn_sink"},
    ),
    (t.OlmoeConfig(**SIZES, num_experts=8, num_experts_per_tok=2), MIXED),
    (t.Olmo2Config(**SIZES), DENSE),
    (t.MixtralConfig(**SIZES, **LOCAL), MIXED),
    (
        t.Glm4MoeConfig(**SIZES, **ROUTED, head_dim=8, n_group=1),
        MIXED - {"router_logits", EXPERT_OUT},
    ),
    (t.Gemma2Config(**SIZES, head_dim=8, sliding_window=4), DENSE),
    (t.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4), DENSE),
    (t.GPT2Config(**GPT2), DENSE),
    (t.GPTNeoXConfig(**ONE_HEAD_KIND), PARALLEL),
    (t.GPTNeoXConfig(**ONE_HEAD_KIND, use_parallel_residual=False), DENSE),
    (t.OPTConfig(**OPT), DENSE),
    (
        t.OPTConfig(**(OPT | {"word_embed_proj_dim": 16}), do_layer_norm_before=False),
        {"resid_pre", "attn_in", "q", "k", "v", "attn_hidden", "attn_sink", "resid_post"},
    ),
    (t.PhiConfig(**SIZES), PARALLEL),
    (t.Phi3Config(**SIZES), DENSE),
    (t.GptOssConfig(**SIZES, **LOCAL, head_dim=8, sliding_window=4), MIXED),
    (t.MistralConfig(**SIZES, head_dim=8, sliding_window=4), DENSE),
]

# Those in whose layers some sites lie, and others not.
MIXED_STACKS = [(LISTED[4][0], [3]), (LISTED[8][0], [1, 2, 3])]

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
         "mamba_chunk_size": 4, "mamba_expand": 2}  # fmt: skip

# Nobody wrote a word of the code for these.
EXACT = [
    t.FalconConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        bos_token_id=0, eos_token_id=1,
    ),
    t.BloomConfig(vocab_size=320, hidden_size=32, n_layer=4, n_head=4),
    t.GPTJConfig(**GPT2, rotary_dim=4),
    t.GPTNeoConfig(
        vocab_size=320, hidden_size=32, num_layers=4, num_heads=4, window_size=4,
        attention_types=[[["global", "local"], 2]],
    ),
    t.CohereConfig(**SIZES),
    t.StableLmConfig(**SIZES),
    t.Starcoder2Config(**SIZES),
    t.MptConfig(d_model=32, n_heads=4, n_layers=4, vocab_size=320),
    t.GraniteConfig(**SIZES, residual_multiplier=0.5),
    t.GraniteMoeConfig(**SIZES, **LOCAL),
    t.DeepseekV3Config(**HEADS, **ROUTED, **LATENT, n_group=2),
    t.DeepseekV2Config(**HEADS, **ROUTED, **LATENT, n_group=2, topk_method="greedy"),
    t.Llama4TextConfig(**SIZES, head_dim=8, num_local_experts=4, intermediate_size_mlp=64),
    t.JambaConfig(**SIZES, num_experts=4, num_experts_per_tok=2, use_mamba_kernels=False),
    t.Glm4Config(**SIZES, head_dim=8),
    t.Exaone4Config(**SIZES),
    t.CodeGenConfig(**GPT2, rotary_dim=4),
    t.GPTBigCodeConfig(**GPT2),
    t.Ernie4_5_MoeConfig(**SIZES, moe_num_experts=4, moe_k=2, moe_intermediate_size=16),
    t.PhimoeConfig(**SIZES, **LOCAL),
    t.NemotronConfig(**SIZES),
    t.PersimmonConfig(**ONE_HEAD_KIND),
    t.Lfm2Config(**SIZES),
    t.MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=4),
    t.OpenAIGPTConfig(vocab_size=320, n_embd=32, n_layer=4, n_head=4),
    t.BambaConfig(**SIZES, **MAMBA, attn_layer_indices=[1, 3]),
    t.FalconH1Config(**SIZES, **MAMBA, mamba_d_ssm=64),
    t.GlmMoeDsaConfig(
        **HEADS, **ROUTED, **LATENT, n_group=1, index_n_heads=2, index_head_dim=8, index_topk=4,
    ),
    t.FlintConfig(**SIZES),
]  # fmt: skip

# Each with what its refusal says; none where one layer group is exact.
REFUSED = [
    (
        t.RwkvConfig(
            vocab_size=320, hidden_size=32, num_hidden_layers=4, attention_hidden_size=32,
        ),
        "reads more than the residual stream",
    ),
    (
        t.Zamba2Config(
            **HEADS, mamba_d_state=8, n_mamba_heads=4, mamba_ngroups=1, num_mem_blocks=1,
            layers_block_type=["mamba", "hybrid"] * 2, use_mem_rope=False,
        ),
        "reads more than the residual stream",
    ),
    (
        t.DbrxConfig(
            vocab_size=320, d_model=32, n_heads=4, n_layers=4,
            ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
            attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ),
        "could not be traced",
    ),
    (
        t.Gemma3nTextConfig(
            **SIZES, head_dim=8, vocab_size_per_layer_input=320, hidden_size_per_layer_input=8,
            num_kv_shared_layers=2, laurel_rank=4, altup_num_inputs=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            activation_sparsity_pattern=[0.0] * 4,
        ),
        "not pass on a residual stream of 32 channels a token",
    ),
    (
        t.BigBirdConfig(
            vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
            num_attention_heads=4, is_decoder=True,
        ),
        "does not run without earlier layers",
    ),
    (
        t.MllamaConfig(
            text_config=SIZES | {"cross_attention_layers": [1], "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4,
            }},
            vision_config={
                "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_global_layers": 1, "attention_heads": 2, "image_size": 28, "patch_size": 14,
                "vision_output_dim": 32, "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1]],
            },
        ),
        "its layer 1 does not run",
    ),
    (
        t.CpmAntConfig(
            vocab_size=320, hidden_size=32, num_attention_heads=4, dim_head=8, dim_ff=64,
            num_hidden_layers=4,
        ),
        "not pass on a residual stream of 32 channels a token",
    ),
]  # fmt: skip

ROWS = [[5, 17, 200, 9, 33, 41, 7, 250, 11, 19], [40, 6, 6, 90, 280, 14, 8, 77, 120, 64]]


def offered(architecture):
    return {site for site in SITES if all(site in taps for taps in architecture.taps)}


def assert_equal_in_layer_groups(model, sites, tmp_path, layers="all", layer_groups=(1, 2, 3)):
    """Assert that a batch of two sequences has the same values with hooks and in layer groups.

    Values recorded inside of modules are compared with those of one layer group.
    """
    want = None
    for groups in layer_groups:
        data = config(
            model, ROWS, tmp_path / "data", run={"name": f"in-{groups}"},
            extraction={"sites": sites, "layers": layers, "layer_groups": groups,
                        "verify": "first_batch"},
            execution={"batch_size": 2},
        )  # fmt: skip
        run = Run(tmp_path, data)
        run.prepare()
        if want is None:
            tokens = TokenStore.open(run.tokens)
            channel_sites = [site for site in CHANNEL_SITES if site in sites]
            want = hooked(model, "bfloat16", tokens, channel_sites, [range(2)], layers)
            assert all(np.isfinite(values).all() for values in want.values())
        run.extract()
        for site in sites:
            want.setdefault(site, run.array(site))  # its values: test_experts.py, test_sinks.py
            same = np.array_equal(run.array(site), want[site], equal_nan=True)
            assert same, f"{site} in {groups} layer groups"


def name(value):
    return getattr(value, "model_type", "")


@pytest.mark.parametrize(("architecture", "sites"), LISTED, ids=name)
def test_listed_architectures_have_their_sites_exactly(architecture, sites, tmp_path):
    model = tiny.checkpoint(tmp_path / "model", architecture)
    described = describe(load_config(model))
    assert from_json(json.loads(json.dumps(to_json(described)))) == described
    assert offered(described) == sites
    assert described.one_group is None
    # What GPT-NeoX's files call the head.
    assert {*unknown_parts(model, weight_files(model), described)} <= {"embed_out"}
    assert_equal_in_layer_groups(model, sorted(sites), tmp_path)


@pytest.mark.parametrize(("architecture", "layers"), MIXED_STACKS, ids=name)
def test_in_stacks_of_mixed_layers_some_have_more_sites(architecture, layers, tmp_path):
    model = tiny.checkpoint(tmp_path / "model", architecture)
    taps = describe(load_config(model)).taps
    sites = {*taps[layers[0]]}
    assert all({*taps[layer]} == sites for layer in layers)
    assert_equal_in_layer_groups(model, sorted(sites), tmp_path, layers)


@pytest.mark.parametrize("architecture", EXACT, ids=name)
def test_architectures_that_nobody_listed_are_exact(architecture, tmp_path):
    model = tiny.checkpoint(tmp_path / "model", architecture)
    sites = sorted(offered(describe(load_config(model))))
    assert_equal_in_layer_groups(model, sites, tmp_path, layer_groups=(1, 3))


@pytest.mark.parametrize(("architecture", "why"), REFUSED, ids=name)
def test_what_cannot_be_divided_is_refused_before_anything_runs(architecture, why, tmp_path):
    model = tiny.checkpoint(tmp_path / "model", architecture)
    if why in ("not pass on a residual stream of 32 channels a token", "its layer 1 does not run"):
        with pytest.raises(ValueError, match=why):
            describe(load_config(model))
        return
    sites = sorted(offered(describe(load_config(model))))
    assert_equal_in_layer_groups(model, sites, tmp_path, layer_groups=(1,))
    with pytest.raises(ValueError, match=f"extraction.layer_groups = 2: .*{why}.*; take 1"):
        assert_equal_in_layer_groups(model, sites, tmp_path, layer_groups=(2,))


VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4,
          "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
# The vision tower has as many layers as the text decoder, so that they could be taken for it.
MULTIMODAL = [
    t.Gemma3Config(
        text_config=SIZES | {"head_dim": 8, "sliding_window": 4, "model_type": "gemma3_text"},
        vision_config=VISION | {"model_type": "siglip_vision_model"}, mm_tokens_per_image=4,
    ),
    t.LlavaConfig(
        text_config=SIZES | {"model_type": "llama"},
        vision_config=VISION | {"model_type": "clip_vision_model"},
    ),
    t.Qwen2_5_VLConfig(
        text_config=SIZES | {"rope_parameters": {
            "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4,
        }},
        vision_config={"depth": 4, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32,
                       "out_hidden_size": 32, "patch_size": 14},
    ),
    # transformers has a class of its own for the text of this one.
    t.Qwen3_5Config(
        text_config=SIZES | LINEAR | {"head_dim": 8, "layer_types": ["full_attention"] * 4},
        vision_config={"depth": 4, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32,
                       "out_hidden_size": 32, "patch_size": 14},
    ),
]  # fmt: skip


@pytest.mark.parametrize("architecture", MULTIMODAL, ids=name)
def test_of_a_multimodal_model_the_text_decoder_alone_is_loaded(architecture, tmp_path):
    model = tiny.checkpoint(tmp_path / "model", architecture)
    described = describe(load_config(model))
    assert described.decoder == "model.language_model"
    assert unknown_parts(model, weight_files(model), described) == ()
    assert any("vis" in path for path in described.skipped)
    assert offered(described) == DENSE
    assert_equal_in_layer_groups(model, sorted(DENSE), tmp_path)


def test_layers_that_need_those_before_them_are_refused_in_several_groups(llama, monkeypatch):
    """Only a trial shows this dependence: the model reads its first layer."""
    forward = t.LlamaModel.forward

    def looks(self, *args, **kwargs):
        assert self.layers[0].mlp.training is False
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(t.LlamaModel, "forward", looks)
    said = describe(load_config(llama)).one_group
    assert re.match("layer 1 of LlamaModel does not run without earlier layers .*mlp", said)
