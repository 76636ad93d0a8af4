"""The tables of a run: their columns, units and definitions, written as Parquet and CSV.

One row a finding, in a fixed order, the same from run to run. The definition of a column
and its unit travel in the Parquet file itself, as the field's metadata `definition` and `unit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from outlier_atlas.files import replacing, write_whole
from outlier_atlas.measure_tables import MEASURE_TABLES
from outlier_atlas.sink_tables import SINK_TABLES
from outlier_atlas.table import (
    CHANNEL,
    LAYER,
    POSITION,
    SEQUENCE,
    SITE,
    TOKEN_ID,
    TOKEN_INDEX,
    TOKEN_TEXT,
    Column,
    Table,
    intervals,
)
from outlier_atlas.token_tables import TOKEN_TABLES

__all__ = ["Column", "Table"]

CRITERIA = Table(
    "criteria",
    "Each criterion: whether it was measured, on which sites, and how many findings it has.",
    (
        Column("criterion", pa.string(), "Name of the criterion, as in the configuration."),
        Column("measured", pa.bool_(), "Whether all of its sites were measured."),
        Column("sites", pa.string(), "Sites it is defined on in this run, separated by spaces."),
        Column("missing_sites", pa.string(), "Those of its sites that were not measured."),
        Column(
            "findings",
            pa.int64(),
            "Number of findings: channels of llm_int8, values of massive_activations, layers of "
            "super_weights, experts of super_experts, heads that sink on the first token of "
            "attention_sinks, tokens of the others. "
            "Empty where the criterion was not measured.",
            "count",
        ),
        Column("definition", pa.string(), "The criterion in one sentence, with its thresholds."),
    ),
)

LAYER_MAGNITUDES = Table(
    "layer_magnitudes",
    "Per site and layer: the three largest |x| and the median of |x| over all tokens and channels.",
    (
        SITE,
        LAYER,
        Column(
            "top1", pa.float32(), "Largest |x| over all finite values of the layer.", "activation"
        ),
        Column(
            "top2",
            pa.float32(),
            "Second largest |x| (another value, perhaps as large).",
            "activation",
        ),
        Column("top3", pa.float32(), "Third largest |x|.", "activation"),
        Column(
            "median",
            pa.float32(),
            "Median of |x| over all tokens and channels of the layer, the lower of the two middle "
            "values. Exact for bfloat16; otherwise rounded to bfloat16, relative error <= 2^-8.",
            "activation",
        ),
        Column("value", pa.float32(), "The value behind top1, with its sign.", "activation"),
        CHANNEL,
        TOKEN_INDEX,
        SEQUENCE,
        POSITION,
        TOKEN_ID,
        TOKEN_TEXT,
        Column("values", pa.int64(), "Number of values: tokens x channels.", "count"),
        Column(
            "nan",
            pa.int64(),
            "Number of values that are NaN; left out of all other columns.",
            "count",
        ),
        Column("infinite", pa.int64(), "Number of infinite values; left out likewise.", "count"),
        *intervals("top1", unit="activation"),
    ),
)


CHANNEL_MAXIMA = Table(
    "channel_maxima",
    "Per site, layer and channel: the value largest in |x| over all tokens, and where it is.",
    (
        SITE,
        LAYER,
        CHANNEL,
        Column(
            "value",
            pa.float32(),
            "The finite value with the largest |x| (the first of equals).",
            "activation",
        ),
        TOKEN_INDEX,
        SEQUENCE,
        POSITION,
    ),
)

LLM_INT8_FEATURES = Table(
    "llm_int8_features",
    "LLM.int8(): a row for each channel with at least one value |x| >= threshold at the "
    "criterion's sites, outlier features first.",
    (
        CHANNEL,
        Column(
            "outlier_feature",
            pa.bool_(),
            "Whether the channel passes both shares, as the configuration defines them.",
        ),
        Column(
            "layers",
            pa.int32(),
            "Layers with an outlier of this channel at any of the sites.",
            "count",
        ),
        Column(
            "tensors",
            pa.int32(),
            "Tensors (layer and site) with an outlier of this channel.",
            "count",
        ),
        Column("layer_share_layers", pa.float64(), "layers / measured layers.", "share"),
        Column(
            "layer_share_tensors",
            pa.float64(),
            "tensors / measured tensors (layers x sites).",
            "share",
        ),
        Column(
            "position_share_union",
            pa.float64(),
            "Share of all positions (sequence, position) with an outlier of this channel in at "
            "least one tensor.",
            "share",
        ),
        Column(
            "position_share_mean",
            pa.float64(),
            "Share of positions with an outlier, mean over the affected tensors.",
            "share",
        ),
        Column(
            "position_share_max",
            pa.float64(),
            "Share of positions with an outlier in the tensor that has most.",
            "share",
        ),
        Column(
            "outlier_values",
            pa.int64(),
            "Number of values |x| >= threshold, over all tensors.",
            "count",
        ),
        Column("positive_share", pa.float64(), "Share of them that are positive.", "share"),
        Column(
            "sidedness", pa.string(), "one-sided: all outlier values have one sign; two-sided: not."
        ),
        Column(
            "quartile1",
            pa.float32(),
            "First quartile of the outlier values (signed; lower of two neighbours). Exact for "
            "bfloat16; otherwise rounded to bfloat16, relative error <= 2^-8.",
            "activation",
        ),
        Column("median", pa.float32(), "Median of the outlier values, likewise.", "activation"),
        Column(
            "quartile3",
            pa.float32(),
            "Third quartile of the outlier values, likewise.",
            "activation",
        ),
        Column(
            "value",
            pa.float32(),
            "The outlier value with the largest |x|, with its sign.",
            "activation",
        ),
        *intervals(
            "layer_share_layers",
            "layer_share_tensors",
            "position_share_union",
            "position_share_mean",
            "position_share_max",
            "positive_share",
            unit="share",
        ),
    ),
)


LLM_INT8_VARIANTS = Table(
    "llm_int8_variants",
    "LLM.int8(): how many outlier features each reading of the two shares gives.",
    (
        Column("layer_share_over", pa.string(), "What the layer share counts: layers or tensors."),
        Column("position_share_by", pa.string(), "The position share: union, mean or max."),
        Column("configured", pa.bool_(), "Whether this is the reading that the run configures."),
        Column(
            "outlier_features", pa.int64(), "Channels that are outlier features so read.", "count"
        ),
        Column("channels", pa.string(), "Those channels, ascending, separated by spaces."),
    ),
)

MASSIVE_ACTIVATIONS = Table(
    "massive_activations",
    "A row for each massive activation: value, place and token; by layer, token and channel.",
    (
        SITE,
        LAYER,
        SEQUENCE,
        POSITION,
        CHANNEL,
        TOKEN_INDEX,
        TOKEN_ID,
        TOKEN_TEXT,
        Column("value", pa.float32(), "The activation, with its sign.", "activation"),
        Column(
            "tensor_median",
            pa.float32(),
            "Median of |x| over all tokens and channels of this sequence in this layer, the lower "
            "of the two middle values. Exact for bfloat16; otherwise rounded to bfloat16, relative "
            "error <= 2^-8.",
            "activation",
        ),
        Column("tensor_median_ratio", pa.float64(), "|value| / tensor_median.", "ratio"),
        Column(
            "token_median",
            pa.float32(),
            "Median of |x| over the channels of this token, the lower of the two middle values.",
            "activation",
        ),
        Column("token_median_ratio", pa.float64(), "|value| / token_median.", "ratio"),
    ),
)

MASSIVE_CHANNELS = Table(
    "massive_channels",
    "The massive activations by layer and channel.",
    (
        SITE,
        LAYER,
        CHANNEL,
        Column(
            "massive_activations",
            pa.int64(),
            "Massive activations in this layer and channel.",
            "count",
        ),
        Column("sequences", pa.int64(), "Sequences that have at least one.", "count"),
        Column(
            "first_position_share",
            pa.float64(),
            "Share of them at position 0 of a sequence.",
            "share",
        ),
        Column("value", pa.float32(), "The largest of them in |x|, with its sign.", "activation"),
        Column("tensor_median_ratio", pa.float64(), "Its |value| / tensor_median.", "ratio"),
        SEQUENCE,
        POSITION,
        TOKEN_ID,
        TOKEN_TEXT,
    ),
)

EXPERT_MAGNITUDES = Table(
    "expert_magnitudes",
    "Per layer and routed expert: its tokens, and its largest |down_proj output| over all of them, "
    "with the bias, before the router's weight and before any norm behind it; where it is. Empty "
    "where expert_out was not measured.",
    (
        LAYER,
        Column("expert", pa.int32(), "Expert, 0-based, by the model's own numbering.", "index"),
        Column("tokens", pa.int64(), "Number of tokens routed to it.", "count"),
        Column(
            "token_share",
            pa.float64(),
            "tokens / all tokens of the run. Over the experts of a layer the shares add up to the "
            "number of experts that a token is routed to.",
            "share",
        ),
        Column(
            "enough_tokens",
            pa.bool_(),
            "Whether it saw at least detection.experts.min_tokens tokens.",
        ),
        Column(
            "value",
            pa.float32(),
            "The finite down_proj output with the largest |x|, with its sign (the first of "
            "equals); empty where there is none.",
            "activation",
        ),
        CHANNEL,
        TOKEN_INDEX,
        SEQUENCE,
        POSITION,
        TOKEN_ID,
        TOKEN_TEXT,
        Column("nan", pa.int64(), "Tokens with a NaN in its output; left out of value.", "count"),
        Column(
            "infinite",
            pa.int64(),
            "Tokens whose largest |x| is infinite; left out likewise.",
            "count",
        ),
    ),
)

WEIGHT = Column(
    "weight",
    pa.string(),
    "Name of the tensor in the checkpoint; of a quantized one without the ending of its packing.",
)
EXPERT = Column("expert", pa.int32(), "Expert, 0-based; empty of what is not of one expert.")
WEIGHT_SITE = Column(
    "site",
    pa.string(),
    "Site that it is multiplied with; empty where that cannot be told, and inside of experts.",
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
        Column("layer", pa.int32(), "Layer, 0-based; empty outside of the layers."),
        WEIGHT,
        EXPERT,
        Column(
            "kind",
            pa.string(),
            "linear, experts, embedding (also where it is the head's weight, too) or lm_head.",
        ),
        WEIGHT_SITE,
        Column("dtype", pa.string(), "In which it is stored; of a quantized one its codes."),
        Column("rows", pa.int64(), "Number of output channels; of an embedding its entries."),
        Column("columns", pa.int64(), "Number of input channels."),
        Column(
            "value",
            pa.float32(),
            "The finite value with the largest |w|, with its sign; the first by row and column of "
            "equals.",
        ),
        Column("row", pa.int64(), "Its output channel, 0-based: W[row, column]."),
        Column("column", pa.int64(), "Its input channel, 0-based."),
        Column("mean", pa.float64(), "Mean over all values."),
        Column(
            "kurtosis",
            pa.float64(),
            "Kurtosis over all values, mu4 / sigma^4 with central moments of the whole matrix: 3 "
            "for a Gaussian (Bondarenko et al. 2023, arXiv 2306.12929). NaN where all are equal.",
        ),
        Column("not_finite", pa.int64(), "NaN and infinite values; left out of all else."),
    ),
)

WEIGHT_ERRORS = Table(
    "weight_errors",
    "What number formats do to every weight matrix: the error of quantizing it and dequantizing it "
    "again, without calibration, clipping or a rotation. Rounding is to nearest, ties to even. "
    f"{STORED_VALUES}",
    (
        Column("layer", pa.int32(), "Layer, 0-based; empty outside of the layers."),
        WEIGHT,
        EXPERT,
        Column(
            "format",
            pa.string(),
            "int8: symmetric, scale = maximum / 127. fp8_e4m3: scale = maximum / 448. mxfp8, "
            "mxfp4: OCP MX v1.0, e4m3 and e2m1 elements, scale = 2^(floor(log2 maximum) - emax), "
            "emax 8 and 2. nvfp4: e2m1 elements, an e4m3 scale = maximum / 6 for each block, times "
            "a float32 one for the tensor, maximum / (6 x 448).",
        ),
        Column(
            "granularity",
            pa.string(),
            "What shares a scale: tensor, output channel, or block of so many values along the "
            "input channels.",
        ),
        Column("rmse", pa.float64(), "Root of the mean of e^2; e: what comes back minus w."),
        Column("mae", pa.float64(), "Mean of |e|."),
        Column(
            "sqnr",
            pa.float64(),
            "Signal to quantization noise in dB, 10 log10(sum w^2 / sum e^2); infinite without an "
            "error, NaN of zeros only.",
        ),
    ),
)

WEIGHT_CHANNELS = Table(
    "weight_channels",
    "Of every weight matrix the largest |w| of each input and of each output channel. A Parquet "
    f"file alone, kept with the model in resources/weights/. {STORED_VALUES}",
    (
        Column("layer", pa.int32(), "Layer, 0-based; empty outside of the layers."),
        WEIGHT,
        EXPERT,
        WEIGHT_SITE,
        Column(
            "input_maxima",
            pa.list_(pa.float32()),
            "Of each input channel the finite value with the largest |w|, with its sign; the "
            "positive one of equals.",
        ),
        Column("output_maxima", pa.list_(pa.float32()), "Of each output channel, likewise."),
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
        Column("activation_max", pa.float32(), "Largest |x| of the channel, over all tokens."),
        Column(
            "weight_max",
            pa.float32(),
            "Largest |w| of the input channel over all matrices that the site is multiplied with: "
            "queries, keys and values; gate and up projections, all experts and their router.",
        ),
        Column(
            "scale",
            pa.float64(),
            "activation_max^alpha / weight_max^(1 - alpha), alpha = detection.smoothquant.alpha; "
            "empty where one of the two is zero or not known.",
        ),
    ),
)

WEIGHT_TABLES: tuple[Table, ...] = (WEIGHTS, WEIGHT_ERRORS, SMOOTHQUANT_SCALES)
"""Those of a run that its activations have no part in, or none alone."""

LOSS = Column(
    "loss",
    pa.float64(),
    "Mean over those tokens of the negative log-likelihood, in nats: each token given all before "
    "it in its own sequence, from the logits of the whole vocabulary in float32.",
    "nats",
)
PERPLEXITY_OF_LOSS = Column("perplexity", pa.float64(), "exp(loss).", "ratio")

PERPLEXITY = Table(
    "perplexity",
    "Perplexity of the run's own tokens, by sequence and over all. A token's context is its "
    "sequence from the start. Empty where extraction.perplexity is false.",
    (
        Column(
            "sequence",
            pa.int32(),
            "Sequence, 0-based; empty in the row over all sequences.",
            "index",
        ),
        Column(
            "tokens",
            pa.int64(),
            "Number of tokens that are predicted: all but the first of each sequence.",
            "count",
        ),
        LOSS,
        PERPLEXITY_OF_LOSS,
    ),
)

ABLATIONS = Table(
    "ablations",
    "Perplexity of held-out tokens, the sequences of the dataset after the run's own, with "
    "outliers taken away. The first row is the model as it is. Written where ablation.sequences is "
    "above 0.",
    (
        Column(
            "target",
            pa.string(),
            "What is altered: none; super_weight or weight (of a down projection); "
            "outlier_features, all of LLM.int8() together; massive_channel; channel.",
        ),
        Column(
            "site",
            pa.string(),
            "Of channels the sites at which they are set, separated by spaces.",
        ),
        Column("first_layer", pa.int32(), "First altered layer, 0-based.", "index"),
        Column(
            "last_layer",
            pa.int32(),
            "Last altered layer; all between that have the site are.",
            "index",
        ),
        Column("channels", pa.string(), "The channels, ascending, separated by spaces."),
        Column("row", pa.int32(), "Of a weight its row: the output channel, 0-based.", "index"),
        Column(
            "column", pa.int32(), "Of a weight its column: the input channel, 0-based.", "index"
        ),
        Column(
            "intervention",
            pa.string(),
            "none; zero: the weight is 0, or the site's value at the channels is 0 for all tokens; "
            "mean: it is the channel's mean over the run's tokens in that layer; random: as many "
            "other channels that are no target, or another weight of the same matrix, are 0.",
        ),
        Column("draw", pa.int32(), "Number of the random draw, 0-based.", "index"),
        Column(
            "tokens",
            pa.int64(),
            "Number of tokens that are predicted: all but the first of each held-out sequence.",
            "count",
        ),
        LOSS,
        PERPLEXITY_OF_LOSS,
        Column("ratio", pa.float64(), "perplexity / perplexity of the model as it is.", "ratio"),
    ),
)

TABLES: tuple[Table, ...] = (
    CRITERIA,
    LAYER_MAGNITUDES,
    CHANNEL_MAXIMA,
    LLM_INT8_FEATURES,
    LLM_INT8_VARIANTS,
    MASSIVE_ACTIVATIONS,
    MASSIVE_CHANNELS,
    EXPERT_MAGNITUDES,
    *TOKEN_TABLES,
    *MEASURE_TABLES,
    *SINK_TABLES,
    PERPLEXITY,
)
"""Those that the detection stage writes."""

FORMATS = ("parquet", "csv")

ROWS_TOGETHER = 64
"""Rows that are written together where rows are long."""


def write(folder: Path, table: Table, columns: Mapping[str, Any]) -> None:
    """Write a table as Parquet and as CSV; each file appears whole or not at all.

    Args:
        folder: the run's `tables` folder; made where it is missing.
        table: its description.
        columns: its values, all equally long; the names must be those of the description.
    """
    assert set(columns) == {column.name for column in table.columns}, table.name
    data = pa.table({name: columns[name] for name in table.schema.names}, schema=table.schema)
    for ending, write_table in (("parquet", _write_parquet), ("csv", pa.csv.write_csv)):
        content = pa.BufferOutputStream()
        write_table(data, content)
        write_whole(folder / f"{table.name}.{ending}", content.getvalue().to_pybytes())


def _write_parquet(data: pa.Table, content: pa.BufferOutputStream) -> None:
    pa.parquet.write_table(data, content, compression="zstd")


@contextmanager
def streaming(folder: Path, table: Table) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write a table that is too large to be held, as Parquet alone: gives what takes each row.

    The file appears when the block ends without an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting: list[Mapping[str, Any]] = []
    with (
        replacing(folder / f"{table.name}.parquet") as path,
        pa.parquet.ParquetWriter(path, table.schema, compression="zstd") as writer,
    ):

        def flush() -> None:
            columns = {name: [row[name] for row in waiting] for name in table.schema.names}
            writer.write_table(pa.table(columns, schema=table.schema))
            waiting.clear()

        def write_row(row: Mapping[str, Any]) -> None:
            waiting.append(row)
            if len(waiting) == ROWS_TOGETHER:
                flush()

        yield write_row
        flush()


def read(folder: Path, table: Table) -> pa.Table:
    """A table that `write` wrote."""
    return pa.parquet.read_table(folder / f"{table.name}.parquet", schema=table.schema)


def dictionary() -> str:
    """The data dictionary in Markdown: every table, every column, its type and its definition."""
    lines = ["# The tables of a run", "", "Generated by `make docs`; do not edit.", ""]
    for table in (*TABLES, *WEIGHT_TABLES, WEIGHT_CHANNELS, ABLATIONS):
        lines += [f"## {table.name}", "", table.about, "", "| column | type | unit | definition |"]
        lines += ["|---|---|---|---|"]
        lines += [_described(column) for column in table.columns]
        lines.append("")
    return "\n".join(lines)


def _described(column: Column) -> str:
    definition = column.definition.replace("|", r"\|")
    return f"| `{column.name}` | {column.type} | {column.unit} | {definition} |"
