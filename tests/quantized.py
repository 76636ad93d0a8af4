"""Quantized checkpoints, packed as published ones are, each with its dense twin.

The twin has the values of the packed weights, computed here and not by transformers.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import transformers as t
from safetensors.torch import load_file
from transformers import PretrainedConfig

Weights = dict[str, torch.Tensor]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of the 16 codes of 4 bits: a sign, two bits of exponent, one of mantissa."""


def _e4m3(code: int) -> float:
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    size = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
    return float("nan") if code & 127 == 127 else -size if sign else size


E4M3 = np.array([_e4m3(code) for code in range(256)], np.float32)
"""Values of the 256 codes of 8 bits: a sign, four bits of exponent, three of mantissa."""

BIG: dict[str, Any] = tiny.SIZES | {"hidden_size": 256, "intermediate_size": 384}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 256, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64, "v_head_dim": 64, "n_routed_experts": 8, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
"""Sizes for which the down projection to the latent has 256 + 64 rows: two and a half blocks."""


@dataclass(frozen=True)
class Pair:
    """Quantized checkpoint, and the dense one with the same values."""

    packed: Path
    dense: Path


def mxfp4(folder: Path) -> Pair:
    """Write gpt_oss with packed experts: two codes a byte, 32 of them with one power of two."""
    config = t.GptOssConfig(
        **tiny.SIZES | {"hidden_size": 64, "head_dim": 16, "num_local_experts": 4,
                        "num_experts_per_tok": 2, "sliding_window": 4}
    )  # fmt: skip
    draw = np.random.default_rng(0)

    def pack(name: str, weight: torch.Tensor) -> tuple[Weights, np.ndarray]:
        experts, inward, outward = weight.shape
        blocks = draw.integers(256, size=(experts, outward, inward // 32, 16), dtype=np.uint8)
        scales = draw.integers(118, 123, size=blocks.shape[:-1], dtype=np.uint8)
        codes = np.stack([E2M1[blocks & 15], E2M1[blocks >> 4]], axis=-1)
        factors = np.ldexp(np.float32(1), scales.astype(int) - 127)
        values = codes.reshape(*scales.shape, 32) * factors[..., None]
        dense = np.ascontiguousarray(values.reshape(experts, outward, inward).swapaxes(1, 2))
        return _tensors({f"{name}_blocks": blocks, f"{name}_scales": scales}), dense

    quantization = {
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"
        ],
        "quant_method": "mxfp4",
    }  # fmt: skip
    return _pair(folder, config, quantization, lambda n: n.endswith(("up_proj", "down_proj")), pack)


def fp8(
    folder: Path,
    config: PretrainedConfig,
    block: tuple[int, int] | None = (128, 128),
    powers: torch.dtype | None = None,
    method: str = "fp8",
) -> Pair:
    """Write projections in 8 bits, with a scale for each block of a weight, cut at its edges.

    Args:
        powers: dtype of scales that are powers of two; None for arbitrary float32 scales.
    """

    def pack(name: str, weight: torch.Tensor) -> tuple[Weights, np.ndarray]:
        height, width = block or weight.shape
        rows, columns = weight.shape
        scale = np.empty((-(-rows // height), -(-columns // width)), np.float32)
        codes = np.empty((rows, columns), np.uint8)
        values = np.empty((rows, columns), np.float32)
        for i, j in np.ndindex(*scale.shape):
            cut = np.s_[i * height : (i + 1) * height, j * width : (j + 1) * width]
            part = weight.float().numpy()[cut]
            scale[i, j] = np.abs(part).max() / 448
            if powers:
                scale[i, j] = 2 ** np.ceil(np.log2(scale[i, j]))
            nearest = torch.from_numpy(part / scale[i, j]).to(torch.float8_e4m3fn)
            codes[cut] = nearest.view(torch.uint8)
            values[cut] = E4M3[codes[cut]] * scale[i, j]
        packed = _tensors({name: codes, f"{name}_scale_inv": scale})
        packed[name] = packed[name].view(torch.float8_e4m3fn)
        if powers:
            exponents = torch.from_numpy(np.log2(scale).astype(np.int16) + 127).to(torch.uint8)
            packed[f"{name}_scale_inv"] = exponents.view(powers)
        if block is None:
            packed[f"{name}_scale_inv"] = packed[f"{name}_scale_inv"].reshape(())
            packed[name.replace("weight", "activation_scale")] = torch.tensor(0.5)
        return packed, values

    quantization = {
        "activation_scheme": "dynamic" if block else "static",
        "fmt": "e4m3",
        "quant_method": method,
    } | ({} if powers else {"weight_block_size": block})  # which has a default
    return _pair(
        folder, config, quantization, lambda n: "_proj" in n and n.endswith(".weight"), pack
    )


LLAVA = t.LlavaConfig(
    text_config=BIG | {"model_type": "llama"},
    vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4,
                   "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
                   "model_type": "clip_vision_model"},
)  # fmt: skip
DEEPSEEK_V3 = t.DeepseekV3Config(**BIG | EXPERTS | LATENT)
QWEN3_MOE = t.Qwen3MoeConfig(**BIG, **EXPERTS, head_dim=64, num_experts=8)

KINDS: dict[str, Callable[[Path], Pair]] = {
    "gpt_oss, MXFP4": mxfp4,
    "llama, FP8": lambda folder: fp8(folder, t.LlamaConfig(**BIG)),
    "llama, FP8 with one scale a weight": lambda f: fp8(f, t.LlamaConfig(**BIG), None),
    "llama in llava, FP8": lambda folder: fp8(folder, LLAVA),
    "llama, MXFP8": lambda folder: fp8(folder, t.LlamaConfig(**BIG), (1, 32), torch.uint8, "mxfp8"),
    "qwen3_moe, FP8": lambda folder: fp8(folder, QWEN3_MOE),
    "qwen3_moe, FP8 with powers of two": lambda folder: fp8(
        folder, QWEN3_MOE, powers=torch.float8_e8m0fnu
    ),
    "deepseek_v3, FP8": lambda folder: fp8(folder, DEEPSEEK_V3),
}
"""Kinds of checkpoints, with the function that writes each."""


def _tensors(arrays: dict[str, np.ndarray]) -> Weights:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _pair(
    folder: Path,
    config: PretrainedConfig,
    quantization: dict[str, Any],
    is_packed: Callable[[str], bool],
    pack: Callable[[str, torch.Tensor], tuple[Weights, np.ndarray]],
) -> Pair:
    pair = Pair(folder / "packed", folder / "dense")
    for path in (pair.packed, pair.dense):
        tiny.checkpoint(path, config)
    packed, dense = {}, {}
    for name, weight in load_file(pair.dense / "model.safetensors").items():
        packed[name] = dense[name] = weight
        if is_packed(name):
            parts, values = pack(name, packed.pop(name))
            packed |= parts
            dense[name] = torch.from_numpy(values)
    tiny.save_weights(pair.packed, packed)
    tiny.save_weights(pair.dense, dense)
    say(pair.packed, quantization)
    return pair


def say(folder: Path, quantization: Any) -> None:
    """Write a `quantization_config` into a checkpoint's configuration."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | {"quantization_config": quantization}
    path.write_text(json.dumps(config), "utf-8")
