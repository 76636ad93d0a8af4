"""nnsight as in the script that began this project: the model is loaded again for every batch.

    python nnsight_reload.py MODEL TEXTS OUT [--dtype float32] [--sequences 4] [--tokens 2048]

The outputs of both norms of every layer (the sites `attn_in` and `mlp_in`).
"""

import torch
from common import arguments, sequences_of
from nnsight import LanguageModel
from transformers import AutoTokenizer

asked = arguments()
tokenizer = AutoTokenizer.from_pretrained(asked.model)  # nnsight cannot guess that of a folder
for index, ids in enumerate(sequences_of(asked)):
    model = LanguageModel(
        asked.model, tokenizer=tokenizer, device_map="auto", dtype=getattr(torch, asked.dtype)
    )
    saved = {}
    with torch.inference_mode(), model.trace({"input_ids": ids[None]}):
        for layer, block in enumerate(model.model.layers):
            saved[f"attn_in-{layer}"] = block.input_layernorm.output.save()
            saved[f"mlp_in-{layer}"] = block.post_attention_layernorm.output.save()
    torch.save(
        {name: value.detach().cpu() for name, value in saved.items()}, asked.out / f"{index}.pt"
    )
