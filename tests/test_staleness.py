"""Tests that a change reruns exactly what the table says, and that valid results are kept.

`outlier_atlas/staleness.py` is the table. Every key of it is held against the jobs that Snakemake
plans; a key of each kind against a real run, whose jobs, model loads and written chunks are
counted. What extraction computes after each kind of change is counted on its stages themselves.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pytest
import tiny
import zarr
from hub_server import HubServer
from other_values import other_values
from pipeline import Run, config
from store_files import chunk_files, site_chunks, written
from test_hub import dataset, environment, hub  # noqa: F401 - a fixture
from test_workflow import ROOT, snakemake, write
from times import without_times

from outlier_atlas import staleness
from outlier_atlas.extraction import compute
from outlier_atlas.job_metrics import records
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.store.commits import Commits, revise
from outlier_atlas.store.move_chunks import ASIDE
from outlier_atlas.store.run_files import COMMITS

CONFIG = {
    "run": {"name": "mine"},
    "model": {"source": "../model"},
    "dataset": {"source": "../texts", "sequences": 4, "sequence_length": 16},
    "detection": {"llm_int8": {"threshold": 2.0}},
}
DOCUMENTS = {"packing": "document"}
CHANGES = {
    "run.name": "other",
    "model.source": "../other",
    "model.dtype": "float32",
    "model.trust_remote_code": True,
    "dataset.source": "../others",
    "dataset.split": "test",
    "dataset.files": ["*.txt"],
    "dataset.text_column": "body",
    "dataset.messages_column": "chat",
    "dataset.input_ids_column": "ids",
    "dataset.shuffle_seed": 1,
    "dataset.special_tokens": "split",
    "dataset.date": "2025-01-31",
    "dataset.sequences": 5,
    "dataset.sequence_length": 8,
    "dataset.packing": "document",
    "dataset.min_length": {"dataset": DOCUMENTS | {"min_length": 2}},
    "dataset.bos": "never",
    "extraction.sites": ["attn_in", "mlp_in", "resid_post", "mlp_out"],
    "extraction.store": ["attn_in", "mlp_in"],
    "extraction.layers": [0, 1],
    "extraction.layer_groups": 2,
    "extraction.sequence_shards": 2,
    "extraction.perplexity": True,
    "extraction.verify": "never",
    "extraction.advanced.chunk_tokens": 8,
    "extraction.advanced.compression": "zstd",
    "extraction.advanced.sink_tokens": 8,
    "extraction.advanced.outlier_floor": 3.0,
    "extraction.advanced.massive_floor": 32.0,
    **{f"detection.{key}": value for key, value in other_values(DetectionSettings).items()},
    "weights.measure": False,
    "ablation.sequences": 1,
    "ablation.targets": ["outlier_features"],
    "ablation.most": 1,
    "ablation.search_rounds": 1,
    "ablation.weights": [[0, 1, 2]],
    "ablation.expert_weights": [[0, 1, 2, 3]],
    "ablation.channels": [["resid_post", "all", 3]],
    "ablation.interventions": ["zero"],
    "ablation.random_draws": 1,
    "ablation.seed": 1,
    "report.title": "Another title",
    "report.text": "none",
    "report.context_tokens": 3,
    "report.rows": 7,
    "report.compare": "before",
    "execution.device": "cpu",
    "execution.device_memory": "24GiB",
    "execution.gpus_per_job": 2,
    "execution.batch_size": 2,
    "execution.threads": 1,
    "execution.on_new_versions": "keep",
}
"""Another value of every key; a mapping of sections if a value needs others with it."""

OF_A_HUB = {
    "model.revision": None,
    "dataset.revision": "v1",
    "dataset.subset": "long",
    "dataset.split": "test",
}


def changed(base, key, value):
    """Return a configuration with another value of a key."""
    result = copy.deepcopy(base)
    if isinstance(value, dict):
        for section, keys in value.items():
            result[section] = result.get(section, {}) | keys
        return result
    section = result
    *path, last = key.split(".")
    for name in path:
        section = section.setdefault(name, {})
    section[last] = value
    return result


def planned(folder, *configs, target=""):
    """Return the number of jobs of each rule that Snakemake would run, for each configuration."""
    names = [f"planned-{index}.yaml" for index in range(len(configs))]
    for name, configured in zip(names, configs, strict=True):
        write(folder, configured, name)
    script = Path(__file__).with_name("planned_jobs.py")
    done = subprocess.run(
        [forked.python(), str(script), *names, *([f"--target={target}"] if target else [])],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run in a separate checkout, which no test changes.

    Model and text are next to it, so that a copy next to it has the same paths to them.
    """
    root = tmp_path_factory.mktemp("staleness")
    tiny.llama(root / "model")
    shutil.copytree(root / "model", root / "other")
    (root / "texts").mkdir()
    for index, sentence in enumerate(tiny.SENTENCES):
        (root / "texts" / f"{index}.txt").write_text(sentence * 3)
    shutil.copytree(root / "texts", root / "others")
    folder = root / "finished"
    folder.mkdir()
    checkout(folder)
    write(folder, CONFIG)
    snakemake(folder, "--configfile", "mine.yaml", root=folder)
    shutil.copytree(folder / "results" / "mine", folder / "results" / "before")
    return folder


