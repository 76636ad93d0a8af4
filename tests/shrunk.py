"""A tiny configuration of any model type that transformers has, made from its default one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

LAYERS = 4
POSITIONS = 48

# A size, and the names of what has it at most; of several that match, the first one.
SIZES: tuple[tuple[int, str], ...] = (
    (2, r"(.*_)?(bos|eos|sep|cls|image|audio|video|vision|boi|eoi|boa|eoa|mask|decoder_start|unk)"
        r"(_start|_end|_pad|_break)?_(token_)?(id|index)"),
    (0, r"pad_token_id"),
    (320, r"(.*_)?vocab(ulary)?_size(_.*)?"),
    (LAYERS, r"num_hidden_layers|n_layers?|num_(decoder_)?layers|(en|de)coder_(num_)?layers|depth"),
    (2, r"(.*_)?(num_key_value_heads|num_kv_heads|kv_n_heads|n_head_kv)"),
    (2, r"(num|n)_(shared_)?experts?_per_tok(en)?|moe_top_?k|top_k_experts|moe_k|topk_experts"
        r"|num_selected_experts"),
    (1, r"n_shared_experts|moe_num_shared_experts|first_k_dense_replace|topk_group|n_group"),
    (4, r"(moe_)?(num|n)_(local|routed|total)?_?experts"),
    (POSITIONS, r".*max_position_embeddings.*|n_positions|n_ctx|max_seq(uence)?_len(gth)?"
                r"|seq_length|max_(source|target)_positions"),
    (8, r"sliding_window(_size)?|(local_)?attention_window(_size)?|window_size"
        r"|attention_chunk_size"),
    (16, r"(q|o|kv)_lora_rank"),
    (4, r"qk_rope_head_dim|rotary_dim"),
    (8, r"(.*_)?(head_dim|d_head|(key|value)_head_dim|dim_head|qk_nope_head_dim|v_head_dim|d_kv"
        r"|head_size)"),
    (64, r".*(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|n_inner|dim_ff|dff|inner_dim|mlp_dim)"
         r"(_.*)?"),
    (32, r"hidden_size(_per_layer_input)?|d_model|n_embd|n_embed|dim|hidden_dim|model_dim|emb_dim"
         r"|(.*_)?embed(ding)?_(size|dim)|width|word_embed_proj_dim|attention_hidden_size"
         r"|lru_width|out_hidden_size"),
    (4, r"(.*_)?(num|n)?_?(attention_|attn_|self_attention_)?heads?|.*attention_heads"),
    (28, r"image_size"),
    (14, r"patch_size"),
    (8, r"(ssm_|mamba_)?(state_size|d_state)|.*time_step_rank|index_topk"),
)  # fmt: skip

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
         "mamba_chunk_size": 4, "mamba_expand": 2}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": MAMBA | {"attn_layer_indices": [1, 3]},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "granitemoehybrid": MAMBA,
    "blenderbot": {"num_hidden_layers": LAYERS},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
    },
    **{
        kind: {"num_key_value_heads": 4}  # latent attention shares no keys
        for kind in ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "youtu",
                     "minicpm3", "glm4_moe_lite", "glm_moe_dsa")
    },
    "olmo": {"clip_qkv": 0.05},
    "olmoe": {"clip_qkv": 0.05},
    "mpt": {"attn_config": {"clip_qkv": 0.05}},
    "reformer": {
        "axial_pos_shape": [6, 8], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local"] * 4,
        "local_attn_chunk_length": 6,
    },
}  # fmt: skip
"""What a size alone does not tell."""


def shrunk(model_type: str, **changes: Any) -> PretrainedConfig:
    """A configuration of a few thousand weights."""
    cls = CONFIG_MAPPING[model_type]
    values = _small(cls().to_dict()) | {"dtype": "float32"} | CHANGES.get(model_type, {})
    if values.get("is_decoder") is False:
        values["is_decoder"] = True  # an encoder's class, as a decoder
    if values.get("causal") is False:
        values["causal"] = True
    return cls.from_dict(values | changes)


def _small(values: Mapping[str, Any]) -> dict[str, Any]:
    names = SIZES[3][1]
    layers = next((v for k, v in values.items() if re.fullmatch(names, str(k)) and v), None)
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("id2label", "label2id", "model_type", "architectures", "transformers_version"):
            continue
        if key == "mrope_section":
            made[key] = [1, 1, 2]
        elif key in ("long_factor", "short_factor"):
            made[key] = value[:4]
        elif isinstance(value, Mapping):
            made[key] = _small(value)
        elif isinstance(value, list) and layers and len(value) == layers:
            made[key] = _covering(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            made[key] = _size(key, value)
        else:
            made[key] = value
    return made


def _covering(values: list[Any]) -> list[Any]:
    """As many as there are layers, with each kind among them where that can be."""
    kinds = [value for n, value in enumerate(values) if value not in values[:n]]
    return (kinds + values)[:LAYERS] if len(kinds) > 1 else values[:LAYERS]


def _size(key: str, value: int) -> int:
    for size, pattern in SIZES:
        if re.fullmatch(pattern, key):
            few = size if size == LAYERS and pattern == SIZES[3][1] else min(value, size)
            return few if value > 0 else value
    return value
