"""The table of quantization errors."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LAYER, SITE, Column, Table, intervals

QUANTIZATION_ERROR = Table(
    "quantization_error",
    "The error of rounding for each site, layer and format. A tensor is the tokens of one sequence "
    "within one chunk (extraction.advanced.chunk_tokens); errors are summed over all tensors. "
    "Tokens with NaN or infinite values are excluded. Rounding is to nearest, ties to even.",
    (
        SITE,
        LAYER,
        Column(
            "format",
            "string",
            "int8: symmetric, scale max|x| / 127. fp8_e4m3: scale max|x| / 448. mxfp8 (e4m3) and "
            "mxfp4 (e2m1): scale 2^(floor(log2 max|x|) - emax), OCP Microscaling Formats v1.0. "
            "nvfp4: e2m1, e4m3 scale max|x| / 6, float32 scale max|x| / 2688 of the tensor.",
        ),
        Column("scale_of", "string", "The values that share a scale; blocks consist of channels."),
        Column(
            "outlier_channels",
            "string",
            "quantized: all channels are rounded. kept: as in LLM.int8(), channels with |x| >= "
            "detection.quantization_error.threshold in this tensor are not rounded. Their error is "
            "then 0, and they do not increase the scales of the others. Both variants are over the "
            "same values, so rmse, mae and sqnr of kept describe the input of a mixed-precision "
            "layer.",
        ),
        Column(
            "most_outlier_channels",
            "int32",
            "Largest number of outlier channels of a tensor.",
            "count",
        ),
        Column("values", "int64", "Number of values, including those of kept channels.", "count"),
        Column("rmse", "float64", "Root of the mean of e^2, with e the error.", "activation"),
        Column("mae", "float64", "Mean of |e|.", "activation"),
        Column(
            "sqnr",
            "float64",
            "10 log10(sum x^2 / sum e^2), with both sums over all channels; empty if the error or "
            "the signal is zero.",
            "dB",
        ),
        *intervals("most_outlier_channels", unit="count"),
    ),
)

DESCRIPTION = Description(
    "quantization_error",
    (QUANTIZATION_ERROR,),
    ("quantization_error",),
)
