"""Checks that a model predicts tokens from earlier tokens, as perplexity and sites assume."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from outlier_atlas.roles.lm_head import HeadParts
from outlier_atlas.roles.residual_flow import Flow

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FLAGS: tuple[tuple[str, object], ...] = (
    ("use_bidirectional_attention", True),
    ("use_bidirectional_attention", "all"),
    ("is_causal", False),
    ("causal", False),
    ("is_decoder", False),
    ("attn_type", "bi"),
)
"""Entries of a configuration, with the value that lets tokens attend to later tokens."""

GENERATES = re.compile(r"causal_?lm|lm_?head|conditional_?generation", re.IGNORECASE)
"""Pattern for names of classes with a language-model head, including classes of other libraries."""


def check_causal(
    config: PretrainedConfig, text: PretrainedConfig, flow: Flow | None, name: str
) -> None:
    """Refuse a model whose tokens attend to later tokens.

    A traced attention call decides: some models have the flag of an encoder and are causal all the
    same. Without a traced call, the flags of the configuration decide.

    Args:
        config: configuration of the model.
        text: part of the configuration that describes the decoder.
        flow: trace of the decoder; None if it could not be traced.
        name: name of the model class.

    Raises:
        ValueError: the model is not causal.
    """
    causal_calls = flow.causal if flow is not None else []
    if causal_calls and all(causal_calls):
        return
    if getattr(text, "is_decoder", None) is True and not _bidirectional(text):
        return  # the mask makes the model causal, although its attention module is not marked so
    flags = _bidirectional(text)
    if causal_calls or flags:
        why = f" ({flags[0]} in its config.json)" if flags else ""
        class_names = " and ".join(config.architectures or ()) or name
        raise ValueError(
            f"{class_names} is not a causal decoder: its tokens attend to later ones{why}, so it "
            f"does not predict the next token; choose a decoder model"
        )


def _bidirectional(text: PretrainedConfig) -> list[str]:
    """Return the entries of a configuration that let tokens attend to later tokens."""
    return [
        f"{key} is {value!r}" for key, value in FLAGS if (key, vars(text).get(key)) == (key, value)
    ]


def missing_head(config: PretrainedConfig) -> HeadParts | None:
    """Return why the model has no language-model head; None if it has one.

    The class that the checkpoint was saved from decides. If the configuration names no class, the
    model is taken to have a head.
    """
    from transformers.models.auto import modeling_auto as auto

    class_names = list(config.architectures or ())
    known = {
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
        *auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.values(),
    }
    if not class_names or any(
        architecture in known or GENERATES.search(architecture) for architecture in class_names
    ):
        return None
    return HeadParts(
        unsupported=f"its config.json names {class_names[0]}, which has no language-model head; "
        f"set extraction.perplexity: false"
    )
