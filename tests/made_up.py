"""A made-up criterion, as its author would add it: its folder, and a line in each registry.

`python tests/made_up.py FOLDER`, with the library of `library(FOLDER)` on the path: a tiny run
with it, from the configuration to the report. Prints what came of it as JSON.
"""

import json
import shutil
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
NAME = "loud_channels"

FILES = {
    "__init__.py": '"""Loud channels, which no paper defines."""\n',
    "settings.py": '''\
"""The settings of loud channels."""

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat


class LoudChannelsSettings(CriterionSettings):
    """Loud channels."""

    threshold: PositiveFloat = Field(100.0, description="A channel is loud from this |x| on.")
''',
    "tables.py": '''\
"""The table of loud channels."""

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import CHANNEL, LAYER, SITE, WHERE, Column, Table

LOUD_CHANNELS = Table(
    "loud_channels",
    "A row for each loud channel.",
    (
        SITE,
        LAYER,
        CHANNEL,
        *WHERE,
        Column("value", "float32", "Its value largest in |x|.", "activation"),
        Column("nan", "int64", "NaN that were made up.", "count"),
    ),
)

DESCRIPTION = Description(
    "loud_channels",
    (LOUD_CHANNELS,),
    ("loud_channels",),
    finding="loud channels",
    compared=(LOUD_CHANNELS,),
)
''',
    "measure.py": '''\
"""Loud channels."""

import numpy as np

from outlier_atlas.criteria.columns import located
from outlier_atlas.criteria.loud_channels.tables import DESCRIPTION, LOUD_CHANNELS
from outlier_atlas.criteria.magnitudes.measure import MagnitudesMeasure
from outlier_atlas.criteria.measure import CriterionMeasure


class LoudChannelsMeasure(CriterionMeasure):
    """Channels whose largest |x| reaches a threshold."""

    description = DESCRIPTION

    @classmethod
    def sites(cls, settings, measured):
        return ("mlp_in",)

    @classmethod
    def definition(cls, settings, sink_tokens):
        return f"A channel is loud if |x| >= {settings.loud_channels.threshold}."

    def _found(self):
        of_places = self.others.of(MagnitudesMeasure).of_places
        threshold = self.context.settings.loud_channels.threshold
        for layer in self.layers:
            magnitudes = of_places["mlp_in", layer]
            for channel in np.flatnonzero(np.abs(magnitudes.maxima) >= threshold):
                yield layer, int(channel), magnitudes.maxima[channel], magnitudes.tokens[channel]

    def findings(self):
        return len([*self._found()])

    def tables(self):
        found = [*self._found()]
        yield LOUD_CHANNELS, {
            "site": ["mlp_in"] * len(found),
            "layer": [layer for layer, *_ in found],
            "channel": [channel for _, channel, *_ in found],
            **located(self.context.tokens, [int(token) for *_, token in found]),
            "value": [float(value) for _, _, value, _ in found],
            "nan": [7] * len(found),
        }
''',
    "show.py": '''\
"""How the report shows loud channels."""

from outlier_atlas.criteria.finding_table import FindingTable, plain
from outlier_atlas.criteria.loud_channels.tables import DESCRIPTION, LOUD_CHANNELS
from outlier_atlas.criteria.show import ComparedNumber, Finding, Finiteness
from outlier_atlas.text import number


class LoudChannelsShow(FindingTable):
    """The loud channels."""

    description = DESCRIPTION
    title = "Loud channels"
    noun = "channel"
    head = ("layer", "channel", "largest")
    ablated = {"loud_channel": "loud channel"}
    compared_numbers = (
        ComparedNumber(
            "the first loud channel", LOUD_CHANNELS, "value", number, lambda rows: [*rows, None][0]
        ),
    )

    def findings(self, evidence, text):
        return [Finding(f"{len(evidence.rows(LOUD_CHANNELS))} channels are loud.", "Made up.", 9)]

    def finiteness(self, evidence):
        for row in evidence.rows(LOUD_CHANNELS):
            yield Finiteness(row["site"], row["layer"], row["nan"], 0, some=True)

    def picture(self, page):
        return page.picture("mlp_in-loudness", "Loudness", "How loud it is.")

    def order(self, row):
        return row["layer"]

    def cells(self, row):
        return plain(row["layer"], row["channel"], number(row["value"]))
''',
    "figures.py": '''\
"""The figure of loud channels."""

from outlier_atlas.criteria.figure import Drawing, FigureKind, Line, Lines


class Loudness(FigureKind):
    """The loudest channel of each layer."""

    name = "loudness"
    declared = ("mlp_in",)

    def drawings(self, tables_folder):
        from outlier_atlas import tables
        from outlier_atlas.criteria.loud_channels.tables import LOUD_CHANNELS

        rows = tables.read(tables_folder, LOUD_CHANNELS).to_pylist()
        line = Line("loudest", [row["value"] for row in rows], "contrast", "o")
        yield Drawing("mlp_in", Lines([row["layer"] for row in rows], [line], "|x|"))
''',
    "targets.py": '''\
"""The ablation of loud channels."""

from outlier_atlas import tables
from outlier_atlas.ablation.target import Channels, Target
from outlier_atlas.criteria.loud_channels.tables import LOUD_CHANNELS


class LoudChannelsTarget(Target):
    """Each loud channel."""

    key = "loud_channels"

    def channels(self, context):
        for row in tables.read(context.tables, LOUD_CHANNELS).to_pylist():
            place = row["site"], row["layer"]
            yield Channels("loud_channel", (place,), (row["channel"],))
''',
}
"""The folder of the criterion."""

