"""The tables of measures: how the values of a site and layer are distributed."""

from __future__ import annotations

import pyarrow as pa

from outlier_atlas.tables.table import LAYER, SITE, Column, Table, intervals

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
"""Of norms over tokens."""


def _norm(quantile: float) -> Column:
    return Column(
        norm_name(quantile),
        pa.float64(),
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
        Column("tokens", pa.int64(), "Tokens that are not left out.", "count"),
        Column(
            "kurtosis_token",
            pa.float64(),
            "Kurtosis of a token over its channels, mean over the tokens that have one: whose "
            "values are not all equal (Elhage et al. 2023).",
            "ratio",
        ),
        Column("kurtosis_token_max", pa.float64(), "The same, largest of a token.", "ratio"),
        Column(
            "kurtosis_tensor",
            pa.float64(),
            "Kurtosis of all values of the layer together (Bondarenko et al. 2023).",
            "ratio",
        ),
        Column(
            "kurtosis_channel",
            pa.float64(),
            "Kurtosis of a channel over tokens, mean over the channels that have one.",
            "ratio",
        ),
        Column(
            "kurtosis_channel_max",
            pa.float64(),
            "The same, largest of a channel. Without an interval: it would take moments of every "
            "channel in every sequence.",
            "ratio",
        ),
        Column(
            "kurtosis_rms",
            pa.float64(),
            "mean s^4 / (mean s^2)^2 over channels, s the RMS of a channel over tokens (He et al. "
            "2024, arXiv 2405.19279): 1 where all channels are alike.",
            "ratio",
        ),
        Column(
            "infinity_norm",
            pa.float64(),
            "Largest |x| of a sequence, mean over the sequences that have a finite value, each "
            "with the same weight, whatever its length (Bondarenko et al. 2023).",
            "activation",
        ),
        Column("rms", pa.float64(), "Root of the mean of x^2 over all values.", "activation"),
        Column("crest_factor", pa.float64(), "Largest |x| / rms.", "ratio"),
        Column(
            "mmr_median",
            pa.float64(),
            "Largest / median of |x| over the channels of a token (He et al. 2024), median over "
            "tokens with a value other than 0; both medians the lower of two middle ones, this one "
            "rounded, relative error <= 2^-9. Infinite where the median of |x| is 0.",
            "ratio",
        ),
        Column("mmr_max", pa.float64(), "The same, largest of a token; exact.", "ratio"),
        *map(_norm, QUANTILES),
        *intervals("kurtosis_token", "kurtosis_token_max", "mmr_max", unit="ratio"),
        *intervals("infinity_norm", unit="activation"),
    ),
)

QUANTIZATION_ERROR = Table(
    "quantization_error",
    "Per site, layer and format: the error of rounding. A tensor is the tokens of one sequence "
    "within one chunk (extraction.advanced.chunk_tokens); errors are summed over all of them. "
    "Tokens with NaN or infinite values are left out. Rounding is to nearest, ties to even.",
    (
        SITE,
        LAYER,
        Column(
            "format",
            pa.string(),
            "int8: symmetric, scale max|x| / 127. fp8_e4m3: scale max|x| / 448. mxfp8 (e4m3) and "
            "mxfp4 (e2m1): scale 2^(floor(log2 max|x|) - emax), OCP Microscaling Formats v1.0. "
            "nvfp4: e2m1, e4m3 scale max|x| / 6, float32 scale max|x| / 2688 of the tensor.",
        ),
        Column("scale_of", pa.string(), "What has a scale of its own; blocks are of channels."),
        Column(
            "outlier_channels",
            pa.string(),
            "quantized: all channels are rounded. kept: as in LLM.int8(), those with |x| >= "
            "detection.quantization_error.threshold in this tensor are left as they are. Their "
            "error is 0 then, and they raise no scale of the others. Both are over the same "
            "values: rmse, mae and sqnr say what a mixed-precision layer gets.",
        ),
        Column("most_outlier_channels", pa.int32(), "The most that a tensor has.", "count"),
        Column(
            "values", pa.int64(), "Number of values, those of kept channels among them.", "count"
        ),
        Column("rmse", pa.float64(), "Root of the mean of e^2, e the error.", "activation"),
        Column("mae", pa.float64(), "Mean of |e|.", "activation"),
        Column(
            "sqnr",
            pa.float64(),
            "10 log10(sum x^2 / sum e^2), both sums over all channels; empty without error or "
            "without signal.",
            "dB",
        ),
        *intervals("most_outlier_channels", unit="count"),
    ),
)
