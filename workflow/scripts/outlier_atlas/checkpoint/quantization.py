"""Quantized checkpoints: how they say that they are, and which of them this project can load.

Weights that are packed are not those that a model computes with. They are dequantized while they
are read (`dequantize`), where a test proves it bit for bit; the others are refused before anything
is loaded, as they need packages, kernels or devices of their own.
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
"""Methods whose weights are dequantized while they are read, as `quant_method` names them, and the
rows and columns that share a scale where `weight_block_size` does not say."""

NARROW = ("F8", "F6", "F4")
WIDE = ("F64", "F32", "F16", "BF16")
"""Dtypes as safetensors names them: how those begin that are never of a forward pass, and those
that weights which are not packed can have."""

ADVICE = "take the checkpoint that it was made from"


def settings_of(config: PretrainedConfig) -> Any:
    """The `quantization_config` of a checkpoint, of the whole or of its text decoder; or None."""
    whole = getattr(config, "quantization_config", None)
    if whole is not None:
        return whole
    return getattr(config.get_text_config(decoder=True), "quantization_config", None)


def check(source: str, config: PretrainedConfig, folder: Path, files: Sequence[str]) -> str | None:
    """How the weights of a checkpoint are quantized; None where they are not.

    Args:
        source: the model, as the configuration of the run names it.
        folder, files: where its weights are; only their headers are read.

    Raises:
        ValueError: they are quantized and cannot be dequantized while loading.
    """
    settings = settings_of(config)
    if is_gguf(files):
        kinds = Counter(str(tensor["dtype"]) for _, tensor in headers(folder, files))
        return f"GGUF {', '.join(kind for kind, _ in kinds.most_common())}"
    if settings is None:
        _check_stored(source, folder, files)
        return None
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if not isinstance(method, str):
        raise ValueError(
            f"model.source = {source!r}: the quantization_config in its config.json names no "
            f"quant_method, so the quantization of its weights is unknown; {ADVICE}"
        )
    if method not in BLOCKS:
        raise ValueError(
            f"model.source = {source!r}: its weights are quantized ({method[:40]!r}) in a way that "
            f"cannot be dequantized while loading ({', '.join(BLOCKS)} can); {ADVICE}"
        )
    block = block_of(settings)
    if block is not None and not _is_block(block):
        raise ValueError(
            f"model.source = {source!r}: the quantization_config in its config.json has "
            f"weight_block_size {str(block)[:40]!r}, which is no pair of sizes; {ADVICE}"
        )
    return method


def block_of(settings: Mapping[str, Any]) -> Any:
    """Rows and columns of a weight that share a scale; None where the whole weight has one."""
    return settings.get("weight_block_size", BLOCKS[settings["quant_method"]])


def _is_block(block: Any) -> bool:
    pair = isinstance(block, list | tuple) and len(block) == 2
    return pair and all(type(size) is int and size > 0 for size in block)


def _check_stored(source: str, folder: Path, files: Sequence[str]) -> None:
    """Refuse weights that a tool packed and described in a file of its own, which is not read."""
    for name, tensor in headers(folder, files):
        dtype = str(tensor["dtype"])
        if dtype.startswith(NARROW) or (name.endswith(".weight") and dtype not in WIDE):
            raise ValueError(
                f"model.source = {source!r}: {name} is stored as {dtype}, and no "
                f"quantization_config in its config.json says how it is quantized; {ADVICE}"
            )
