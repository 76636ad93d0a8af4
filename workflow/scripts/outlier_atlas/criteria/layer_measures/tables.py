"""The table of measures: how the values of a site and layer are distributed."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LAYER, SITE, Column, Table, intervals

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
"""Of norms over tokens."""


def _norm(quantile: float) -> Column:
    return Column(
        norm_name(quantile),
        "float64",
        f"{quantile * 100:g} % quantile over tokens of the L2 norm over channels, the lower of two "
        f"neighbours; rounded, relative error <= 2^-9.",
        "activation",
    )


def norm_name(quantile: float) -> str:
    """Name of the column of a quantile."""
    return f"norm_q{round(quantile * 100):02}"


LAYER_MEASURES = Table(
    "layer_measures",
    "Per site and layer: kurtosis in four variants that are not comparable, and other measures of "
    "heavy tails. Values that are NaN or infinite are left out. A kurtosis is mu4 / sigma^4, not "
    "excess: 3 for a Gaussian.",
    (
        SITE,
        LAYER,
        Column("tokens", "int64", "Tokens that are not left out.", "count"),
        Column(
            "kurtosis_token",
            "float64",
            "Kurtosis of a token over its channels, mean over the tokens that have one: whose "
            "values are not all equal (Elhage et al. 2023).",
            "ratio",
        ),
        Column("kurtosis_token_max", "float64", "The same, largest of a token.", "ratio"),
        Column(
            "kurtosis_tensor",
            "float64",
            "Kurtosis of all values of the layer together (Bondarenko et al. 2023).",
            "ratio",
        ),
        Column(
            "kurtosis_channel",
            "float64",
            "Kurtosis of a channel over tokens, mean over the channels that have one.",
            "ratio",
        ),
        Column(
            "kurtosis_channel_max",
            "float64",
            "The same, largest of a channel. Without an interval: it would take moments of every "
            "channel in every sequence.",
            "ratio",
        ),
        Column(
            "kurtosis_rms",
            "float64",
            "mean s^4 / (mean s^2)^2 over channels, s the RMS of a channel over tokens (He et al. "
            "2024, arXiv 2405.19279): 1 where all channels are alike.",
            "ratio",
        ),
        Column(
            "infinity_norm",
            "float64",
            "Largest |x| of a sequence, mean over the sequences that have a finite value, each "
            "with the same weight, whatever its length (Bondarenko et al. 2023).",
            "activation",
        ),
        Column("rms", "float64", "Root of the mean of x^2 over all values.", "activation"),
        Column("crest_factor", "float64", "Largest |x| / rms.", "ratio"),
        Column(
            "mmr_median",
            "float64",
            "Largest / median of |x| over the channels of a token (He et al. 2024), median over "
            "tokens with a value other than 0; both medians the lower of two middle ones, this one "
            "rounded, relative error <= 2^-9. Infinite where the median of |x| is 0.",
            "ratio",
        ),
        Column("mmr_max", "float64", "The same, largest of a token; exact.", "ratio"),
        *map(_norm, QUANTILES),
        *intervals("kurtosis_token", "kurtosis_token_max", "mmr_max", unit="ratio"),
        *intervals("infinity_norm", unit="activation"),
    ),
)

DESCRIPTION = Description("layer_measures", (LAYER_MEASURES,))
