"""Loading of some decoder layers of a checkpoint, and nothing else.

transformers reads from a checkpoint the keys that a model has. So the model's own class is built
with pass-through modules in place of everything that a layer group does not run. `from_pretrained`
then reads only the layer group.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outlier_atlas import phases
from outlier_atlas.checkpoint.folder import GGUF_INDEX
from outlier_atlas.checkpoint.quantization import ADVICE, quantization_settings
from outlier_atlas.compat.transformers_internals import (
    IGNORED_KEYS,
    LOAD,
    TIED_KEYS,
    from_config,
    load_files,
    names_in_float32,
)
from outlier_atlas.conversion.work import threads
from outlier_atlas.loading.malloc_tuning import bounded_malloc
from outlier_atlas.loading.shards import needed_files
from outlier_atlas.roles.architecture import Architecture
from outlier_atlas.roles.lm_head import Head
from outlier_atlas.roles.partial_decoder import PassThrough, hide_unused_layers, strip

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_utils import LoadStateDictConfig

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
"""Dtypes of weights and forward pass, by their names in the configuration."""


def load_layers(
    folder: Path,
    config: PretrainedConfig,
    architecture: Architecture,
    layers: range,
    dtype: str,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load the text decoder with the weights of `layers`, without a head; see `load_model`."""
    model = load_model(folder, config, architecture, layers, dtype, trust_remote_code)
    decoder: nn.Module = model.get_submodule(architecture.decoder)
    return decoder


