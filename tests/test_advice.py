"""What a run is told that cannot fit, and the share that each of its jobs has of a machine."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import transformers as t
import yaml
from bounded import Limit, run_job
from pipeline import Run, config

from outlier_atlas import locks
from outlier_atlas.devices import limits
from outlier_atlas.devices.cuda import Cuda
from outlier_atlas.extraction import compute, preflight
from outlier_atlas.extraction.run import extract
from outlier_atlas.job_metrics import records
from outlier_atlas.plan import memory_budget
from outlier_atlas.plan.advice import full_disk, refusal, remedy
from outlier_atlas.plan.memory_budget import ConcurrentJobs, MemoryBudget
from outlier_atlas.units import bytes_of
from outlier_atlas.workflow import jobs_at_once

ROWS = [[5, 17, 200, 9] * 4] * 2


def on(memory, name="device", host_memory=None):
    return MemoryBudget(name, memory, "the device", host_memory)


def test_what_cannot_fit_says_what_would(run):
    made = run.planned()
    assert refusal(made, on(made.peak(host=False))) is None
    short = on(made.peak(host=False) - 1)
    section = {
        "sites": ["attn_in", "mlp_in"], "layer_groups": 2, "advanced": {"chunk_tokens": 16}
    }  # fmt: skip
    assert "extraction.layer_groups = 2: a job takes up to" in refusal(made, short)
    fits = yaml.safe_load(remedy(made, short, run.folder, section))["extraction"]
    assert fits | {"layer_groups": 2} == section
    assert made.divided(fits["layer_groups"]).peak(host=False) <= short.memory
    assert made.divided(fits["layer_groups"] - 1).peak(host=False) > short.memory


def test_where_layer_groups_are_not_enough_the_batch_and_the_sequences_shrink(run):
    made = run.planned().batched(2)
    finest = made.divided(4)
    said = remedy(made, on(finest.peak(host=False) - 1), run.folder, {})
    assert "layer_groups: " in said
    changed = yaml.safe_load(said)
    assert changed["execution"] == {"batch_size": 1}
    assert "dataset" not in changed
    four = made.batched(4)
    said = remedy(four, on(four.divided(4).peak(host=False) - 1), run.folder, {})
    assert yaml.safe_load(said)["execution"] == {"batch_size": 2}, "halved, and no more"
    alone = finest.batched(1)
    assert remedy(alone, on(alone.peak(host=False) - 1), run.folder, {}) is None, (
        "16 tokens are the least"
    )
    longer = replace(alone, tokens=64, sizes=replace(alone.sizes, forward=2**20))
    said = remedy(longer, on(longer.peak(host=False) - 1), run.folder, {})
    assert yaml.safe_load(said)["dataset"] == {"sequence_length": 32}


def test_a_model_that_cannot_be_divided_is_not_advised_to_be(run):
    whole = replace(run.planned().divided(1), one_group=True)
    assert remedy(whole, on(whole.peak(host=False) - 1), run.folder, {}) is None


def test_the_host_beside_a_device_must_hold_a_layer_group_too(run):
    made = run.planned()
    beside = made.host_needed
    assert refusal(made, on(2**40, host_memory=beside)) is None
    assert "the host of the device has" in refusal(made, on(2**40, host_memory=beside - 1))


def test_the_advised_block_is_not_refused_again(llama, tmp_path):
    """By the host, where the device was short; nor the other way round."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12}
    model = tiny.checkpoint(tmp_path / "model", t.LlamaConfig(**tiny.SIZES | sizes))
    run = Run(tmp_path, config(model, ROWS, tmp_path / "data"))
    run.prepare()
    made = run.planned()
    for device, host in ((2, 6), (6, 2), (3, 12), (12, 3)):
        budget = on(made.divided(device).peak(False), host_memory=made.divided(host).host_needed)
        assert refusal(made, budget) is not None
        said = yaml.safe_load(remedy(made, budget, run.folder, {}))
        assert said.keys() == {"extraction"}
        assert refusal(made.divided(said["extraction"]["layer_groups"]), budget) is None


