"""Loading some decoder layers of a checkpoint, and nothing else of it.

transformers reads from a checkpoint the keys that a model has. So the model's own class is built
with a pass-through module in place of all that a layer group does not run: then `from_pretrained`
reads the layer group alone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outlier_atlas.checkpoint.folder import GGUF_INDEX
from outlier_atlas.checkpoint.quantization import ADVICE, settings_of
from outlier_atlas.compat.transformers_internals import (
    IGNORED_KEYS,
    LOAD,
    TIED_KEYS,
    from_config,
    load_files,
    names_in_float32,
)
from outlier_atlas.loading.malloc_tuning import frugal
from outlier_atlas.loading.shards import needed_files
from outlier_atlas.roles.architecture import Architecture
from outlier_atlas.roles.lm_head import Head
from outlier_atlas.roles.partial_decoder import PassThrough, loaded_alone, strip

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def load_layers(
    folder: Path,
    config: PretrainedConfig,
    architecture: Architecture,
    layers: range,
    dtype: str,
    trust_remote_code: bool = False,
) -> nn.Module:
    """The text decoder of `load_model`, without a head."""
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
    """The model with the weights of `layers`, on the CPU; its embedding if 0 is among them.

    Args:
        folder: with `config.json` and safetensors files.
        layers: consecutive decoder layers.
        dtype: a key of `DTYPES`; weights are held, and the forward pass computes, in it.
        head: whether with the head; where that is tied to the embedding, with the embedding too.

    Raises:
        ValueError: the checkpoint lacks weights of these layers, has them in another shape, or has
            quantized ones that could not be dequantized.
    """
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it takes a second; the forward pass has a bar of its own

    try:
        with frugal():
            model, info = _partial_class(architecture, layers, head).from_pretrained(
                **_weights(folder),
                config=_loadable(config),
                dtype=DTYPES[dtype],
                ignore_mismatched_sizes=True,  # they are told below
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise ValueError(f"{folder}: damaged safetensors file ({error})") from error
    check_complete(folder, layers, info["missing_keys"], info["mismatched_keys"])
    assert isinstance(model, nn.Module)
    _check_held(folder, model, model_on_meta(config, architecture, layers, dtype, head))
    return model.eval().requires_grad_(False)


def _weights(folder: Path) -> dict[str, Any]:
    """What `from_pretrained` reads weights from: a folder, or the blocks of a GGUF file."""
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
    """Refuse what transformers found to be missing, or of another shape (name, held, wanted).

    Raises:
        ValueError: there is some.
    """
    where = f"{folder}: of layers {layers[0]} to {layers[-1]}"
    if missing:
        raise ValueError(
            f"{where} the checkpoint lacks weights ({len(missing)}), such as {min(missing)}"
        )
    if mismatched:
        key, held, wanted = min(mismatched)
        raise ValueError(
            f"{where} the checkpoint has weights in another shape than its config.json says "
            f"({len(mismatched)}), such as {key}: {list(held)}, not {list(wanted)}"
        )


def _loadable(config: PretrainedConfig) -> PretrainedConfig:
    if settings_of(config) is None:
        return config
    from outlier_atlas.loading.dequantize import dequantizing

    return dequantizing(config)


def _check_held(folder: Path, loaded: nn.Module, planned: nn.Module) -> None:
    """Nothing is computed in a dtype that the run does not say, and nothing is left packed."""
    held, wanted = ({name: t.dtype for name, t in _tensors(m)} for m in (loaded, planned))
    for name in sorted({*held, *wanted}):
        if held.get(name) != wanted.get(name):
            raise ValueError(
                f"{folder}: {name} is held as {held.get(name)} and not as {wanted.get(name)}: its "
                f"weights are quantized in a way that could not be undone; {ADVICE}"
            )


def build_on_meta(
    config: PretrainedConfig, architecture: Architecture, layers: range, dtype: str
) -> PreTrainedModel:
    """The text decoder as `load_layers` gives it, with shapes and without weights."""
    model = model_on_meta(config, architecture, layers, dtype, head=False)
    decoder: PreTrainedModel = model.get_submodule(architecture.decoder)
    return decoder


def head_on_meta(config: PretrainedConfig, architecture: Architecture, dtype: str) -> Head:
    """The head as it is loaded behind the last layer, with shapes and without weights."""
    model = model_on_meta(config, architecture, range(architecture.layers), dtype, head=True)
    return Head(model, architecture.decoder, architecture.head.vocabulary)


def model_on_meta(
    config: PretrainedConfig, architecture: Architecture, layers: range, dtype: str, head: bool
) -> PreTrainedModel:
    """The model as `load_model` gives it, with shapes and without weights."""
    partial_class = _partial_class(architecture, layers, head)
    with torch.device("meta"):
        model = from_config(partial_class, copy.deepcopy(config), DTYPES[dtype])
    return model.eval()


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers."""
    tensors = {id(t): t for _, t in _tensors(model)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _partial_class(architecture: Architecture, layers: range, head: bool) -> type[PreTrainedModel]:
    whole = architecture.model_class
    tied = architecture.head.tied if head else None

    def build(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        _strip(self, architecture, layers, head)
        _untie(self)
        _keep_in_float32(self)

    def load(
        model: PreTrainedModel,
        state_dict: dict[str, torch.Tensor] | None,
        files: list[str] | None,
        *settings: Any,
    ) -> Any:
        # transformers maps every file that it is given, and counts on the system not to mind.
        needed = [
            path
            for path in map(Path, files or ())
            if needed_files(path.parent, [path.name], architecture, layers, head)
        ]
        # Of a checkpoint of another model none may be; what it lacks is told after loading.
        given = [*map(str, needed)] or files
        return load_files(whole, model, state_dict, given, *settings)

    def initialize(self: PreTrainedModel) -> None:
        # What no checkpoint has, such as a rotation's frequencies; some look for it in the blocks.
        with loaded_alone(self.get_submodule(architecture.decoder), architecture.stack):
            whole.initialize_weights(self)

    members = {
        "__init__": build,
        "initialize_weights": initialize,
        LOAD: staticmethod(load),
        "__module__": whole.__module__,
        IGNORED_KEYS: [".*"],  # the rest of the checkpoint
        TIED_KEYS: tied,  # ties lead to the head, which may not be there
    }
    return type(whole.__name__, (whole,), members)


def _keep_in_float32(model: PreTrainedModel) -> None:
    """Give a few weights float32 whatever the dtype, as the architecture asks: a router's bias."""
    kept = names_in_float32(model)
    pattern = re.compile("|".join(name.replace("*", ".*") for name in kept))
    for name, tensor in model.state_dict(keep_vars=True).items() if kept else ():
        if pattern.search(name):
            tensor.data = tensor.data.to(torch.float32)


def _untie(model: PreTrainedModel) -> None:
    """Forget the weights that were tied to others in what is not there any more."""
    left = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ties = model.all_tied_weights_keys
    model.all_tied_weights_keys = {a: b for a, b in ties.items() if {a, b} <= left}


def _strip(model: PreTrainedModel, architecture: Architecture, layers: range, head: bool) -> None:
    kept = architecture.head.modules if head else ()
    decoder: PreTrainedModel = model.get_submodule(architecture.decoder)
    way = architecture.decoder.split(".")
    for depth in range(len(way)):
        parent = model.get_submodule(".".join(way[:depth]))
        for name, child in list(parent.named_children()):
            wanted = name == way[depth] or (depth == 0 and name in kept)
            if not wanted and any(True for _ in child.parameters()):
                setattr(parent, name, PassThrough())
    strip(
        decoder, architecture.stack, layers, architecture.returned,
        embedding=0 in layers or bool(head and architecture.head.tied),
    )  # fmt: skip
