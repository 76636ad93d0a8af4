"""The tables of weights: those of the checkpoint alone, and those that activations join."""

from __future__ import annotations

from outlier_atlas.tables.table import CHANNEL, LAYER, SITE, Column, Table, intervals

WEIGHT = Column(
    "weight",
    "string",
    "Name of the tensor in the checkpoint; of a quantized one without the ending of its packing.",
)

EXPERT = Column("expert", "int32", "Expert, 0-based; empty of what is not of one expert.", "index")

WEIGHT_SITE = Column(
    "site",
    "string",
    "Site that it is multiplied with; empty where that cannot be told, and inside of experts.",
)

STORED_TYPE = Column(
    "dtype",
    "string",
    "Type in which the checkpoint stores it: float32, bfloat16, ...; of a quantized one that of "
    "its codes (float8_e4m3fn, mxfp4), of a GGUF file its own name (F16, Q4_K, ...). In all but "
    "float32, float16 and bfloat16 the values had been rounded before they were measured.",
)

STORED_VALUES = (
    "Values are those of the checkpoint, in float32: not rounded to the dtype of a run, and where "
    "they are quantized, dequantized."
)

WEIGHTS = Table(
    "weights",
    "Every weight matrix of the decoder, and its embedding and head: the largest |w| and the "
    f"kurtosis. By layer and name; tied weights once. {STORED_VALUES} Empty where weights were not "
    "measured (weights.measure).",
    (
        Column("layer", "int32", "Layer, 0-based; empty outside of the layers.", "index"),
        WEIGHT,
        EXPERT,
        Column(
            "kind",
            "string",
            "linear, experts, embedding (also where it is the head's weight, too) or lm_head.",
        ),
        WEIGHT_SITE,
        STORED_TYPE,
        Column("rows", "int64", "Number of output channels; of an embedding its entries.", "count"),
        Column("columns", "int64", "Number of input channels.", "count"),
        Column(
            "value",
            "float32",
            "The finite value with the largest |w|, with its sign; the first by row and column of "
            "equals.",
            "weight",
        ),
        Column("row", "int64", "Its output channel, 0-based: W[row, column].", "index"),
        Column("column", "int64", "Its input channel, 0-based.", "index"),
        Column("mean", "float64", "Mean over all values.", "weight"),
        Column(
            "kurtosis",
            "float64",
            "Kurtosis over all values, mu4 / sigma^4 with central moments of the whole matrix: 3 "
            "for a Gaussian (Bondarenko et al. 2023, arXiv 2306.12929). NaN where all are equal.",
            "ratio",
        ),
        Column("not_finite", "int64", "NaN and infinite values; left out of all else.", "count"),
    ),
)

WEIGHT_ERRORS = Table(
    "weight_errors",
    "What number formats do to every weight matrix: the error of quantizing it and dequantizing it "
    "again, without calibration, clipping or a rotation. Rounding is to nearest, ties to even. "
    f"{STORED_VALUES} Of a weight that the checkpoint stores rounded (`dtype`) the error is that "
    "of rounding it once more.",
    (
        Column("layer", "int32", "Layer, 0-based; empty outside of the layers.", "index"),
        WEIGHT,
        EXPERT,
        STORED_TYPE,
        Column(
            "format",
            "string",
            "int8: symmetric, scale = maximum / 127. fp8_e4m3: scale = maximum / 448. mxfp8, "
            "mxfp4: OCP MX v1.0, e4m3 and e2m1 elements, scale = 2^(floor(log2 maximum) - emax), "
            "emax 8 and 2. nvfp4: e2m1 elements, an e4m3 scale = maximum / 6 for each block, times "
            "a float32 one for the tensor, maximum / (6 x 448).",
        ),
        Column(
            "granularity",
            "string",
            "What shares a scale: tensor, output channel, or block of so many values along the "
            "input channels.",
        ),
        Column("rmse", "float64", "Root of the mean of e^2; e: what comes back minus w.", "weight"),
        Column("mae", "float64", "Mean of |e|.", "weight"),
        Column(
            "sqnr",
            "float64",
            "Signal to quantization noise in dB, 10 log10(sum w^2 / sum e^2); infinite without an "
            "error, NaN of zeros only.",
            "dB",
        ),
    ),
)

WEIGHT_CHANNELS = Table(
    "weight_channels",
    "Of every weight matrix the largest |w| of each input and of each output channel. A Parquet "
    f"file alone, kept with the model in resources/weights/. {STORED_VALUES}",
    (
        Column("layer", "int32", "Layer, 0-based; empty outside of the layers.", "index"),
        WEIGHT,
        EXPERT,
        WEIGHT_SITE,
        Column(
            "input_maxima",
            "list<float32>",
            "Of each input channel the finite value with the largest |w|, with its sign; the "
            "positive one of equals.",
            "weight",
        ),
        Column("output_maxima", "list<float32>", "Of each output channel, likewise.", "weight"),
    ),
)

SMOOTHQUANT_SCALES = Table(
    "smoothquant_scales",
    "SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, equation 4): for each input channel of "
    "linear layers the scale that activations are divided by and weights multiplied with. At those "
    "of the sites attn_in, attn_hidden, mlp_in and mlp_hidden that were measured; empty where "
    "weights were not.",
    (
        SITE,
        LAYER,
        CHANNEL,
        Column(
            "activation_max",
            "float32",
            "Largest |x| of the channel, over all tokens.",
            "activation",
        ),
        Column(
            "weight_max",
            "float32",
            "Largest |w| of the input channel over all matrices that the site is multiplied with: "
            "queries, keys and values; gate and up projections, all experts and their router.",
            "weight",
        ),
        Column(
            "scale",
            "float64",
            "activation_max^alpha / weight_max^(1 - alpha), alpha = detection.smoothquant.alpha; "
            "empty where one of the two is zero or not known.",
            "ratio",
        ),
        *intervals("activation_max", unit="activation"),
    ),
)

WEIGHT_TABLES: tuple[Table, ...] = (WEIGHTS, WEIGHT_ERRORS, SMOOTHQUANT_SCALES)
"""Those of a run that its activations have no part in, or none alone."""
