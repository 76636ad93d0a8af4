"""The workflow as users run it: a configuration in, the store, the tables and the report out."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import forked
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import transformers
import yaml
import zarr

from outlier_atlas.criteria.tables import TABLES
from outlier_atlas.phases import PHASES
from outlier_atlas.report import figures
from outlier_atlas.settings.configuration import load
from outlier_atlas.sources import Sources
from outlier_atlas.tables import JOB_TIMES, WEIGHT_TABLES

ROOT = Path(__file__).parents[1]


def snakemake(folder, *arguments, check=True, root=ROOT, env=None, python=None):
    """Run Snakemake on the project, in a folder of its own; it and its jobs in `python`."""
    python = python or forked.python(env)
    command = [python, "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
    command += ["--workflow-profile", str(root / "profiles" / "default"), "--cores", "2"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env=(env or os.environ | {"HF_HUB_OFFLINE": "1"}) | {"OUTLIER_ATLAS_MAKE": ""},
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def planned(folder, name="mine.yaml", target="all"):
    """The rules that would run, with how many jobs each."""
    said = snakemake(folder, target, "--dry-run", "--configfile", name).stdout
    jobs = re.findall(r"^  (\w+) +(\d+)  ", said, re.MULTILINE)
    return {rule: int(count) for rule, count in jobs}


def write(folder, config, name="mine.yaml"):
    (folder / name).write_text(yaml.safe_dump(config, sort_keys=False))


CONFIG = {
    "model": {"source": "./model"},
    "dataset": {"source": "./texts", "sequences": 4, "sequence_length": 32},
    "extraction": {"layer_groups": 2, "sequence_shards": 2},
    "detection": {"llm_int8": {"threshold": 2.0}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("project")
    tiny.llama(folder / "model")
    (folder / "texts").mkdir()
    for index, sentence in enumerate(tiny.SENTENCES):
        (folder / "texts" / f"{index}.txt").write_text(sentence * 3)
    write(folder, CONFIG)
    run = snakemake(
        folder, "--configfile", "mine.yaml", "--resources", "gpu=2", python=sys.executable
    )
    (folder / "output.txt").write_text(run.stdout + run.stderr)
    return folder


def test_a_run_leaves_everything_that_is_promised(folder):
    run = folder / "results" / "mine"
    array = zarr.open(run / "activations.zarr")["attn_in"]
    assert array.shape == (4, 128, 32)
    assert np.isfinite(array[:]).all()
    names = {table.name for table in (*TABLES, *WEIGHT_TABLES, JOB_TIMES)}
    assert {"criteria", "massive_activations", "perplexity", "weights"} <= names
    for ending in ("parquet", "csv"):
        assert {path.stem for path in (run / "tables").glob(f"*.{ending}")} == names
    assert "<!doctype html>" in (run / "report.html").read_text()[:200]
    before, _, section = (run / "report.html").read_text().partition('<section id="jobs">')
    assert (before + section.partition("</section>")[2]).count("<svg") == 9
    assert not (run / "figures").exists()
    assert len(json.loads((run / "findings.json").read_text())["findings"]) == 5


def test_a_run_ends_with_its_most_striking_finding_and_the_report(folder):
    said = (folder / "output.txt").read_text()
    first = json.loads((folder / "results/mine/findings.json").read_text())["findings"][0]
    assert f"{first['text']}\n\nReport: results/mine/report.html" in said


def test_jobs_say_what_they_loaded_and_once_where_they_run(folder):
    logs = folder.glob("results/mine/logs/extract_activations.*.log")
    loaded = r"layers \d to \d: [\d.]+ MiB of weights, as bfloat16 on \w+, loaded in"
    assert sorted(len(re.findall(loaded, log.read_text())) for log in logs) == [0, 0, 1, 1]
    said = (folder / "output.txt").read_text()
    if "on cpu" in said:
        assert said.count("no CUDA device here: running on the CPU") == 1


def test_the_time_of_every_job_is_in_a_table_and_in_the_report(folder):
    rows = pq.read_table(folder / "results/mine/tables/job_times.parquet").to_pylist()
    rules = [row["rule"] for row in rows]
    assert rules.count("extract_activations") == 4
    assert {*rules} == {
        "fetch_model", "tokenize_dataset", "create_store", "measure_weights", "detect_outliers",
        "extract_activations", "join_weights", "render_report",
    }  # fmt: skip
    for row in rows:
        parts = [row[f"{phase}_seconds"] for phase in PHASES]
        assert sum(parts) == pytest.approx(row["wall_seconds"])
        assert min(parts) >= 0
        assert row["device"] is None or row["rule"] == "extract_activations"
    # A job of each layer group also computed the other sequence shard.
    first, second = (row for row in rows if row["device"] is not None)
    assert (first["first_layer"], first["last_layer"], first["tokens"]) == (0, 1, 128)
    assert (second["first_layer"], second["last_layer"], second["tokens"]) == (2, 3, 128)
    assert (first["dtype"], first["after"]) == ("bfloat16", "create_store")
    assert min(first["load_seconds"], first["compute_seconds"], first["import_seconds"]) > 0
    assert min(first["threads_encode_seconds"], first["threads_write_seconds"]) > 0
    assert first["predicted_seconds"] > 0
    path = [row["rule"] for row in rows if row["on_critical_path"]]
    assert path[0] == "fetch_model" and path[-1] == "render_report"
    assert path.count("extract_activations") in (0, 2), "one sequence shard, or the weights"
    page = (folder / "results/mine/report.html").read_text()
    section = page.split('<section id="jobs">')[1].split("</section>")[0]
    assert "The critical path took " in section and "detect_outliers" in section
    assert section.count('class="outline"') == len(path)
    assert 'style="' not in section, "the policy of the page forbids it"


def test_the_ablation_stage_runs_only_where_it_is_configured(folder):
    """And leaves what is before it alone."""
    write(folder, CONFIG | {"run": {"name": "mine"}, "ablation": {"sequences": 1}}, "ablated.yaml")
    jobs = {"tokenize_dataset": 1, "ablate": 1, "render_report": 1}
    assert planned(folder) == {}
    assert planned(folder, "ablated.yaml") == jobs


@pytest.mark.parametrize(
    ("target", "refusal"),
    [
        ("manifests/extraction/group-0-of-7.shard-0-of-2.json", "the configuration has "),
        ("tables/ablations.parquet", "ablation.sequences is 0 in the configuration"),
    ],
)
def test_a_named_file_that_the_configuration_does_not_have_is_refused(folder, target, refusal):
    file = f"results/mine/{target}"
    done = snakemake(folder, "--dry-run", "--configfile", "mine.yaml", "--", file, check=False)
    assert done.returncode != 0
    assert f"{file}: {refusal}" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_one_gpu_job_runs_at_a_time_unless_more_gpus_are_offered(folder):
    run = (folder / "output.txt").read_text()
    log = min((folder / ".snakemake" / "log").glob("*.log"))  # of the first run
    assert 'gpu=Resource("gpu", 2)' in log.read_text()
    if "on cpu" in run:
        assert "for each of 2 jobs side by side" in run, "the plan knows"
    command = ["--configfile", "mine.yaml", "--verbose", "--forcerun", "render_report"]
    said = snakemake(folder, *command).stderr
    assert 'gpu=Resource("gpu", 1)' in said


def test_a_touched_script_is_not_stale_and_each_rule_knows_its_own_code(folder):
    for path in (ROOT / "workflow" / "scripts").glob("*.py"):
        path.touch()
    assert planned(folder) == {}
    sources = Sources(ROOT / "workflow" / "scripts")
    report, extraction = (
        set(sources.of(script)) for script in ("render_report.py", "extract_activations.py")
    )
    assert {
        "rule_main.py",
        "outlier_atlas/report/page.py",
        "outlier_atlas/settings/report.py",
    } <= report
    assert {"rule_main.py", "outlier_atlas/loading/partial.py"} <= extraction
    assert not {path for path in report if "/extraction/" in path or "/roles/" in path}
    assert not {path for path in extraction if "/report/" in path or "/detection/" in path}


def test_static_figures_are_drawn_on_demand(folder):
    drawn = folder / "results" / "mine" / "figures"
    if not drawn.exists():
        snakemake(folder, "figures", "--configfile", "mine.yaml")
    names = figures.names(load(CONFIG, "mine").extraction.sites)
    assert {path.name for path in drawn.iterdir()} == set(names) and len(names) == 36
    assert planned(folder) == planned(folder, target="figures") == {}
    # The ordinary command ignores a deleted figure, and says nothing about it.
    kept = (drawn / names[0]).rename(folder / "kept")
    said = snakemake(folder, "--configfile", "mine.yaml", "--dry-run")
    assert "figures" not in said.stdout + said.stderr
    assert planned(folder) == {}
    assert planned(folder, target="figures") == {"draw_figures": 1}
    kept.rename(drawn / names[0])
    detection = {"llm_int8": {"threshold": 3.0}}
    write(folder, CONFIG | {"run": {"name": "mine"}, "detection": detection}, "other.yaml")
    later = {"detect_outliers": 1, "draw_figures": 1}
    assert planned(folder, "other.yaml", "figures") == later


def test_snakemakes_own_report_has_the_page_the_tables_and_the_figures(folder):
    snakemake(folder, "all", "figures", "--configfile", "mine.yaml")
    snakemake(folder, "all", "figures", "--configfile", "mine.yaml", "--report", "own.zip")
    with zipfile.ZipFile(folder / "own.zip") as archive:
        names = {Path(name).name for name in archive.namelist()}
        page = archive.read("own/report.html").decode()
    assert len([name for name in names if name.endswith(".csv")]) == len(
        (*TABLES, *WEIGHT_TABLES, JOB_TIMES)
    )
    drawn = figures.names(load(CONFIG, "mine").extraction.sites)
    light = {name for name in drawn if name.endswith(".svg") and "dark" not in name}
    assert {name for name in names if name.endswith(".svg")} == light
    for word in ("Figures", "Tables", "massive_channels", "maxima"):
        assert word in page


def test_records_hold_no_time_and_no_path_of_the_machine(folder):
    for record in (folder / "results" / "mine").rglob("*.json"):
        if "activations.zarr" not in record.parts and "boundaries.zarr" not in record.parts:
            assert str(folder) not in record.read_text(), record


def test_a_finished_run_has_nothing_left_to_do(folder):
    assert planned(folder) == {}


@pytest.mark.slow
def test_a_first_run_that_fetched_its_text_has_nothing_left_to_do(tmp_path):
    """What a rule has brought meanwhile was not there when the run was planned."""
    tiny.llama(tmp_path / "model")
    write(tmp_path, CONFIG | {"dataset": CONFIG["dataset"] | {"source": "builtin:sotu"}})
    snakemake(tmp_path, "--configfile", "mine.yaml")
    assert planned(tmp_path) == {}


def test_spelling_and_touching_make_nothing_stale(folder):
    config = {key: CONFIG[key] for key in reversed(CONFIG)}
    config["dataset"] = {"bos": "auto", "packing": "concat", **CONFIG["dataset"]}
    write(folder, config | {"run": {"name": "mine"}}, "other.yaml")
    for path in ("model/config.json", "texts/0.txt", "results/mine/manifests/store.json"):
        (folder / path).touch()
    assert planned(folder, "other.yaml") == {}


@pytest.mark.parametrize(
    ("section", "change", "stale"),
    [
        ("execution", {"batch_size": 4, "threads": 1, "gpus_per_job": 2}, {}),
        ("extraction", CONFIG["extraction"] | {"verify": "first_batch"}, {}),
        ("report", {"rows": 3}, {"render_report": 1}),
        (
            "detection",
            {"llm_int8": {"threshold": 3.0}},
            {"detect_outliers": 1, "join_weights": 1, "render_report": 1},
        ),
        (
            "detection",
            CONFIG["detection"] | {"smoothquant": {"alpha": 0.8}},
            {"join_weights": 1, "render_report": 1},
        ),
    ],
)
def test_only_the_stages_behind_a_change_are_stale(folder, section, change, stale):
    write(folder, CONFIG | {"run": {"name": "mine"}, section: change}, "other.yaml")
    assert planned(folder, "other.yaml") == stale


def test_a_models_weights_are_measured_once_whatever_its_runs(folder):
    """Another run, other text, another dtype: the weights are the same, and those of a changed
    model are not."""
    text = CONFIG["dataset"] | {"sequences": 3}
    again = CONFIG | {"dataset": text, "model": CONFIG["model"] | {"dtype": "float32"}}
    write(folder, again, "again.yaml")
    stale = planned(folder, "again.yaml")
    assert stale["join_weights"] == stale["detect_outliers"] == 1
    assert "measure_weights" not in stale
    measured = next((folder / "resources" / "weights").glob("*/weights.parquet"))
    before = measured.stat().st_mtime_ns
    snakemake(folder, "results/again/tables/weights.parquet", "--configfile", "again.yaml")
    assert measured.stat().st_mtime_ns == before
    write(folder, again | {"weights": {"measure": False}}, "again.yaml")
    assert "join_weights" in planned(folder, "again.yaml")
    tiny.checkpoint(folder / "model", transformers.LlamaConfig(**tiny.SIZES), seed=3)
    try:
        assert planned(folder)["measure_weights"] == 1
    finally:
        tiny.llama(folder / "model")
        snakemake(folder, "--configfile", "mine.yaml")
    assert planned(folder) == {}


def test_what_was_replaced_by_something_older_is_stale(folder):
    """A link that leads elsewhere, a copy that kept its time: Snakemake looks at times only."""
    older = folder / "older"
    shutil.copytree(folder / "model", older)
    tiny.checkpoint(older, transformers.LlamaConfig(**tiny.SIZES), seed=1)
    for path in older.iterdir():
        os.utime(path, (0, 0))
    original = folder / "original"
    (folder / "model").rename(original)
    try:
        (folder / "model").symlink_to(original)
        assert planned(folder) == {}, "the same files at another place"
        (folder / "model").unlink()
        (folder / "model").symlink_to(older)
        assert planned(folder)["fetch_model"] == 1
    finally:
        (folder / "model").unlink()
        original.rename(folder / "model")
    assert planned(folder) == {}


def test_another_tokenizer_makes_the_tokens_stale(folder):
    settings = folder / "model" / "tokenizer_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps(json.loads(before) | {"model_max_length": 7}))
    assert planned(folder)["tokenize_dataset"] == 1
    settings.write_text(before)
    assert planned(folder) == {}


def test_braces_in_a_path_are_just_braces(tmp_path):
    (tmp_path / "{odd} texts").mkdir()
    (tmp_path / "{odd} texts" / "a.txt").write_text("text")
    write(tmp_path, CONFIG | {"dataset": {"source": "./{odd} texts"}, "model": {"source": "./{m}"}})
    assert planned(tmp_path)["extract_activations"] == 4


def test_a_fifo_among_the_files_is_not_waited_for(tmp_path):
    for name in ("texts", "model"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "config.json")
        os.mkfifo(tmp_path / name / "a.txt")
        (tmp_path / name / "b.txt").symlink_to("/nowhere")
    write(tmp_path, CONFIG | {"dataset": CONFIG["dataset"] | {"source": "./texts"}})
    assert planned(tmp_path)["tokenize_dataset"] == 1


def test_another_threshold_gives_other_tables_from_the_same_store(folder):
    run = folder / "results" / "mine"
    before = pq.read_table(run / "tables" / "llm_int8_features.parquet")
    chunk = run / "activations.zarr" / "attn_in" / "c" / "0" / "0" / "0"
    untouched = chunk.stat().st_mtime_ns
    changed = CONFIG | {"run": {"name": "mine"}, "detection": {"llm_int8": {"threshold": 1e6}}}
    write(folder, changed, "other.yaml")
    snakemake(folder, "--configfile", "other.yaml")
    after = pq.read_table(run / "tables" / "llm_int8_features.parquet")
    assert before.num_rows > 0
    assert after.num_rows == 0
    assert chunk.stat().st_mtime_ns == untouched
    snakemake(folder, "--configfile", "mine.yaml")
    assert pq.read_table(run / "tables" / "llm_int8_features.parquet").equals(before)


def test_a_users_file_inherits_nothing_from_the_demo(folder):
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "config.yaml").write_text((ROOT / "config/config.yaml").read_text())
    assert planned(folder) == {}
    assert not (folder / "results" / "smollm2-demo").exists()


def test_the_demo_is_planned_offline_on_a_fresh_checkout(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text((ROOT / "config/config.yaml").read_text())
    said = snakemake(tmp_path, "--dry-run").stdout
    assert "15 jobs to run:" in said.splitlines()
    assert dict(re.findall(r"^  (\w+) +(\d+)  not made yet$", said, re.MULTILINE)) == {
        "fetch_package": "2", "fetch_model": "1", "tokenize_dataset": "1", "create_store": "1",
        "extract_activations": "6", "detect_outliers": "1", "measure_weights": "1",
        "join_weights": "1", "render_report": "1",
    }  # fmt: skip


def test_a_plan_is_printed_and_nothing_is_run(folder):
    write(folder, CONFIG | {"run": {"name": "planned"}}, "other.yaml")
    said = snakemake(folder, "--configfile", "other.yaml", "--", "plan").stdout
    assert re.search(r"layer group +layers +on disk +in memory", said)
    assert re.search(
        r"Time: about \d+ s without fetching, measure_weights and tokenize_dataset \(as earlier",
        said,
    )
    assert re.search(r"^ +1 +2 to 3 ", said, re.MULTILINE)
    assert "Not loaded: lm_head." in said
    assert not (folder / "results" / "planned" / "activations.zarr").exists()


def test_the_linter_leaves_nothing_behind(tmp_path):
    write(tmp_path, CONFIG)
    assert (
        "in a good condition" in snakemake(tmp_path, "--configfile", "mine.yaml", "--lint").stderr
    )
    # Snakemake's own log is in the other.
    assert sorted(path.name for path in tmp_path.iterdir()) == [".snakemake", "mine.yaml"]


def test_a_run_to_compare_with_that_is_not_there_is_one_line_and_only_for_the_report(folder):
    write(folder, CONFIG | {"report": {"compare": "before"}}, "compared.yaml")
    done = snakemake(folder, "--dry-run", "--configfile", "compared.yaml", check=False)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "before" in line]
    assert line.startswith("report.compare: results/before has no tables/criteria.parquet; run ")
    assert "Traceback" not in done.stdout + done.stderr
    snakemake(folder, "--dry-run", "--configfile", "compared.yaml", "--", "verify")


def test_a_wrong_configuration_ends_in_a_line_a_fault(tmp_path):
    config = {
        "model": {"source": "./model", "dtyp": "bfloat16"},
        "dataset": {"source": "./texts", "sequences": 0},
        "extraction": {"layers": [1, "two"]},
    }
    write(tmp_path, config)
    done = snakemake(tmp_path, "--configfile", "mine.yaml", check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "mine.yaml" in line]
    assert lines == [
        "mine.yaml: model.dtyp: unknown key; did you mean 'dtype'?",
        "mine.yaml: dataset.sequences = 0: must be at least 1",
        "mine.yaml: extraction.layers[1] = 'two': must be a whole number",
    ]
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "results").exists()


def test_a_failing_job_ends_in_one_line_with_the_trace_in_its_log(folder):
    short = CONFIG | {"dataset": CONFIG["dataset"] | {"sequences": 400}}
    write(folder, short, "short.yaml")
    done = snakemake(folder, "--configfile", "short.yaml", check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert said.count("tokenize_dataset: too little text: ") == 1
    assert "Traceback" not in said
    logs = list(folder.glob("resources/logs/tokenize_dataset.*.log"))
    assert any(
        "too little text" in log.read_text() and "Traceback" in log.read_text() for log in logs
    )
    assert not (folder / "results/short/tokens.parquet").exists()
