"""Tiny GGUF files, written from tiny models as llama.cpp's converter writes real ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

Tensors = dict[str, NDArray[np.float32]]

VOCABULARY = 320
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    # Of no class the default, so that a value which is not taken from the file is noticed.
    **dict.fromkeys(
        ("rms_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_eps", "layer_norm_epsilon"), 3e-5
    ),
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}

GEMMA = {
    "tie_word_embeddings": True, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16,
}  # fmt: skip

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 16}),
    "llama-tied": ("llama", {"head_dim": 16, "tie_word_embeddings": True}),
    "llama-3.1": ("llama", {"head_dim": 16, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
    "qwen2": ("qwen2", {}),
    "qwen2moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3moe": ("qwen3_moe", {**EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", GEMMA),
    "phi3": ("phi3", {"sliding_window": 16}),
    "starcoder2": ("starcoder2", {"rope_parameters": {
        "rope_type": "default", "rope_theta": 99999.0}}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "nemotron": ("nemotron", {"partial_rotary_factor": 0.5}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "falcon": ("falcon", {"multi_query": True, "ffn_hidden_size": 96}),
}  # fmt: skip
"""Configurations by name; the part before a dash is the architecture's name in llama.cpp."""


def model(name: str, seed: int = 0) -> PreTrainedModel:
    """Return a tiny model with random weights, norms and biases."""
    kind, own = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **{**SIZES, "tie_word_embeddings": False, **own})
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for tensor in made.parameters():
                drawn = torch.randn_like(tensor) * 0.2 + (tensor.dim() == 1)
                # Of 8 bits behind the point, so that adding 1 to a norm loses nothing.
                tensor.copy_((drawn * 256).round() / 256)
    return made


def tensors(name: str, of: PreTrainedModel) -> Tensors:
    """Return the tensors of a GGUF file by llama.cpp's names, changed as its converter does."""
    architecture = name.partition("-")[0]
    number = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, of.config.num_hidden_layers)
    tied = {*of.all_tied_weights_keys} if of.config.tie_word_embeddings else set()
    found: Tensors = {}
    for key, tensor in of.state_dict().items():
        if key in tied:
            continue
        values = tensor.float().numpy()
        if key.endswith("experts.gate_up_proj"):
            gate, up = np.split(values, 2, axis=1)
            layer = key.split(".")[2]
            found[f"blk.{layer}.ffn_gate_exps.weight"] = gate
            found[f"blk.{layer}.ffn_up_exps.weight"] = up
            continue
        stem, _, ending = key.rpartition(".")
        if key.endswith("experts.down_proj"):
            stem, ending = key, "weight"
        given = names.get_name(stem) or names.get_name(stem.removeprefix("transformer."))
        assert given is not None, key
        found[f"{given}.{ending}"] = _converted(
            architecture, f"{given}.{ending}", values, of.config
        )
    if getattr(of.config, "rope_parameters", None) and name == "llama-3.1":
        found["rope_freqs.weight"] = llama3_factors(of.config)
    return found


