"""Tensors of a checkpoint that are weights of the text decoder, and their orientation.

Names in a checkpoint differ from those in the model that transformers builds. Experts may be
separate in the files and fused in memory, and matrices may be transposed in one of them. The
conversion mapping of transformers states what each tensor becomes; nothing is loaded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from outlier_atlas.checkpoint.folder import tensors_by_file
from outlier_atlas.roles.architecture import Architecture, on_meta
from outlier_atlas.roles.block_sites import is_transposed
from outlier_atlas.roles.experts import DOWN_PROJECTIONS, down_projection
from outlier_atlas.settings.sites import Site

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

Kind = Literal["linear", "experts", "embedding", "lm_head"]
"""Kind of a module that has weights."""

PACKING = ("_scale_inv", "_blocks", "_scales")
"""Suffixes of the names of tensors that store a quantized weight or belong to one."""

KEEP_ORIENTATION = {
    "MergeModulelist",
    "Concatenate",
    "Chunk",
    "Split",
    "Interleave",
    "PermuteForRope",
}
"""Conversion operations of transformers that do not transpose a matrix.

The only other supported operation is `Transpose`. Weights with any further operation are left out.
"""


@dataclass(frozen=True)
class StoredWeight:
    """Tensor of a checkpoint that is a weight of the decoder: one matrix, or one per expert.

    Attributes:
        name: name in the checkpoint, without the suffixes in `PACKING`.
        tensors: the tensors that store the weight, as file by tensor name.
        module: path of its module, relative to the model with the head; the first one if several
            modules are made of the tensor.
        kind: kind of its module; `embedding` also if the head shares the weight.
        layer: 0-based layer; None outside of the layers.
        site: site whose activations the weight is multiplied with; None if it cannot be identified.
        expert: index of the expert if experts are stored separately; else None.
        transposed: whether it is stored as (..., in, out) instead of (..., out, in).
        is_down_projection: whether it is the down projection of routed experts.
    """

    name: str
    tensors: dict[str, str]
    module: str
    kind: Kind
    layer: int | None
    site: Site | None
    expert: int | None
    transposed: bool
    is_down_projection: bool = False


@dataclass(frozen=True)
class _Parameter:
    """Weight of the model as transformers builds it; see `StoredWeight` for the attributes."""

    weight: nn.Parameter
    module: str
    kind: Kind
    layer: int | None
    site: Site | None
    transposed: bool
    is_down_projection: bool


def stored_weights(
    folder: Path,
    files: Sequence[str],
    config: PretrainedConfig,
    architecture: Architecture,
    trust_remote_code: bool = False,
) -> list[StoredWeight]:
    """Return the weights of the decoder and its head, by name; only headers are read.

    Tied weights are listed once. Vectors, such as norms and biases, and tensors outside of the
    decoder are left out.

    Raises:
        ValueError: a file is truncated or is no safetensors file.
    """
    model = on_meta(config, trust_remote_code)
    parameters = dict(_parameters(model, architecture))
    conversion = Conversion(model)
    tensors = _by_weight(folder, files)
    experts: Counter[tuple[str, str]] = Counter()
    listed: set[int] = set()
    weights = []
    for name in sorted(tensors, key=conversion.natural):
        target, pattern = conversion.target(name)
        parameter = parameters.get(target)
        if parameter is None or (pattern is None and id(parameter.weight) in listed):
            continue
        listed.add(id(parameter.weight))
        shape, parts = tensors[name]
        # Packed weights have blocks along the input, so they are stored as (..., out, in).
        packed = name not in parts
        transposed = not packed and _is_transposed(parameter, shape, conversion.operations(pattern))
        if transposed is None:
            log.warning("%s: %s is left out: its orientation is unknown", folder, name)
            continue
        expert = None
        if len(shape) < parameter.weight.dim():
            expert = experts[target, str(pattern)]
            experts[target, str(pattern)] += 1
        weights.append(
            StoredWeight(
                name=name,
                tensors=parts,
                module=parameter.module,
                kind=parameter.kind,
                layer=parameter.layer,
                site=parameter.site,
                expert=expert,
                transposed=transposed,
                is_down_projection=parameter.is_down_projection,
            )
        )
    return weights


def _by_weight(
    folder: Path, files: Sequence[str]
) -> dict[str, tuple[tuple[int, ...], dict[str, str]]]:
    """Return the shape and the tensors of each weight, by its name without packing suffixes."""
    parts_by_weight: dict[str, tuple[tuple[int, ...], dict[str, str]]] = {}
    for file, name, tensor in tensors_by_file(folder, files):
        ending = next((end for end in PACKING if name.endswith(end)), "")
        weight = name.removesuffix(ending)
        shape, parts = parts_by_weight.get(weight, ((), {}))
        if ending in ("", "_blocks"):
            shape = tuple(tensor["shape"])[: 3 if ending else None]
        parts_by_weight[weight] = shape, parts | {name: file}
    return parts_by_weight


def _parameters(
    model: PreTrainedModel, architecture: Architecture
) -> Iterator[tuple[str, _Parameter]]:
    """Yield the matrices of the decoder and its head, by parameter name."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    stack = f"{architecture.decoder}.{architecture.stack}."
    for path, module in model.named_modules():
        in_decoder = path.startswith(f"{architecture.decoder}.")
        if not (in_decoder or module is head):
            continue
        number = path.removeprefix(stack).partition(".")[0] if path.startswith(stack) else None
        layer = None if number is None else int(number)
        for name, weight in module.named_parameters(recurse=False):
            kind = _kind(module, name, weight, weight is getattr(embedding, "weight", None))
            transposed = is_transposed(module, architecture.hidden_size)
            if kind is None or transposed is None:
                continue
            inner_path = path.removeprefix(f"{architecture.decoder}.")
            reads = layer is not None and (kind == "linear" or name not in DOWN_PROJECTIONS)
            site = (
                architecture.readers[layer].get(inner_path) if reads and layer is not None else None
            )
            kind = "lm_head" if module is head and kind == "linear" else kind
            is_down_projection = kind == "experts" and name in DOWN_PROJECTIONS
            yield (
                f"{path}.{name}",
                _Parameter(weight, path, kind, layer, site, transposed, is_down_projection),
            )


