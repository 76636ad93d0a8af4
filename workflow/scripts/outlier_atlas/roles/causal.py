"""Whether a model predicts tokens from those before them: what perplexity and sites assume."""

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
"""Entries of a configuration with the value that lets tokens attend to later ones."""

GENERATES = re.compile(r"causal_?lm|lm_?head|conditional_?generation", re.IGNORECASE)
"""Names of classes with a language-model head, also of those that transformers does not have."""


def check_causal(
    config: PretrainedConfig, text: PretrainedConfig, flow: Flow | None, name: str
) -> None:
    """Refuse a model whose tokens attend to later ones.

    The attention itself decides where it was seen; some models have a flag of an encoder and are
    causal whatever it says. Where it was not seen, the flags of the configuration decide.

    Args:
        text: the part of the configuration that describes the decoder.
        flow: what was seen of the decoder.
        name: of its class.

    Raises:
        ValueError: it is not causal.
    """
    seen = flow.causal if flow is not None else []
    if seen and all(seen):
        return
    if getattr(text, "is_decoder", None) is True and not _bidirectional(text):
        return  # the mask makes it causal; the attention module does not say so
    flags = _bidirectional(text)
    if seen or flags:
        why = f" ({flags[0]} in its config.json)" if flags else ""
        named = " and ".join(config.architectures or ()) or name
        raise ValueError(
            f"{named} is not a causal decoder: its tokens attend to later ones{why}, so it "
            f"predicts no next token; choose a decoder model"
        )


def _bidirectional(text: PretrainedConfig) -> list[str]:
    """The entries of a configuration that let tokens attend to later ones."""
    return [
        f"{key} is {value!r}" for key, value in FLAGS if (key, vars(text).get(key)) == (key, value)
    ]


def without_head(config: PretrainedConfig) -> HeadParts | None:
    """Why there is no language-model head, by the class that the checkpoint was saved from; None
    where that class has one, or is not named."""
    from transformers.models.auto import modeling_auto as auto

    named = list(config.architectures or ())
    known = {
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
        *auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.values(),
    }
    if not named or any(
        architecture in known or GENERATES.search(architecture) for architecture in named
    ):
        return None
    return HeadParts(
        unclear=f"its config.json names {named[0]}, which has no language-model head; set "
        f"extraction.perplexity: false"
    )
