"""Checks that a checkpoint has the weights of its model, from the headers of its files.

transformers itself maps each tensor, including fused experts, tied and renamed weights. It loads
tensors that have a shape and no content into a model on the meta device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from outlier_atlas.checkpoint.folder import headers, is_gguf
from outlier_atlas.checkpoint.quantization import quantization_settings
from outlier_atlas.compat.transformers_internals import from_config, leave_out_ignored
from outlier_atlas.loading.partial import check_complete, model_on_meta
from outlier_atlas.loading.shards import is_of_decoder, needed_files
from outlier_atlas.roles.architecture import META_DTYPE, Architecture
from outlier_atlas.roles.decoder_weights import KEEP_ORIENTATION, PACKING, Conversion

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from transformers.core_model_loading import WeightTransform

WHOLE_NUMBERS = {"BOOL", "U8", "I8", "I16", "I32", "I64", "U16", "U32", "U64"}
"""Dtypes of tensors that are no weights, as safetensors names them."""

ACTIVATION_SCALES = (".activation_scale", ".input_scale", ".output_scale")
"""Suffixes of scales for the activations of a quantized model."""

OLD_MASK = ".masked_bias"
"""Suffix of a constant that old checkpoints store next to their causal mask."""


def check_headers(
    folder: Path,
    files: Sequence[str],
    config: PretrainedConfig,
    architecture: Architecture,
    layers: range,
    head: bool,
) -> None:
    """Refuse a checkpoint whose files do not have the weights that `load_model` needs.

    For quantized weights only their presence is checked, because their shapes are those of codes
    and scales. If transformers does more to weights than move them, shapes are left to the loading.

    Args:
        folder: folder of the checkpoint.
        files: names of the weight files.
        config: configuration of the model.
        architecture: architecture of the model.
        layers: all layers that run.
        head: whether the head is loaded.

    Raises:
        ValueError: the checkpoint lacks weights of these layers, has weights of another shape, or
            has weights of the decoder that the model does not use.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    quantized = quantization_settings(config) is not None
    if not is_gguf(files):  # the index of GGUF files was built from the names of both sides
        _check_used(folder, files, config, architecture, quantized)
    needed = needed_files(folder, files, architecture, layers, head) or files
    model = model_on_meta(config, architecture, layers, "bfloat16", head)
    mapping = get_model_conversion_mapping(model)
    info, _ = convert_and_load_state_dict_in_model(
        model=model,
        state_dict=dict(_without_content(folder, needed, quantized)),
        load_config=LoadStateDictConfig(device_map={"": "meta"}, weight_mapping=mapping),
        disk_offload_index=None,
    )
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    leave_out_ignored(model, info)
    if info.conversion_errors:
        if quantized or not _only_moves(mapping):
            return
        raise ValueError(
            f"{folder}: the checkpoint has weights of layers {layers[0]} to {layers[-1]} that do "
            f"not fit together ({len(info.conversion_errors)}), such as those of "
            f"{min(info.conversion_errors)}; fetch it again"
        )
    mismatched = set() if quantized else info.mismatched_keys
    check_complete(folder, layers, info.missing_keys, mismatched)


def _check_used(
    folder: Path,
    files: Sequence[str],
    config: PretrainedConfig,
    architecture: Architecture,
    quantized: bool,
) -> None:
    """Refuse a checkpoint with weights of the decoder that its model does not use.

    transformers would ignore them silently: a norm, a bias or an adapter that belongs to another
    configuration. Exempt are parts outside of the decoder, further layers, and names that the
    model's class ignores.

    Raises:
        ValueError: there is such a weight.
    """
    from transformers.core_model_loading import LoadStateDictInfo

    with torch.device("meta"):
        model = from_config(architecture.model_class, copy.deepcopy(config), META_DTYPE)
    conversion = Conversion(model)
    used_names = {*model.state_dict(), *(name for name, _ in model.named_buffers())}
    # Old checkpoints have masks and positions, which are whole numbers.
    integers = {name for name, tensor in headers(folder, files) if tensor["dtype"] in WHOLE_NUMBERS}
    names = {name for name, _ in _without_content(folder, files, quantized)} - integers
    if quantized:  # a run does not quantize activations
        names = {name for name in names if not name.endswith(ACTIVATION_SCALES)}
    unused = {name for name in names if conversion.target(name)[0] not in used_names}
    info = LoadStateDictInfo(
        missing_keys=set(), unexpected_keys=unused, mismatched_keys=set(), error_msgs=[],
        conversion_errors={}, skipped_pp_keys=set(),
    )  # fmt: skip
    leave_out_ignored(model, info)
    decoder_weights = sorted(
        name
        for name in info.unexpected_keys
        if is_of_decoder(name, architecture) and not name.endswith(OLD_MASK)
    )
    if decoder_weights:
        raise ValueError(
            f"{folder}: the checkpoint has weights that {architecture.model_class.__name__} does "
            f"not use with this config.json ({len(decoder_weights)}), such as "
            f"{decoder_weights[0]}; take the config.json that belongs to it"
        )


def _without_content(
    folder: Path, files: Sequence[str], quantized: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the checkpoint's tensors on the meta device, by weight name."""
    for name, tensor in headers(folder, files):
        ending = next((end for end in PACKING if quantized and name.endswith(end)), "")
        yield name.removesuffix(ending), torch.empty(tensor["shape"], device="meta")


def _only_moves(mapping: Sequence[WeightTransform]) -> bool:
    """Return whether the conversion of weights only moves them, so that shapes show the result."""
    operations = (step for entry in mapping for step in getattr(entry, "operations", ()))
    return all(type(step).__name__ in {*KEEP_ORIENTATION, "Transpose"} for step in operations)
