"""transformers alone: `output_hidden_states`, one `torch.save` a sequence.

    python hidden_states.py MODEL TEXTS OUT [--dtype float32] [--sequences 4] [--tokens 2048]

The outputs of all layers (the site `resid_post`), and nothing else.
"""

import torch
from common import arguments, sequences_of
from transformers import AutoModelForCausalLM

asked = arguments()
model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=asked.dtype).eval()
with torch.inference_mode():
    for index, ids in enumerate(sequences_of(asked)):
        output = model.model(input_ids=ids[None], use_cache=False, output_hidden_states=True)
        torch.save(torch.stack(output.hidden_states), asked.out / f"{index}.pt")