REGISTRIES = {
    "settings/detection.py": (
        "from outlier_atlas.criteria.loud_channels.settings import LoudChannelsSettings",
        {
            "class DetectionSettings(Section):": "    loud_channels: LoudChannelsSettings = Field("
            'LoudChannelsSettings(), description="Loud channels.")'
        },
    ),
    "settings/ablation.py": ("", {"TargetKind = Literal[": '    "loud_channels",'}),
    "criteria/tables.py": (
        "from outlier_atlas.criteria.loud_channels import tables as loud_channels",
        {"DESCRIPTIONS: tuple[Description, ...] = (": "    loud_channels.DESCRIPTION,"},
    ),
    "criteria/measures.py": (
        "from outlier_atlas.criteria.loud_channels.measure import LoudChannelsMeasure",
        {"    MagnitudesMeasure,": "    LoudChannelsMeasure,"},
    ),
    "criteria/shows.py": (
        "from outlier_atlas.criteria.loud_channels.show import LoudChannelsShow",
        {
            "SHOWS: tuple[Show, ...] = (": "    LoudChannelsShow(),",
            "COMPARED: tuple[Show, ...] = (": "    LoudChannelsShow(),",
        },
    ),
    "criteria/figures.py": (
        "from outlier_atlas.criteria.loud_channels.figures import Loudness",
        {"FIGURES: tuple[FigureKind, ...] = (": "    Loudness(),"},
    ),
    "criteria/targets.py": (
        "from outlier_atlas.criteria.loud_channels.targets import LoudChannelsTarget",
        {"TARGETS: tuple[Target, ...] = (": "    LoudChannelsTarget(),"},
    ),
}
"""The lines of each registry: the import, and entries by the line that they are put behind."""


def library(folder: Path) -> Path:
    """The scripts and the library with the criterion in them.

    The packages without a registry are links: what numba has compiled of them is not compiled
    again.
    """
    scripts = folder / "scripts"
    changed = {name.split("/", maxsplit=1)[0] for name in REGISTRIES}
    (scripts / "outlier_atlas").mkdir(parents=True)
    for path in SCRIPTS.glob("*.py"):
        shutil.copy(path, scripts)
    for path in (SCRIPTS / "outlier_atlas").iterdir():
        copy = scripts / "outlier_atlas" / path.name
        if path.name in changed:
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.name != "__pycache__":
            copy.symlink_to(path)
    own = scripts / "outlier_atlas" / "criteria" / NAME
    own.mkdir()
    for name, text in FILES.items():
        (own / name).write_text(text)
    for name, (imported, entries) in REGISTRIES.items():
        registry = scripts / "outlier_atlas" / name
        text = registry.read_text()
        for line, entry in entries.items():
            assert text.count(f"\n{line}\n") == 1, (name, line)
            text = text.replace(f"\n{line}\n", f"\n{line}\n{entry}\n")
        future = "from __future__ import annotations\n"
        registry.write_text(text.replace(future, f"{future}{imported}\n"))
    return scripts


def main(folder: Path) -> None:
    import tiny
    from pipeline import Run, config
    from test_report import rendered

    from outlier_atlas import dictionary, sources
    from outlier_atlas.report import figures

    model, weights = tiny.silent(folder / "model", layers=2)
    weights["model.layers.1.post_attention_layernorm.weight"][5] = 4096
    tiny.save_weights(model, weights)
    run = Run(folder, config(
        model, [[5, 6, 7], [8, 9, 10]], folder / "data", run={"name": "mine"},
        dataset={"sequences": 1}, extraction={"sites": ["mlp_in"]},
        ablation={"sequences": 1, "random_draws": 1, "targets": ["loud_channels"]},
    ))  # fmt: skip
    run.all()
    shutil.copytree(run.folder, run.folder.with_name("other"))
    run.ablate()
    html, findings = rendered(run, ablations=True, compare="other")
    scripts = sources.Sources(folder / "scripts")
    of = f"outlier_atlas/criteria/{NAME}"
    print(json.dumps({
        "found": run.table(NAME),
        "findings": findings,
        "html": html,
        "names": figures.names(["mlp_in"]),
        "drawn": sorted(figures.drawings(run.tables)),
        "targets": [(row["target"], row["intervention"]) for row in run.table("ablations")],
        "dictionary": f"## {NAME}\n" in dictionary.markdown(),
        "behind": {
            name: sorted(
                path.name
                for path in (folder / "scripts").glob("*.py")
                if f"{of}/{name}" in scripts.of(path.name)
            )
            for name in FILES
        },
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
