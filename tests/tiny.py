"""Tiny random checkpoints, with a tiny tokenizer: real files that load like any other model."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GgufConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
)
SENTENCES = [
    "Fellow citizens of the Senate and of the House of Representatives.",
    "The state of the union is strong, and the people are free.",
    "We hold these truths to be self-evident: naïve café, 東京, 🙂.",
]


def tokenizer(folder: Path, adds_bos: bool = True, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 300 tokens, saved into the folder."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 0)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|bos|>" if bos else None,
        eos_token="<|eos|>",
        additional_special_tokens=SPECIAL[2:],
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(folder)
    return fast


def auto_class(config: PretrainedConfig) -> Any:
    """The class that builds the whole model of a configuration, with all that it has."""
    more = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if more else AutoModelForCausalLM


def whole(folder: Path, dtype: torch.dtype) -> Any:
    """The whole model of a folder, as transformers loads it; a GGUF file by its own reader."""
    kind = auto_class(AutoConfig.from_pretrained(folder))
    for path in folder.glob("*.gguf"):
        dense = GgufConfig(dequantize=True)
        where = path.resolve()
        return kind.from_pretrained(
            where.parent, gguf_file=where.name, dtype=dtype, quantization_config=dense
        ).eval()
    return kind.from_pretrained(folder, dtype=dtype).eval()


def checkpoint(
    folder: Path, config: PretrainedConfig, seed: int = 0, max_shard_size: str = "50GB"
) -> Path:
    """A checkpoint with random bfloat16 weights, as safetensors."""
    torch.manual_seed(seed)
    model = auto_class(config).from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer(folder)
    return folder


SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def llama(folder: Path, **settings: Any) -> Path:
    """A dense model of 4 layers."""
    return checkpoint(folder, transformers.LlamaConfig(**(SIZES | settings)))


def qwen3_moe(folder: Path, **settings: Any) -> Path:
    """A mixture of 8 experts in 4 layers, in several files."""
    experts = {"head_dim": 8, "num_experts": 8, "num_experts_per_tok": 2}
    config = transformers.Qwen3MoeConfig(
        **(SIZES | experts | {"moe_intermediate_size": 16} | settings)
    )
    return checkpoint(folder, config, max_shard_size="40KB")


def silent(folder: Path, layers: int = 8) -> tuple[Path, dict[str, torch.Tensor]]:
    """A llama whose blocks add nothing: the residual stream is each token's embedding, throughout.

    Embeddings are 1 in every channel, so that normed they are 1, too. Returns the weights as well:
    plant what you like in them, and `save_weights`.
    """
    llama(folder, num_hidden_layers=layers)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
        if name.endswith(("embed_tokens.weight", "layernorm.weight")):
            weight.fill_(1)
    return folder, weights


def save_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint's weights again."""
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def perturbed(config: PretrainedConfig, attention: str | None = None) -> Any:
    """A model in float32 none of whose weights is 0 or 1, biases and norms included.

    Args:
        attention: its implementation; the model's own choice if None.
    """
    torch.manual_seed(0)
    model = auto_class(config).from_config(
        config, dtype=torch.float32, attn_implementation=attention
    )
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.eval().requires_grad_(False)
