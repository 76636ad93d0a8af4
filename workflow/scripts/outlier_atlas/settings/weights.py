"""The `weights` section."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import Section


class WeightsSettings(Section):
    measure: bool = Field(
        True,
        description="Whether to measure the weights of the checkpoint. All runs of a model share "
        "one measurement, which reads the checkpoint once, on the CPU, and takes about 20 ns of "
        "one core per weight.",
    )
