"""The criteria of a run: which of them its sites allow, and their definitions in words."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from outlier_atlas.criteria.attention_sinks.settings import AttentionSinksSettings
from outlier_atlas.criteria.llm_int8.settings import LlmInt8Settings
from outlier_atlas.criteria.massive_activations.settings import MassiveActivationsSettings
from outlier_atlas.criteria.super_experts.settings import SuperExpertsSettings
from outlier_atlas.criteria.super_weights.settings import SuperWeightsSettings
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import exactly, percent
from outlier_atlas.settings.sites import ATTN_SINK, EXPERT_OUT, SUPER_WEIGHT_SITES

LLM_INT8 = "llm_int8"
MASSIVE_ACTIVATIONS = "massive_activations"
SUPER_WEIGHTS = "super_weights"
SUPER_EXPERTS = "super_experts"
SYSTEMATIC_OUTLIERS = "systematic_outliers"
TOKEN_OUTLIERS = "token_outliers"
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
    left_out = settings.exclude.said

    def criterion(name: str, sites: tuple[str, ...], definition: str) -> Criterion:
        missing = tuple(site for site in sites if site not in measured)
        return Criterion(name, sites, missing, f"{definition} {left_out}".strip())

    int8, massive = settings.llm_int8, settings.massive_activations
    systematic, outliers = settings.systematic_outliers, settings.token_outliers
    each = (
        criterion(LLM_INT8, tuple(int8.sites), llm_int8_definition(int8)),
        criterion(MASSIVE_ACTIVATIONS, (massive.site,), massive_definition(massive)),
        criterion(
            SUPER_WEIGHTS,
            _super_weight_sites(measured),
            super_weights_definition(settings.super_weights),
        ),
        criterion(
            SUPER_EXPERTS,
            (EXPERT_OUT, massive.site),
            super_experts_definition(settings.super_experts, massive.site),
        ),
        criterion(
            SYSTEMATIC_OUTLIERS,
            (systematic.site,),
            f"A token of {systematic.site} is flagged if its largest |x| > "
            f"{exactly(systematic.ratio)} times the mean of |x| over all tokens and channels of "
            f"its sequence in that layer, finite values alone (An et al. 2025, arXiv 2502.06415).",
        ),
        criterion(
            TOKEN_OUTLIERS,
            (outliers.site,),
            f"A token of {outliers.site} is an outlier if its largest |x| > "
            f"{exactly(outliers.ratio)} times the median, over the tokens of its sequence in that "
            f"layer, of their largest finite |x| (PrefixQuant, Chen et al. 2024, arXiv "
            f"2410.05265).",
        ),
        # No token is left out of these: they are about attention among the first ones.
        Criterion(
            ATTENTION_SINKS,
            (ATTN_SINK,),
            () if ATTN_SINK in measured else (ATTN_SINK,),
            sinks_definition(settings.attention_sinks, sink_tokens),
        ),
    )
    return {one.name: one for one in each}


def _super_weight_sites(measured: Collection[str]) -> tuple[str, ...]:
    """The sites on which super weights are defined: routed layers have one of their own."""
    dense = {*SUPER_WEIGHT_SITES} <= {*measured}
    if EXPERT_OUT not in measured:
        return SUPER_WEIGHT_SITES
    return (*SUPER_WEIGHT_SITES, EXPERT_OUT) if dense else (EXPERT_OUT,)


def super_weights_definition(settings: SuperWeightsSettings) -> str:
    """The criterion of Yu et al. with this run's parameters."""
    return (
        f"At the token at which the |output| of a down projection itself (before any norm, factor "
        f"or sum behind it; with its bias) is largest over all tokens and channels, the largest "
        f"|input| is taken. Where both are > {exactly(settings.threshold)}, the weight W in the "
        f"row of the output's channel and the column of the input's is a super weight if it makes "
        f"at least {percent(settings.min_share)} % of that output: W times input over output, "
        f"with W in the dtype that the run computes in (Yu et al. 2024, arXiv 2411.07191; the "
        f"share is not in the paper, whose super weights make most of the output). Sites: "
        f"mlp_hidden and down_proj_out, and expert_out for each routed expert; shared experts are "
        f"not searched."
    )


def super_experts_definition(settings: SuperExpertsSettings, site: str) -> str:
    """The criterion of Su et al. with this run's parameters."""
    return (
        f"An expert is a super expert if its largest |down_proj output| over all tokens routed to "
        f"it is above the {percent(settings.quantile)} % quantile (linear interpolation) of those "
        f"of all routed experts that saw a token, above {exactly(settings.ratio)} times the "
        f"largest of them, and its layer is one in which massive activations form: it has a "
        f"massive activation, and the largest |x| of {site} is at least "
        f"{exactly(settings.growth)} times that of the measured layer before it, where one is (Su "
        f"et al. 2025, arXiv 2507.23279, eq. 8; the last condition is our reading of it)."
    )


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
        f"A channel of {' and '.join(settings.sites)} is an outlier feature if |x| >= "
        f"{exactly(settings.threshold)} in at least {percent(settings.layer_share)} % of {over} "
        f"and on no less than {percent(settings.position_share)} % of the positions (sequence, "
        f"position), {by}, of layers and positions that have a finite value (Dettmers et al. "
        f"2022, arXiv 2208.07339)."
    )


def massive_definition(settings: MassiveActivationsSettings) -> str:
    """The criterion of Sun et al. with this run's parameters."""
    median = {
        "tensor": "over all tokens and channels of its sequence in that layer",
        "token": "over the channels of its token",
    }[settings.median]
    return (
        f"A value of {settings.site} is massive if |x| > {exactly(settings.absolute)} and "
        f"|x| >= {exactly(settings.ratio)} times the median of |x| {median}, finite values alone "
        f"(Sun et al. 2024, arXiv 2402.17762)."
    )


def sinks_definition(settings: AttentionSinksSettings, tokens: int) -> str:
    """The criterion of Gu et al. with this run's parameters."""
    return (
        f"A token at position k is a sink in a head if it receives more than "
        f"{exactly(settings.threshold)} of attention: the mean of A[i, k] over the queries k <= i "
        f"< T, where T is {tokens or 'extraction.advanced.sink_tokens'} or the length of a "
        f"shorter sequence; the sink metric is 100 times the share of sequences, layers and heads "
        f"in which it is one (Gu et al. 2024, arXiv 2410.10781). A head sinks on the first token "
        f"if its mean over the sequences is above the threshold. No token is left out of this."
    )
