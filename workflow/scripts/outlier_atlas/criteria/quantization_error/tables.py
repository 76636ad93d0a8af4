"""The table of quantization errors."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LAYER, SITE, Column, Table, intervals

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
            "string",
            "int8: symmetric, scale max|x| / 127. fp8_e4m3: scale max|x| / 448. mxfp8 (e4m3) and "
            "mxfp4 (e2m1): scale 2^(floor(log2 max|x|) - emax), OCP Microscaling Formats v1.0. "
            "nvfp4: e2m1, e4m3 scale max|x| / 6, float32 scale max|x| / 2688 of the tensor.",
        ),
        Column("scale_of", "string", "What has a scale of its own; blocks are of channels."),
        Column(
            "outlier_channels",
            "string",
            "quantized: all channels are rounded. kept: as in LLM.int8(), those with |x| >= "
            "detection.quantization_error.threshold in this tensor are left as they are. Their "
            "error is 0 then, and they raise no scale of the others. Both are over the same "
            "values: rmse, mae and sqnr say what a mixed-precision layer gets.",
        ),
        Column("most_outlier_channels", "int32", "The most that a tensor has.", "count"),
        Column("values", "int64", "Number of values, those of kept channels among them.", "count"),
        Column("rmse", "float64", "Root of the mean of e^2, e the error.", "activation"),
        Column("mae", "float64", "Mean of |e|.", "activation"),
        Column(
            "sqnr",
            "float64",
            "10 log10(sum x^2 / sum e^2), both sums over all channels; empty without error or "
            "without signal.",
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
