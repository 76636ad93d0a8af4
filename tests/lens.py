"""A checkpoint in TransformerLens, whose own forward pass (HookedTransformer) it runs.

It is imported, which takes seconds, by who runs it, and not by every process that collects tests.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

from outlier_atlas.settings.sites import ATTN_SINK, DECLARED

NORMS = {"attn_in": "ln1", "mlp_in": "ln2"}
"""Sites that are the output of a norm, which TransformerLens takes before the norm's weight."""
HOOKS = {
    site: declared.transformer_lens
    for site, declared in DECLARED.items()
    if declared.transformer_lens and site not in {*NORMS, ATTN_SINK}
}
"""Sites whose name in TransformerLens is the same place (docs/sites.md)."""


def activations(folder: Path, ids: list[int]) -> dict[str, np.ndarray]:
    """Each site of a sequence, (layer, token, channel); `attn_sink` from whole attention maps."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model, converted = _converted(theirs)
    model.load_and_process_state_dict(
        converted, fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([ids]))
    made = {}
    layers = range(model.cfg.n_layers)
    for site, hook in HOOKS.items():
        made[site] = [cache[f"blocks.{layer}.{hook}"][0].flatten(1) for layer in layers]
    for site, norm in NORMS.items():
        made[site] = [
            _weighted(
                getattr(model.blocks[i], norm), cache[f"blocks.{i}.{norm}.hook_normalized"][0]
            )
            for i in layers
        ]
    made["attn_sink"] = [_received(cache[f"blocks.{i}.attn.hook_pattern"][0]) for i in layers]
    return {site: torch.stack(each).detach().numpy() for site, each in made.items()}


def _weighted(norm, normalized):
    return normalized * norm.w + getattr(norm, "b", 0)


def _received(pattern_HQK):
    """The mean over the queries from a token on of what they give to it, (token, head)."""
    tokens = pattern_HQK.shape[-1]
    return torch.stack([pattern_HQK[:, k:, k].mean(1) for k in range(tokens)])


def _converted(theirs):
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    config = theirs.config
    common = {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": config.hidden_size // config.num_attention_heads,
        "n_ctx": 64,
        "d_vocab": config.vocab_size,
        "device": "cpu",
    }
    if config.model_type == "gpt2":
        cfg = HookedTransformerConfig(
            **common, d_mlp=4 * config.hidden_size, act_fn="gelu_new", normalization_type="LN",
            eps=config.layer_norm_epsilon,
        )  # fmt: skip
        return HookedTransformer(cfg), weight_conversions.convert_gpt2_weights(theirs, cfg)
    cfg = HookedTransformerConfig(
        **common, d_mlp=config.intermediate_size, act_fn="silu", normalization_type="RMS",
        n_key_value_heads=config.num_key_value_heads, positional_embedding_type="rotary",
        rotary_adjacent_pairs=False, rotary_dim=common["d_head"], gated_mlp=True, final_rms=True,
        rotary_base=int(config.rope_parameters["rope_theta"]), eps=config.rms_norm_eps,
    )  # fmt: skip
    return HookedTransformer(cfg), weight_conversions.convert_llama_weights(theirs, cfg)
