"""The table of ablations, and the columns that all tables of losses share."""

from __future__ import annotations

from outlier_atlas.tables.table import Column, ColumnType, Table, intervals

ENOUGH_SEQUENCES = 10
"""Least number of sequences whose interval can exclude a number.

An interval of fewer sequences is too narrow. For normally distributed sequences, a 95 % interval
contains the true value in 51 % of cases with 2 sequences, in 81 % with 4, and in 90 % with 10. From
10 on, it is wrong at most twice as often as its level says (docs/validation.md).
"""

LOSS = Column(
    "loss",
    "float64",
    "Mean negative log-likelihood of the predicted tokens, in nats. Each token is predicted from "
    "all tokens before it in its sequence, with the logits of the whole vocabulary in float32.",
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
    "Perplexity of held-out tokens with outliers ablated. The held-out tokens are the sequences of "
    "the dataset after the run's own. The first row is the unchanged model. Intervals are over the "
    "held-out sequences. The interval of ratio is paired: each draw takes the same sequences for "
    "both models. If it does not contain 1, the effect exceeds chance over sequences, provided "
    f"that there are at least {ENOUGH_SEQUENCES} sequences: intervals of fewer are too narrow "
    "(docs/validation.md). Written only if ablation.sequences is above 0.",
    (
        Column(
            "target",
            "string",
            "The ablated part of the model: none; super_weight or weight (of a down projection); "
            "super_expert; expert_weight (of a routed expert's down projection); outlier_features, "
            "all LLM.int8() outlier features together; super_weights, all super weights together; "
            "later_super_weight, a super weight that only a search of the held-out sequences "
            "found, with all super weights known then set to zero, ablated together with those; "
            "massive_activations, all massive activations together, only at their tokens (Sun et "
            "al. 2024, arXiv 2402.17762); massive_channel, a channel with massive activations, "
            "ablated at all tokens; channel.",
        ),
        Column(
            "site",
            "string",
            "Sites at which channels are set, separated by spaces; empty for other targets.",
        ),
        Column("first_layer", "int32", "First changed layer, 0-based.", "index"),
        Column(
            "last_layer",
            "int32",
            "Last changed layer, 0-based. outlier_features and channel change every layer from "
            "first_layer to last_layer that has the site; massive_activations and super_weights "
            "change some of them.",
            "index",
        ),
        Column("channels", "string", "Ablated channels, ascending, separated by spaces."),
        Column(
            "expert",
            "int32",
            "Ablated routed expert, or expert of the ablated weight, 0-based.",
            "index",
        ),
        Column("row", "int32", "Row of the weight: its output channel, 0-based.", "index"),
        Column("column", "int32", "Column of the weight: its input channel, 0-based.", "index"),
        Column(
            "round",
            "int32",
            "For later_super_weight: number of the search of the held-out sequences that found the "
            "weight, 1-based. The search ran with all super weights of the run and of earlier "
            "searches set to zero.",
            "index",
        ),
        *(
            Column(
                name,
                kind,
                "For later_super_weight: as in the table super_weights, in that search.",
                unit,
            )
            for name, kind, unit in AS_IN_SUPER_WEIGHTS
        ),
        Column(
            "intervention",
            "string",
            "none; zero: the weight, the expert's down_proj output (with its bias), or the "
            "channels at the site for all tokens are set to 0; mean: the channels are set to their "
            "mean over the run's tokens in that layer; random: as many randomly drawn channels "
            "outside the target, other weights of the same matrices, or another expert of the "
            "layer that is not a super expert, are set to 0. massive_activations sets the values "
            "of the held-out sequences that fulfil the criterion (including tokens that "
            "detection.exclude excludes) to 0, or to the mean of the massive activations of the "
            "channel and layer in the run's own sequences, separately at the first position and "
            "at others; its random sets as many other channels to 0 at the same tokens.",
        ),
        Column("draw", "int32", "Index of the random draw, 0-based.", "index"),
        Column(
            "tokens",
            "int64",
            "Number of predicted tokens: all except the first of each held-out sequence.",
            "count",
        ),
        Column("sequences", "int64", "Number of held-out sequences.", "count"),
        LOSS,
        PERPLEXITY_OF_LOSS,
        Column("ratio", "float64", "perplexity / perplexity of the unchanged model.", "ratio"),
        *intervals("loss", unit="nats"),
        *intervals("perplexity", "ratio", unit="ratio"),
    ),
)