def llama3_factors(config: Any) -> NDArray[np.float32]:
    """Return the factors that Llama 3.1 divides its frequencies by, one at a time."""
    rope = config.rope_parameters
    factors = []
    for index in range(0, config.head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (index / config.head_dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high, factor = (rope[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
        share = min(1, max(0, (turns - low) / (high - low)))
        factors.append(1 / (share + (1 - share) / factor))
    return np.array(factors, np.float32)


def _converted(
    architecture: str, name: str, values: NDArray[np.float32], config: Any
) -> NDArray[np.float32]:
    heads, width = config.num_attention_heads, config.hidden_size
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = heads if ".attn_q." in name else config.num_key_value_heads
        apart = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return apart.swapaxes(1, 2).reshape(values.shape)
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return values + np.float32(1)
    if architecture == "gpt2" and values.ndim == 2 and name.startswith("blk."):
        return values.T
    if architecture == "bloom" and "attn_qkv" in name:
        apart = values.reshape(heads, 3, width // heads, *values.shape[1:])
        return apart.swapaxes(0, 1).reshape(values.shape)
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return values.reshape(-1)
    return values


def metadata(name: str, of: PreTrainedModel) -> dict[str, Any]:
    """Return the metadata that the converter writes, except for the tokenizer's."""
    config = of.config
    known = type(config)()  # a configuration keeps settings that its class has no use for
    own: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": getattr(config, "max_position_embeddings", 128),
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "vocab_size": VOCABULARY,
    }
    for key, attributes in {
        "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
        "attention.head_count_kv": ("num_key_value_heads",),
        "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
        "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
        "attention.sliding_window": ("sliding_window",),
        "attn_logit_softcapping": ("attn_logit_softcapping",),
        "final_logit_softcapping": ("final_logit_softcapping",),
        "expert_count": ("num_experts",),
        "expert_used_count": ("num_experts_per_tok",),
        "expert_feed_forward_length": ("moe_intermediate_size",),
        "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    }.items():
        if name in ("bloom", "gpt2") and key == "attention.head_count_kv":
            continue
        if name in ("bloom", "gpt2") and key == "feed_forward_length":
            own[key] = 4 * config.hidden_size
            continue
        values = [
            getattr(config, name)
            for name in attributes
            if hasattr(known, name) and getattr(config, name, None) is not None
        ]
        own |= {key: values[0]} if values else {}
    if name == "nemotron":
        own["attention.layer_norm_rms_epsilon"] = config.norm_eps
    if getattr(config, "head_dim", None) and name not in ("bloom", "gpt2"):
        own |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if rope:
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        own["rope.freq_base"] = float(rope["rope_theta"])
        own["rope.dimension_count"] = int(width * rope.get("partial_rotary_factor", 1))
    architecture = name.partition("-")[0]
    return {f"{architecture}.{key}": value for key, value in own.items()}


def write(
    path: Path,
    name: str,
    of: PreTrainedModel,
    kind: str = "F32",
    change: Callable[[Tensors, dict[str, Any]], object] = lambda tensors, metadata: None,
    parts: int = 1,
) -> Path:
    """Write a GGUF file.

    Args:
        kind: storage type of matrices whose rows fill whole blocks; the rest is in float32.
        change: changes tensors and metadata before they are written.
        parts: number of files; with several, the path is that of the first.
    """
    held, said = tensors(name, of), metadata(name, of) | vocabulary(name)
    change(held, said)
    names = [*held]
    size = -(-len(names) // parts)
    for number in range(parts):
        file = path if parts == 1 else path.with_name(f"m-{number + 1:05d}-of-{parts:05d}.gguf")
        writer = gguf.GGUFWriter(file, name.partition("-")[0])
        split = {"split.no": number, "split.count": parts, "split.tensors.count": len(names)}
        for key, value in {**(said if number == 0 else {}), **(split if parts > 1 else {})}.items():
            _add(writer, key, value)
        for tensor in names[number * size : (number + 1) * size]:
            _write(writer, tensor, held[tensor], kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path if parts == 1 else path.with_name(f"m-00001-of-{parts:05d}.gguf")


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kind = gguf.GGUFValueType.get_type(value)
    if isinstance(value, int) and not isinstance(value, bool):
        kind = gguf.GGUFValueType.UINT32
    writer.add_key_value(key, value, kind)


def _write(writer: gguf.GGUFWriter, name: str, values: NDArray[np.float32], kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[number][0]
    if kind == "F32" or values.ndim < 2 or values.shape[-1] % block:
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        return
    writer.add_tensor(name, gguf.quants.quantize(values, number), raw_dtype=number)


def vocabulary(name: str) -> Mapping[str, Any]:
    """Return a vocabulary like those of SentencePiece."""
    gemma = ["<pad>", "<eos>", "<bos>", "<mask>"] if name.startswith("gemma") else []
    letters = [chr(code) for code in range(97, 123)]
    words = ["<unk>", "<s>", "</s>", "▁", *letters, *(f"▁{letter}" for letter in letters)]
    words += gemma
    words += [f"<0x{byte:02X}>" for byte in range(VOCABULARY - len(words))]
    return {
        **({"tokenizer.ggml.add_space_prefix": False} if gemma else {}),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [-float(number) for number in range(len(words))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (len(words) - 3)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
