"""Whether a checkpoint has the weights that its model is built of, from its files' headers alone.

transformers itself says what becomes of each tensor, fused experts, tied and renamed weights
included: it loads tensors that have a shape and no content into a model that has none either.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from outlier_atlas.checkpoint.folder import headers, is_gguf
from outlier_atlas.checkpoint.quantization import settings_of
from outlier_atlas.compat.transformers_internals import from_config, leave_out_ignored
from outlier_atlas.loading.partial import check_complete, model_on_meta
from outlier_atlas.loading.shards import is_of_decoder, needed_files
from outlier_atlas.roles.architecture import META_DTYPE, Architecture
from outlier_atlas.roles.decoder_weights import KEEPING, PACKING, Conversion

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from transformers.core_model_loading import WeightTransform

WHOLE_NUMBERS = {"BOOL", "U8", "I8", "I16", "I32", "I64", "U16", "U32", "U64"}
"""Dtypes of tensors that are no weights, as safetensors names them."""

ACTIVATION_SCALES = (".activation_scale", ".input_scale", ".output_scale")
"""Endings of what quantized checkpoints have to quantize activations with."""

OLD_MASK = ".masked_bias"
"""The ending of a constant that old checkpoints have next to their causal mask."""


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
        ValueError: it lacks weights of these layers, has them in another shape, or has weights of
            the decoder that the model would not use.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    quantized = settings_of(config) is not None
    if not is_gguf(files):  # whose index was made of both sets of names
        _check_used(folder, files, config, architecture, quantized)
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
    leave_out_ignored(model, found)
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


def _check_used(
    folder: Path,
    files: Sequence[str],
    config: PretrainedConfig,
    architecture: Architecture,
    quantized: bool,
) -> None:
    """Refuse a checkpoint with weights of the decoder that its model has no place for.

    They would be passed over without a word: a norm, a bias or an adapter that belongs to another
    configuration. Parts of the model that are not the decoder, further layers, and what the model's
    class knows to be of no use are left out.

    Raises:
        ValueError: there is such a weight.
    """
    from transformers.core_model_loading import LoadStateDictInfo

    with torch.device("meta"):
        model = from_config(architecture.model_class, copy.deepcopy(config), META_DTYPE)
    conversion = Conversion(model)
    held = {*model.state_dict(), *(name for name, _ in model.named_buffers())}
    # Old checkpoints have masks and positions, which are whole numbers.
    whole = {name for name, tensor in headers(folder, files) if tensor["dtype"] in WHOLE_NUMBERS}
    names = {name for name, _ in _without_content(folder, files, quantized)} - whole
    if quantized:  # a run computes no activations in 8 bits
        names = {name for name in names if not name.endswith(ACTIVATION_SCALES)}
    unused = {name for name in names if conversion.target(name)[0] not in held}
    info = LoadStateDictInfo(
        missing_keys=set(), unexpected_keys=unused, mismatched_keys=set(), error_msgs=[],
        conversion_errors={}, skipped_pp_keys=set(),
    )  # fmt: skip
    leave_out_ignored(model, info)
    ours = sorted(
        name
        for name in info.unexpected_keys
        if is_of_decoder(name, architecture) and not name.endswith(OLD_MASK)
    )
    if ours:
        raise ValueError(
            f"{folder}: the checkpoint has weights that {architecture.model_class.__name__} does "
            f"not use with this config.json ({len(ours)}), such as {ours[0]}: its configuration is "
            f"of another model"
        )


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
