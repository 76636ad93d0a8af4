"""Assignment of a checkpoint's tensors to layers, from the headers of its files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import nn

from outlier_atlas.checkpoint.folder import headers
from outlier_atlas.roles.architecture import Architecture, on_meta
from outlier_atlas.roles.decoder_weights import Conversion

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Outside = Literal["embedding", "decoder", "head"]
"""Parts outside of the layers; `decoder` is the rest of the decoder, such as the final norm."""


def file_bytes(folder: Path, files: Sequence[str], architecture: Architecture) -> dict[int, int]:
    """Return the bytes of the checkpoint's tensors by layer; only headers are read.

    The key -1 has the bytes outside of the layers: embedding, final norm, head, and other parts.
    """
    sums: dict[int, int] = {}
    for name, tensor in headers(folder, files):
        first, last = tensor["data_offsets"]
        layer = -1 if _unknown(name, architecture) else _layer(name, architecture)
        sums[layer] = sums.get(layer, 0) + last - first
    return sums


def outside_bytes(
    folder: Path,
    files: Sequence[str],
    config: PretrainedConfig,
    architecture: Architecture,
    trust_remote_code: bool = False,
) -> dict[Outside, int]:
    """Return the bytes of the checkpoint's tensors outside of the layers that are loaded, by role.

    Tied weights that are stored twice count once, as the embedding.
    """
    model = on_meta(config, trust_remote_code)
    conversion, roles = Conversion(model), dict(_outside(model, architecture))
    sums: dict[Outside, int] = {"embedding": 0, "decoder": 0, "head": 0}
    counted = set()
    for name, tensor in headers(folder, files):
        if _layer(name, architecture) == -1:
            role, parameter = roles.get(conversion.target(name)[0], (None, None))
            if role is not None and id(parameter) not in counted:
                counted.add(id(parameter))
                first, last = tensor["data_offsets"]
                sums[role] += last - first
    return sums


def _outside(
    model: PreTrainedModel, architecture: Architecture
) -> Iterator[tuple[str, tuple[Outside, nn.Parameter]]]:
    """Yield the name, role and parameter of each weight outside of the layers that is loaded."""
    decoder = model.get_submodule(architecture.decoder)
    embedding = {id(p) for p in decoder.get_input_embeddings().parameters()}
    heads = tuple(f"{path}." for path in architecture.head.modules)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in embedding:
            yield name, ("embedding", parameter)
        elif name.startswith(f"{architecture.decoder}."):
            yield name, ("decoder", parameter)
        elif name.startswith(heads):
            yield name, ("head", parameter)


def unknown_parts(
    folder: Path, files: Sequence[str], architecture: Architecture
) -> tuple[str, ...]:
    """Return the parts of a checkpoint for which its model has no module.

    An example are layers that predict several tokens (`mtp`, or a layer after the last one), which
    transformers does not build.
    """
    names = (name for name, _ in headers(folder, files))
    return tuple(sorted({part for name in names if (part := _unknown(name, architecture))}))


def needed_files(
    folder: Path, files: Sequence[str], architecture: Architecture, layers: range, head: bool
) -> list[str]:
    """Return the names of the files that have a tensor of the layers, or one outside of layers.

    With the head, files with parts of unknown names are included, because some checkpoints name the
    head differently.

    Opening a file maps all of it, and the system counts that against the limits of a process. A
    layer group needs few of the many files of a large checkpoint.
    """
    needed_layers = {-1, *layers}
    return [
        name
        for name in files
        if any(
            (head or not _unknown(tensor, architecture))
            and _layer(tensor, architecture) in needed_layers
            for tensor, _ in headers(folder, [name])
        )
    ]


def is_of_decoder(name: str, architecture: Architecture) -> bool:
    """Return whether a tensor's name is that of a weight of the decoder, in a layer or outside."""
    return not _unknown(name, architecture) and not _is_skipped(name, architecture)


def _is_skipped(name: str, architecture: Architecture) -> bool:
    return any(f"{part.rpartition('.')[2]}." in name for part in architecture.skipped)


def _unknown(name: str, architecture: Architecture) -> str | None:
    """Return the part of the checkpoint that a tensor belongs to if the model has no such part."""
    first = name.partition(".")[0]
    if first not in architecture.components:
        return first
    layer = _layer(name, architecture)
    return f"{architecture.stack}.{layer}" if layer >= architecture.layers else None


def _layer(name: str, architecture: Architecture) -> int:
    """Return the decoder layer in the name of a checkpoint's tensor; -1 without one."""
    stack = architecture.stack.rpartition(".")[2]
    match = re.search(rf"(?:^|\.){re.escape(stack)}\.(\d+)\.", name)
    return -1 if match is None or _is_skipped(name, architecture) else int(match[1])
