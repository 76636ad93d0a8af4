"""Names of transformers that are not public, each with the reason why it is used.

`tests/test_compat.py` fails at an upgrade that changes one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.core_model_loading import LoadStateDictInfo

LOAD = "_load_pretrained_model"
"""The static method through which `from_pretrained` reads files. A subclass that overrides it reads
only the files that hold its layers."""

IGNORED_KEYS = "_keys_to_ignore_on_load_unexpected"
TIED_KEYS = "_tied_weights_keys"
"""Class attributes: the keys of a checkpoint that a model ignores, and its tied weights."""


def from_config(
    model_class: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Build a model without a checkpoint.

    Unlike the constructor it sets the dtype in every part of the configuration, as
    `from_pretrained` does. The public `AutoModel.from_config` builds no class of ours.
    """
    model: PreTrainedModel = model_class._from_config(config, dtype=dtype)
    return model


def load_files(
    model_class: type[PreTrainedModel],
    model: PreTrainedModel,
    state_dict: dict[str, torch.Tensor] | None,
    files: list[str] | None,
    *settings: Any,
) -> Any:
    """Load weights from files into a model, as `from_pretrained` does once it has found them."""
    return getattr(model_class, LOAD)(model, state_dict, files, *settings)


def names_in_float32(model: PreTrainedModel) -> dict[str, torch.dtype]:
    """Return patterns of the weights that stay in float32 whatever the dtype.

    `from_pretrained` applies them when it loads; a model that is only built has to have them, too.
    """
    names: dict[str, torch.dtype] = model._get_dtype_plan(torch.get_default_dtype())
    return names


def leave_out_ignored(model: PreTrainedModel, info: LoadStateDictInfo) -> None:
    """Remove keys that the model ignores from the missing and the unexpected keys of a loading."""
    model._adjust_missing_and_unexpected_keys(info)
