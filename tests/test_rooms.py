"""A criterion is one folder: what depends on its files, and that the registries name them all."""

import ast
import functools
from pathlib import Path

import pytest

import outlier_atlas
from outlier_atlas.criteria.measure import CriterionMeasure
from outlier_atlas.criteria.measures import MEASURES
from outlier_atlas.criteria.shows import BEHIND, SHOWS
from outlier_atlas.criteria.tables import DESCRIPTIONS, TABLES
from outlier_atlas.report.templates import TEMPLATES
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
    of_tables = scripts_behind(f"{folder}/tables.py")
    assert {"detect_outliers.py", "render_report.py"} <= of_tables
    assert not of_tables & {"extract_activations.py", "measure_weights.py"}


def test_a_template_is_code_of_the_report():
    assert {*CRITERIA.rglob("*.j2")} <= {*TEMPLATES}


def test_the_registries_name_every_folder():
    described = [description.name for description in DESCRIPTIONS]
    assert sorted(described) == FOLDERS == folders("measure.py")
    assert [kind.description.name for kind in MEASURES] == described
    assert sorted(show.description.name for show in (*SHOWS, *BEHIND)) == folders("show.py")
    blocks = DetectionSettings.model_fields.items()
    kinds = {name: field.annotation for name, field in blocks}
    assert [name for name in sorted(kinds) if issubclass(kinds[name], CriterionSettings)] == (
        folders("settings.py")
    )
    assert all(name in kinds for description in DESCRIPTIONS for name in description.settings)


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
    for file in {"tables.py", "show.py"} & {path.name for path in (CRITERIA / folder).iterdir()}:
        for module in imported(CRITERIA / folder / file):
            assert not module.startswith(("torch", "numba", "outlier_atlas.statistics")), module
            assert not module.endswith(".measure"), module
