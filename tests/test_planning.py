"""What Snakemake does before the first job: a plan of many jobs repeats little for each of them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import yaml

from outlier_atlas.compat import snakemake_internals
from outlier_atlas.files import read_once
from outlier_atlas.workflow import signed

ROOT = Path(__file__).parents[1]

COUNTED = """
import cProfile, json, pstats, sys
from contextlib import suppress
from pathlib import Path
from snakemake.cli import main

profile = cProfile.Profile()
with suppress(SystemExit):
    profile.runcall(main, sys.argv[2:])
calls = {"ours": 0, "get_source": 0, "log_info": 0}
for (file, _, name), (_, count, *_) in pstats.Stats(profile).stats.items():
    calls["ours"] += count * Path(file).is_relative_to(sys.argv[1])
    if name in calls:
        calls[name] += count
Path("calls.json").write_text(json.dumps(calls))
"""


def calls(folder, groups, shards):
    """Calls of functions during a dry run, and what it prints."""
    (folder / "rows.jsonl").write_text('{"ids": [1, 2]}\n' * shards)
    dataset = {"source": "rows.jsonl", "input_ids_column": "ids", "packing": "document"}
    config = {
        "model": {"source": "./model"},
        "dataset": dataset | {"sequences": shards, "sequence_length": 2},
        "extraction": {"layer_groups": groups, "sequence_shards": shards},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-c", COUNTED, str(ROOT / "workflow"), "--dry-run"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--cores=1", "--configfile=mine.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads((folder / "calls.json").read_text()), done.stdout


def test_a_plan_takes_as_much_for_each_job_no_matter_how_many_there_are(llama, tmp_path):
    (tmp_path / "model").symlink_to(llama)
    few, _ = calls(tmp_path, 3, 4)
    many, output = calls(tmp_path, 3, 54)
    assert re.search(r"extract_activations +162  not made yet", output)
    more = {name: many[name] - few[name] for name in many}
    assert more["ours"] < 200 * 150
    # Neither the script nor the text of each job is looked at.
    assert more["get_source"] == more["log_info"] == 0


def test_a_record_is_read_again_if_it_was_replaced(tmp_path):
    reads = []
    recorded = read_once(lambda path: reads.append(path) or path.read_text())
    record = tmp_path / "store.json"
    with pytest.raises(FileNotFoundError, match=r"store\.json"):
        recorded(record)
    reads.clear()
    record.write_text("a")
    assert [recorded(record), recorded(record)] == ["a", "a"]
    assert len(reads) == 1
    other = tmp_path / "other.json"
    other.write_text("b")
    other.replace(record)
    assert [recorded(record), recorded(record)] == ["b", "b"]
    assert len(reads) == 2


def test_snakemake_finds_the_signature_of_a_function_written_down():
    from snakemake.common import get_function_params, get_input_function_aux_params

    function = signed(lambda wildcards, input: (wildcards, input))
    assert [*get_function_params(function)] == ["wildcards", "input"]
    assert get_input_function_aux_params(function, {"input": 1, "attempt": 2}) == {"input": 1}
    assert function(3, 4) == (3, 4)


def test_snakemake_looks_at_a_script_once(monkeypatch):
    import snakemake.api  # noqa: F401  # the graph of jobs cannot be imported before
    from snakemake import dag

    looked = []
    monkeypatch.setattr(
        dag.ScriptProcessor, "process_job", lambda self, job: looked.append(job.rule.script)
    )
    snakemake_internals.look_at_scripts_once()
    processor = dag.ScriptProcessor(None)
    for script in ("a.py", "a.py", "{wildcards.x}.py", "{wildcards.x}.py", None, "b.py"):
        job = SimpleNamespace(rule=SimpleNamespace(script=script, notebook=None, basedir="folder"))
        processor.process_job(job)
    assert looked == ["a.py", "{wildcards.x}.py", "{wildcards.x}.py", None, "b.py"]


def test_a_dry_run_prepares_the_text_of_the_first_job_of_each_rule_of_ours(tmp_path):
    from snakemake.scheduling.job_scheduler import JobScheduler
    from snakemake_interface_executor_plugins.executors.base import AbstractExecutor

    assert "_executor" in JobScheduler.__init__.__code__.co_names
    assert "run_job_pre" in AbstractExecutor.run_jobs.__code__.co_names
    shown = []
    executor = SimpleNamespace(run_job_pre=lambda job: shown.append(job.name))
    workflow = SimpleNamespace(scheduler=SimpleNamespace(_executor=executor))
    snakemake_internals.list_first_jobs(workflow, tmp_path)
    ours, other = Mock(basedir=tmp_path / "rules"), Mock(basedir=tmp_path.parent)
    for name, rule in (("a", ours), ("b", ours), ("c", other), ("d", other)):
        executor.run_job_pre(SimpleNamespace(name=name, rule=rule, is_group=lambda: False))
    for name in ("e", "f"):
        executor.run_job_pre(SimpleNamespace(name=name, is_group=lambda: True))
    assert shown == ["a", "c", "d", "e", "f"]
