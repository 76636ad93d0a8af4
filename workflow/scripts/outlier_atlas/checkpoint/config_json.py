"""What a `config.json` states, before and after transformers has read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas.sanitize import gist

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ABOVE_ZERO = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
"""Numbers that a model may lack or have for each layer; a single one is at least 1."""

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


def check_stated(path: Path) -> None:
    """Check what transformers does not check, or does not name.

    Raises:
        ValueError: the file is not JSON, or an entry is of a wrong type.
    """

    def refuse(constant: str) -> float:
        if constant == "NaN":
            raise ValueError("NaN stands where a number is expected")
        return float(constant)

    try:
        stated = json.loads(path.read_text("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({gist(error)}); fetch it again") from error
    if not isinstance(stated, dict) or not isinstance(stated.get("model_type"), str):
        raise ValueError(f"{path}: names no model_type, and is no configuration of transformers")
    for key in ("auto_map", "quantization_config"):
        if not isinstance(stated.get(key), dict | None):
            raise ValueError(f"{path}: {key} is {_shown(stated[key])}, and must be an object")
    named = stated.get("architectures")
    if named is not None and not (
        isinstance(named, list) and all(isinstance(name, str) for name in named)
    ):
        raise ValueError(
            f"{path}: architectures is {_shown(named)}, and must be a list of class names"
        )


def check_sizes(path: Path, config: PretrainedConfig, text: PretrainedConfig) -> None:
    """Check the numbers that describe the text decoder.

    Raises:
        ValueError: one is missing, or makes no model.
    """
    for key in ("num_hidden_layers", "hidden_size", "vocab_size"):
        value = getattr(text, key, None)
        if value is None:
            raise ValueError(f"{path}: {config.model_type!r} has no {key}: not a decoder model")
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {key} is {value!r}, and must be a whole number above 0")
    for key in ABOVE_ZERO:
        value = getattr(text, key, None)
        if type(value) is int and value < 1:
            raise ValueError(f"{path}: {key} is {value!r}, and must be a whole number above 0")
    for key in EPSILONS:
        value = getattr(text, key, None)
        if isinstance(value, float) and value < 0:
            raise ValueError(f"{path}: {key} is {value!r}, and must not be negative")
    _check_heads(path, text)
    _check_experts(path, text)


def _check_heads(path: Path, text: PretrainedConfig) -> None:
    heads, shared = (
        getattr(text, key, None) for key in ("num_attention_heads", "num_key_value_heads")
    )
    if type(heads) is int and type(shared) is int and heads % shared:
        raise ValueError(
            f"{path}: num_key_value_heads is {shared}, which does not divide num_attention_heads, "
            f"{heads}"
        )


def _check_experts(path: Path, text: PretrainedConfig) -> None:
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    chosen = getattr(text, "num_experts_per_tok", None)
    if experts and chosen and chosen > experts:
        raise ValueError(
            f"{path}: num_experts_per_tok is {chosen}, and there are {experts} experts"
        )


def check_folder(folder: Path) -> None:
    """Check the files next to a configuration that change what transformers loads.

    Raises:
        ValueError: the folder is an adapter, or its index of weights has no metadata.
    """
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder}: a PEFT adapter (adapter_config.json), not a whole model; merge it into its "
            f"base model (`merge_and_unload`), save that, and name its folder"
        )
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        stated = json.loads(index.read_text("utf-8"))
    except (ValueError, RecursionError):
        return  # `weight_files` refuses it
    if isinstance(stated, dict) and not isinstance(stated.get("metadata"), dict):
        raise ValueError(
            f'{index}: has no object "metadata", which transformers reads; add "metadata": {{}} to '
            f"the file"
        )


def _shown(value: Any) -> str:
    return repr(str(value)[:40])
