"""The workflow as a module of another one, as snakedeploy or a user declares it."""

import gc
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import tiny
import yaml
from commanded import ROOT
from snakemake_interface_logger_plugins.common import LogEvent

from outlier_atlas import locks
from outlier_atlas.inputs import Purpose
from outlier_atlas.session import session

CONFIG = {
    "model": {"source": "./model"},
    "dataset": {"source": "./texts", "sequences": 2, "sequence_length": 32},
    "extraction": {"sites": ["resid_post", "attn_in"]},
    "weights": {"measure": False},
    "execution": {"device": "cpu"},
}
RENAMED = """
configfile: "config.yaml"

rule mine:
    input: "summary.json"

module atlas:
    snakefile: "{snakefile}"
    config: config["atlas"]

use rule * from atlas as atlas_*

use rule render_report from atlas as atlas_render_report with:
    message: "The report of the module"

rule summary:
    input: "results/atlas/findings.json"
    output: "summary.json"
    shell: "cp {{input}} {{output}}"
"""
DEPLOYED = """
configfile: "config.yaml"

module atlas:
    snakefile: {snakefile}
    config: config

use rule * from atlas
"""


def snakemake(folder, *arguments, env=None):
    """Run Snakemake in a folder without any profile, and with all that it says itself."""
    command = [forked.python(), "-m", "snakemake", "--verbose", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OUTLIER_ATLAS_MAKE": ""} | (env or {}),
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def outer(folder, snakefile, config, source=ROOT / "workflow" / "Snakefile"):
    """Write another workflow that takes the rules as a module."""
    (folder / "Snakefile").write_text(snakefile.format(snakefile=source))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def planned(said):
    """The rules of the table of jobs, with how many jobs each."""
    table = re.search(r"^job +count\n[- ]+\n((?:\w+ +\d+\n)+)", said, re.MULTILINE)
    return {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    tiny.llama(folder / "model")
    (folder / "texts").mkdir()
    for index, sentence in enumerate(tiny.SENTENCES):
        (folder / "texts" / f"{index}.txt").write_text(sentence * 3)
    return folder


@pytest.fixture(scope="module")
def finished(project):
    """A finished run of a workflow with rules of its own; what it printed."""
    status, said = snakemake(outer(project, RENAMED, {"atlas": CONFIG}), "--cores", "2")
    assert status == 0, said
    return said


def test_a_module_runs_once_and_touched_scripts_run_nothing(project, finished):
    assert (project / "summary.json").exists(), "the default target is that of the outer workflow"
    assert "The report of the module" in finished
    for path in (ROOT / "workflow").rglob("*.py"):
        path.touch()
    for arguments in (["--cores", "2"], ["--dry-run"]):
        status, said = snakemake(project, *arguments)
        assert status == 0
        assert "Nothing to be done" in said
        assert "is out of date" not in said


def test_a_changed_setting_of_a_module_runs_what_depends_on_it(project, finished):
    changed = {"atlas": CONFIG | {"report": {"rows": 3}}}
    _, said = snakemake(outer(project, RENAMED, changed), "--dry-run")
    outer(project, RENAMED, {"atlas": CONFIG})
    assert planned(said) == {"atlas_render_report": 1, "summary": 1, "mine": 1, "total": 3}
    assert len(re.findall(r"^render_report.*report\.rows.*25.*3", said, re.MULTILINE)) == 1


def test_what_the_profile_would_set_is_set_or_asked_for_once(finished):
    assert finished.count("without `nolock` and `rerun-incomplete`") == 1
    assert f"--workflow-profile {ROOT / 'profiles' / 'default'}" in finished


def test_one_gpu_job_runs_at_a_time_where_no_profile_says_so(project, tmp_path):
    shutil.copytree(project / "texts", tmp_path / "texts")
    config = CONFIG | {"execution": {"device": "auto"}}
    outer(tmp_path, DEPLOYED, config, f'"{ROOT}/workflow/Snakefile"')
    for limit, given in ((1, []), (4, ["--resources", "gpu=4"])):
        _, said = snakemake(tmp_path, "--cores", "2", "--until", "fetch_model", *given)
        assert f'gpu=Resource("gpu", {limit})' in said
        assert ("no limit on gpu was given" in said) is (limit == 1)


def test_a_deployed_workflow_has_the_default_target_and_the_name_of_the_file(project, tmp_path):
    for folder in ("model", "texts"):
        shutil.copytree(project / folder, tmp_path / folder)
    outer(tmp_path, DEPLOYED, CONFIG, f'"{ROOT}/workflow/Snakefile"')
    status, said = snakemake(tmp_path, "--dry-run")
    assert status == 0, said
    assert planned(said)["all"] == planned(said)["extract_activations"] == 1
    assert "results/config/report.html" in said
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    _, said = snakemake(tmp_path, "--dry-run", "--configfile", "mine.yaml")
    assert "results/mine/report.html" in said
    assert not (tmp_path / "results").exists()


def test_a_module_without_a_configuration_takes_the_files_of_the_command(project, tmp_path):
    for folder in ("model", "texts"):
        shutil.copytree(project / folder, tmp_path / folder)
    bare = DEPLOYED.replace('configfile: "config.yaml"', "").replace("    config: config\n", "")
    outer(tmp_path, bare, CONFIG, f'"{ROOT}/workflow/Snakefile"')
    status, said = snakemake(tmp_path, "--dry-run", "--configfile", "config.yaml")
    assert status == 0, said
    assert "results/config/report.html" in said


@pytest.mark.parametrize(
    ("snakefile", "config", "line"),
    [
        (
            DEPLOYED,
            CONFIG | {"samples": 3},
            "module atlas: samples: unknown key; known here: run, "
            "model, dataset, extraction, detection, weights, ablation, report, execution",
        ),
        (
            DEPLOYED.replace("    config: config", '    config: config\n    prefix: "atlas"'),
            CONFIG,
            "module atlas: `prefix` or `replace_prefix` would move results/run to "
            "atlas/results/run, where this workflow does not look; leave it out, and name the run "
            "with `run.name` in its configuration",
        ),
    ],
)
def test_what_a_module_cannot_have_is_one_line(tmp_path, snakefile, config, line):
    outer(tmp_path, snakefile, config, f'"{ROOT}/workflow/Snakefile"')
    status, said = snakemake(tmp_path, "--dry-run")
    assert status != 0
    assert line in said.splitlines()
    assert "Traceback" not in said


def test_the_top_level_snakefile_is_a_module_too(project, tmp_path):
    for folder in ("model", "texts"):
        shutil.copytree(project / folder, tmp_path / folder)
    renamed = RENAMED.replace("rule mine:", "rule first:")
    outer(tmp_path, renamed, {"atlas": CONFIG}, ROOT / "Snakefile")
    status, said = snakemake(tmp_path, "--dry-run")
    assert status == 0, said
    assert planned(said)["first"] == planned(said)["atlas_render_report"] == 1


def test_a_job_imports_the_library_next_to_its_script(tmp_path):
    """Snakemake appends the folder of a script to the path, behind what is installed."""
    (tmp_path / "outlier_atlas").mkdir()
    (tmp_path / "outlier_atlas" / "__init__.py").write_text("raise ImportError('another one')")
    scripts = ROOT / "workflow" / "scripts"
    code = f"import sys; sys.path.extend([{str(scripts)!r}]); import rule_main, outlier_atlas as o"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(o.__file__)"], cwd=tmp_path, check=True,
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_relative_to(scripts)


def test_a_process_takes_the_lock_of_a_run_and_a_turn_once(tmp_path, monkeypatch):
    """`use rule` reads a module again, and to wait for oneself would last for ever."""
    monkeypatch.chdir(tmp_path)
    first = session([Path("results/a")], Purpose.MAKE, print, print)
    assert session([Path("results/a")], Purpose.MAKE, print, print) is first
    other = session([Path("results/b")], Purpose.MAKE, print, print)
    assert other is not first
    assert other.turns is first.turns
    for held in (first, other):
        assert not held.turns.take("fetch_model.x", Path("x.json"), lambda: False)
    assert locks.is_held(Path("results/a/locks/snakemake"))
    del first, other, held
    gc.collect()
    assert not locks.is_held(Path("results/a/locks/snakemake"))
    session([Path("results/a")], Purpose.MAKE, print, print)


def test_turns_follow_the_jobs_of_a_workflow_without_hooks(tmp_path, monkeypatch):
    """Snakemake's log tells when jobs are planned: a module's `onstart` is not called."""
    monkeypatch.chdir(tmp_path)
    made = session([Path("results/a")], Purpose.MAKE, print, print)
    names = ("planned", "not_planned")
    for name in names:
        made.turns.take(name, Path(f"{name}.json"), lambda: False)
    monkeypatch.setenv("OUTLIER_ATLAS_AHEAD", "")  # comes back after the test
    job = SimpleNamespace(output=["planned.json"], rule=SimpleNamespace(name="tokenize_dataset"))
    dag = SimpleNamespace(needrun_jobs=lambda: [job], jobid=lambda job: 7)
    settings = SimpleNamespace(targets=(), until=(), omit_from=())
    listens = made.at_events_of(
        SimpleNamespace(dag=dag, local_exec=True, remote_exec=False, dag_settings=settings)
    )
    assert listens(logging.makeLogRecord({"event": LogEvent.RUN_INFO}))
    held = {name: locks.is_held(Path(f"resources/locks/{name}.turn")) for name in names}
    assert held == {"planned": True, "not_planned": False}
    listens(logging.makeLogRecord({"event": LogEvent.JOB_FINISHED, "job_id": 7}))
    assert not locks.is_held(Path("resources/locks/planned.turn"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with what is in the worktree."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path_factory.mktemp("repository")
    for name in ("Snakefile", "workflow", "profiles"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    return folder


def test_a_module_from_a_repository_is_planned_from_a_copy(project, finished, repository, tmp_path):
    """The same code from elsewhere, so nothing is to be done; the copy is made once."""
    for folder in ("model", "texts", "results", "resources", ".snakemake"):
        shutil.copytree(project / folder, tmp_path / folder)
    source = f'gitfile("{repository}", path="workflow/Snakefile", tag="v1")'
    remote = RENAMED.replace('"{snakefile}"', "{snakefile}")
    outer(tmp_path, remote, {"atlas": CONFIG}, source)
    shutil.copy2(project / "summary.json", tmp_path)
    for _ in range(2):
        status, said = snakemake(tmp_path, "--cores", "2")
        assert status == 0, said
        assert "Nothing to be done" in said
    (copy,) = (tmp_path / ".snakemake" / "outlier-atlas").iterdir()
    assert (copy / "workflow" / "scripts" / "outlier_atlas").is_dir()
    (tmp_path / "results" / "atlas" / "report.html").unlink()
    status, said = snakemake(tmp_path, "--cores", "2")
    assert status == 0, said
    assert planned(said)["atlas_render_report"] == 1


def test_a_module_from_a_hosted_repository_is_planned_without_the_network(
    project, repository, tmp_path
):
    clone = "cache/snakemake/snakemake/source-cache/snakemake-git-cache/github.com/someone/atlas"
    subprocess.run(["git", "clone", "-q", "--bare", str(repository), clone], cwd=tmp_path,
                   check=True)  # fmt: skip
    source = 'github("someone/atlas", path="workflow/Snakefile", tag="v1")'
    outer(tmp_path, DEPLOYED, CONFIG, source)
    for folder in ("model", "texts"):
        shutil.copytree(project / folder, tmp_path / folder)
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    status, said = snakemake(tmp_path, "--dry-run", env=env)
    assert status == 0, said
    assert planned(said)["extract_activations"] == 1
