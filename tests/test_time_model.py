"""The model of time: jobs predicted from earlier ones, and the time of a whole run."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from pipeline import Run, config
from test_job_times import job

from outlier_atlas import earlier_jobs
from outlier_atlas.earlier_jobs import EarlierJob, Kind
from outlier_atlas.machine import machine
from outlier_atlas.phases import COMPUTE, COPY, ENCODE, IMPORT, LOAD, OTHER, WAIT, WRITE
from outlier_atlas.plan import expected, job_time, speed
from outlier_atlas.plan.expected import Place, Stages
from outlier_atlas.plan.job_time import EXTRACTION, JobTime, predict
from outlier_atlas.plan.run_time import START_SECONDS, RunJob, simulate
from outlier_atlas.progress import Progress

KIND = Kind(EXTRACTION, "m", "cpu", "float32", "A", 1)
SIZES = {"file": 1e9, "products": 1e12, "captured": 1e9, "stored": 1e9}
MAIN = {IMPORT: 4.0, LOAD: 10.0, COMPUTE: 20.0, COPY: 1.0, WRITE: 2.0, OTHER: 3.0}


def earlier(kind=KIND, sizes=SIZES, main=MAIN, threads=None):
    return EarlierJob(kind, sizes, main, threads or {ENCODE: 3.0, WRITE: 1.0})


def test_an_equal_job_takes_the_same_time_again():
    assert predict(KIND, SIZES, [earlier()]).main == pytest.approx(MAIN)
    assert predict(KIND, SIZES, [earlier()]).seconds == pytest.approx(40)


def test_each_phase_grows_with_its_own_amount():
    def of(**changed):
        sizes = {name: size * changed.get(name, 1) for name, size in SIZES.items()}
        return predict(KIND, sizes, [earlier()]).main

    assert of(file=3)[LOAD] == pytest.approx(30, rel=0.1)
    assert of(products=3)[COMPUTE] == pytest.approx(4 + 3 * 16, rel=0.1)
    assert of(stored=2)[COMPUTE] == pytest.approx(20 + 4, rel=0.1), (
        "writers take their time from it"
    )
    assert of(captured=2)[COPY] == pytest.approx(2, rel=0.1)
    assert of(stored=2)[WRITE] == pytest.approx(4, rel=0.1)
    many = {"file": 9, "products": 9, "captured": 9, "stored": 9}
    assert (of(**many)[IMPORT], of(**many)[OTHER]) == (4, 3)


def test_the_writers_take_no_time_from_a_gpu():
    gpu = replace(KIND, device="a GPU")
    sizes = SIZES | {"stored": 2e9}
    assert predict(gpu, sizes, [earlier(gpu)]).main[COMPUTE] == pytest.approx(20)


def test_the_most_similar_job_counts():
    other_model = earlier(replace(KIND, model="B"), main=MAIN | {COMPUTE: 100.0})
    far = earlier(sizes=SIZES | {"products": 1e14}, main=MAIN | {COMPUTE: 50.0})
    known = [other_model, far, earlier()]
    assert predict(KIND, SIZES, known).main[COMPUTE] == pytest.approx(20)
    assert predict(KIND, SIZES, [other_model]).main[COMPUTE] == pytest.approx(100)
    two = replace(KIND, cores=2)
    assert predict(two, SIZES, [earlier()]).main[COMPUTE] == pytest.approx(10)


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"device": "gpu"}, {"machine": "n"}])
def test_another_dtype_device_or_machine_is_a_guess(other):
    guess = predict(KIND, SIZES, [earlier(replace(KIND, **other))])
    assert guess.earlier is None
    assert guess.main[COMPUTE] == 1e12 / job_time.GUESSED_SPEED["cpu"]
    assert predict(KIND, SIZES, [], speed=1e12).main[COMPUTE] == 1 / job_time.EFFICIENCY


def test_a_job_without_a_model_grows_with_its_one_amount():
    kind = Kind("tokenize_dataset", "m")
    known = [EarlierJob(kind, {"tokens": 1e6}, {IMPORT: 3.0, COMPUTE: 5.0}, {})]
    assert predict(kind, {"tokens": 4e6}, known).main[COMPUTE] == pytest.approx(20, rel=0.1)
    assert predict(kind, {"tokens": 4e6}, known).main[IMPORT] == 3
    assert predict(Kind("create_store", "m"), {}, []).seconds > 0


def test_earlier_jobs_are_bounded_and_the_median_execution_counts(tmp_path, monkeypatch):
    for wall in (9.0, 1.0, 2.0, 3.0):
        earlier_jobs.remember(tmp_path, job("detect_outliers", wall=wall))
        (known,) = earlier_jobs.earlier_jobs(tmp_path, "a CPU, 2 cores")
    assert known.main[COMPUTE] == 2, "of the last three"
    assert WAIT not in known.main
    assert earlier_jobs.earlier_jobs(tmp_path, "another CPU") == []
    monkeypatch.setattr(earlier_jobs, "MOST", 3)
    for index in range(5):
        facts = {"sizes": {"values": index}}
        earlier_jobs.remember(tmp_path, job("detect_outliers", facts=facts))
        for path in (tmp_path / earlier_jobs.FOLDER).iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 1))
    left = earlier_jobs.earlier_jobs(tmp_path, "a CPU, 2 cores")
    assert sorted(each.sizes["values"] for each in left) == [2, 3, 4]
    next((tmp_path / earlier_jobs.FOLDER).iterdir()).write_text("{")
    assert len(earlier_jobs.earlier_jobs(tmp_path, "a CPU, 2 cores")) == 2


def test_of_two_executions_the_later_one_counts(tmp_path):
    """The first one of an installation compiles loops."""
    for wall in (9.0, 1.0):
        earlier_jobs.remember(tmp_path, job("detect_outliers", wall=wall))
    (known,) = earlier_jobs.earlier_jobs(tmp_path, "a CPU, 2 cores")
    assert known.main[COMPUTE] == 1


def seconds(number):
    return JobTime({COMPUTE: float(number)})


def test_jobs_run_side_by_side_as_far_as_cores_and_inputs_allow():
    jobs = [
        RunJob("a", "a", seconds(5)),
        RunJob("b", "b", seconds(3)),
        RunJob("c", "c", seconds(4), ["b"]),
        RunJob("d", "d", seconds(1), ["a", "c"], cores=8),
    ]
    two = simulate(jobs, cores=2, gpus=None, between=0)
    assert two.seconds == START_SECONDS + 8
    assert [each.name for each in two.path] == ["b", "c", "d"]
    assert simulate(jobs, cores=1, gpus=None, between=0).seconds == START_SECONDS + 13
    assert simulate(jobs, cores=2, gpus=None, between=1).seconds == START_SECONDS + 10
    on_gpus = [replace(each, gpus=1) for each in jobs]
    assert simulate(on_gpus, cores=2, gpus=1, between=0).seconds == START_SECONDS + 13
    assert simulate([], 1, None).seconds == 0


def test_the_rules_wait_for_each_other_as_in_the_workflow():
    """The graph of the README is made from the rules."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    edges = set(re.findall(r"^    (\w+) --> (\w+)$", readme, re.MULTILINE))
    modelled = {(first, rule) for rule, before in expected.AFTER.items() for first in before}
    off = {edge for edge in modelled if "ablate" in edge}
    assert modelled - off == {edge for edge in edges if not edge[0].startswith("fetch")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timed")
    made = Run(folder, config(tiny.llama(folder / "model"), [[5, 6, 7, 8] * 4] * 2, folder / "data",
                              extraction={"layer_groups": 2, "sequence_shards": 2}))  # fmt: skip
    made.prepare()
    return made


def test_a_first_run_is_a_guess_and_says_so(run):
    place = Place("cpu", threads=1, cores=2, at_once=2)
    said = " ".join(expected.lines(expected.whole_run(run.planned(), place, Stages(10)), "x", True))
    assert "(a guess: no such job ran here before; the forward pass from a matrix product" in said
    assert "extract_activations " in said and "(2 jobs)" in said


def test_a_second_run_takes_what_the_first_one_took(run):
    made = run.planned()
    place = Place("cpu", threads=1, cores=2, at_once=2)
    sizes = [expected.job_sizes.of_layer_group(made, group, 16) for group in range(2)]
    kind = Kind(EXTRACTION, machine(), "cpu", made.layout.dtype, made.model, 1)
    known = [earlier(kind, each) for each in sizes]
    place = replace(place, earlier=known)
    time = expected.of_extraction(made, place)
    assert time.seconds == pytest.approx(2 * 40 + place.between)
    assert place.knows(made)
    (line,) = expected.lines(time, "for all extraction jobs", False)
    assert (
        line == "Time: about 81 s for all extraction jobs (as earlier jobs on this machine took)."
    )
    alone = expected.of_extraction(made, replace(place, at_once=1))
    both = sum(place.extraction(made, group, 32).seconds for group in range(2))
    assert alone.seconds == pytest.approx(both + place.between), "a job computes both shards"
    some = expected.lines(expected.whole_run(made, place, Stages()), "x", False)
    assert "a guess for tokenize_dataset, create_store, detect_outliers" in " ".join(some)


def test_the_work_of_a_layer_group_is_that_of_its_layers(run):
    made = run.planned()
    first, second = (expected.job_sizes.of_layer_group(made, group, 16) for group in range(2))
    assert first["products"] == second["products"]
    assert first["file"] > second["file"], "the embedding"
    assert first["stored"] - second["stored"] == 16 * 32, "the boundary"
    twice = expected.job_sizes.of_layer_group(made, 0, 32)
    assert twice["products"] == 2 * first["products"]


def test_only_the_routed_experts_of_a_mixture_count(tmp_path):
    import transformers as t

    model = tiny.checkpoint(
        tmp_path / "model",
        t.Qwen3MoeConfig(
            **tiny.SIZES, head_dim=8, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16
        ),
    )
    made = Run(tmp_path, config(model, [[5, 6, 7, 8] * 4], tmp_path / "data"))
    made.prepare()
    sizes = made.planned().sizes
    experts = 8 * 3 * 32 * 16 * 2
    assert [whole - part for whole, part in zip(sizes.layers, sizes.active, strict=True)] == [
        experts * 3 // 4
    ] * 4


def test_the_speed_of_a_matrix_product_is_measured():
    assert speed.products_per_second("cpu", "float32") > 1e7
    two = speed.products_per_second("cpu", "float32", threads=2)
    assert two > 1e7
    assert speed.faster_in_float32("float32") == ""


def test_a_dtype_that_the_cpu_only_emulates_is_named_with_the_measured_ratio(monkeypatch):
    rates = {"float32": 9e10, "bfloat16": 1e10, "float16": 8e10}
    monkeypatch.setattr(speed, "products_per_second", lambda _, dtype: rates[dtype])
    said = speed.faster_in_float32("bfloat16")
    assert "about 9 times as fast in float32 as in bfloat16 (measured now)" in said
    assert speed.faster_in_float32("float16") == ""


def test_the_progress_shows_the_predicted_time_until_its_own_is_known():
    bar = Progress(1000, " tokens", "layers 0 to 1", expected=60.0)
    assert bar.text(bar._started + 10).endswith(", 50 s left")
    bar._done = 500
    assert bar.text(bar._started + 10).endswith(", 10 s left")
    assert " left" not in Progress(1000, " tokens", "x").text(0.0)


def test_the_first_job_of_a_first_run_measures_the_cpu_and_says_so(run, caplog, monkeypatch):
    """A run begins with the plan; the line on a faster dtype is in it, too."""
    rates = {"float32": 9e10, "bfloat16": 1e10}
    monkeypatch.setattr(speed, "products_per_second", lambda _, dtype, threads=1: rates[dtype])
    caplog.set_level("INFO")
    run.extract()
    (said,) = (r.getMessage() for r in caplog.records if r.getMessage().startswith("Plan: "))
    assert re.search(r"^Time: about \d+ s for all extraction jobs \(a guess: ", said, re.MULTILINE)
    assert "matrix product measured now" in " ".join(said.split())
    assert "about 9 times as fast in float32 as in bfloat16 (measured now)" in said
    assert "layers 0 to 1: about " in caplog.text
