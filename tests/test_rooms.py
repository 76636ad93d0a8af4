"""A criterion is one folder: what depends on its files, and that the registries name them all."""

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import made_up
import pytest

import outlier_atlas
from outlier_atlas import text
from outlier_atlas.criteria.figures import FIGURES
from outlier_atlas.criteria.measure import CriterionMeasure
from outlier_atlas.criteria.measures import MEASURES
from outlier_atlas.criteria.show import Show
from outlier_atlas.criteria.shows import ALL, COMPARED
from outlier_atlas.criteria.tables import DESCRIPTIONS, TABLES
from outlier_atlas.criteria.targets import TARGETS
from outlier_atlas.report import ablation, figures
from outlier_atlas.report.templates import TEMPLATES
from outlier_atlas.settings.ablation import TargetKind
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import CriterionSettings
from outlier_atlas.sources import Sources

SCRIPTS = Path(outlier_atlas.__file__).parents[1]
CRITERIA = SCRIPTS / "outlier_atlas" / "criteria"
ROOT = SCRIPTS.parents[1]
FOLDERS = sorted(path.parent.name for path in CRITERIA.glob("*/tables.py"))


def folders(file):
    return sorted(path.parent.name for path in CRITERIA.glob(f"*/{file}"))


@functools.cache
def code():
    """The files behind each script."""
    sources = Sources(SCRIPTS)
    return {path.name: sources.of(path.name) for path in SCRIPTS.glob("*.py")}


def scripts_behind(file):
    """The scripts whose code a file is."""
    name = (CRITERIA / file).relative_to(SCRIPTS).as_posix()
    return {script for script, files in code().items() if name in files}


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_edit_reruns_the_stage_that_a_file_is_for_and_no_other(folder):
    assert scripts_behind(f"{folder}/measure.py") == {"detect_outliers.py"}
    if folder in folders("show.py"):
        assert scripts_behind(f"{folder}/show.py") == {"render_report.py"}
    for file, scripts in (
        ("figures.py", {"draw_figures.py", "render_report.py"}),
        ("targets.py", {"ablate.py"}),
    ):
        if folder in folders(file):
            assert scripts_behind(f"{folder}/{file}") == scripts
    of_tables = scripts_behind(f"{folder}/tables.py")
    assert {"detect_outliers.py", "render_report.py"} <= of_tables
    assert not of_tables & {"extract_activations.py", "measure_weights.py"}


def test_a_template_is_code_of_the_report():
    assert {*CRITERIA.rglob("*.j2")} <= {*TEMPLATES}


def test_the_registries_name_every_folder():
    described = [description.name for description in DESCRIPTIONS]
    assert sorted(described) == FOLDERS == folders("measure.py")
    assert [kind.description.name for kind in MEASURES] == described
    assert sorted(show.description.name for show in ALL) == folders("show.py")
    assert folders_of(FIGURES) == folders("figures.py")
    assert folders_of(TARGETS) == folders("targets.py")
    blocks = DetectionSettings.model_fields.items()
    kinds = {name: field.annotation for name, field in blocks}
    assert [name for name in sorted(kinds) if issubclass(kinds[name], CriterionSettings)] == (
        folders("settings.py")
    )
    assert all(name in kinds for description in DESCRIPTIONS for name in description.settings)


def folders_of(entries):
    return sorted({type(entry).__module__.split(".")[-2] for entry in entries})


def test_what_is_compared_is_in_the_registry_and_reads_tables_that_are_described():
    compared = {type(show) for show in COMPARED}
    for show in ALL:
        numbers = show.compared_numbers
        part = type(show).compared_part is not Show.compared_part
        assert bool(numbers or part) == (type(show) in compared), show
        assert bool(show.description.compared) == (type(show) in compared), show
        assert {number.table for number in numbers} <= {*show.description.compared}