def test_what_a_job_advises_keeps_all_of_the_users_section(llama, tmp_path, monkeypatch, caplog):
    extraction = {"layer_groups": 2, "verify": "never", "sites": ["mlp_in"]}
    run = Run(tmp_path, config(llama, ROWS, tmp_path / "data", extraction=extraction))
    run.prepare()
    short = replace(run.planned(), gathers=True).divided(3).peak(host=True)
    monkeypatch.setattr(memory_budget, "available", lambda *_: (short, "this machine"))
    with pytest.raises(ValueError, match="the block above would fit"):
        run.extract()
    assert advised(caplog)["extraction"] == extraction | {"layer_groups": 3}


def advised(caplog):
    said = next(m for m in caplog.messages if m.startswith("\nThis "))
    return yaml.safe_load(said.partition(":")[2])


def test_a_run_is_planned_for_the_mps_device_that_its_jobs_will_have(monkeypatch):
    elsewhere = preflight.foreseen("mps", "8GiB", ConcurrentJobs())
    assert (elsewhere.unified, elsewhere.memory) == (False, 2**33), "on a login node"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [preflight.foreseen(d, None, ConcurrentJobs()).name for d in ("auto", "mps", "cpu")] == [
        "mps", "mps", "cpu"
    ]  # fmt: skip
    assert preflight.foreseen("auto", "1GiB", ConcurrentJobs()).memory == 2**30


@pytest.fixture
def machine(monkeypatch):
    """Sets the bytes that are left of this machine, and of which jobs hold none."""

    def left(size, of_process=()):
        monkeypatch.setattr(limits, "_machine", lambda: [size])
        monkeypatch.setattr(limits, "_control_groups", list)
        monkeypatch.setattr(limits, "_limits", lambda: of_process)
        monkeypatch.setattr(limits, "resident", lambda _="self": 0)

    return left


def test_jobs_that_run_side_by_side_share_the_machine(run, machine, caplog):
    """Both of the README's `--resources gpu=2` would go on alone, and die together."""
    made = replace(run.planned(), gathers=True)
    machine(int(1.9 * made.peak(host=True)))
    extract(run.job(0, 0))
    with pytest.raises(ValueError, match="each of the 2 jobs that run side by side") as refused:
        extract(replace(run.job(1, 0), jobs=2))
    assert "and this machine has" in str(refused.value)
    assert "for each; one at a time they fit (`--resources gpu=1`" in str(refused.value)
    machine(2 * made.peak(host=True))
    extract(replace(run.job(1, 0), jobs=2))


def test_the_host_of_two_gpus_is_shared_and_the_gpus_are_not(run):
    made = run.planned()
    device, host = made.peak(host=False), made.host_needed
    shared = replace(on(device - 1, host_memory=host), jobs=2)
    assert "layer_groups = 2: a job takes" in refusal(made, shared)
    said = refusal(made, replace(on(device, host_memory=host - 1), jobs=2))
    assert "each of the 2 jobs that run side by side takes" in said
    assert "the host of the device has" in said
    assert said.endswith("for each")


def test_a_limit_of_each_process_is_not_shared(machine):
    machine(6000, of_process=[2500])
    assert limits.host_memory() == 2500
    assert limits.host_memory(jobs=2) == 2500
    assert limits.host_memory(jobs=3) == 2000


def test_what_jobs_at_work_hold_is_shared_as_well(machine, monkeypatch):
    """So that the second of two that fit is not refused for what the first has taken already."""
    machine(2000)
    held = {"self": 500, "7": 3500, "8": 100}
    monkeypatch.setattr(limits, "resident", lambda process="self": held.get(process))
    assert limits.host_memory(jobs=2, processes=[7, 8, 9]) == (2000 + 500 + 3500) // 2
    assert limits.host_memory(jobs=1, processes=[7]) == 2500


