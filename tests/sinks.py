"""Attention that each first token receives, computed independently from whole attention maps."""

import numpy as np
import tiny
import torch
from pipeline import Run, config

from outlier_atlas.checkpoint.source import load_config

ROWS = [[5, 17, 200, 9, 33, 41, 7, 250, 11, 19], [40, 6, 6, 90, 280, 14, 8], [1, 2, 3], [9]]


def attention_maps(folder, ids, dtype=torch.float32):
    """Return the maps of the model's own eager attention, (head, query, key) by layer."""
    described = load_config(folder)
    model = tiny.auto_class(described).from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    with torch.inference_mode():
        made = model.eval()(torch.tensor([ids]), output_attentions=True, use_cache=False)
    return [maps[0].float().numpy() for maps in made.attentions]


def alpha(maps_HQK, tokens):
    """Return the mean of A[i, k] over queries k <= i < T, (token, head); NaN from T on."""
    heads, length, _ = maps_HQK.shape
    first = min(tokens, length)
    made = np.full((length, heads), np.nan)
    for k in range(first):
        for head in range(heads):
            made[k, head] = np.mean([maps_HQK[head, i, k] for i in range(k, first)])
    return made


def reference(folder, tokens, rows=ROWS):
    """Return (layer, token, head) of all sequences, one after the other."""
    each = [[alpha(maps, tokens) for maps in attention_maps(folder, ids)] for ids in rows]
    return np.stack([np.concatenate(layer) for layer in zip(*each, strict=True)])


def extracted(folder, tmp_path, name="run", rows=ROWS, tokens=5, dtype="float32", **sections):
    extraction = {
        "sites": ["attn_sink"],
        "advanced": {"sink_tokens": tokens, "chunk_tokens": 4},
    } | sections.pop("extraction", {})
    data = config(
        folder, rows, tmp_path / "data", run={"name": name}, extraction=extraction, **sections
    )
    data["model"]["dtype"] = dtype
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    return run
