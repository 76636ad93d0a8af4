"""TransformerLens: `run_with_cache` of both norms and the block's output, one save a sequence.

    python transformer_lens_cache.py MODEL TEXTS OUT [--dtype ...] [--sequences 4] [--tokens 2048]

Needs TransformerLens (`make .venv/installed-validation`). `hook_normalized` is the norm's output
before its weight.
"""

import torch
from common import arguments, sequences_of
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained import weight_conversions
from transformers import AutoModelForCausalLM

asked = arguments()
dtype = getattr(torch, asked.dtype)
theirs = AutoModelForCausalLM.from_pretrained(asked.model, dtype=dtype)
config = theirs.config
# Its own loading asks the hub for the configuration, which has to be given here.
cfg = HookedTransformerConfig(
    n_layers=config.num_hidden_layers, d_model=config.hidden_size, n_ctx=asked.tokens,
    n_heads=config.num_attention_heads, n_key_value_heads=config.num_key_value_heads,
    d_head=config.hidden_size // config.num_attention_heads, d_mlp=config.intermediate_size,
    d_vocab=config.vocab_size, act_fn="silu", normalization_type="RMS", eps=config.rms_norm_eps,
    positional_embedding_type="rotary", rotary_adjacent_pairs=False, final_rms=True,
    rotary_dim=config.hidden_size // config.num_attention_heads, gated_mlp=True,
    rotary_base=int(config.rope_parameters["rope_theta"]), dtype=dtype, device="cpu",
)  # fmt: skip
model = HookedTransformer(cfg)
model.load_and_process_state_dict(
    weight_conversions.convert_llama_weights(theirs, cfg), fold_ln=False,
    center_writing_weights=False, center_unembed=False, fold_value_biases=False,
)  # fmt: skip
del theirs
names = ("ln1.hook_normalized", "ln2.hook_normalized", "hook_resid_post")
with torch.inference_mode():
    for index, ids in enumerate(sequences_of(asked)):
        _, cache = model.run_with_cache(
            ids[None], names_filter=lambda name: name.endswith(names), return_type=None
        )
        torch.save(dict(cache), asked.out / f"{index}.pt")
