"""The table of measures of the distribution of values at a site and layer."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LAYER, SITE, Column, Table, intervals

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
"""Quantiles of the norms of tokens."""


def _norm(quantile: float) -> Column:
    return Column(
        norm_name(quantile),
        "float64",
        f"{quantile * 100:g} % quantile over tokens of the L2 norm over channels, the lower of two "
        f"neighbours; rounded, relative error <= 2^-9.",
        "activation",
    )


def norm_name(quantile: float) -> str:
    """Return the name of the column of a quantile."""
    return f"norm_q{round(quantile * 100):02}"


LAYER_MEASURES = Table(
    "layer_measures",
    "Kurtosis and other measures of heavy tails for each site and layer. The four variants of "
    "kurtosis are not comparable. NaN and infinite values are excluded. A kurtosis is mu4 / "
    "sigma^4, not the excess: 3 for a Gaussian.",
    (
        SITE,
        LAYER,
        Column("tokens", "int64", "Number of tokens that are not excluded.", "count"),
        Column(
            "kurtosis_token",
            "float64",
            "Kurtosis of a token over its channels, mean over the tokens whose values are not all "
            "equal (Elhage et al. 2023).",
            "ratio",
        ),
        Column(
            "kurtosis_token_max",
            "float64",
            "Largest kurtosis of a token over its channels.",
            "ratio",
        ),
        Column(
            "kurtosis_tensor",
            "float64",
            "Kurtosis of all values of the layer together (Bondarenko et al. 2023).",
            "ratio",
        ),
        Column(
            "kurtosis_channel",
            "float64",
            "Kurtosis of a channel over tokens, mean over the channels whose values are not all "
            "equal.",
            "ratio",
        ),
        Column(
            "kurtosis_channel_max",
            "float64",
            "Largest kurtosis of a channel over tokens. It has no interval, which would need the "
            "moments of every channel in every sequence.",
            "ratio",
        ),
        Column(
            "kurtosis_rms",
            "float64",
            "mean s^4 / (mean s^2)^2 over channels, with s the RMS of a channel over tokens (He et "
            "al. 2024, arXiv 2405.19279): 1 if all channels have the same RMS.",
            "ratio",
        ),
        Column(
            "infinity_norm",
            "float64",
            "Largest |x| of a sequence, mean over the sequences with a finite value, with the same "
            "weight for sequences of any length (Bondarenko et al. 2023).",
            "activation",
        ),
        Column("rms", "float64", "Root of the mean of x^2 over all values.", "activation"),
        Column("crest_factor", "float64", "Largest |x| / rms.", "ratio"),
        Column(
            "mmr_median",
            "float64",
            "Largest / median of |x| over the channels of a token (He et al. 2024), median over "
            "tokens with a value other than 0. Both medians are the lower of two middle values; "
            "the median over tokens is rounded, relative error <= 2^-9. The ratio is infinite if "
            "the median of |x| is 0.",
            "ratio",
        ),
        Column(
            "mmr_max",
            "float64",
            "Largest ratio of the largest to the median |x| of a token; exact.",
            "ratio",
        ),
        *map(_norm, QUANTILES),
        *intervals("kurtosis_token", "kurtosis_token_max", "mmr_max", unit="ratio"),
        *intervals("infinity_norm", unit="activation"),
    ),
)

DESCRIPTION = Description("layer_measures", (LAYER_MEASURES,))
