"""The figure of routed experts: the largest output by layer and expert."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from outlier_atlas import tables
from outlier_atlas.criteria.experts.tables import EXPERT_MAGNITUDES
from outlier_atlas.criteria.figure import Drawing, FigureKind, heatmap_height
from outlier_atlas.settings.sites import EXPERT_OUT


class ExpertMaxima(FigureKind):
    """The largest |down_proj output| of each expert in each layer."""

    name = "experts"
    declared = (EXPERT_OUT,)

    def drawings(self, tables_folder: Path) -> Iterator[Drawing]:
        from outlier_atlas.report import heatmaps

        experts = tables.read(tables_folder, EXPERT_MAGNITUDES)
        if not len(experts):
            return
        largest, layers = heatmaps.by_layer(experts, "value")
        value = "largest |down_proj output|"
        draw = partial(heatmaps.logarithmic, largest, layers, column="expert", value=value)
        excluded = tables.left_out(tables_folder, EXPERT_MAGNITUDES)
        yield Drawing(EXPERT_OUT, draw, heatmap_height(len(layers)), excluded)
