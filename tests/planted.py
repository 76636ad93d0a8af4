"""Tiny checkpoints with outliers that are known by construction, one for each criterion.

All embeddings are 1, and blocks add nothing but what is planted. Token `MARKED` alone has 1 in
channel `MARKER`, where the others have 0: what reads this channel acts on this token.
"""

from dataclasses import dataclass
from pathlib import Path

import tiny
import torch
from transformers import AutoModelForCausalLM

MARKED, MARKER = 9, 3
ROWS = [[MARKED, *range(10, 73)], [20, MARKED, *range(100, 162)]]
"""Two sequences of 64 tokens; the marked one is at position 0 and at position 1."""
PLACES = [(sequence, row.index(MARKED)) for sequence, row in enumerate(ROWS)]


@dataclass(frozen=True)
class Weight:
    """Where a planted weight of a down projection is."""

    layer: int
    output: int
    input: int
    value: float


@dataclass(frozen=True)
class Expert:
    """Where a planted expert is."""

    layer: int
    expert: int


def _silent(folder: Path, layers: int = 8) -> dict[str, torch.Tensor]:
    _, weights = tiny.silent(folder, layers)
    embedding = weights["model.embed_tokens.weight"]
    embedding[:, MARKER] = 0
    embedding[MARKED, MARKER] = 1
    return weights


def outlier_feature(folder: Path) -> tuple[Path, int, tuple[int, ...]]:
    """A norm weight of 8 in one channel of two of eight layers: the channel, and the layers."""
    weights, channel, layers = _silent(folder), 5, (2, 6)
    for layer in layers:
        weights[f"model.layers.{layer}.input_layernorm.weight"][channel] = 8
    tiny.save_weights(folder, weights)
    return folder, channel, layers


def super_weight(folder: Path) -> tuple[Path, Weight]:
    """One entry of a down projection makes the marked token massive from its layer on.

    The input of the projection is silu(16) x 16 = 256 (bar what the norm takes) in one channel of
    the marked token, its output 16 times as large. It is massive activation, super weight, token
    outlier (of `mlp_hidden`) and systematic outlier at once.
    """
    weights, planted = _silent(folder), Weight(layer=2, output=7, input=4, value=16.0)
    mlp = f"model.layers.{planted.layer}.mlp"
    for name in ("gate_proj", "up_proj"):
        weights[f"{mlp}.{name}.weight"][planted.input] = 0
        weights[f"{mlp}.{name}.weight"][planted.input, MARKER] = 16
    weights[f"{mlp}.down_proj.weight"][planted.output, planted.input] = planted.value
    tiny.save_weights(folder, weights)
    return folder, planted


def super_expert(folder: Path) -> tuple[Path, Expert]:
    """The marked token alone is routed to an expert whose outputs are 2^23 times those of another.

    The router sends every other token to experts 0 and 1, in all layers.
    """
    tiny.qwen3_moe(folder)
    model, planted = AutoModelForCausalLM.from_pretrained(folder), Expert(layer=1, expert=6)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.fill_(1)
        embedding[:, MARKER] = 0
        embedding[MARKED, MARKER] = 1
        for layer, block in enumerate(model.model.layers):
            block.self_attn.o_proj.weight.zero_()
            gate = block.mlp.gate.weight
            gate.zero_()
            gate[0, 0], gate[1, 0] = 4, 2
            if layer == planted.layer:
                gate[planted.expert, MARKER] = 16
                down = block.mlp.experts.down_proj
                down[planted.expert] = down[0] * 2**23
    model.save_pretrained(folder)
    return folder, planted


def attention_sink(folder: Path) -> tuple[Path, int]:
    """In one layer every head looks at the marked token: the layer.

    Keys are 32 in a channel of each head where the token is marked and 0 elsewhere, queries 32 in
    the same channel, which the rotation hardly turns.
    """
    weights, layer, size, turned_least = _silent(folder), 5, 8, 3
    attention = f"model.layers.{layer}.self_attn"
    for name, reads in (("q_proj", 0), ("k_proj", MARKER)):
        weight = weights[f"{attention}.{name}.weight"]
        weight.zero_()
        weight[turned_least::size, reads] = 32
    tiny.save_weights(folder, weights)
    return folder, layer
