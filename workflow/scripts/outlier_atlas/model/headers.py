"""Whether a checkpoint has the weights that its model is built of, from its files' headers alone.

transformers itself says what becomes of each tensor, fused experts, tied and renamed weights
included: it loads tensors that have a shape and no content into a model that has none either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from outlier_atlas.model.architecture import Architecture
from outlier_atlas.model.checkpoint import headers
from outlier_atlas.model.partial import check_complete, model_on_meta
from outlier_atlas.model.quantization import settings_of
from outlier_atlas.model.shards import needed_files
from outlier_atlas.model.stored import KEEPING, PACKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from transformers.core_model_loading import WeightTransform


def check_headers(
    folder: Path,
    files: Sequence[str],
    config: PretrainedConfig,
    architecture: Architecture,
    layers: range,
    head: bool,
) -> None:
    """Refuse a checkpoint in whose files `load_model` would not find what it needs.

    Of quantized weights only that they are there is decided: their shapes are those of codes and
    scales. Where transformers does more to weights than to move them about, it is left to the
    loading.

    Args:
        files: of the weights.
        layers: all that run.
        head: whether the head is loaded.

    Raises:
        ValueError: it lacks weights of these layers, or has them in another shape.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    quantized = settings_of(config) is not None
    needed = needed_files(folder, files, architecture, layers, head) or files
    model = model_on_meta(config, architecture, layers, "bfloat16", head)
    mapping = get_model_conversion_mapping(model)
    found, _ = convert_and_load_state_dict_in_model(
        model=model,
        state_dict=dict(_without_content(folder, needed, quantized)),
        load_config=LoadStateDictConfig(device_map={"": "meta"}, weight_mapping=mapping),
        disk_offload_index=None,
    )
    model.tie_weights(missing_keys=found.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(found)
    if found.conversion_errors:
        if quantized or not _moves_alone(mapping):
            return
        raise ValueError(
            f"{folder}: of layers {layers[0]} to {layers[-1]} the checkpoint has weights that do "
            f"not fit together ({len(found.conversion_errors)}): those of "
            f"{min(found.conversion_errors)}"
        )
    mismatched = set() if quantized else found.mismatched_keys
    check_complete(folder, layers, found.missing_keys, mismatched)


def _without_content(
    folder: Path, files: Sequence[str], quantized: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in headers(folder, files):
        ending = next((end for end in PACKING if quantized and name.endswith(end)), "")
        yield name.removesuffix(ending), torch.empty(tensor["shape"], device="meta")


def _moves_alone(mapping: Sequence[WeightTransform]) -> bool:
    """Whether all that becomes of weights can be told from their shapes."""
    operations = (step for entry in mapping for step in getattr(entry, "operations", ()))
    return all(type(step).__name__ in {*KEEPING, "Transpose"} for step in operations)
