"""The criteria of a run: which of them its sites allow, and their definitions in words."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from outlier_atlas.settings.detection import (
    AttentionSinksSettings,
    DetectionSettings,
    LlmInt8Settings,
    MassiveActivationsSettings,
)
from outlier_atlas.settings.sites import ATTN_SINK

LLM_INT8 = "llm_int8"
MASSIVE_ACTIVATIONS = "massive_activations"
ATTENTION_SINKS = "attention_sinks"


@dataclass(frozen=True)
class Criterion:
    """A criterion as this run defines it.

    Attributes:
        name: as in the configuration.
        sites: on which it is defined.
        missing: those of its sites that were not measured.
        definition: in one sentence, with its thresholds.
    """

    name: str
    sites: tuple[str, ...]
    missing: tuple[str, ...]
    definition: str

    @property
    def measured(self) -> bool:
        """Whether all of its sites were measured."""
        return not self.missing


def criteria(
    settings: DetectionSettings, measured: Collection[str], sink_tokens: int
) -> dict[str, Criterion]:
    """The criteria by name, given the measured sites.

    Args:
        sink_tokens: first tokens of a sequence that `attn_sink` was measured on.
    """

    def criterion(name: str, sites: tuple[str, ...], definition: str) -> Criterion:
        missing = tuple(site for site in sites if site not in measured)
        return Criterion(name, sites, missing, definition)

    int8, massive = settings.llm_int8, settings.massive_activations
    return {
        LLM_INT8: criterion(LLM_INT8, tuple(int8.sites), llm_int8_definition(int8)),
        MASSIVE_ACTIVATIONS: criterion(
            MASSIVE_ACTIVATIONS, (massive.site,), massive_definition(massive)
        ),
        ATTENTION_SINKS: criterion(
            ATTENTION_SINKS, (ATTN_SINK,), sinks_definition(settings.attention_sinks, sink_tokens)
        ),
    }


def llm_int8_definition(settings: LlmInt8Settings) -> str:
    """The criterion of Dettmers et al. with this run's parameters."""
    over = {
        "layers": "the measured layers (at any of the sites)",
        "tensors": "the measured tensors (layer and site)",
    }[settings.layer_share_over]
    by = {
        "union": "counted where any tensor has one",
        "mean": "averaged over the affected tensors",
        "max": "in the tensor that has most",
    }[settings.position_share_by]
    return (
        f"A channel of {' and '.join(settings.sites)} is an outlier feature if "
        f"|x| >= {settings.threshold:g} in at least {settings.layer_share * 100:g} % of {over} and "
        f"on no less than {settings.position_share * 100:g} % of the positions (sequence, "
        f"position), {by} (Dettmers et al. 2022, arXiv 2208.07339)."
    )


def massive_definition(settings: MassiveActivationsSettings) -> str:
    """The criterion of Sun et al. with this run's parameters."""
    median = {
        "tensor": "over all tokens and channels of its sequence in that layer",
        "token": "over the channels of its token",
    }[settings.median]
    return (
        f"A value of {settings.site} is massive if |x| > {settings.absolute:g} and "
        f"|x| >= {settings.ratio:g} times the median of |x| {median} "
        f"(Sun et al. 2024, arXiv 2402.17762)."
    )


def sinks_definition(settings: AttentionSinksSettings, tokens: int) -> str:
    """The criterion of Gu et al. with this run's parameters."""
    return (
        f"A token at position k is a sink in a head if it receives more than "
        f"{settings.threshold:g} of attention: the mean of A[i, k] over the queries k <= i < T, "
        f"where T is {tokens or 'extraction.advanced.sink_tokens'} or the length of a shorter "
        f"sequence; the sink metric is 100 times the share of sequences, layers and heads in which "
        f"it is one (Gu et al. 2024, arXiv 2410.10781). A head sinks on the first token if its "
        f"mean over the sequences is above the threshold."
    )
