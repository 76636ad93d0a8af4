"""The figure of attention sinks: the attention to the first token by layer and head."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from outlier_atlas import tables
from outlier_atlas.criteria.attention_sinks.tables import ATTENTION_SINK_HEADS
from outlier_atlas.criteria.figure import Drawing, FigureKind, Heatmap
from outlier_atlas.settings.sites import ATTN_SINK


class AttentionSinkHeads(FigureKind):
    """The attention that the first token receives in each head; no token is excluded."""

    name = "heads"
    declared = (ATTN_SINK,)

    def drawings(self, tables_folder: Path) -> Iterator[Drawing]:
        heads = tables.read(tables_folder, ATTENTION_SINK_HEADS)
        if not len(heads):
            return
        value = "attention to the first token"
        yield Drawing(ATTN_SINK, Heatmap.of(heads, "mean", "head", value, logarithmic=False))
