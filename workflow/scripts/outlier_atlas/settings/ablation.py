"""The `ablation` section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from outlier_atlas.settings.section import Index, PositiveInt, Section, refuse_repeats
from outlier_atlas.settings.sites import AlterableSite

TargetKind = Literal[
    "super_weights", "super_experts", "outlier_features", "massive_channels", "massive_activations"
]
Intervention = Literal["zero", "mean"]


def _list_of(*names: str) -> BeforeValidator:
    """Return a validator that refuses anything but a list with one item for each name."""

    def check(value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(names):
            raise ValueError(f"must be a list [{', '.join(names)}]")
        return value

    return BeforeValidator(check)


# YAML has no tuples: a list is accepted for each of these.
Weight = Annotated[
    tuple[Index, Index, Index], Field(strict=False), _list_of("layer", "row", "column")
]
ExpertWeight = Annotated[
    tuple[Index, Index, Index, Index],
    Field(strict=False),
    _list_of("layer", "expert", "row", "column"),
]
Channel = Annotated[
    tuple[AlterableSite, Index | Literal["all"], Index],
    Field(strict=False),
    _list_of("site", "layer", "channel"),
]


class AblationSettings(Section):
    """Settings of the ablation stage: perplexity of held-out tokens with outliers ablated."""

    sequences: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0,
        description="Number of held-out sequences, taken from the dataset after the run's own "
        "sequences. 0 turns the stage off.",
    )
    targets: list[TargetKind] = Field(
        [
            "super_weights",
            "super_experts",
            "outlier_features",
            "massive_channels",
            "massive_activations",
        ],
        description="Findings of the run that are ablated. `super_weights`: each super weight, "
        "and all of them together. `super_experts`: each super expert. `outlier_features`: all "
        "LLM.int8() outlier features together, at the sites of the criterion and in all layers at "
        "once, as in the paper. `massive_activations`: all massive activations together, as in "
        "Sun et al. 2024: only the massive values, at their tokens, each channel in the first "
        "layer in which it is massive. `massive_channels`: each channel with massive activations, "
        "at all tokens, in that layer.",
    )
    most: PositiveInt = Field(
        8,
        description="Maximum number of super weights, of super experts and of massive channels "
        "to ablate: those with the largest |output| or |value|.",
    )
    search_rounds: Annotated[int, Field(ge=0, le=100)] = Field(
        2,
        description="Maximum number of searches of the held-out sequences for further super "
        "weights, each with all known super weights set to zero, if `super_weights` is a target. "
        "A second super weight may appear only then. The search stops when a round finds no new "
        "super weight; it excludes no token.",
    )
    weights: list[Weight] = Field(
        [],
        description="Additional weights of down projections to ablate, as `[layer, row, column]`: "
        "row is the output channel, column the input channel.",
    )
    expert_weights: list[ExpertWeight] = Field(
        [],
        description="Additional weights of routed experts' down projections to ablate, as "
        "`[layer, expert, row, column]`.",
    )
    channels: list[Channel] = Field(
        [],
        description="Additional channels to ablate, as `[site, layer, channel]`; `all` as the "
        "layer ablates the channel in every layer at once.",
    )
    interventions: Annotated[list[Intervention], Field(min_length=1)] = Field(
        ["zero", "mean"],
        description="Values that replace the ablated ones. A channel is set, for all tokens, to "
        "`zero` or to `mean`, its mean over the run's tokens, for which the site must be measured. "
        "A massive activation is set to `zero` or to `mean`, the mean of the channel's massive "
        "activations in the run's own sequences, taken separately for the first position and for "
        "the others. Weights and the outputs of experts are always set to zero.",
    )
    random_draws: Annotated[int, Field(ge=0, le=1000)] = Field(
        3,
        description="Number of random controls for each target. A control sets as many randomly "
        "drawn channels, weights of the same matrix, or experts of the layer to zero; for massive "
        "activations, as many values at the same tokens. No draw occurs twice; if fewer different "
        "draws exist, all of them are used.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Seed of the random controls."
    )

    @field_validator("targets", "interventions")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        refuse_repeats(names)
        return sorted(names, reverse=True)

    @field_validator("weights", "expert_weights", "channels")
    @classmethod
    def _each_once(cls, indices: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        refuse_repeats(indices)
        return indices