@pytest.mark.parametrize(
    ("gpus", "jobs"), [([], 3), (["0"], 1), (["0", "1", "2", "3"], 2), ([*"01234567"], 3)]
)
def test_jobs_for_which_there_are_no_gpus_wait_before_they_load(gpus, jobs, monkeypatch, tmp_path):
    monkeypatch.setattr("outlier_atlas.devices.registry.visible_gpus", lambda: gpus)
    assert preflight.concurrent_jobs(3, "auto", 2, tmp_path).jobs == jobs
    assert preflight.concurrent_jobs(3, "cpu", 2, tmp_path).jobs == 3


def test_the_fullest_of_the_gpus_here_is_planned_for(monkeypatch):
    free = {"cuda:0": 8000, "cuda:1": 3000, "cpu": 9000}
    monkeypatch.setattr("outlier_atlas.devices.registry.visible_gpus", lambda: ["4", "7"])
    monkeypatch.setattr(Cuda, "title", "a device")
    monkeypatch.setattr(
        "outlier_atlas.plan.memory_budget.available", lambda where, *_: (free[where], where)
    )
    budget = preflight.foreseen("auto", None, ConcurrentJobs())
    assert (budget.name, budget.memory, budget.host_memory) == ("a device", 3000, 9000)


HOLDER = """
import sys, time
from pathlib import Path
from outlier_atlas.locks import job_lock
with job_lock(Path(sys.argv[1]), print):
    print(flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists locks")
def test_the_processes_at_work_on_a_run_are_known_by_their_locks(tmp_path):
    lock = tmp_path / locks.LOCKS / "extract_activations.group-0.shard-1"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert locks.holders(tmp_path, "extract_activations") == {process.pid}
        assert locks.holders(tmp_path, "detect_outliers") == set()
        process.kill()
    assert locks.holders(tmp_path, "extract_activations") == set()


@pytest.mark.parametrize(
    ("chains", "cores", "threads", "gpus", "of_job", "jobs"),
    [
        (2, 2, 1, 2, 1, 2),  # the README's command, two shards
        (2, 2, 1, 1, 1, 1),
        (1, 2, 2, 2, 1, 1),  # groups wait for each other
        (4, 2, 1, 4, 1, 2),
        (2, 2, 8, 2, 1, 1),  # more threads than cores: as many as there are
        (4, 8, 2, 4, 2, 2),
        (4, 8, 2, 1, 2, 1),
        (3, 4, 1, None, 1, 3),
        (3, 4, 1, 0, 1, 3),
    ],
)
def test_how_many_jobs_snakemake_has_at_work(chains, cores, threads, gpus, of_job, jobs):
    assert jobs_at_once(chains, cores, threads, gpus, of_job) == jobs


def test_a_full_disk_is_seen_and_what_is_written_counts(run, monkeypatch):
    made = run.planned()
    need = made.on_disk(made.values + made.boundary_values) + made.summary_bytes
    usage = shutil.disk_usage(run.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=need))
    assert full_disk(made, run.folder) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=need - 1))
    assert "more on the disk" in full_disk(made, run.folder / "elsewhere")
    (run.activations / "written").write_bytes(b"1")
    assert full_disk(made, run.folder) is None


def test_of_a_full_disk_the_sites_are_said_that_fit(run, monkeypatch, caplog):
    made = run.planned()
    usage = shutil.disk_usage(run.folder)

    def free(plan, sites):
        """Bytes that are enough for that many sites."""
        store = plan.layout.store[:sites]
        need = replace(plan, layout=replace(plan.layout, store=store)).disk
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=need))

    elsewhere = run.folder / "elsewhere"
    free(made, 1)
    with pytest.raises(ValueError, match=r"more on the disk.* the block above would fit"):
        preflight.refuse(made, on(None), elsewhere, {"sequence_shards": 2})
    kept = {"sequence_shards": 2, "layer_groups": 2, "store": ["attn_in"]}
    assert advised(caplog) == {"extraction": kept}
    caplog.clear()
    finer = made.divided(3)
    free(finer, 2)  # more layer groups leave more boundaries
    short = on(None, host_memory=finer.host_needed)
    said = yaml.safe_load(remedy(made, short, elsewhere, {}))["extraction"]
    assert said == {"layer_groups": 3, "store": ["attn_in", "mlp_in"]}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(ValueError, match=r"or make room$"):
        preflight.refuse(made, on(None), elsewhere, {})
    assert caplog.messages == []


def test_a_job_that_cannot_fit_stops_before_it_reads_a_weight(run, monkeypatch, caplog):
    monkeypatch.setattr(compute, "load", lambda *_: pytest.fail("read weights"))
    monkeypatch.setattr(
        "outlier_atlas.plan.memory_budget.available",
        lambda *_: (bytes_of("1MiB"), "this machine"),
    )
    with pytest.raises(ValueError, match=r"layer_groups = 2: a job takes up to .* machine has 1.0"):
        run.extract()
    assert not (run.folder / "measured").exists()


def test_the_automatic_batch_is_the_largest_power_of_two_that_fits(run):
    made = run.planned()
    plenty = 2**40
    assert preflight.batch_size(made, on(plenty), 100) == 64
    enough = preflight.batch_size(made, on(plenty, "cpu"), 1000)
    assert enough == 64, "1024 tokens are enough on the CPU"
    assert preflight.batch_size(made, on(plenty), 5000) == 1024
    assert preflight.batch_size(made, on(1), 100) == 1
    tight = int(made.batched(4).peak(host=False) / 0.9) + 1
    assert preflight.batch_size(made, on(tight), 100) == 4
    exactly = made.batched(4).peak(host=False)
    assert preflight.batch_size(made, on(exactly), 100) == 2, "a tenth is left alone"


def test_an_automatic_batch_gives_the_same_numbers_and_is_resumed(llama, tmp_path):
    data = config(llama, ROWS, tmp_path / "data", execution={"batch_size": "auto"})
    automatic = Run(tmp_path, data)
    automatic.prepare()
    automatic.extract()
    assert records(automatic.folder)[0].batch_size == 2
    plain = Run(tmp_path / "plain", data | {"execution": {"batch_size": 2}}, automatic.resources)
    plain.prepare()
    plain.extract()
    assert (automatic.array("resid_post") == plain.array("resid_post")).all()


IMPORTED = 640 * 2**20
"""What a job's imports and threads count against `RLIMIT_DATA`, with some room; measured."""


@pytest.mark.slow
def test_a_checkpoint_four_times_larger_than_the_memory_goes_through(tmp_path):
    sizes = {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 8}
    model = tiny.checkpoint(
        tmp_path / "model", t.LlamaConfig(**tiny.SIZES | sizes), max_shard_size="16MB"
    )
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    quarter = Limit(IMPORTED + size // 4)
    runs = {}
    for groups in (1, 8):
        data = config(model, ROWS, tmp_path / "data", extraction={"layer_groups": groups})
        runs[groups] = Run(tmp_path / str(groups), data)
        runs[groups].prepare()
    refused = run_job(runs[1].job(0, 0), tmp_path / "job.json", quarter)
    assert refused.returncode == 1
    assert "This would fit:" in refused.stderr
    assert "loaded in" not in refused.stderr, "before a weight was read"
    for index in range(8):
        done = run_job(runs[8].job(index, 0), tmp_path / "job.json", quarter)
        assert done.returncode == 0, done.stderr
    assert run_job(runs[1].job(0, 0), tmp_path / "job.json").returncode == 0
    for site in ("attn_in", "mlp_in", "resid_post"):
        assert (runs[8].array(site) == runs[1].array(site)).all()
