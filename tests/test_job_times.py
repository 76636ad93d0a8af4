"""Where the time of a job goes: phases, records, the critical path, and the picture."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import times as of_tests

from outlier_atlas import earlier_jobs, job_times
from outlier_atlas.compat.import_times import count_imports
from outlier_atlas.files import read_record
from outlier_atlas.job_times import JobTimes
from outlier_atlas.phases import (
    CLOCK,
    COMPUTE,
    ENCODE,
    IMPORT,
    OTHER,
    PHASES,
    WAIT,
    WRITE,
    Clock,
    count,
    note,
    phase,
    process_seconds,
)
from outlier_atlas.report import job_times as section
from outlier_atlas.report.critical_path import before, between, critical_path
from outlier_atlas.report.time_axis import Axis


def job(name, started=0.0, wall=1.0, inputs=(), outputs=None, **changed):
    """Times of a job that computed all the time."""
    main = dict.fromkeys(PHASES, 0.0) | {COMPUTE: wall}
    made = JobTimes(
        rule=name.partition(".")[0], job=name, started=started, wall=wall, cpu=wall, main=main,
        threads=dict.fromkeys(PHASES, 0.0), bytes_read=1, bytes_written=2, cores=1,
        machine="a CPU, 2 cores", facts={}, inputs=tuple(inputs), outputs=tuple(outputs or [name]),
    )  # fmt: skip
    return replace(made, **changed)


@pytest.fixture
def clock(monkeypatch):
    """The clock of the process, begun, on a time that only `tick` moves."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    CLOCK.begin(3.0)

    def tick(seconds):
        now[0] += seconds

    return tick


def test_a_phase_inside_another_counts_once_and_all_add_up(clock):
    clock(1)
    with phase(COMPUTE):
        clock(2)
        with phase(WRITE):
            clock(4)
        clock(8)
    main, threads = CLOCK.so_far()
    expected = {IMPORT: 3.0, OTHER: 1.0, COMPUTE: 10.0, WRITE: 4.0}
    assert main == dict.fromkeys(PHASES, 0.0) | expected
    assert sum(main.values()) == 18
    assert not any(threads.values())


def test_an_error_ends_its_phase(clock):
    with pytest.raises(ValueError, match="no"), phase(COMPUTE):
        clock(1)
        raise ValueError("no")
    clock(2)
    assert CLOCK.so_far()[0][OTHER] == 2


def test_other_threads_are_summed_apart(clock):
    def work():
        with phase(ENCODE):
            clock(1)
            with phase(WRITE):
                clock(2)
        clock(4)
        count(done=1)

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    main, threads = CLOCK.so_far()
    assert (threads[ENCODE], threads[WRITE]) == (2.0, 4.0)
    assert main[OTHER] == 14, "the main thread went on"
    assert CLOCK.facts["done"] == 2


def test_imports_in_the_main_thread_are_counted_wherever_they_are(tmp_path, monkeypatch):
    (tmp_path / "slow_module_a.py").write_text("import slow_module_b\nimport time\ntime.sleep(.01)")
    (tmp_path / "slow_module_b.py").write_text("import time\ntime.sleep(.01)")
    monkeypatch.syspath_prepend(tmp_path)
    count_imports()
    CLOCK.begin(0.0)
    with phase(COMPUTE):
        import slow_module_a  # noqa: F401
    main, _ = CLOCK.so_far()
    assert main[IMPORT] >= 0.02
    assert main[COMPUTE] < main[IMPORT]


def test_a_process_knows_when_it_was_started():
    first = process_seconds()
    time.sleep(0.02)
    assert 0.01 < process_seconds() - first < 5
    assert first >= time.process_time() - 0.5


def test_a_clock_that_was_not_begun_counts_nothing_of_the_main_thread():
    clock = Clock()
    assert not any(clock.so_far()[0].values())


def of_snakemake(tmp_path):
    log = tmp_path / "results" / "run" / "logs" / "extract_activations.group-0.log"
    return SimpleNamespace(log=[log], threads=2, input=["a/../b"], output=["c"], rule="any")


def test_a_job_that_found_all_done_keeps_the_record_of_the_one_that_worked(tmp_path):
    CLOCK.begin(1.0)
    note(tokens=7)
    run, record = tmp_path / "results" / "run", "measured/jobs/extract_activations.group-0.json"
    worked = job_times.of_job(of_snakemake(tmp_path))
    assert (worked.rule, worked.cores, worked.inputs) == ("extract_activations", 2, ("b",))
    job_times.write(run, worked)
    CLOCK.begin(2.0)
    note(idle=True)
    idle = job_times.of_job(of_snakemake(tmp_path))
    job_times.write(run, idle)
    assert read_record(run / record)["facts"] == {"tokens": 7}
    assert job_times.records(run) == [job_times.read(run / record)]
    earlier_jobs.remember(tmp_path, idle)
    assert not (tmp_path / "measured").exists()
    assert of_tests.has_times(record)


