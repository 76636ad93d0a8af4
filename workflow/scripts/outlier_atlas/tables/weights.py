"""The tables of weights: those of the checkpoint only, and those that also need activations."""

from __future__ import annotations

from outlier_atlas.tables.table import CHANNEL, LAYER, SITE, Column, Table, intervals

WEIGHT = Column(
    "weight",
    "string",
    "Name of the tensor in the checkpoint; a quantized tensor is named without the suffix of its "
    "packed parts.",
)

EXPERT = Column(
    "expert",
    "int32",
    "Expert, 0-based; empty for weights that do not belong to one expert.",
    "index",
)

WEIGHT_SITE = Column(
    "site",
    "string",
    "Site whose activations the matrix multiplies; empty if it is not known, and inside experts.",
)

STORED_TYPE = Column(
    "dtype",
    "string",
    "Type in the checkpoint: float32, bfloat16, ...; for a quantized tensor the type of its codes "
    "(float8_e4m3fn, mxfp4), in a GGUF file the file's own name of the type (F16, Q4_K, ...). In "
    "all types except float32, float16 and bfloat16, the values were rounded before they were "
    "measured.",
)

STORED_VALUES = (
    "Values are those of the checkpoint in float32, without rounding to the dtype of a run; "
    "quantized values are dequantized."
)

WEIGHTS = Table(
    "weights",
    "The largest |w| and the kurtosis of every weight matrix of the decoder, of the embedding and "
    f"of the head. Sorted by layer and name; tied weights appear once. {STORED_VALUES} Empty if "
    "weights were not measured (weights.measure).",
    (
        Column("layer", "int32", "Layer, 0-based; empty outside the layers.", "index"),
        WEIGHT,
        EXPERT,
        Column(
            "kind",
            "string",
            "linear, experts, embedding (also if the head shares the weight) or lm_head.",
        ),
        WEIGHT_SITE,
        STORED_TYPE,
        Column(
            "rows",
            "int64",
            "Number of output channels; for an embedding the number of its entries.",
            "count",
        ),
        Column("columns", "int64", "Number of input channels.", "count"),
        Column(
            "value",
            "float32",
            "The finite value with the largest |w|, with its sign; among equals the first by row "
            "and column.",
            "weight",
        ),
        Column("row", "int64", "Output channel of value, 0-based: W[row, column].", "index"),
        Column("column", "int64", "Input channel of value, 0-based.", "index"),
        Column("mean", "float64", "Mean over all finite values.", "weight"),
        Column(
            "kurtosis",
            "float64",
            "Kurtosis over all finite values, mu4 / sigma^4 with central moments of the whole "
            "matrix: 3 for a Gaussian (Bondarenko et al. 2023, arXiv 2306.12929). NaN if all "
            "values are equal.",
            "ratio",
        ),
        Column(
            "not_finite",
            "int64",
            "Number of NaN and infinite values; all other columns exclude them.",
            "count",
        ),
    ),
)

WEIGHT_ERRORS = Table(
    "weight_errors",
    "The error of quantizing and dequantizing every weight matrix in several number formats, "
    "without calibration, clipping or rotation. Values are rounded to nearest, ties to even. "
    f"{STORED_VALUES} For a weight that the checkpoint stores rounded (`dtype`), the error is that "
    "of rounding it a second time.",
    (
        Column("layer", "int32", "Layer, 0-based; empty outside the layers.", "index"),
        WEIGHT,
        EXPERT,
        STORED_TYPE,
        Column(
            "format",
            "string",
            "int8: symmetric, scale = maximum / 127. fp8_e4m3: scale = maximum / 448. mxfp8, "
            "mxfp4: OCP MX v1.0, e4m3 and e2m1 elements, scale = 2^(floor(log2 maximum) - emax), "
            "emax 8 and 2. nvfp4: e2m1 elements, an e4m3 scale = maximum / 6 for each block, times "
            "a float32 scale for the tensor, maximum / (6 x 448).",
        ),
        Column(
            "granularity",
            "string",
            "The values that share a scale: those of the tensor, of an output channel, or of a "
            "block of 16 or 32 values along the input channels.",
        ),
        Column(
            "rmse",
            "float64",
            "Root of the mean of e^2, with e the dequantized value minus w.",
            "weight",
        ),
        Column("mae", "float64", "Mean of |e|.", "weight"),
        Column(
            "sqnr",
            "float64",
            "Signal to quantization noise ratio in dB, 10 log10(sum w^2 / sum e^2); infinite "
            "without an error, NaN if all values are zero.",
            "dB",
        ),
    ),
)

WEIGHT_CHANNELS = Table(
    "weight_channels",
    "The largest |w| of each input channel and of each output channel of every weight matrix. Only "
    f"a Parquet file, stored with the model in resources/weights/. {STORED_VALUES}",
    (
        Column("layer", "int32", "Layer, 0-based; empty outside the layers.", "index"),
        WEIGHT,
        EXPERT,
        WEIGHT_SITE,
        Column(
            "input_maxima",
            "list<float32>",
            "The finite value with the largest |w| of each input channel, with its sign; among "
            "equals the positive one.",
            "weight",
        ),
        Column(
            "output_maxima",
            "list<float32>",
            "The finite value with the largest |w| of each output channel, as in input_maxima.",
            "weight",
        ),
    ),
)

SMOOTHQUANT_SCALES = Table(
    "smoothquant_scales",
    "SmoothQuant scales (Xiao et al. 2023, arXiv 2211.10438, equation 4): the factor by which the "
    "activations of each input channel of linear layers are divided and the weights multiplied. "
    "The sites are those of attn_in, attn_hidden, mlp_in and mlp_hidden that were measured. Empty "
    "if weights were not measured.",
    (
        SITE,
        LAYER,
        CHANNEL,
        Column(
            "activation_max",
            "float32",
            "Largest |x| of the channel over all tokens.",
            "activation",
        ),
        Column(
            "weight_max",
            "float32",
            "Largest |w| of the input channel over all matrices that multiply the site: those of "
            "queries, keys and values; gate and up projections, all experts and their router.",
            "weight",
        ),
        Column(
            "scale",
            "float64",
            "activation_max^alpha / weight_max^(1 - alpha), alpha = detection.smoothquant.alpha; "
            "empty if one of the two is zero or unknown.",
            "ratio",
        ),
        *intervals("activation_max", unit="activation"),
    ),
)

WEIGHT_TABLES: tuple[Table, ...] = (WEIGHTS, WEIGHT_ERRORS, SMOOTHQUANT_SCALES)
"""The tables of a run that come from its weights, with or without its activations."""
