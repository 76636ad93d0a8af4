"""Which tensors of a checkpoint are weights of the text decoder, and which way round they lie.

A checkpoint's names and those of the model that transformers builds differ: experts lie apart in
the files and together in memory, projections one way about here and the other there. transformers'
own conversion mapping says what becomes of each tensor; nothing is loaded.
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

PACKING = ("_scale_inv", "_blocks", "_scales")
"""Endings of the names of tensors that store a quantized weight or belong to it."""

KEEPING = {"MergeModulelist", "Concatenate", "Chunk", "Split", "Interleave", "PermuteForRope"}
"""Operations of transformers' conversion that do not transpose a matrix. Apart from them only
`Transpose` is known; of what other operations take nothing is said."""


@dataclass(frozen=True)
class StoredWeight:
    """A tensor of a checkpoint that is a weight of the decoder: a matrix, or one for each expert.

    Attributes:
        name: in the checkpoint; of a quantized weight without what `PACKING` lists.
        tensors: the file of each tensor that it is stored as, by the tensor's name.
        module: path of its module, seen from the model with the head; the first where several
            modules are made of it.
        kind: what its module is; `embedding` also where the head has the same weight.
        layer: 0-based; None outside of the layers.
        site: whose activations it is multiplied with; None where that cannot be told.
        expert: which one it is of, where experts are stored apart.
        turned: whether it is stored (..., in, out) and not (..., out, in).
        down: whether it is the down projection of routed experts.
    """

    name: str
    tensors: dict[str, str]
    module: str
    kind: Kind
    layer: int | None
    site: Site | None
    expert: int | None
    turned: bool
    down: bool = False


@dataclass(frozen=True)
class _Parameter:
    """A weight of the model as transformers builds it."""

    weight: nn.Parameter
    module: str
    kind: Kind
    layer: int | None
    site: Site | None
    turned: bool
    down: bool


def stored_weights(
    folder: Path,
    files: Sequence[str],
    config: PretrainedConfig,
    architecture: Architecture,
    trust_remote_code: bool = False,
) -> list[StoredWeight]:
    """The weights of the decoder and its head, by name; from the headers of the files alone.

    A weight that is tied to another counts once. Vectors, such as norms and biases, and whatever
    is not of the decoder are left out.

    Raises:
        ValueError: a file is cut short or is no safetensors file.
    """
    model = on_meta(config, trust_remote_code)
    parameters = dict(_parameters(model, architecture))
    conversion = Conversion(model)
    tensors = _by_weight(folder, files)
    experts: Counter[tuple[str, str]] = Counter()
    seen: set[int] = set()
    found = []
    for name in sorted(tensors, key=conversion.natural):
        target, pattern = conversion.target(name)
        parameter = parameters.get(target)
        if parameter is None or (pattern is None and id(parameter.weight) in seen):
            continue
        seen.add(id(parameter.weight))
        shape, parts = tensors[name]
        # What is packed has its blocks along the input, and so lies (..., out, in).
        packed = name not in parts
        turned = not packed and _turned(parameter, shape, conversion.operations(pattern))
        if turned is None:
            log.warning("%s: %s is stored in a way that is not known: left out", folder, name)
            continue
        expert = None
        if len(shape) < parameter.weight.dim():
            expert = experts[target, str(pattern)]
            experts[target, str(pattern)] += 1
        found.append(
            StoredWeight(
                name=name,
                tensors=parts,
                module=parameter.module,
                kind=parameter.kind,
                layer=parameter.layer,
                site=parameter.site,
                expert=expert,
                turned=turned,
                down=parameter.down,
            )
        )
    return found


def _by_weight(
    folder: Path, files: Sequence[str]
) -> dict[str, tuple[tuple[int, ...], dict[str, str]]]:
    """Shape and tensors of each weight, by its name without what its packing adds."""
    found: dict[str, tuple[tuple[int, ...], dict[str, str]]] = {}
    for file, name, tensor in tensors_by_file(folder, files):
        ending = next((end for end in PACKING if name.endswith(end)), "")
        weight = name.removesuffix(ending)
        shape, parts = found.get(weight, ((), {}))
        if ending in ("", "_blocks"):
            shape = tuple(tensor["shape"])[: 3 if ending else None]
        found[weight] = shape, parts | {name: file}
    return found


def _parameters(
    model: PreTrainedModel, architecture: Architecture
) -> Iterator[tuple[str, _Parameter]]:
    """The matrices of the decoder and of the head, by name."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    stack = f"{architecture.decoder}.{architecture.stack}."
    for path, module in model.named_modules():
        of_decoder = path.startswith(f"{architecture.decoder}.")
        if not (of_decoder or module is head):
            continue
        number = path.removeprefix(stack).partition(".")[0] if path.startswith(stack) else None
        layer = None if number is None else int(number)
        for name, weight in module.named_parameters(recurse=False):
            kind = _kind(module, name, weight, weight is getattr(embedding, "weight", None))
            turned = is_transposed(module, architecture.hidden_size)
            if kind is None or turned is None:
                continue
            inside = path.removeprefix(f"{architecture.decoder}.")
            reads = layer is not None and (kind == "linear" or name not in DOWN_PROJECTIONS)
            site = architecture.readers[layer].get(inside) if reads and layer is not None else None
            kind = "lm_head" if module is head and kind == "linear" else kind
            down = kind == "experts" and name in DOWN_PROJECTIONS
            yield f"{path}.{name}", _Parameter(weight, path, kind, layer, site, turned, down)


def _kind(module: nn.Module, name: str, weight: nn.Parameter, embeds: bool) -> Kind | None:
    if embeds or isinstance(module, nn.Embedding):
        return "embedding"
    if weight.dim() == 3 and down_projection(module) is not None:
        return "experts"
    return "linear" if weight.dim() == 2 and name == "weight" else None


def _turned(
    parameter: _Parameter, shape: tuple[int, ...], operations: Sequence[Any]
) -> bool | None:
    """Whether a tensor that becomes a parameter lies (..., in, out); None if that is unknown."""
    turned = parameter.turned
    for operation in operations:
        kind = type(operation).__name__
        if kind == "Transpose":
            stays = operation.check_dims and shape == tuple(parameter.weight.shape)
            turned = turned if stays else not turned
        elif kind not in KEEPING:
            return None
    if not operations and shape != tuple(parameter.weight.shape):
        return None
    return turned


class Conversion:
    """What transformers makes of the names in a checkpoint when it loads them into a model."""

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
        """The parameter that a tensor becomes, or a part of, and the pattern of its converter."""
        target, pattern = self._rename(
            name, self._renamings, self._converters, self._prefix, self._names
        )
        if target not in self._names and name in self._names:
            target, pattern = self._rename(name, [], [], self._prefix, self._names)
        return str(target), pattern

    def operations(self, pattern: str | None) -> Sequence[Any]:
        """What the converter of a pattern does, in order."""
        if pattern is None:
            return ()
        return next(c.operations for c in self._converters if pattern in c.source_patterns)
