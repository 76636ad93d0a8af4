"""The tables of a run: their columns, units and definitions, written as Parquet and CSV.

One row a finding, in a fixed order, the same from run to run. The definition of a column travels
in the Parquet file itself, as the field's `definition` metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from outlier_atlas.files import replacing


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, its type and what it means."""

    name: str
    type: pa.DataType
    definition: str


@dataclass(frozen=True)
class Table:
    """A table that a run writes, described."""

    name: str
    about: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        fields = [
            pa.field(column.name, column.type, metadata={"definition": column.definition})
            for column in self.columns
        ]
        return pa.schema(fields, metadata={"table": self.name, "about": self.about})


SITE = Column("site", pa.string(), "Site: where in the block the value was measured.")
LAYER = Column("layer", pa.int32(), "Layer, 0-based, by the model's own numbering.")
CHANNEL = Column("channel", pa.int32(), "Channel: index along the last axis, 0-based.")
TOKEN_INDEX = Column("token_index", pa.int64(), "Index along the store's token axis, 0-based.")
SEQUENCE = Column("sequence", pa.int32(), "Sequence, 0-based.")
POSITION = Column("position", pa.int32(), "Position of the token in its sequence, 0-based.")
TOKEN_ID = Column("token_id", pa.int32(), "The tokenizer's id of the token.")
TOKEN_TEXT = Column("token_text", pa.string(), "The token's own text, special tokens by name.")

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
            "Number of findings: outlier features (channels), massive activations (values), heads "
            "that sink on the first token. "
            "Empty where the criterion was not measured.",
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
        Column("top1", pa.float32(), "Largest |x| over all finite values of the layer."),
        Column("top2", pa.float32(), "Second largest |x| (another value, perhaps as large)."),
        Column("top3", pa.float32(), "Third largest |x|."),
        Column(
            "median",
            pa.float32(),
            "Median of |x| over all tokens and channels of the layer, the lower of the two middle "
            "values. Exact for bfloat16; otherwise rounded to bfloat16, relative error <= 2^-8.",
        ),
        Column("value", pa.float32(), "The value behind top1, with its sign."),
        CHANNEL,
        TOKEN_INDEX,
        SEQUENCE,
        POSITION,
        TOKEN_ID,
        TOKEN_TEXT,
        Column("values", pa.int64(), "Number of values: tokens x channels."),
        Column("nan", pa.int64(), "Number of values that are NaN; left out of all other columns."),
        Column("infinite", pa.int64(), "Number of infinite values; left out likewise."),
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
            "value", pa.float32(), "The finite value with the largest |x| (the first of equals)."
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
        Column("layers", pa.int32(), "Layers with an outlier of this channel at any of the sites."),
        Column("tensors", pa.int32(), "Tensors (layer and site) with an outlier of this channel."),
        Column("layer_share_layers", pa.float64(), "layers / measured layers."),
        Column("layer_share_tensors", pa.float64(), "tensors / measured tensors (layers x sites)."),
        Column(
            "position_share_union",
            pa.float64(),
            "Share of all positions (sequence, position) with an outlier of this channel in at "
            "least one tensor.",
        ),
        Column(
            "position_share_mean",
            pa.float64(),
            "Share of positions with an outlier, mean over the affected tensors.",
        ),
        Column(
            "position_share_max",
            pa.float64(),
            "Share of positions with an outlier in the tensor that has most.",
        ),
        Column(
            "outlier_values", pa.int64(), "Number of values |x| >= threshold, over all tensors."
        ),
        Column("positive_share", pa.float64(), "Share of them that are positive."),
        Column(
            "sidedness", pa.string(), "one-sided: all outlier values have one sign; two-sided: not."
        ),
        Column(
            "quartile1",
            pa.float32(),
            "First quartile of the outlier values (signed; lower of two neighbours). Exact for "
            "bfloat16; otherwise rounded to bfloat16, relative error <= 2^-8.",
        ),
        Column("median", pa.float32(), "Median of the outlier values, likewise."),
        Column("quartile3", pa.float32(), "Third quartile of the outlier values, likewise."),
        Column("value", pa.float32(), "The outlier value with the largest |x|, with its sign."),
    ),
)

LLM_INT8_VARIANTS = Table(
    "llm_int8_variants",
    "LLM.int8(): how many outlier features each reading of the two shares gives.",
    (
        Column("layer_share_over", pa.string(), "What the layer share counts: layers or tensors."),
        Column("position_share_by", pa.string(), "The position share: union, mean or max."),
        Column("configured", pa.bool_(), "Whether this is the reading that the run configures."),
        Column("outlier_features", pa.int64(), "Channels that are outlier features so read."),
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
        Column("value", pa.float32(), "The activation, with its sign."),
        Column(
            "tensor_median",
            pa.float32(),
            "Median of |x| over all tokens and channels of this sequence in this layer, the lower "
            "of the two middle values. Exact for bfloat16; otherwise rounded to bfloat16, relative "
            "error <= 2^-8.",
        ),
        Column("tensor_median_ratio", pa.float64(), "|value| / tensor_median."),
        Column(
            "token_median",
            pa.float32(),
            "Median of |x| over the channels of this token, the lower of the two middle values.",
        ),
        Column("token_median_ratio", pa.float64(), "|value| / token_median."),
    ),
)

