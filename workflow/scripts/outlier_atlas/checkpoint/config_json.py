"""Checks of a `config.json`, before and after transformers has read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas.sanitize import gist

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ABOVE_ZERO = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
"""Entries that a model may lack or have for each layer; a single number must be at least 1."""

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
"""Entries that are added to a variance before its root is taken; none may be negative."""


def check_entries(path: Path) -> None:
    """Check the entries that transformers does not check, or whose errors do not name the entry.

    Args:
        path: the `config.json`.

    Raises:
        ValueError: the file is not JSON, or an entry has a wrong type.
    """

    def refuse(constant: str) -> float:
        if constant == "NaN":
            raise ValueError("NaN where a number is expected")
        return float(constant)

    try:
        entries = json.loads(path.read_text("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({gist(error)}); fetch it again") from error
    if not isinstance(entries, dict) or not isinstance(entries.get("model_type"), str):
        raise ValueError(
            f"{path}: has no model_type, so transformers cannot read it; take the config.json that "
            f"the checkpoint was saved with"
        )
    for key in ("auto_map", "quantization_config"):
        if not isinstance(entries.get(key), dict | None):
            raise ValueError(f"{path}: {key} is {_shown(entries[key])}, and must be an object")
    class_names = entries.get("architectures")
    if class_names is not None and not (
        isinstance(class_names, list) and all(isinstance(name, str) for name in class_names)
    ):
        raise ValueError(
            f"{path}: architectures is {_shown(class_names)}, and must be a list of class names"
        )


def check_sizes(path: Path, config: PretrainedConfig, text: PretrainedConfig) -> None:
    """Check the numbers that describe the text decoder.

    Args:
        path: the `config.json`, for messages.
        config: the configuration of the whole model.
        text: the part of the configuration that describes the text decoder.

    Raises:
        ValueError: a number is missing, or no model can have it.
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
    heads, kv_heads = (
        getattr(text, key, None) for key in ("num_attention_heads", "num_key_value_heads")
    )
    if type(heads) is int and type(kv_heads) is int and heads % kv_heads:
        raise ValueError(
            f"{path}: num_key_value_heads is {kv_heads}, which does not divide "
            f"num_attention_heads, {heads}"
        )


def _check_experts(path: Path, text: PretrainedConfig) -> None:
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    routed = getattr(text, "num_experts_per_tok", None)
    if experts and routed and routed > experts:
        raise ValueError(
            f"{path}: num_experts_per_tok is {routed}, but the model has {experts} experts"
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
        entries = json.loads(index.read_text("utf-8"))
    except (ValueError, RecursionError):
        return  # `weight_files` refuses an index that is not JSON
    if isinstance(entries, dict) and not isinstance(entries.get("metadata"), dict):
        raise ValueError(
            f'{index}: has no object "metadata", which transformers reads; add "metadata": {{}} to '
            f"the file"
        )


def _shown(value: Any) -> str:
    return repr(str(value)[:40])