def test_a_damaged_or_unwritable_record_stops_nothing(tmp_path):
    job_times.write(tmp_path, job("detect_outliers"))
    (tmp_path / "measured" / "jobs" / "cut.json").write_text("{")
    assert [times.job for times in job_times.records(tmp_path)] == ["detect_outliers"]
    (tmp_path / "file").write_text("")
    job_times.write(tmp_path / "file", job("detect_outliers"))
    earlier_jobs.remember(tmp_path / "file", job("detect_outliers"))


def test_records_of_an_earlier_division_go(tmp_path):
    for name in ("extract_activations.old", "extract_activations.new", "create_store"):
        job_times.write(tmp_path, job(name))
    job_times.keep_only(tmp_path, "extract_activations", ["absent"])
    assert len(job_times.records(tmp_path)) == 3, "none of them is current"
    job_times.keep_only(tmp_path, "extract_activations", ["new"])
    left = {times.job for times in job_times.records(tmp_path)}
    assert left == {"extract_activations.new", "create_store"}


CHAIN = [
    job("fetch_model", 0, 2),
    job("tokenize_dataset", 3, 5, ["fetch_model"]),
    job("measure_weights", 3, 20, ["fetch_model"]),
    job("extract_activations.group-0-of-1.shard-0-of-1", 9, 30, ["tokenize_dataset"]),
    job(
        "join_weights", 40, 1, ["measure_weights", "extract_activations.group-0-of-1.shard-0-of-1"]
    ),
]


def test_the_critical_path_is_the_longest_chain_by_files():
    path = critical_path(CHAIN, before(CHAIN))
    assert [times.rule for times in path] == [
        "fetch_model", "tokenize_dataset", "extract_activations", "join_weights"
    ]  # fmt: skip
    assert sum(times.wall for times in path) == 38
    assert between(CHAIN) == 1
    assert critical_path([], {}) == []
    sentence = section.section(CHAIN)["sentence"]
    assert sentence.startswith(
        "The critical path took 38 s: fetch_model 2.0 s, tokenize_dataset 5.0 s, "
        "extract_activations 30 s, join_weights 1.0 s. From the start of the first job to the end "
        "of the last one it was 41 s; all jobs together took 58 s and 58 s of CPU time."
    )


def test_a_report_has_the_jobs_behind_it_and_no_others(tmp_path):
    run, shared = tmp_path / "run", tmp_path / "resources"
    for times in CHAIN[:3]:
        job_times.write(shared, times)
    job_times.write(shared, job("tokenize_dataset.other", outputs=["other tokens"]))
    job_times.write(run, CHAIN[3])
    job_times.write(run, job("ablate", outputs=["an ablation that was turned off"]))
    last = CHAIN[4]
    names = {times.job for times in job_times.behind(last, run, shared)}
    assert names == {times.job for times in CHAIN}


def test_the_axis_leaves_out_the_time_between_commands():
    axis = Axis.of([job("a", 0, 10), job("b", 5, 10), job("c", 5000, 5)], 100)
    assert (axis.seconds, axis.place(10), axis.place(5005)) == (20, 50, 100)
    assert axis.cuts() == [(75, 4985)]
    assert [text for _, text in axis.ticks()] == ["0 s", "5 s", "10 s", "15 s", "20 s"]
    for seconds, last in ((0.8, "0.8 s"), (100, "100 s"), (900, "14 min"), (5 * 86400, "5 d")):
        assert Axis.of([job("a", 0, seconds)], 100).ticks()[-1][1] == last


def test_many_jobs_share_bars_and_foreign_names_are_visible():
    many = [
        job(f"extract_activations.group-{group}-of-3.shard-{shard}-of-50", 10 * group + shard, 2)
        for group in range(3)
        for shard in range(50)
    ]
    shown = section.section([*many, job("tokenize_dataset.\x1b<b>", 0, 1)])
    assert [bar["label"] for bar in shown["bars"]] == [
        "extract_activations, group 0 (50 jobs)",
        "tokenize_dataset ␛<b>",
        "extract_activations, group 1 (50 jobs)",
        "extract_activations, group 2 (50 jobs)",
    ]
    assert shown["grouped"]
    assert shown["rows"][0]["wall"] == "100.0"
    columns = section.columns(many)
    assert len(columns["job"]) == 150
    assert sum(columns["on_critical_path"]) == 1


def test_a_bar_is_as_long_as_its_job_and_its_phases_fill_it():
    times = job("a", 0, 10, main=dict.fromkeys(PHASES, 0.0) | {WAIT: 4.0, COMPUTE: 6.0})
    (bar,) = section.section([times])["bars"]
    widths = {part["phase"]: float(part["width"]) for part in bar["parts"]}
    assert widths == {"wait": 264.0, "compute": 396.0}
    assert bar["parts"][0]["text"] == "a: wait 4.00 s"


def test_no_times_no_section():
    assert section.section([]) is None
