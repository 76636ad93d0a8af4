"""A Llama, written out in numpy from its weights: it shares no code with the library.

Everything is float64, one sequence at a time, with whole attention maps: slow, and easy to check.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

SITES = (
    "resid_pre", "attn_in", "q", "k", "v", "attn_hidden", "attn_out", "resid_mid", "mlp_in",
    "mlp_hidden", "down_proj_out", "mlp_out", "resid_post", "attn_sink",
)  # fmt: skip
SINK_TOKENS = 64


def load(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The configuration and the weights of a checkpoint."""
    weights = {
        name: tensor.double().numpy()
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    for path in folder.glob("*.gguf"):
        weights |= {name: values.astype(np.float64) for name, values in of_gguf(path).items()}
    return json.loads((folder / "config.json").read_text()), weights


def of_gguf(path: Path) -> dict[str, np.ndarray]:
    """The weights of a Llama in a GGUF file by transformers' names, in float32."""
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    reader = gguf.GGUFReader(path)
    width = int(reader.fields["llama.rope.dimension_count"].contents())
    weights = {}
    for tensor in reader.tensors:
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            name = f"layers.{parts[1]}.{names[parts[2]]}"
        else:
            name = {"token_embd": "embed_tokens", "output_norm": "norm"}[parts[0]]
        if parts[-2] in ("attn_q", "attn_k"):
            # llama.cpp rotates neighbours, transformers halves: rows 0, 2, 4, ... come first.
            heads = values.reshape(-1, width, values.shape[1])
            values = np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(values.shape)
        weights[f"model.{name}.weight"] = values
    return weights


def forward(model: tuple[dict, dict[str, np.ndarray]], ids: list[int]) -> dict[str, np.ndarray]:
    """Each site of a sequence: (layer, token, channel)."""
    config, weights = model
    x = weights["model.embed_tokens.weight"][ids]
    layers = []
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        layers.append(block(x, own, config))
        x = layers[-1]["resid_post"]
    return {site: np.stack([layer[site] for layer in layers]) for site in SITES}


def losses(model: tuple[dict, dict[str, np.ndarray]], ids: list[int]) -> np.ndarray:
    """The negative log-likelihood of each token but the first, in nats."""
    config, weights = model
    x = forward(model, ids)["resid_post"][-1]
    x = rms_norm(x, weights["model.norm.weight"], config["rms_norm_eps"])
    logits = x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T
    logits -= logits.max(axis=1, keepdims=True)
    of_tokens = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -of_tokens[np.arange(len(ids) - 1), ids[1:]]


def block(x, w, config):
    at = {"resid_pre": x}
    at["attn_in"] = rms_norm(x, w["input_layernorm.weight"], config["rms_norm_eps"])
    for site in "qkv":
        at[site] = at["attn_in"] @ w[f"self_attn.{site}_proj.weight"].T
    at["attn_hidden"], at["attn_sink"] = attention(at["q"], at["k"], at["v"], config)
    at["attn_out"] = at["attn_hidden"] @ w["self_attn.o_proj.weight"].T
    at["resid_mid"] = x + at["attn_out"]
    norm = w["post_attention_layernorm.weight"]
    at["mlp_in"] = rms_norm(at["resid_mid"], norm, config["rms_norm_eps"])
    gate = at["mlp_in"] @ w["mlp.gate_proj.weight"].T
    at["mlp_hidden"] = gate / (1 + np.exp(-gate)) * (at["mlp_in"] @ w["mlp.up_proj.weight"].T)
    at["down_proj_out"] = at["mlp_out"] = at["mlp_hidden"] @ w["mlp.down_proj.weight"].T
    at["resid_post"] = at["resid_mid"] + at["mlp_out"]
    return at


def rms_norm(x, weight, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def rotated(x, theta):
    """(token, channel) of a head; the channels i and i + half turn together."""
    tokens, channels = x.shape
    angle = np.arange(tokens)[:, None] / theta ** (np.arange(0, channels, 2) / channels)
    first, second = np.split(x, 2, axis=1)
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle),
         second * np.cos(angle) + first * np.sin(angle)], axis=1,
    )  # fmt: skip


def attention(q, k, v, config):
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    size, tokens = q.shape[1] // heads, len(q)
    out, received = np.zeros((tokens, heads * size)), np.full((tokens, heads), np.nan)
    first = min(tokens, SINK_TOKENS)
    for head in range(heads):
        mine, shared = (slice(h * size, (h + 1) * size) for h in (head, head * keys // heads))
        scores = rotated(q[:, mine], theta) @ rotated(k[:, shared], theta).T / size**0.5
        scores[np.triu_indices(tokens, 1)] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        out[:, mine] = weights @ v[:, shared]
        for token in range(first):
            received[token, head] = weights[token:first, token].mean()
    return out, received