def _kind(module: nn.Module, name: str, weight: nn.Parameter, embeds: bool) -> Kind | None:
    """Return the kind of a module with a parameter; None if the parameter is no such matrix."""
    if embeds or isinstance(module, nn.Embedding):
        return "embedding"
    if weight.dim() == 3 and down_projection(module) is not None:
        return "experts"
    return "linear" if weight.dim() == 2 and name == "weight" else None


def _is_transposed(
    parameter: _Parameter, shape: tuple[int, ...], operations: Sequence[Any]
) -> bool | None:
    """Return whether a tensor of the checkpoint is (..., in, out); None if that is unknown."""
    transposed = parameter.transposed
    for operation in operations:
        kind = type(operation).__name__
        if kind == "Transpose":
            unchanged = operation.check_dims and shape == tuple(parameter.weight.shape)
            transposed = transposed if unchanged else not transposed
        elif kind not in KEEP_ORIENTATION:
            return None
    if not operations and shape != tuple(parameter.weight.shape):
        return None
    return transposed


class Conversion:
    """Conversion of a checkpoint's tensor names to the parameters of a model, from transformers.

    Args:
        model: the model, on the meta device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        mapping = get_model_conversion_mapping(model)
        self.natural = dot_natural_key
        self._rename = rename_source_key
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._prefix, self._names = model.base_model_prefix, model.state_dict()

    def target(self, name: str) -> tuple[str, str | None]:
        """Return the parameter that a tensor becomes, or a part of, and its converter's pattern."""
        target, pattern = self._rename(
            name, self._renamings, self._converters, self._prefix, self._names
        )
        if target not in self._names and name in self._names:
            target, pattern = self._rename(name, [], [], self._prefix, self._names)
        return str(target), pattern

    def operations(self, pattern: str | None) -> Sequence[Any]:
        """Return the operations of the converter with a pattern, in order."""
        if pattern is None:
            return ()
        return next(c.operations for c in self._converters if pattern in c.source_patterns)
