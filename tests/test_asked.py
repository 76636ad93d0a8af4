"""What an extraction job asks a scheduler for, before it is submitted."""

from dataclasses import replace

import planned
import pytest
import yaml
from pipeline import Run, config

from outlier_atlas import scheduler_resources
from outlier_atlas.scheduler_resources import gpus, memory_mb, most_memory_mb
from outlier_atlas.settings.configuration import load

ROWS = [[5, 17, 200, 9] * 4] * 2
ATTEMPTS = (1, 2, 3)


def run_of(model, folder, **execution):
    extraction = {"layer_groups": 3}
    run = Run(folder, config(model, ROWS, folder / "data", extraction=extraction,
                             execution=execution))  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(run.settings.model_dump(mode="json")))
    return run


def planned_of(run):
    return replace(run.planned(), gathers=True)  # short documents


def test_a_job_asks_for_more_than_its_plan_and_for_more_each_time_it_is_killed(llama, tmp_path):
    run = run_of(llama, tmp_path, device="cpu", batch_size=2)
    run.prepare()
    group = planned_of(run).batched(2).groups[0]
    megabytes = [memory_mb(run.store_record, 0, run.settings, attempt) for attempt in ATTEMPTS]
    for share, size in zip((1.25, 1.5, 1.75), megabytes, strict=True):
        assert share * group.host_alone <= size * 1e6 < share * group.host_alone + 1e6


def test_a_job_that_has_all_layer_groups_asks_for_the_largest(llama, tmp_path):
    run = run_of(llama, tmp_path, device="cpu")
    run.prepare()
    megabytes = [memory_mb(run.store_record, group, run.settings, 1) for group in range(3)]
    assert most_memory_mb(run.store_record, run.settings, 1) == max(megabytes)
    run.store_record.write_text("{}")
    assert most_memory_mb(run.store_record, run.settings, 1) == 0, "made again before the job runs"


def test_beside_a_gpu_a_job_asks_for_the_host_alone(llama, tmp_path):
    run = run_of(llama, tmp_path)
    run.prepare()
    group = planned_of(run).groups[1]
    want = 1.25 * (group.host + scheduler_resources.CUDA_BYTES)
    assert want <= memory_mb(run.store_record, 1, run.settings, 1) * 1e6 < want + 1e6


def test_the_largest_batch_that_auto_can_take_is_asked_for(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler_resources, "ENOUGH_TOKENS", {True: 32, False: 16})
    run, fixed = (
        run_of(llama, tmp_path / name, device="cpu", batch_size=size)
        for name, size in (("a", "auto"), ("b", 2))
    )
    run.prepare()
    sizes = {memory_mb(run.store_record, 0, each.settings, 1) for each in (run, fixed)}
    assert len(sizes) == 1


def test_a_job_of_one_layer_asks_for_one_gpu(llama, tmp_path):
    run = run_of(llama, tmp_path, gpus_per_job=2)
    assert gpus(run.store_record, 0, run.settings) == 2, "who knows how many layers there will be"
    run.prepare()
    assert [gpus(run.store_record, group, run.settings) for group in range(3)] == [1, 1, 2]


def test_nothing_is_asked_for_before_there_is_a_plan(llama, tmp_path):
    run = run_of(llama, tmp_path)
    with pytest.raises(FileNotFoundError):
        memory_mb(run.store_record, 0, run.settings, 1)
    run.prepare()
    run.store_record.write_text("{")
    assert memory_mb(run.store_record, 0, run.settings, 1) == 0
    assert gpus(run.store_record, 0, run.settings) == 1


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_snakemake_hands_it_on(device, llama, tmp_path):
    run = run_of(llama, tmp_path, device=device, gpus_per_job=2)
    for there in (False, True):
        if there:
            run.prepare()
        planned.plan(tmp_path)
        for group in range(3):
            resources = planned.jobs(tmp_path)[
                f"extract_activations.group-{group}.shard-0"
            ].resources
            memory = memory_mb(run.store_record, group, run.settings, 1) if there else "<TBD>"
            assert resources.mem_mb == memory
            wanted = None if device == "cpu" else gpus(run.store_record, group, run.settings)
            assert resources.get("gpu") == wanted


def test_what_auto_takes_is_known_from_the_sections_alone():
    """No job has looked at a device yet."""
    sections = {"model": {"source": "a/b"}, "dataset": {"source": "c/d", "sequences": 3,
                "sequence_length": 4096}, "execution": {"batch_size": "auto"}}  # fmt: skip
    settings = load(sections, "run")
    assert scheduler_resources._sequences(settings, host=False) == 3
    assert scheduler_resources._sequences(settings, host=True) == 1
