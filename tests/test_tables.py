"""Tests of a run's tables: rows are unique, in an order that is the same in every run."""

import tiny
from test_intervals import measured

from outlier_atlas import tables
from outlier_atlas.criteria.tables import TABLES
from outlier_atlas.settings.sites import SITES

KEYS = {
    "criteria": (),  # in the order of the configuration
    "llm_int8_features": (),  # outlier features first, and by their shares: test_detection.py
    "llm_int8_variants": (),
    "layer_magnitudes": ("site", "layer"),
    "channel_maxima": ("site", "layer", "channel"),
    "massive_activations": ("site", "layer", "token_index", "channel"),
    "massive_channels": ("site", "layer", "channel"),
    "expert_magnitudes": ("layer", "expert"),
    "super_weights": ("layer", "expert"),
    "super_experts": ("layer", "expert"),
    "systematic_outliers": ("site", "layer", "token_index"),
    "token_outliers": ("site", "layer", "token_index"),
    "token_norms": ("site", "layer", "rank"),
    "layer_measures": ("site", "layer"),
    "quantization_error": ("site", "layer"),  # then as the formats are declared
    "attention_sinks": ("layer",),
    "attention_sink_heads": ("layer", "head"),
    "attention_sink_positions": ("position",),
    "perplexity": ("sequence",),
    "weights": ("layer", "weight", "expert"),
    "weight_errors": ("layer", "weight", "expert", "format", "granularity"),
    "smoothquant_scales": ("site", "layer", "channel"),
}
"""Columns that the rows of each table are sorted by; sites in the order of a block."""
PLACE = ("site", "layer", "token_index", "channel")
"""Columns that the rows of all other tables are sorted by, if they have these columns."""
MORE = {"quantization_error": ("format", "scale_of", "outlier_channels")}


def test_rows_are_in_order_and_none_is_there_twice(tmp_path):
    detection = {
        "systematic_outliers": {"ratio": 1.5}, "token_outliers": {"ratio": 1.1},
        "llm_int8": {"threshold": 2.5}, "quantization_error": {"sites": ["mlp_in"]},
        "super_experts": {"quantile": 0.5, "ratio": 0.01, "growth": 0.01},
    }  # fmt: skip
    of_all = ["resid_post", "attn_in", "mlp_in", "attn_sink"]
    dense = measured(
        tmp_path / "dense", tiny.llama(tmp_path / "llama"),
        [*of_all, "mlp_hidden", "down_proj_out"], **detection,
    )  # fmt: skip
    mixture = measured(
        tmp_path / "mixture", tiny.qwen3_moe(tmp_path / "moe"), [*of_all, "expert_out"],
        **detection,
    )  # fmt: skip
    seen = set()
    for run in (dense, mixture):
        for table in (*TABLES, *tables.WEIGHT_TABLES):
            rows, key = run.table(table.name), key_of(table)
            seen |= {table.name} if len(rows) > 1 else set()
            places = [tuple(place_of(name, row[name]) for name in key) for row in rows]
            assert places == sorted(places), table.name
            whole = {tuple(row[name] for name in (*key, *MORE.get(table.name, ()))) for row in rows}
            assert not key or len(whole) == len(rows), table.name
    assert {*KEYS} <= seen


def key_of(table):
    names = {column.name for column in table.columns}
    return KEYS.get(table.name, tuple(name for name in PLACE if name in names))


def place_of(column, value):
    """Return the sort key of a value; empty values come last."""
    if value is None:
        return (1, 0)
    return (0, SITES.index(value) if column == "site" else value)