def test_every_figure_has_a_name_of_its_own_and_a_caption():
    captions = {path.stem for path in (ROOT / "workflow" / "report").glob("*.rst")}
    assert {*figures.KINDS} <= captions
    assert len({*figures.KINDS}) == len(figures.KINDS)
    everything = figures.all_names()
    assert len({*everything}) == len(everything)
    detection = DetectionSettings.model_validate({"quantization_error": {"sites": ["k", "v"]}})
    assert {*figures.names(["k", "attn_sink"], detection)} < {*everything}


def test_the_names_of_figures_import_nothing_that_draws():
    """The Snakefile asks for them each time that it is read."""
    code = (
        "import sys; from outlier_atlas.report import figures; figures.all_names(); "
        "print({'numpy', 'pyarrow', 'matplotlib'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
    )  # fmt: skip
    assert done.stdout == "set()\n"


def test_a_target_has_a_name_in_the_configuration_and_one_in_the_report():
    assert {target.key for target in TARGETS} == {*get_args(TargetKind)}
    names = {name for show in ALL for name in show.ablated}
    assert names <= {*ablation.WHAT}
    assert {"weight", "expert_weight", "channel"} == {*ablation.WHAT} - names


def test_what_decides_has_findings_a_title_and_settings():
    for kind in MEASURES:
        finds = issubclass(kind, CriterionMeasure)
        assert finds == bool(kind.description.finding), kind
        assert not finds or kind.description.name in folders("settings.py")
        assert not finds or kind.description.name in folders("show.py")


def test_every_table_has_its_caption():
    captions = {path.stem for path in (ROOT / "workflow" / "report" / "tables").glob("*.rst")}
    assert {table.name for table in TABLES} <= captions


def imported(path):
    """The modules that a file imports, by their full names."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("folder", folders("settings.py"))
def test_settings_import_nothing_but_pydantic_and_settings(folder):
    modules = imported(CRITERIA / folder / "settings.py")
    for module in modules:
        ours = module.startswith("outlier_atlas.settings.")
        assert ours or module in ("__future__", "typing", "pydantic", "math"), module


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_shown_does_not_import_what_measures(folder):
    """The environment of the report has no torch."""
    for path in (CRITERIA / folder).glob("*.py"):
        if path.name not in ("tables.py", "show.py", "figures.py", "comparison.py"):
            continue
        for module in imported(path):
            assert not module.startswith(("torch", "numba", "outlier_atlas.statistics")), module
            assert not module.endswith(".measure"), module


def test_a_criterion_is_its_folder_and_lines_in_the_registries(tmp_path):
    """With a figure, an alarm, a number that is compared and an ablation target of its own."""
    scripts = made_up.library(tmp_path)
    done = subprocess.run(
        [sys.executable, made_up.__file__, str(tmp_path)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(scripts)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert [(row["layer"], row["channel"]) for row in got["found"]] == [(1, 5)]
    assert "mlp_in-loudness-dark.svg" in got["names"]
    assert {name.split(".")[0].removesuffix("-dark") for name in got["names"]} == {*got["drawn"]}
    assert got["findings"]["findings"][0]["text"] == "1 channels are loud."
    assert got["findings"]["alarms"][0].startswith("mlp_in holds 7 NaN and 0 infinite values")
    html = got["html"]
    assert '<section id="loud-channels">' in html
    value = text.number(got["found"][0]["value"])
    cells = f'<td class="left">the first loud channel</td><td>{value}</td><td>{value}</td>'
    assert cells in html
    assert '<td class="left">Loud channels: findings</td><td>1</td><td>1</td>' in html
    assert '<td class="left">loud channel</td><td class="left wrap">channel 5 of mlp_in' in html
    assert got["targets"] == [
        ["none", "none"], ["loud_channel", "zero"], ["loud_channel", "mean"],
        ["loud_channel", "random"],
    ]  # fmt: skip
    assert got["dictionary"]
    behind = got["behind"]
    assert behind["measure.py"] == ["detect_outliers.py"]
    assert behind["show.py"] == ["render_report.py"]
    assert behind["figures.py"] == ["draw_figures.py", "render_report.py"]
    assert behind["targets.py"] == ["ablate.py"]
