"""What the terminal shows of a run, and what it does not."""

import os
import re
import subprocess
from pathlib import Path

import commanded
import forked
import pytest

ROOT = Path(__file__).parents[1]
CONFIG = {
    "run": {"name": "mine"},
    "model": {"source": "./model"},
    "dataset": {"source": "./texts", "sequences": 2, "sequence_length": 16},
    "extraction": {"layer_groups": 2},
    "detection": {"llm_int8": {"threshold": 2.0}},
}


class Project(commanded.Project):
    """A project on which commands with other options run."""

    def shown(self, config, *options, status=0, env=None, **streams):
        """What a command prints."""
        self._write(config)
        command = [forked.python(), "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        command += ["--workflow-profile", str(ROOT / "profiles" / "default")]
        done = subprocess.run(
            [*command, "--cores", "2", "--configfile", "mine.yaml", *options], cwd=self.folder,
            text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OUTLIER_ATLAS_MAKE": ""} | (env or {}),
        )  # fmt: skip
        assert done.returncode == status, done.stdout
        return done.stdout


def changed(section, **values):
    return CONFIG | {section: CONFIG[section] | values}


THRESHOLD = changed("detection", llm_int8={"threshold": 3.0})
REASON = "detection.llm_int8.threshold 2.0 → 3.0"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A finished run, with what its first command printed."""
    made = commanded.project(tmp_path_factory.mktemp("terminal"))
    project = Project(made.folder)
    project.first = project.shown(CONFIG)
    return project


def stages(said):
    """The lines of stages, without their times."""
    return re.findall(r"^\d\d:\d\d:\d\d (.*)$", said, re.MULTILINE)


def rows(said):
    """The plan: each rule with its number of jobs and its reason."""
    found = re.findall(r"^  (\w+) +(\d+)  (.*)$", said, re.MULTILINE)
    return {rule: (int(jobs), why) for rule, jobs, why in found}


def test_a_run_shows_its_plan_and_of_each_stage_its_begin_its_end_and_a_finding(project):
    planned = rows(project.first)
    assert set(planned.values()) == {(1, "not made yet"), (2, "not made yet")}
    assert planned["extract_activations"] == (2, "not made yet")
    lines = stages(project.first)
    for rule in planned:
        # Between them there may be progress, on a slow machine.
        title, *_, done = [line for line in lines if line.startswith(f"{rule}: ")]
        assert re.match(rf"{rule}: done in \d+ (s|min); .+", done)
        assert not title.startswith(f"{rule}: done")
    assert (
        "extract_activations: Activations of layer group 0 to 1, sequence shard 0, 2 jobs" in lines
    )
    said = "\n".join(lines)
    assert "; 32 tokens in 2 sequences, of " in said
    assert "; LlamaForCausalLM, 3 layers, " in said
    assert "; 3 layers, 3 sites, 32 tokens; " in said
    assert re.search(r"detect_outliers: done in \d+ \w+; findings: llm_int8 \d+, ", said)
    assert re.search(
        r"measure_weights: done in \d+ \w+; 23 weights; the largest \|value\| is ", said
    )
    assert re.search(r"; results/mine/report.html, [\d.]+ \wiB$", said, re.MULTILINE)
    assert lines[-1].startswith("9 jobs done in ")
    assert project.first.rstrip().endswith("Report: results/mine/report.html")


def test_a_run_shows_no_list_of_files_and_nothing_that_only_a_terminal_obeys(project):
    assert max(line.count("results/") for line in project.first.splitlines()) == 1
    assert not set(project.first) & {"\r", "\x1b", "\b"}
    for noise in ("Building DAG", "Job stats", "SNAKEMAKE", "Select jobs", "Finished jobid"):
        assert noise not in project.first


def test_snakemakes_log_keeps_everything_and_verbose_shows_it(project):
    log = max((project.folder / ".snakemake" / "log").glob("*.log")).read_text()
    for line in ("Job stats", "Reason: Missing output files: ", "Finished jobid: "):
        assert line in log
    said = project.shown(THRESHOLD, "--dry-run", "--verbose")
    assert "Job stats" in said
    assert f"detect_outliers: {REASON}" in said.splitlines()
    assert "Building DAG of jobs" in project.shown(CONFIG, "--dry-run", "--printshellcmds")


def test_a_finished_run_says_so_in_one_line(project):
    said = project.shown(CONFIG)
    (_, line) = said.splitlines()  # the first is of the profile
    assert line == "Nothing to be done (all requested files are present and up to date)."


def test_a_dry_run_says_why_each_rule_would_run(project):
    assert rows(project.shown(THRESHOLD, "--dry-run")) == {
        "detect_outliers": (1, REASON),
        "join_weights": (1, "after detect_outliers"),
        "render_report": (1, REASON),
    }
    text = project.folder / "texts" / "0.txt"
    before = text.read_text()
    try:
        text.write_text("another beginning, as long as it has to be")
        why = rows(project.shown(CONFIG, "--dry-run"))["tokenize_dataset"]
    finally:
        text.write_text(before)
    assert why == (1, "the dataset's file 0.txt changed")
    table = project.folder / "results/mine/tables/criteria.csv"
    kept = table.rename(project.folder / "kept")
    try:
        why = rows(project.shown(CONFIG, "--dry-run"))["detect_outliers"]
    finally:
        kept.rename(table)
    assert why == (1, "results/mine/tables/criteria.csv missing")
    forced = rows(project.shown(CONFIG, "--dry-run", "--forcerun", "join_weights"))
    assert forced["join_weights"] == (1, "asked for on the command line")


def test_quiet_is_obeyed(project):
    said = project.shown(CONFIG, "--forcerun", "join_weights", "--quiet")
    assert not stages(said) and not rows(said)
    assert "Report: results/mine/report.html" in said
    said = project.shown(THRESHOLD, "--dry-run", "--quiet", "reason")
    assert re.search(r"^  detect_outliers +1$", said, re.MULTILINE)


def test_a_failing_job_is_one_line_of_its_own_and_one_that_names_the_logs(project):
    short = changed("dataset", sequences=400) | {"run": {"name": "short"}}
    said = project.shown(short, status=1)
    lines = said.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("tokenize_dataset: too little"))
    failed = r"tokenize_dataset: failed; log: resources/logs/tokenize_dataset\.texts-\w{8}\.log"
    assert re.fullmatch(rf"[\d:]+ {failed}", lines[at + 1])
    assert [line.partition(": ")[0] for line in lines[at + 2 :]] == ["Complete log(s)"]
    assert "rule" not in said and "WorkflowError" not in said
    quiet = project.shown(short, "--quiet", "all", status=1).splitlines()
    assert len(quiet) == 2 and quiet[1].startswith("tokenize_dataset: too little text")