def checkout(folder):
    shutil.copy(ROOT / "Snakefile", folder)
    for name in ("workflow", "profiles"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder


def test_the_table_knows_every_key():
    known = set(CHANGES) | set(OF_A_HUB)
    assert known == set(staleness.keys())
    for key in known:
        assert set(staleness.effect(key).rules) <= set(staleness.RULES)


def test_every_line_of_the_table_is_what_snakemake_plans(finished):
    configs = (changed(CONFIG, key, value) for key, value in CHANGES.items())
    nothing, *jobs = planned(finished, CONFIG, *configs)
    assert nothing == {}
    for key, of_key in zip(CHANGES, jobs, strict=True):
        assert set(of_key) == set(staleness.effect(key).rules), key


@pytest.mark.slow
def test_every_line_about_a_hub_is_what_snakemake_plans(hub, tmp_path):  # noqa: F811
    base = dataset() | {"run": {"name": "mine"}}
    base["model"]["revision"] = "v1"
    checkout(tmp_path)
    with HubServer(hub) as server:
        write(tmp_path, base)
        env = environment(tmp_path / "home", server.url)
        snakemake(tmp_path, "--configfile", "mine.yaml", root=tmp_path, env=env)
    jobs = planned(tmp_path, *(changed(base, key, value) for key, value in OF_A_HUB.items()))
    for key, of_key in zip(OF_A_HUB, jobs, strict=True):
        assert set(of_key) == {"fetch_dataset", *staleness.effect(key).rules}, key


def test_spelling_order_and_touch_make_nothing_stale(finished):
    spelled = {key: CONFIG[key] for key in reversed(CONFIG)}
    spelled |= {"report": {"rows": 25}, "extraction": {"layers": "all", "verify": "auto"}}
    for folder in ("workflow", "../model", "../texts", "results/mine/manifests"):
        for path in (finished / folder).rglob("*"):
            path.touch()  # as a fresh checkout, or a copy, does
    assert planned(finished, spelled) == [{}]


class Project:
    """A copy of a finished run that counts jobs, model loads and written chunks."""

    def __init__(self, finished: Path, name: str) -> None:
        self.folder = shutil.copytree(finished, finished.with_name(name))
        self.run = Run(self.folder, CONFIG)

    def again(self, changed_config):
        """Run it; return the number of jobs of each rule, the model loads and the chunks."""
        before = chunk_files(self.run)
        write(self.folder, changed_config)
        done = snakemake(self.folder, "--configfile", "mine.yaml", "--verbose", root=self.folder)
        said = done.stdout + done.stderr
        jobs = Counter(re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", said))
        jobs.pop("all", None)
        loads = len(re.findall(r"of weights, as .* loaded in", said))
        return jobs, loads, written(before, chunk_files(self.run))


def made_long_ago(folder):
    """Make all inputs older than all outputs, and both old."""
    for seconds, names in (1, ("workflow", "../model", "../texts")), (2, ("resources", "results")):
        for path in (path for name in names for path in (folder / name).rglob("*")):
            older = seconds - (path.parent.name == "inputs")
            os.utime(path, (older, older))


def test_other_settings_run_again_whatever_snakemake_remembers(finished, tmp_path):
    folder = shutil.copytree(finished, finished.with_name(tmp_path.name))
    shutil.rmtree(folder / ".snakemake")
    made_long_ago(folder)
    configs = (changed(CONFIG, key, CHANGES[key]) for key in REPRESENTATIVES)
    nothing, *jobs = planned(folder, CONFIG, *configs)
    assert nothing == {}
    for key, of_key in zip(REPRESENTATIVES, jobs, strict=True):
        assert set(of_key) == set(staleness.effect(key).rules), key


def test_two_checkouts_that_make_a_run_by_turns_see_each_others_changes(finished, tmp_path):
    """Snakemake's metadata belong to one checkout, and the outputs to the other."""
    project = Project(finished, tmp_path.name)
    folder = project.folder
    project.again(changed(CONFIG, "report.rows", 3))
    shutil.rmtree(folder / ".snakemake")
    shutil.copytree(finished / ".snakemake", folder / ".snakemake")
    assert planned(folder, CONFIG, changed(CONFIG, "report.rows", 3)) == [{"render_report": 1}, {}]
    assert project.again(CONFIG)[0] == {"render_report": 1}
    assert planned(folder, CONFIG) == [{}]


def test_a_named_target_is_as_stale_as_the_whole_run(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    table = "results/mine/tables/llm_int8_features.parquet"
    other = changed(CONFIG, "detection.llm_int8.threshold", 3.0)
    assert planned(project.folder, CONFIG, other, target=table) == [{}, {"detect_outliers": 1}]
    before = (project.folder / table).read_bytes()
    write(project.folder, other)
    snakemake(project.folder, table, "--configfile", "mine.yaml", root=project.folder)
    assert (project.folder / table).read_bytes() != before
    assert planned(project.folder, other, target=table) == [{}]
    later = dict.fromkeys(("join_weights", "render_report"), 1)
    assert planned(project.folder, other) == [later]


def test_a_model_that_was_there_before_is_another_one_all_the_same(finished, tmp_path):
    """The record is older than the outputs of the run, and Snakemake compares times."""
    project = Project(finished, tmp_path.name)
    configs = [changed(CONFIG, "model.source", "../other"), CONFIG]
    project.again(configs[0])
    again = dict.fromkeys(staleness.STORE, 1)  # the model's own tokens are still there
    assert planned(project.folder, *configs) == [{}, again]
    shutil.rmtree(project.folder / ".snakemake")
    assert planned(project.folder, *configs) == [{}, again]
    assert project.again(CONFIG)[0] == again
    assert planned(project.folder, *configs) == [again, {}]


@pytest.mark.parametrize(
    ("file", "rules"),
    [
        ("results/mine/tables/criteria.csv", staleness.DETECTION),
        ("results/mine/tables/token_norms.parquet", staleness.DETECTION),
        ("results/mine/tables/weights.csv", staleness.WEIGHTS),
        ("results/mine/findings.json", staleness.REPORT),
        ("results/mine/report.html", staleness.REPORT),
        ("resources/weights/*/weights.csv", ("measure_weights", *staleness.WEIGHTS)),
    ],
)
def test_a_deleted_output_comes_back(finished, tmp_path, file, rules):
    (path,) = finished.glob(file)
    kept = path.read_bytes()
    path.rename(tmp_path / "kept")
    try:
        assert planned(finished, CONFIG) == [dict.fromkeys(rules, 1)]
    finally:
        (tmp_path / "kept").rename(path)
    assert path.read_bytes() == kept
    assert planned(finished, CONFIG) == [{}]


def test_a_deleted_output_comes_back_although_the_records_were_copied_in_any_order(
    finished, tmp_path
):
    """A record may then be newer than the products, with the bytes that Snakemake knows."""
    project = Project(finished, tmp_path.name)
    now = time.time()
    for later, folder in (1, "outputs"), (2, "inputs"):
        for path in (project.folder / "results/mine/manifests" / folder).iterdir():
            os.utime(path, (now + later, now + later))
    assert planned(project.folder, CONFIG) == [{}]
    for file, rules in (
        ("tables/weights.csv", staleness.WEIGHTS),
        ("tables/criteria.csv", staleness.DETECTION),
    ):
        path = project.folder / "results/mine" / file
        path.rename(tmp_path / "kept")
        assert planned(project.folder, CONFIG) == [dict.fromkeys(rules, 1)]
        (tmp_path / "kept").rename(path)


def state_of(folder):
    """Return the names, times and inodes of a folder's files."""
    found = {path: path.lstat() for path in folder.rglob("*") if "log" not in path.parts}
    return {path: (stat.st_mtime_ns, stat.st_ino) for path, stat in found.items()}


def test_a_dry_run_writes_nothing_and_names_what_is_out_of_date(finished, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    write(finished, changed(CONFIG, "detection.llm_int8.threshold", 3.0), "other.yaml")
    places = ("results", "resources", ".snakemake/metadata", ".snakemake/incomplete")
    before = [state_of(finished / place) for place in places]
    done = snakemake(
        finished, "--dry-run", "--configfile", "other.yaml", root=finished,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary)},
    )  # fmt: skip
    line = r"^  detect_outliers +1  detection\.llm_int8\.threshold 2\.0 → 3\.0$"
    assert re.search(line, done.stdout, re.MULTILINE)
    assert [state_of(finished / place) for place in places] == before
    assert list(temporary.iterdir()) == []


def test_a_dataset_that_was_replaced_by_one_of_equal_size_and_time_is_seen(finished, tmp_path):
    """Snakemake compares times, and reads no file of more than 1 MB."""
    project = Project(finished, tmp_path.name)
    text = project.folder / "long.txt"
    text.write_text("a b c d e f g h " * 2**17)
    configured = changed(CONFIG, "dataset.source", "./long.txt")
    project.again(configured)
    size, modified = text.stat().st_size, text.stat().st_mtime_ns
    assert size == 2**21
    with text.open("r+") as file:
        file.write("z")
    os.utime(text, ns=(modified, modified))
    assert (text.stat().st_size, text.stat().st_mtime_ns) == (size, modified)
    shutil.rmtree(project.folder / ".snakemake")
    assert planned(project.folder, configured) == [dict.fromkeys(staleness.TOKENS, 1)]
    assert project.again(configured)[0] == dict.fromkeys(staleness.TOKENS, 1)
    assert planned(project.folder, configured) == [{}]


def test_a_compared_run_that_was_put_back_from_a_copy_is_compared_again(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    configured = changed(CONFIG, "report.compare", "before")
    assert project.again(configured)[0] == {"render_report": 1}
    table = project.folder / "results/before/tables/criteria.parquet"
    shutil.copy(finished / "results/mine/tables/weights.parquet", table)
    os.utime(table, (1, 1))
    assert planned(project.folder, configured) == [{"render_report": 1}]


def page_and_findings(run):
    """What the report says, without what the jobs took."""
    return without_times((run / "report.html").read_bytes()), (run / "findings.json").read_bytes()


def test_a_refused_comparison_leaves_the_report_that_is_there(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    run = project.run.folder
    before = page_and_findings(run)
    table = project.folder / "results/before/tables/criteria.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    write(project.folder, changed(CONFIG, "report.compare", "before"))
    done = snakemake(project.folder, "--configfile", "mine.yaml", root=project.folder, check=False)
    assert done.returncode != 0
    assert "report.compare: results/before/tables/criteria.parquet is damaged" in done.stderr
    assert page_and_findings(run) == before
    assert project.again(CONFIG)[0] == {"render_report": 1}
    assert page_and_findings(run) == before


def test_an_edited_table_is_not_drawn_into_the_report(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    run = project.run.folder
    before = page_and_findings(run)
    table = run / "tables/channel_maxima.parquet"
    shutil.copy(run / "tables/massive_channels.parquet", table)
    write(project.folder, changed(CONFIG, "report.rows", 3))
    done = snakemake(project.folder, "--configfile", "mine.yaml", root=project.folder, check=False)
    assert done.returncode != 0
    assert (
        f"{table.relative_to(project.folder)}: damaged (it is not the file that was written)"
        in (done.stderr)
    )
    project.again(CONFIG)
    assert page_and_findings(run) == before


SITES = ("attn_in", "mlp_in", "resid_post")
ONCE = dict.fromkeys(staleness.STORE, 1)


def test_a_report_setting_runs_the_report_alone_and_then_nothing(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    other = CONFIG | {"report": {"rows": 3}}
    assert project.again(other) == ({"render_report": 1}, 0, set())
    assert project.again(other | {"execution": {"batch_size": 2}}) == ({}, 0, set())


def test_more_sequences_another_cut_and_edited_code_in_real_runs(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    more = changed(CONFIG, "dataset.sequences", 5)
    jobs, loads, chunks = project.again(more)
    assert (jobs, loads) == (ONCE | {"tokenize_dataset": 1}, 1)
    assert chunks == site_chunks(SITES, range(4), range(4, 5))

    cut = changed(changed(more, "extraction.layer_groups", 2), "extraction.sequence_shards", 2)
    assert project.again(cut) == (ONCE | {"extract_activations": 4}, 0, set())

    edited = project.folder / "workflow/scripts/outlier_atlas/extraction/stream.py"
    edited.write_text(edited.read_text() + "# edited\n")
    again = dict.fromkeys(staleness.DETECTION, 1) | {"extract_activations": 4}
    assert project.again(cut) == (again, 0, set())


def test_a_run_grows_under_other_versions_as_it_is_configured_to(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    old = {"versions": {"torch": "1.0", "transformers": "2.0"}}
    commits = project.run.folder / COMMITS
    revise(commits, lambda commit: replace(commit, details={**commit.details, **old}))
    more = changed(CONFIG, "dataset.sequences", 5)
    write(project.folder, more)
    done = snakemake(project.folder, "--configfile", "mine.yaml", root=project.folder, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert (
        "extract_activations: results/mine: was computed under torch 1.0 and transformers" in said
    )
    assert "set execution.on_new_versions: recompute (all of it is computed again) or keep" in said
    assert "Traceback" not in said
    jobs, loads, chunks = project.again(changed(more, "execution.on_new_versions", "recompute"))
    assert (jobs["extract_activations"], loads) == (1, 1)
    assert chunks == site_chunks(SITES, range(4), range(5))
    stated = [commit.details["versions"] for commit in Commits.load(commits)]
    assert stated
    assert old["versions"] not in stated


def test_verify_names_all_damage_and_the_same_command_makes_it_anew(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    run = project.run.folder
    want = {path: data for path, (_, data) in chunk_files(project.run).items()}
    chunk, old = ("activations.zarr/mlp_in/c/2/1/0", "activations.zarr/resid_post/c/0/3/0")
    (run / chunk).write_bytes((run / chunk).read_bytes()[:-1])
    shutil.copy(run / "activations.zarr/resid_post/c/0/2/0", run / old)
    tokens = (run / "tokens.parquet").read_bytes()
    (run / "tokens.parquet").write_bytes(tokens[:-9] + b"X" + tokens[-8:])

    def verify():
        done = snakemake(
            project.folder, "--configfile", "mine.yaml", "--", "verify",
            root=project.folder, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    status, said = verify()
    assert status != 0
    assert "results/mine/tokens.parquet: damaged (it is not the file that tokens.json" in said
    assert "mlp_in, layer 2, chunk 1: damaged (its checksum does not agree)" in said
    assert "resid_post, layer 0, chunk 3: damaged (it is not the one that was committed)" in said
    assert "Traceback" not in said
    jobs, loads, chunks = project.again(CONFIG)
    assert (jobs["extract_activations"], loads, chunks) == (1, 1, {chunk, old})
    assert {path: data for path, (_, data) in chunk_files(project.run).items()} == want
    assert (run / "tokens.parquet").read_bytes() == tokens
    status, said = verify()
    assert status == 0
    assert (
        "results/mine: the model, the tokens, every chunk, every summary and every record are what"
        in said
    )


REPRESENTATIVES = {
    "run.name": (1, "all"),
    "model.source": (0, "none"),
    "model.dtype": (1, "all"),
    "dataset.bos": (1, "all"),
    "extraction.sites": (1, site_chunks(("mlp_out",), range(4), range(4))),
    "extraction.layers": (0, "none"),
    "extraction.layer_groups": (0, "none"),
    "extraction.verify": (0, "none"),
    "extraction.advanced.compression": (1, "all"),
    "detection.llm_int8.threshold": (0, "none"),
    "detection.smoothquant.alpha": (0, "none"),
    "ablation.sequences": (1, "none"),
    "report.rows": (0, "none"),
    "execution.batch_size": (0, "none"),
}
"""A key for each list of rules, with the number of model loads and the chunks written."""


@pytest.mark.slow
@pytest.mark.parametrize("key", REPRESENTATIVES)
def test_a_key_of_each_kind_in_a_real_run(finished, tmp_path, key):
    shown = {staleness.effect(k).rules for k in REPRESENTATIVES}
    assert shown == {effect.rules for effect in staleness.EFFECTS.values()}
    project = Project(finished, tmp_path.name)
    loads, chunks = REPRESENTATIVES[key]
    every = site_chunks(SITES, range(4), range(4))
    want = {"all": every, "none": set()}[chunks] if isinstance(chunks, str) else chunks
    if key == "run.name":
        project.run = Run(project.folder, changed(CONFIG, key, CHANGES[key]))
    jobs, *counted = project.again(changed(CONFIG, key, CHANGES[key]))
    assert set(jobs) == set(staleness.effect(key).rules)
    assert counted == [loads, want]
    assert project.again(changed(CONFIG, key, CHANGES[key])) == ({}, 0, set())


class Stages:
    """A run whose stages are called directly, and that counts model loads and written chunks."""

    def __init__(self, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.model, self.loads = folder, model, 0
        load = compute.load

        def counted(*args):
            self.loads += 1
            return load(*args)

        monkeypatch.setattr(compute, "load", counted)

    def configured(self, folder=None, count=4, chunk_tokens=8, **sections) -> Run:
        """Make sequences of 8 tokens, whose first ones do not depend on their number."""
        rows = [[4 + (7 * i + 3 * k) % 290 for k in range(8)] for i in range(count)]
        folder = folder or self.folder
        extraction = {"advanced": {"chunk_tokens": chunk_tokens}} | sections.pop("extraction", {})
        model = {"source": str(self.model)} | sections.pop("model", {})
        made = config(self.model, rows, folder / "data", extraction=extraction, **sections)
        return Run(folder, made | {"model": model})

    def extracted(self, **changes) -> tuple[int, set[str]]:
        """Extract as configured; return the number of model loads and the chunks written.

        What is stored is what a run of its own stores.
        """
        run = self.configured(**changes)
        before = chunk_files(run)
        self.loads = 0
        run.prepare()
        run.extract()
        counted = self.loads, written(before, chunk_files(run))
        fresh = self.configured(self.folder / "fresh", **changes)
        shutil.rmtree(fresh.folder, ignore_errors=True)
        fresh.prepare()
        fresh.extract()
        for site in run.settings.extraction.sites:
            assert np.array_equal(run.array(site), fresh.array(site))
        layers = zarr.open_group(run.activations, mode="r")["layer"][:]
        assert np.array_equal(layers, zarr.open_group(fresh.activations, mode="r")["layer"][:])
        return counted


@pytest.fixture
def stages(llama, tmp_path, monkeypatch):
    return Stages(tmp_path, llama, monkeypatch)


NONE: tuple[int, set[str]] = (0, set())
EVERY = (1, site_chunks(SITES, range(4), range(4)))
MLP_OUT = site_chunks(("mlp_out",), range(4), range(4))
SECOND = site_chunks(SITES, range(4), range(1, 2))
SOME_LAYERS = {"extraction": {"layers": [1, 3]}}


@pytest.mark.parametrize(
    ("first", "then", "computed"),
    [
        ({}, {}, NONE),
        ({}, {"count": 6}, (1, site_chunks(SITES, range(4), range(4, 6)))),
        ({}, {"count": 2}, NONE),
        ({}, {"extraction": {"sites": ["attn_in", "mlp_out"]}}, (1, MLP_OUT)),
        ({}, {"extraction": {"sites": ["attn_in"]}}, NONE),
        ({}, SOME_LAYERS, NONE),
        ({}, {"extraction": {"layer_groups": 3}}, NONE),
        ({}, {"extraction": {"sequence_shards": 3}}, NONE),
        ({}, {"extraction": {"layer_groups": 2, "sequence_shards": 2}, "count": 3}, NONE),
        ({}, {"execution": {"batch_size": 4}}, NONE),
        ({}, {"model": {"dtype": "float32"}}, EVERY),
        ({}, {"extraction": {"advanced": {"chunk_tokens": 8, "compression": "zstd"}}}, EVERY),
        # The last chunk is not full: its values stay, and the others are added.
        ({"chunk_tokens": 24}, {"chunk_tokens": 24, "count": 5}, (1, SECOND)),
        ({"chunk_tokens": 24}, {"chunk_tokens": 24, "count": 1}, NONE),
        ({"chunk_tokens": 24, "count": 3}, {"chunk_tokens": 24, "count": 2}, NONE),
        ({"chunk_tokens": 64}, {"chunk_tokens": 64, "extraction": {"sequence_shards": 4}}, NONE),
    ],
)  # fmt: skip
def test_extraction_computes_what_is_missing_and_touches_nothing_else(
    stages, first, then, computed
):
    stages.extracted(**first)
    assert stages.extracted(**then) == computed
    assert stages.extracted(**then) == NONE


def test_more_layers_are_computed_alone_and_the_others_find_their_rows(stages):
    stages.extracted(**SOME_LAYERS)
    assert stages.extracted() == (1, site_chunks(SITES, range(0, 4, 2), range(4)))


def test_a_change_that_is_taken_back_costs_nothing_until_the_run_is_complete(stages):
    stages.extracted()
    fewer = {"extraction": {"layers": [2], "sites": ["attn_in"], "layer_groups": 3}}
    assert stages.extracted(**fewer) == NONE
    assert stages.extracted() == NONE
    assert stages.extracted(**fewer) == NONE
    run = stages.configured(**fewer)
    run.detect()
    assert {path.split("/")[1] for path in chunk_files(run)} == {"attn_in"}
    assert not list(run.folder.rglob(ASIDE))
    for lines in (run.folder / COMMITS).glob("*.jsonl"):
        for line in lines.read_text().splitlines():
            assert json.loads(line)["arrays"].keys() == {"attn_in"}


def test_boundaries_and_measurements_of_another_cut_go_when_the_run_is_complete(stages):
    stages.extracted(extraction={"layer_groups": 2})
    run = stages.configured(extraction={"layer_groups": 3}, count=5)
    run.prepare()
    run.extract()
    another = run.folder / "measured" / "group-0-of-2.shard-0-of-1.json"
    shutil.copy(run.folder / "measured" / "group-0.shard-0.json", another)
    run.detect()
    groups = json.loads(run.store_record.read_text())["layer_groups"]
    first = [f"into_layer_{first}" for first, _ in groups]
    assert sorted(p.name for p in (run.folder / "boundaries.zarr").glob("into*")) == first[1:]
    assert len(records(run.folder)) == 3


@pytest.mark.parametrize("moves", range(0, 16, 2))
def test_a_kill_while_layers_move_loses_nothing(stages, monkeypatch, moves):
    stages.extracted()
    other = stages.configured(**SOME_LAYERS)
    rename, left = Path.rename, [moves]

    def killed(self, target):
        if ASIDE in (self.parent.name, Path(target).parent.name):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        other.prepare()
    assert stages.extracted(**SOME_LAYERS) == NONE
    assert stages.extracted() == NONE
