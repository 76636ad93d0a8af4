"""The figure of routed experts: the largest output by layer and expert."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from outlier_atlas import tables
from outlier_atlas.criteria.experts.tables import EXPERT_MAGNITUDES
from outlier_atlas.criteria.figure import Drawing, FigureKind, Heatmap
from outlier_atlas.settings.sites import EXPERT_OUT


class ExpertMaxima(FigureKind):
    """The largest |down_proj output| of each expert in each layer."""

    name = "experts"
    declared = (EXPERT_OUT,)

    def drawings(self, tables_folder: Path) -> Iterator[Drawing]:
        experts = tables.read(tables_folder, EXPERT_MAGNITUDES)
        if not len(experts):
            return
        plot = Heatmap.of(experts, "value", "expert", "largest |down_proj output|")
        yield Drawing(EXPERT_OUT, plot, tables.left_out(tables_folder, EXPERT_MAGNITUDES))
