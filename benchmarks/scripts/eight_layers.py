"""The later way of the script that began this project: a forward pass for every eight layers.

    python eight_layers.py MODEL TEXTS OUT [--dtype float32] [--sequences 4] [--tokens 2048]

Saves less at a time, and computes the whole model for each eight layers.
"""

import torch
from common import arguments, sequences_of
from transformers import AutoModelForCausalLM

asked = arguments()
model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=asked.dtype).eval()
blocks = model.model.layers
for first in range(0, len(blocks), 8):
    for index, ids in enumerate(sequences_of(asked)):
        saved: dict[str, torch.Tensor] = {}

        def keep(name, saved=saved):
            return lambda module, args, output: saved.update({name: output.detach()})

        hooks = []
        for layer in range(first, min(first + 8, len(blocks))):
            block = blocks[layer]
            norms = {"attn_in": block.input_layernorm, "mlp_in": block.post_attention_layernorm}
            for site, module in norms.items():
                hooks.append(module.register_forward_hook(keep(f"{site}-{layer}")))
        with torch.inference_mode():
            model.model(input_ids=ids[None], use_cache=False)
        for hook in hooks:
            hook.remove()
        torch.save(saved, asked.out / f"{first}-{index}.pt")
