"""The `weights` section."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import Section


class WeightsSettings(Section):
    measure: bool = Field(
        True,
        description="Read the checkpoint once, on the CPU, and measure its weights: once for a "
        "model, whatever its runs. It takes about 20 ns of a core for each weight.",
    )
