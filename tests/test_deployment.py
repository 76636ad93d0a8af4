"""What Snakemake, its catalog and snakedeploy expect of a workflow."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import forked
import pytest
import yaml
from commanded import ROOT

from outlier_atlas import rulegraph
from outlier_atlas.settings.document import settings

SHOWN = {
    "--lint": "in a good condition",
    "--list-rules": "tokenize_dataset",
    "--list-target-rules": "verify",
    "--dag": "extract_activations",
    "--rulegraph mermaid-js": "flowchart",
    "--filegraph": "results/{run,smollm2-demo}/report.html",
    "--d3dag": '"rule": "render_report"',
    "--summary": "results/smollm2-demo/report.html",
    "--detailed-summary": "results/smollm2-demo/report.html",
    "--list-changes code": "Building DAG",
    "--list-params-changes": "Building DAG",
    "--list-untracked": "config/config.yaml",
    "--print-compilation": "closing_words",
    "--containerize": "workflow/envs/model.yaml /conda-envs/",
    "--list-conda-envs": "environment",
}
"""Options that show something, and what is in it."""

CONDA = """#!/bin/sh
case "$*" in
--version)
    echo "conda 25.1.0" ;;
"info --json")
    echo '{"conda_version": "25.1.0", "platform": "linux-64", "conda_prefix": "/none"}' ;;
*channel_priority*)
    echo '{"get": {"channel_priority": "strict"}}' ;;
esac
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What each option showed, in a folder that has the demo's configuration; the folder."""
    folder = tmp_path_factory.mktemp("shown")
    programs = tmp_path_factory.mktemp("programs")
    (programs / "conda").write_text(CONDA)
    (programs / "conda").chmod(0o700)
    (folder / "config").mkdir()
    shutil.copy(ROOT / "config" / "config.yaml", folder / "config")
    done = subprocess.run(
        [forked.python(), str(Path(__file__).with_name("displayed.py")), *SHOWN],
        cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(SHOWN, map(json.loads, done.stdout.splitlines()), strict=True)), folder


@pytest.mark.parametrize("options", SHOWN)
def test_what_only_shows_something_needs_no_number_of_cores(shown, options):
    status, said = shown[0][options]
    assert status == 0, said
    assert SHOWN[options] in said


def test_what_only_shows_something_writes_nothing(shown):
    """But for Snakemake's own log."""
    assert {path.name for path in shown[1].iterdir()} == {".snakemake", "config"}
    assert [path.name for path in (shown[1] / "config").iterdir()] == ["config.yaml"]


def test_the_rule_graph_in_the_readme_is_that_of_the_demo(shown):
    _, graph = shown[0]["--rulegraph mermaid-js"]
    assert rulegraph.block(graph) in (ROOT / "README.md").read_text(), "run `make docs`"


def test_the_rule_graph_leaves_out_what_a_longer_way_says_too(tmp_path):
    rules = {"id0": "all", "id1": "a", "id2": "b", "id3": "c"}
    pairs = ["1 --> 2", "2 --> 3", "1 --> 3", "3 --> 3", "3 --> 0"]
    lines = [f"\t{name}[{rule}]" for name, rule in rules.items()]
    lines += ["\t" + re.sub(r"(\d)", r"id\1", pair) for pair in pairs]
    page = tmp_path / "README.md"
    page.write_text("before\n```mermaid\nold\n```\nafter\n")
    rulegraph.main(page, "\n".join(lines))
    assert page.read_text() == (
        "before\n```mermaid\nflowchart LR\n    a --> b\n    b --> c\n```\nafter\n"
    )
    with pytest.raises(SystemExit, match=r"README\.md: must have one mermaid block"):
        rulegraph.main(page, "")


def test_the_catalog_finds_what_it_looks_for():
    """As its generator and its pages look for them."""
    shows = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert shows["report"] is shows["software-stack-deployment"]["conda"] is True
    for path in ("workflow/Snakefile", "config/README.md", "config/config.yaml",
                 "workflow/schemas/config.schema.json", "profiles/default/config.yaml",
                 "LICENSE"):  # fmt: skip
        assert (ROOT / path).is_file(), path
    assert not list((ROOT / "workflow" / "rules").glob("*[!k]"))
    assert {"snakemake", "workflow"} <= set((ROOT / "README.md").read_text().lower().split())


def test_the_small_configuration_is_one():
    small = settings([ROOT / ".test" / "config" / "config.yaml"])
    assert small.name == "test"
    assert small.dataset.sequences * small.dataset.sequence_length <= 256


def test_githubs_jobs_use_what_is_there():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = [step.get("run", "") for step in jobs["deployment"]["steps"]]
    runs = [command for command in commands if command.startswith("snakemake")]
    assert all("--directory .test" in command for command in runs)
    assert any("--sdm conda" in command for command in runs)
    assert any("--report" in command for command in runs)
