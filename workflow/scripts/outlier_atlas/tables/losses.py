"""The table of ablations, and the columns that all tables of losses have."""

from __future__ import annotations

from outlier_atlas.tables.table import Column, ColumnType, Table, intervals

ENOUGH_SEQUENCES = 10
"""Sequences from which on an interval that does not contain a number excludes it.

Of fewer it is too narrow: where sequences differ as normal numbers do, an interval of 95 % holds
the truth in 51 % of cases with 2 sequences, in 81 % with 4 and in 90 % with 10. From there on it is
wrong at most twice as often as it says (docs/validation.md).
"""

LOSS = Column(
    "loss",
    "float64",
    "Mean over those tokens of the negative log-likelihood, in nats: each token given all before "
    "it in its own sequence, from the logits of the whole vocabulary in float32.",
    "nats",
)

PERPLEXITY_OF_LOSS = Column("perplexity", "float64", "exp(loss).", "ratio")

AS_IN_SUPER_WEIGHTS: tuple[tuple[str, ColumnType, str], ...] = (
    ("input", "float32", "activation"),
    ("output", "float32", "activation"),
    ("share", "float64", "ratio"),
)
"""Columns with a meaning in the table `super_weights`: name, type and unit."""

ABLATIONS = Table(
    "ablations",
    "Perplexity of held-out tokens, the sequences of the dataset after the run's own, with "
    "outliers ablated. The first row is the model as it is. Intervals are over the held-out "
    "sequences; that of ratio is paired, each draw the same sequences of both models: where it "
    f"does not hold 1, the effect is more than chance over sequences, if these are at least "
    f"{ENOUGH_SEQUENCES}: intervals of fewer are too narrow (docs/validation.md). Written where "
    "ablation.sequences is above 0.",
    (
        Column(
            "target",
            "string",
            "What is altered: none; super_weight or weight (of a down projection); super_expert; "
            "expert_weight (of a routed expert's down projection); outlier_features, all of "
            "LLM.int8() together; super_weights, all of them together; later_super_weight, one "
            "that is no super weight of the run and was found in a search of the held-out "
            "sequences with all others known then at zero: it together with those; "
            "massive_activations, all of them together at their tokens alone (Sun et al. 2024, "
            "arXiv 2402.17762); "
            "massive_channel, a channel with massive activations at all tokens; channel.",
        ),
        Column(
            "site",
            "string",
            "Of channels the sites at which they are set, separated by spaces.",
        ),
        Column("first_layer", "int32", "First altered layer, 0-based.", "index"),
        Column(
            "last_layer",
            "int32",
            "Last altered layer. Of outlier_features and channel all between that have the site "
            "are altered, of massive_activations and super_weights some.",
            "index",
        ),
        Column("channels", "string", "The channels, ascending, separated by spaces."),
        Column("expert", "int32", "The routed expert, or that of a weight, 0-based.", "index"),
        Column("row", "int32", "Of a weight its row: the output channel, 0-based.", "index"),
        Column("column", "int32", "Of a weight its column: the input channel, 0-based.", "index"),
        Column(
            "round",
            "int32",
            "Of later_super_weight: in which search of the held-out sequences it was found, from "
            "1. All super weights of the run and those of earlier searches were zero in it.",
            "index",
        ),
        *(
            Column(name, kind, "Of later_super_weight: as in super_weights, in that search.", unit)
            for name, kind, unit in AS_IN_SUPER_WEIGHTS
        ),
        Column(
            "intervention",
            "string",
            "none; zero: the weight is 0, the expert's down_proj output (with its bias) is 0, or "
            "the site's value at the channels is 0 for all tokens; mean: it is the channel's mean "
            "over the run's tokens in that layer; random: as many other channels that are no "
            "target, other weights of the same matrices, or another expert of the layer that is no "
            "super expert, are 0. Of massive_activations: the values of the held-out sequences "
            "that fulfil the criterion (also of tokens that detection.exclude leaves out) are 0, "
            "or the mean of the massive activations of that "
            "channel and layer in the run's own sequences (at the first position and at others); "
            "random: as many other channels are 0 at the same tokens.",
        ),
        Column("draw", "int32", "Number of the random draw, 0-based.", "index"),
        Column(
            "tokens",
            "int64",
            "Number of tokens that are predicted: all but the first of each held-out sequence.",
            "count",
        ),
        Column("sequences", "int64", "Number of held-out sequences.", "count"),
        LOSS,
        PERPLEXITY_OF_LOSS,
        Column("ratio", "float64", "perplexity / perplexity of the model as it is.", "ratio"),
        *intervals("loss", unit="nats"),
        *intervals("perplexity", "ratio", unit="ratio"),
    ),
)
