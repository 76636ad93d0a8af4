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
    """Refuse what is no list with an item for each name, in one line."""

    def check(value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(names):
            raise ValueError(f"must be a list [{', '.join(names)}]")
        return value

    return BeforeValidator(check)


# YAML has lists where these are tuples.
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
    """Perplexity of held-out tokens with outliers ablated."""

    sequences: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0,
        description="Number of held-out sequences: those of the dataset after the run's own. 0 "
        "leaves the stage out.",
    )
    targets: list[TargetKind] = Field(
        [
            "super_weights",
            "super_experts",
            "outlier_features",
            "massive_channels",
            "massive_activations",
        ],
        description="Which of the run's findings are ablated. `super_weights`: each super weight, "
        "and all of them together. `super_experts`: each super expert. `outlier_features`: all "
        "LLM.int8() outlier features together, at the sites of the criterion and in all layers at "
        "once, as in the paper. `massive_activations`: all massive activations together, as in "
        "Sun et al. 2024: the massive values alone, at their tokens, each channel in the first "
        "layer in which it is massive. `massive_channels`: each channel with massive activations "
        "at all tokens, in that layer.",
    )
    most: PositiveInt = Field(
        8,
        description="Super weights, super experts and massive channels to ablate: at most so many "
        "of each, those with the largest |output| and |value|.",
    )
    search_rounds: Annotated[int, Field(ge=0, le=100)] = Field(
        2,
        description="Where super weights are a target: how often at most the held-out sequences "
        "are searched again for super weights, with all that are known set to zero. A second super "
        "weight may show only then. It ends when nothing new is found; no token is left out.",
    )
    weights: list[Weight] = Field(
        [],
        description="Further weights of down projections to ablate, as `[layer, row, column]`: "
        "row is the output channel, column the input channel.",
    )
    expert_weights: list[ExpertWeight] = Field(
        [],
        description="Further weights of routed experts' down projections to ablate, as `[layer, "
        "expert, row, column]`.",
    )
    channels: list[Channel] = Field(
        [],
        description="Further channels to ablate, as `[site, layer, channel]`; `all` for layer "
        "takes it away in every layer at once.",
    )
    interventions: Annotated[list[Intervention], Field(min_length=1)] = Field(
        ["zero", "mean"],
        description="What a channel is set to, for all tokens: `zero`, or `mean`, its mean over "
        "the run's tokens, for which the site must be measured. What a massive activation is set "
        "to: `zero`, or `mean`, the mean of the channel's massive activations in the run's own "
        "sequences, taken separately at the first position and at others. Weights and the outputs "
        "of experts are set to zero.",
    )
    random_draws: Annotated[int, Field(ge=0, le=1000)] = Field(
        3,
        description="How often as many channels, weights of the same matrix, or experts of the "
        "layer, drawn at random are set to zero instead; of massive activations as many values at "
        "the same tokens. No draw is drawn twice; where there are fewer different ones, all of "
        "them are taken.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seed of the draws.")

    @field_validator("targets", "interventions")
    @classmethod
    def _once(cls, named: list[str]) -> list[str]:
        refuse_repeats(named)
        return sorted(named, reverse=True)

    @field_validator("weights", "expert_weights", "channels")
    @classmethod
    def _each_once(cls, places: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        refuse_repeats(places)
        return places
