"""The script that this project replaces, written as a good user would: hooks on the whole model.

    python plain.py MODEL TEXTS OUT [--dtype float32] [--sequences 4] [--tokens 2048]

Loads the model once, runs each sequence once, saves three sites of all layers with `torch.save`,
and prints the layers with activations above 6 (LLM.int8()), the largest value of each site and the
values above 1000 times the median (massive activations). It has no summaries of channels, no
intervals, no tables, no figures, no report and no resumption, and needs the memory of the whole
model and of all activations at once.
"""

import torch
from common import arguments, sequences_of
from transformers import AutoModelForCausalLM

asked = arguments()
model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=asked.dtype).eval()
captured: dict[tuple[str, int], list[torch.Tensor]] = {}


def keep(site, layer):
    def hook(module, args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        captured.setdefault((site, layer), []).append(tensor[0].detach())

    return hook


for index, block in enumerate(model.model.layers):
    block.input_layernorm.register_forward_hook(keep("attn_in", index))
    block.post_attention_layernorm.register_forward_hook(keep("mlp_in", index))
    block.register_forward_hook(keep("resid_post", index))

with torch.inference_mode():
    for sequence in sequences_of(asked):
        model.model(input_ids=sequence[None], use_cache=False)

largest: dict[str, tuple[float, int]] = {}
outlying, massive = set(), set()
for (site, layer), parts in captured.items():
    values = torch.stack(parts)  # sequence, token, channel
    magnitudes = values.float().abs()
    largest[site] = max(largest.get(site, (0.0, 0)), (float(magnitudes.max()), layer))
    if site != "resid_post" and bool(((magnitudes > 6).float().mean((0, 1)) > 0.06).any()):
        outlying.add((site, layer))
    medians = magnitudes.flatten(1).median(1).values
    maxima = magnitudes.flatten(1).max(1).values
    if bool(((maxima > 100) & (maxima > 1000 * medians)).any()):
        massive.add((site, layer))
    torch.save(values, asked.out / f"{site}-{layer}.pt")
print("above 6 in more than 6 % of the tokens:", *sorted(outlying))
print("massive:", *sorted(massive))
print("largest:", largest)