MASSIVE_CHANNELS = Table(
    "massive_channels",
    "The massive activations by layer and channel.",
    (
        SITE,
        LAYER,
        CHANNEL,
        Column("massive_activations", pa.int64(), "Massive activations in this layer and channel."),
        Column("sequences", pa.int64(), "Sequences that have at least one."),
        Column("first_position_share", pa.float64(), "Share of them at position 0 of a sequence."),
        Column("value", pa.float32(), "The largest of them in |x|, with its sign."),
        Column("tensor_median_ratio", pa.float64(), "Its |value| / tensor_median."),
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
        Column("expert", pa.int32(), "Expert, 0-based, by the model's own numbering."),
        Column("tokens", pa.int64(), "Number of tokens routed to it."),
        Column(
            "token_share",
            pa.float64(),
            "tokens / all tokens of the run. Over the experts of a layer the shares add up to the "
            "number of experts that a token is routed to.",
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
        ),
        CHANNEL,
        TOKEN_INDEX,
        SEQUENCE,
        POSITION,
        TOKEN_ID,
        TOKEN_TEXT,
        Column("nan", pa.int64(), "Tokens with a NaN in its output; left out of value."),
        Column("infinite", pa.int64(), "Tokens whose largest |x| is infinite; left out likewise."),
    ),
)

HEAD = Column("head", pa.int32(), "Query head of attention, 0-based.")

ATTENTION_SINKS = Table(
    "attention_sinks",
    "Attention sinks by layer: how often the first token is one, and which token receives most "
    "attention among the first T of a sequence (extraction.advanced.sink_tokens). Empty where "
    "attn_sink was not measured.",
    (
        LAYER,
        Column("heads", pa.int32(), "Number of query heads."),
        Column("sequences", pa.int64(), "Number of sequences."),
        Column(
            "sink_metric",
            pa.float64(),
            "Sink metric of the first token, in %: 100 x share of (sequence, head) in which it "
            "receives more than the threshold. Its mean over the layers is that of the model.",
        ),
        Column(
            "sink_heads",
            pa.int32(),
            "Heads whose attention to the first token, as a mean over sequences, is above the "
            "threshold.",
        ),
        Column(
            "value",
            pa.float32(),
            "The largest attention that a token receives in a head (the first of equals). The last "
            "of the T tokens has one query alone, itself: a large value there says little.",
        ),
        HEAD,
        TOKEN_INDEX,
        SEQUENCE,
        POSITION,
        TOKEN_ID,
        TOKEN_TEXT,
        Column("nan", pa.int64(), "Numbers that are NaN; left out of all other columns."),
    ),
)

ATTENTION_SINK_HEADS = Table(
    "attention_sink_heads",
    "Per layer and head: the attention that the first token of a sequence receives. Empty where "
    "attn_sink was not measured.",
    (
        LAYER,
        HEAD,
        Column("mean", pa.float64(), "Mean over sequences of what it receives, from 0 to 1."),
        Column("sink_share", pa.float64(), "Share of sequences in which it is a sink."),
    ),
)

ATTENTION_SINK_POSITIONS = Table(
    "attention_sink_positions",
    "Per position below T: how often it is a sink, over all layers and heads. Empty where "
    "attn_sink was not measured.",
    (
        POSITION,
        Column("sequences", pa.int64(), "Number of sequences that have this position."),
        Column(
            "sink_metric",
            pa.float64(),
            "Sink metric of the position, in %: 100 x share of (sequence, layer, head) in which it "
            "receives more than the threshold; at position 0 the paper's Sink_1.",
        ),
        Column("mean", pa.float64(), "Mean of what it receives, over the same."),
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
    ATTENTION_SINKS,
    ATTENTION_SINK_HEADS,
    ATTENTION_SINK_POSITIONS,
)

FORMATS = ("parquet", "csv")


def write(folder: Path, table: Table, columns: Mapping[str, Any]) -> None:
    """Write a table as Parquet and as CSV; each file appears whole or not at all.

    Args:
        folder: the run's `tables` folder; made where it is missing.
        table: its description.
        columns: its values, all equally long; the names must be those of the description.
    """
    assert set(columns) == {column.name for column in table.columns}, table.name
    data = pa.table({name: columns[name] for name in table.schema.names}, schema=table.schema)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{table.name}.parquet") as path:
        pa.parquet.write_table(data, path, compression="zstd")
    with replacing(folder / f"{table.name}.csv") as path:
        pa.csv.write_csv(data, path)


def read(folder: Path, table: Table) -> pa.Table:
    """A table that `write` wrote."""
    return pa.parquet.read_table(folder / f"{table.name}.parquet", schema=table.schema)


def dictionary() -> str:
    """The data dictionary in Markdown: every table, every column, its type and its definition."""
    lines = ["# The tables of a run", "", "Generated by `make docs`; do not edit.", ""]
    for table in TABLES:
        lines += [f"## {table.name}", "", table.about, "", "| column | type | definition |"]
        lines += ["|---|---|---|"]
        lines += [
            f"| `{column.name}` | {column.type} | {column.definition.replace('|', chr(92) + '|')} |"
            for column in table.columns
        ]
        lines.append("")
    return "\n".join(lines)
