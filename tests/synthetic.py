"""A mixture of experts with random weights, of any size: written file by file, never held whole."""

import json
from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig


def mixture(
    folder: Path,
    layers: int,
    hidden: int,
    experts: int,
    dtype: torch.dtype = torch.bfloat16,
    vocab: int = 32000,
) -> Path:
    """A checkpoint in Qwen3-MoE's form, a file a layer, with separate experts as on the hub."""
    folder.mkdir(parents=True)
    heads, half = hidden // 64, hidden // 2
    config = Qwen3MoeConfig(
        vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, head_dim=64,
        num_attention_heads=heads, num_key_value_heads=heads // 2, num_experts=experts,
        num_experts_per_tok=min(8, experts), moe_intermediate_size=half, bos_token_id=0,
        eos_token_id=1, architectures=["Qwen3MoeForCausalLM"], dtype=dtype,
    )  # fmt: skip
    config.save_pretrained(folder)
    tiny.tokenizer(folder)
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 2, hidden),
        "self_attn.v_proj": (hidden // 2, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate": (experts, hidden), "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,), "self_attn.q_norm": (64,), "self_attn.k_norm": (64,),
    }  # fmt: skip
    for expert in range(experts):
        for name in ("gate_proj", "up_proj"):
            shapes[f"mlp.experts.{expert}.{name}"] = (half, hidden)
        shapes[f"mlp.experts.{expert}.down_proj"] = (hidden, half)
    random = torch.Generator().manual_seed(0)
    names = {"embed_tokens": (vocab, hidden), "norm": (hidden,)}
    files = {"model-embedding.safetensors": {f"model.{k}.weight": v for k, v in names.items()}}
    for layer in range(layers):
        files[f"model-{layer:03}.safetensors"] = {
            f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()
        }
    for name, tensors in files.items():
        save_file(
            {key: _random(shape, random, dtype) for key, shape in tensors.items()},
            folder / name, metadata={"format": "pt"},
        )  # fmt: skip
    index = {key: name for name, tensors in files.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return folder


def _random(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype)
    return torch.randn(shape, generator=generator).mul_(0.02).to(dtype)
