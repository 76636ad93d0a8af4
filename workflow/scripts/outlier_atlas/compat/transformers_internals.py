"""Private names of transformers, each with the reason for its use.

`tests/test_compat.py` fails at an upgrade that changes one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.core_model_loading import LoadStateDictInfo

LOAD = "_load_pretrained_model"
"""Static method with which `from_pretrained` reads files.

A subclass overrides it to read only the files that have its layers.
"""

IGNORED_KEYS = "_keys_to_ignore_on_load_unexpected"
TIED_KEYS = "_tied_weights_keys"
"""Class attributes with the checkpoint keys that a model ignores, and with its tied weights."""


def from_config(
    model_class: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Build a model without a checkpoint.

    It sets the dtype in every part of the configuration, as `from_pretrained` does; the constructor
    does not. The public `AutoModel.from_config` cannot build a custom class.
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
    """Load weights from files into a model, as `from_pretrained` does after finding the files."""
    return getattr(model_class, LOAD)(model, state_dict, files, *settings)


def names_in_float32(model: PreTrainedModel) -> dict[str, torch.dtype]:
    """Return patterns of the weights that stay in float32 in any dtype.

    `from_pretrained` applies them when it loads. A model that is only built also needs them.
    """
    names: dict[str, torch.dtype] = model._get_dtype_plan(torch.get_default_dtype())
    return names


def leave_out_ignored(model: PreTrainedModel, info: LoadStateDictInfo) -> None:
    """Remove the keys that the model ignores from the missing and unexpected keys of a loading."""
    model._adjust_missing_and_unexpected_keys(info)