def load_model(
    folder: Path,
    config: PretrainedConfig,
    architecture: Architecture,
    layers: range,
    dtype: str,
    trust_remote_code: bool = False,
    head: bool = False,
) -> PreTrainedModel:
    """Load the model with the weights of `layers` on the CPU.

    The embedding is loaded if layer 0 is among them.

    Args:
        folder: folder with `config.json` and weights.
        config: configuration of the model.
        architecture: architecture of the model.
        layers: consecutive decoder layers.
        dtype: dtype of the weights and the forward pass, a key of `DTYPES`.
        trust_remote_code: whether code of the checkpoint may run.
        head: whether the head is loaded, with the embedding if the two are tied.

    Raises:
        ValueError: the checkpoint lacks weights of these layers, has weights of another shape, or
            has quantized weights that could not be dequantized.
    """
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading is short, and the forward pass has its own progress bar

    try:
        with (
            phases.phase(phases.LOAD),
            bounded_malloc(),
            threads(torch.get_num_threads()),
        ):
            model, info = _partial_class(architecture, layers, head).from_pretrained(
                **_weights(folder),
                config=_loadable(config),
                dtype=DTYPES[dtype],
                ignore_mismatched_sizes=True,  # `check_complete` reports them
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise ValueError(f"{folder}: damaged safetensors file ({error})") from error
    check_complete(folder, layers, info["missing_keys"], info["mismatched_keys"])
    assert isinstance(model, nn.Module)
    _check_dtypes(folder, model, model_on_meta(config, architecture, layers, dtype, head))
    return model.eval().requires_grad_(False)


def _weights(folder: Path) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a folder or for the blocks of a GGUF file."""
    if not (folder / GGUF_INDEX).is_file():
        return {"pretrained_model_name_or_path": folder, "use_safetensors": True}
    from outlier_atlas.checkpoint.gguf.tensors import GgufWeights

    return {"pretrained_model_name_or_path": None, "state_dict": GgufWeights.open(folder)}


def check_complete(
    folder: Path,
    layers: range,
    missing: Collection[str],
    mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]],
) -> None:
    """Refuse a checkpoint for which transformers reports missing or mismatched weights.

    Args:
        folder: folder of the checkpoint.
        layers: layers that are loaded.
        missing: names of missing weights.
        mismatched: weights of another shape, as (name, stored shape, expected shape).

    Raises:
        ValueError: there are such weights.
    """
    group = f"layers {layers[0]} to {layers[-1]}"
    if missing:
        raise ValueError(
            f"{folder}: the checkpoint lacks weights of {group} ({len(missing)}), such as "
            f"{min(missing)}; fetch it again with its config.json"
        )
    if mismatched:
        key, stored, expected = min(mismatched)
        raise ValueError(
            f"{folder}: the checkpoint has weights of {group} in another shape than its "
            f"config.json states ({len(mismatched)}), such as {key}: {list(stored)}, not "
            f"{list(expected)}; fetch both again"
        )


def _loadable(config: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration to load with; it dequantizes quantized weights."""
    if quantization_settings(config) is None:
        return config
    from outlier_atlas.loading.dequantize import dequantizing_config

    return dequantizing_config(config)


def _check_dtypes(folder: Path, loaded: nn.Module, planned: nn.Module) -> None:
    """Check the dtype of each weight, so that none stays packed or in a dtype other than the run's.

    Raises:
        ValueError: a dtype differs.
    """
    dtypes, expected = ({name: t.dtype for name, t in _tensors(m)} for m in (loaded, planned))
    for name in sorted({*dtypes, *expected}):
        if dtypes.get(name) != expected.get(name):
            raise ValueError(
                f"{folder}: {name} was loaded as {dtypes.get(name)} and not as "
                f"{expected.get(name)}: its weights are quantized in a way that cannot be "
                f"dequantized; {ADVICE}"
            )


def build_on_meta(
    config: PretrainedConfig, architecture: Architecture, layers: range, dtype: str
) -> PreTrainedModel:
    """Build the text decoder of `load_layers` on the meta device."""
    model = model_on_meta(config, architecture, layers, dtype, head=False)
    decoder: PreTrainedModel = model.get_submodule(architecture.decoder)
    return decoder


def head_on_meta(config: PretrainedConfig, architecture: Architecture, dtype: str) -> Head:
    """Build the head that is loaded with the last layer, on the meta device."""
    model = model_on_meta(config, architecture, range(architecture.layers), dtype, head=True)
    return Head(model, architecture.decoder, architecture.head.vocabulary)


def model_on_meta(
    config: PretrainedConfig, architecture: Architecture, layers: range, dtype: str, head: bool
) -> PreTrainedModel:
    """Build the model of `load_model` on the meta device."""
    partial_class = _partial_class(architecture, layers, head)
    with torch.device("meta"):
        model = from_config(partial_class, copy.deepcopy(config), DTYPES[dtype])
    return model.eval()


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the parameters and buffers."""
    tensors = {id(t): t for _, t in _tensors(model)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _partial_class(architecture: Architecture, layers: range, head: bool) -> type[PreTrainedModel]:
    """Return a subclass of the model's class that has, and loads, only a layer group."""
    model_class = architecture.model_class
    tied = architecture.head.tied if head else None

    def build(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        _strip(self, architecture, layers, head)
        _untie(self)
        _keep_in_float32(self)

    def load(
        model: PreTrainedModel,
        state_dict: dict[str, torch.Tensor] | None,
        files: list[str] | None,
        settings: LoadStateDictConfig,
        *more: Any,
    ) -> Any:
        # transformers memory-maps every file that it gets, and address space may be limited.
        needed = [
            path
            for path in map(Path, files or ())
            if needed_files(path.parent, [path.name], architecture, layers, head)
        ]
        # Without any needed file, all are loaded: `check_complete` reports the missing weights.
        paths = [*map(str, needed)] or files
        from outlier_atlas.loading.assembly import assembling

        settings = replace(settings, weight_mapping=assembling(settings.weight_mapping or ()))
        return load_files(model_class, model, state_dict, paths, settings, *more)

    def initialize(self: PreTrainedModel) -> None:
        # It computes buffers that no checkpoint has, such as rotary frequencies. Some models
        # iterate over their blocks for it.
        with hide_unused_layers(self.get_submodule(architecture.decoder), architecture.stack):
            model_class.initialize_weights(self)

    members = {
        "__init__": build,
        "initialize_weights": initialize,
        LOAD: staticmethod(load),
        "__module__": model_class.__module__,
        IGNORED_KEYS: [".*"],  # the rest of the checkpoint
        TIED_KEYS: tied,  # weights may be tied to the head, which may not be loaded
    }
    return type(model_class.__name__, (model_class,), members)


def _keep_in_float32(model: PreTrainedModel) -> None:
    """Convert the weights that the architecture keeps in float32, such as a router's bias."""
    patterns = names_in_float32(model)
    pattern = re.compile("|".join(name.replace("*", ".*") for name in patterns))
    for name, tensor in model.state_dict(keep_vars=True).items() if patterns else ():
        if pattern.search(name):
            tensor.data = tensor.data.to(torch.float32)


def _untie(model: PreTrainedModel) -> None:
    """Drop ties to weights that the partial model does not have."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ties = model.all_tied_weights_keys
    model.all_tied_weights_keys = {a: b for a, b in ties.items() if {a, b} <= names}


def _strip(model: PreTrainedModel, architecture: Architecture, layers: range, head: bool) -> None:
    """Replace the parts of a model that a layer group does not run with pass-through modules."""
    head_modules = architecture.head.modules if head else ()
    decoder: PreTrainedModel = model.get_submodule(architecture.decoder)
    path = architecture.decoder.split(".")
    for depth in range(len(path)):
        parent = model.get_submodule(".".join(path[:depth]))
        for name, child in list(parent.named_children()):
            is_loaded = name == path[depth] or (depth == 0 and name in head_modules)
            if not is_loaded and any(True for _ in child.parameters()):
                setattr(parent, name, PassThrough())
    strip(
        decoder, architecture.stack, layers, architecture.tuple_lengths,
        embedding=0 in layers or bool(head and architecture.head.tied),
    )  # fmt: skip
