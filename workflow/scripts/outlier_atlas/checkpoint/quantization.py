"""Quantized checkpoints: how they are recognized, and which of them this project can load.

A model computes with dequantized weights. Supported formats are dequantized while they are read
(`loading/dequantize.py`), and a test proves the result bit for bit. Other formats need packages,
kernels or devices of their own, so they are refused before anything is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas.checkpoint.folder import headers, is_gguf

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BLOCKS = {"mxfp4": None, "fp8": (128, 128), "mxfp8": (1, 32)}
"""Methods whose weights are dequantized while they are read, as `quant_method` names them.

The values are the rows and columns that share a scale if `weight_block_size` is not stated.
"""

NARROW = ("F8", "F6", "F4")
"""Prefixes of dtypes, as safetensors names them, in which no forward pass computes."""
WIDE = ("F64", "F32", "F16", "BF16")
"""Dtypes, as safetensors names them, that weights which are not packed can have."""

ADVICE = "take the checkpoint that it was made from"
"""Advice for a quantized checkpoint that cannot be dequantized."""


def quantization_settings(config: PretrainedConfig) -> Any:
    """Return the `quantization_config` of a checkpoint or of its text decoder; None without one."""
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        return settings
    return getattr(config.get_text_config(decoder=True), "quantization_config", None)


def check(source: str, config: PretrainedConfig, folder: Path, files: Sequence[str]) -> str | None:
    """Return how the weights of a checkpoint are quantized; None if they are not.

    Args:
        source: the model, as the configuration of the run names it.
        config: configuration of the model.
        folder: folder of the weights.
        files: names of the weight files; only their headers are read.

    Raises:
        ValueError: the weights are quantized and cannot be dequantized while loading.
    """
    settings = quantization_settings(config)
    if is_gguf(files):
        kinds = Counter(str(tensor["dtype"]) for _, tensor in headers(folder, files))
        return f"GGUF {', '.join(kind for kind, _ in kinds.most_common())}"
    if settings is None:
        _check_stored(source, folder, files)
        return None
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if not isinstance(method, str):
        raise ValueError(
            f"model.source = {source!r}: the quantization_config in its config.json has no "
            f"quant_method, so the quantization of its weights is unknown; {ADVICE}"
        )
    if method not in BLOCKS:
        raise ValueError(
            f"model.source = {source!r}: its weights are quantized ({method[:40]!r}) in a way that "
            f"cannot be dequantized while loading ({', '.join(BLOCKS)} can); {ADVICE}"
        )
    block = scale_block(settings)
    if block is not None and not _is_block(block):
        raise ValueError(
            f"model.source = {source!r}: the quantization_config in its config.json has "
            f"weight_block_size {str(block)[:40]!r}, which is not a pair of sizes; {ADVICE}"
        )
    return method


def scale_block(settings: Mapping[str, Any]) -> Any:
    """Return the rows and columns of a weight that share a scale; None for one scale per weight."""
    return settings.get("weight_block_size", BLOCKS[settings["quant_method"]])


def _is_block(block: Any) -> bool:
    pair = isinstance(block, list | tuple) and len(block) == 2
    return pair and all(type(size) is int and size > 0 for size in block)


def _check_stored(source: str, folder: Path, files: Sequence[str]) -> None:
    """Refuse weights that a tool packed and described in its own file, which is not read."""
    for name, tensor in headers(folder, files):
        dtype = str(tensor["dtype"])
        if dtype.startswith(NARROW) or (name.endswith(".weight") and dtype not in WIDE):
            raise ValueError(
                f"model.source = {source!r}: {name} is stored as {dtype}, but its config.json has "
                f"no quantization_config that says how it is quantized; {ADVICE}"
            )
