"""SIGKILL at any moment, then the same command again: it goes on, and leaves the same."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import disturbed
import forked
import pytest
import yaml
from disturbed import (
    CONFIG,
    NAME,
    SERVER,
    History,
    Kill,
    at_operation,
    copy,
    launch,
    start,
    survive,
)

from outlier_atlas import locks
from outlier_atlas.store.run_files import COMMITS

ROOT = Path(__file__).parents[1]
SEED = 20
KILLS = {
    "fetch_model": 1,
    "tokenize_dataset": 2,
    "tokenize_dataset.heldout": 1,
    "create_store": 5,
    "extract_activations.group-0.shard-0": 5,
    "extract_activations.group-0.shard-1": 4,
    "extract_activations.group-1.shard-0": 2,
    "extract_activations.group-1.shard-1": 4,
    "detect_outliers": 3,
    "ablate": 4,
    "measure_weights": 2,
    "join_weights": 1,
    "render_report": 2,
}
PATIENCE = 240
"""Seconds after which what should have happened at once did not."""


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(tmp_path_factory.mktemp("history"))


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_stage_goes_on_and_leaves_the_same(history, name, tmp_path):
    """A kill before an operation on a file, and half way through what it was writing."""
    assert_goes_on(history, name, KILLS[name], tmp_path)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("fetch_dataset", disturbed.FROM_THE_HUB),
        ("fetch_package", disturbed.FROM_THE_INDEX),
    ],
)
def test_a_killed_fetch_begins_again_and_leaves_the_same(name, config, tmp_path):
    history = History(tmp_path / "history", config, only="fetch_")
    assert_goes_on(history, name, 2, tmp_path)


def assert_goes_on(history, name, kills, tmp_path):
    count = len(history.operations[name])
    points = random.Random(f"{SEED} {name}").sample(range(count), kills)
    for at in points:
        print(f"{name}: seed {SEED}, before operation {at} of {count}")
        survival = survive(history, name, tmp_path / str(at), at_operation(at))
        assert survival.killed
        assert survival.status == 0
        assert survival.differences == []
        assert survival.in_vain == 0, "nothing committed is computed again"


def test_a_killed_verify_leaves_damage_to_the_next_and_nothing_is_lost(history, tmp_path):
    """It takes away what is damaged: the chunk, its commits, the records of the jobs that look."""

    def damaged(name):
        folder = copy(history.before("verify"), tmp_path / name)
        chunks = (folder / "results" / NAME / "activations.zarr" / "attn_in" / "c").rglob("0")
        for chunk in sorted(path for path in chunks if path.is_file())[::5]:
            os.truncate(chunk, chunk.stat().st_size - 3)
        return folder

    whole = launch(damaged("whole"), "verify")
    assert whole.status == 1 and "damaged" in whole.said
    extraction = [name for name in KILLS if name.startswith("extract")]
    for at in random.Random(SEED).sample(range(len(whole.operations)), 3):
        folder = damaged(f"{at}")
        assert launch(folder, "verify", Kill(at)).status == -signal.SIGKILL
        launch(folder, "verify")
        for name in extraction:
            assert launch(folder, name).status == 0
        assert launch(folder, "verify").status == 0
        assert history.differences(folder, "verify") == []


def test_a_stage_that_is_killed_again_and_again_comes_to_its_end(history, tmp_path):
    name = "extract_activations.group-0.shard-1"
    folder = copy(history.before(name), tmp_path / "project")
    left_to_do = [disturbed.missing_batches(folder, name)]
    for _ in range(6):
        assert launch(folder, name, Kill(45)).status == -signal.SIGKILL
        left_to_do.append(disturbed.missing_batches(folder, name))
        if len(left_to_do[-1]) < 3:
            break
    assert len(left_to_do[-1]) < len(left_to_do[0]), "each start commits more than the one before"
    assert launch(folder, name).status == 0
    assert history.differences(folder, name) == []


def test_a_commit_that_was_cut_short_does_not_count_and_hurts_no_other(history, tmp_path):
    name = "extract_activations.group-0.shard-0"
    folder = copy(history.before(name), tmp_path / "project")
    assert launch(folder, name).status == 0
    file = next((folder / "results" / NAME / COMMITS).glob("*.jsonl"))
    os.truncate(file, file.stat().st_size - 20)
    assert 0 < len(disturbed.missing_batches(folder, name)) < len(history.batches[name])
    assert launch(folder, name).status == 0
    assert disturbed.missing_batches(folder, name) == []
    assert history.differences(folder, name) == []


def test_files_are_written_under_another_name_and_take_their_place_when_whole(history):
    """What is opened for writing is a `.partial`, or a commit file, to which whole lines come."""
    written = [
        path
        for operations in history.operations.values()
        for kind, path in (line.split(" ", 1) for line in operations)
        if kind == "open" and not path.endswith(".partial")
    ]
    assert written
    assert {Path(path).parent.name for path in written} <= {"commits", "locks"}


def test_a_job_waits_for_the_one_that_outlived_its_snakemake(history, tmp_path):
    """Both at once would write the same files; the second finds the work of the first done."""
    name = "extract_activations.group-0.shard-0"
    folder = copy(history.before(name), tmp_path / "project")
    lock = folder / "results" / NAME / locks.LOCKS / lock_of(name)
    with locks.job_lock(lock, print):
        second = start(folder, name)
        assert wait(lambda: "waiting for process" in disturbed.said(folder))
        assert not list((folder / "results" / NAME / COMMITS).glob("*"))
    second.join()
    assert second.exitcode == 0
    assert history.differences(folder, name) == []


def test_every_profile_goes_on_after_a_kill():
    """Profiles of the user replace the default one, but ours all do."""
    profiles = [yaml.safe_load(path.read_text()) for path in ROOT.glob("profiles/*/config.yaml")]
    assert profiles
    assert all(profile["rerun-incomplete"] and profile["nolock"] for profile in profiles)


def lock_of(name):
    """Return the name of the lock of a job of `history`, which has two layer groups and shards."""
    return re.sub(r"(group|shard)-(\d)", r"\1-\2-of-2", name)


def wait(for_what):
    """Until it is so; whether it came to be so in time."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if for_what():
            return True
        time.sleep(0.02)
    return False


def snakemake(folder, *arguments, python=sys.executable, configuration="mine.yaml"):
    """Start Snakemake on a project, in a process group of its own."""
    command = [python, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--workflow-profile", str(ROOT / "profiles" / "default"), "--cores", "2"]
    return subprocess.Popen(
        [*command, "--configfile", configuration, *arguments], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        # Jobs that import for seconds are at work when a signal or another command comes.
        env=os.environ
        | {"OUTLIER_ATLAS_MAKE": "", "TQDM_DISABLE": "1", "OUTLIER_ATLAS_PRELOAD": "0"},
    )  # fmt: skip


def said(process):
    return process.communicate(timeout=PATIENCE)[0]


@pytest.mark.slow
def test_snakemake_itself_is_killed_and_the_same_command_goes_on(history, tmp_path):
    """With its jobs, and alone; a second one is told, and jobs left at work are waited for."""
    folder = copy(history.before("extract_activations.group-1.shard-0"), tmp_path / "project")
    held = folder / "results" / NAME / locks.LOCKS

    with_jobs = snakemake(folder)
    assert wait(lambda: locked(held / lock_of("extract_activations.group-1.shard-0")))
    os.killpg(with_jobs.pid, signal.SIGKILL)
    with_jobs.wait()

    alone = snakemake(folder)
    assert wait(lambda: locked(held / lock_of("extract_activations.group-1.shard-0")))
    second = snakemake(folder)
    refused = said(second)
    assert second.returncode == 1
    line = f"results/{NAME}: process {alone.pid} on "
    assert [text for text in refused.splitlines() if text.startswith(line)]
    assert "Traceback" not in refused and "Exception" not in refused
    os.kill(alone.pid, signal.SIGKILL)
    alone.wait()
    assert locked(held / lock_of("extract_activations.group-1.shard-0")), "its job is still at work"

    at_the_end = snakemake(folder)
    assert wait(lambda: locked(held / "detect_outliers"))
    os.killpg(at_the_end.pid, signal.SIGKILL)
    assert "waiting for process" in said(at_the_end)

    last = snakemake(folder)
    assert wait(lambda: locked(held / "detect_outliers"))
    # Snakemake fails a job whose input is newer than what it made: a dry run may touch none.
    threshold = CONFIG["detection"]["llm_int8"] | {"threshold": 1.5}
    other = CONFIG | {"detection": CONFIG["detection"] | {"llm_int8": threshold}}
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    looked = said(snakemake(folder, "--dry-run", configuration="other.yaml"))
    assert re.search(r"^  detect_outliers +1  not made yet$", looked, re.MULTILINE), looked
    text = said(last)
    assert last.returncode == 0, text
    assert history.differences(folder, "render_report") == []


class Signal:
    """A signal to the stage itself before operation `at`."""

    def __init__(self, at: int, number: int) -> None:
        self.left, self.number = at, number

    def __call__(self, kind: str, path: str) -> None:
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        self.left -= 1


@pytest.mark.parametrize(
    "name", ["extract_activations.group-0.shard-0", "detect_outliers", "ablate", "render_report"]
)
def test_a_stage_that_is_told_to_stop_says_so_in_one_line_and_loses_nothing(
    history, name, tmp_path
):
    folder = copy(history.before(name), tmp_path / "project")
    at = random.Random(f"{SEED} {name}").randrange(len(history.operations[name]) // 2)
    stopped = launch(folder, name, Signal(at, signal.SIGTERM))
    assert stopped.status == 128 + signal.SIGTERM, stopped.said
    lines = [line for line in stopped.said.splitlines() if "run the same command again" in line]
    assert lines == ["stopped by SIGTERM; committed results are kept: run the same command again"]
    assert "Traceback" not in stopped.said
    assert launch(folder, name).status == 0
    assert history.differences(folder, name) == []


@pytest.mark.slow
def test_signals_to_snakemake_end_it_and_its_jobs_within_seconds(history, tmp_path):
    """SIGTERM to its process alone; Ctrl-C twice, while a job imports and before one begins."""
    name = "extract_activations.group-1.shard-0"
    folder = copy(history.before(name), tmp_path / "project")
    held = folder / "results" / NAME / locks.LOCKS

    def end(at, how, line):
        process = snakemake(folder)
        assert wait(lambda: locked(held / lock_of(at)))
        begun = time.monotonic()
        how(process)
        text = said(process)
        assert time.monotonic() - begun < 20
        assert process.returncode not in (0, None)
        assert [line for line in text.splitlines() if "the same command" in line] == [line], text
        assert "Traceback" not in text and "KeyboardInterrupt" not in text
        assert not any(locked(path) for path in held.iterdir()), "no process is left behind"

    def twice(process):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)

    again = "committed results are kept: run the same command again"
    stopping = "stopping after the batch in flight; a second signal stops at once"
    end(name, lambda process: process.terminate(), f"SIGTERM: {stopping}; {again}")
    end(name, twice, f"SIGINT: {stopping}; {again}")
    end(locks.SNAKEMAKE, twice, f"stopped by SIGINT before a job began; {again}")
    last = snakemake(folder, python=forked.python())
    text = said(last)
    assert last.returncode == 0, text
    assert history.differences(folder, "render_report") == []


def locked(path):
    """Whether a process holds a lock."""
    return path.exists() and locks.is_held(path)


def own_a_run(run):
    with locks.own(run, print):
        time.sleep(PATIENCE)


def test_a_run_has_one_owner(tmp_path):
    living = SERVER().Process(target=own_a_run, args=(tmp_path / "results" / "mine",))
    living.start()
    run = tmp_path / "results" / "mine"
    assert wait(lambda: locked(run / locks.LOCKS / locks.SNAKEMAKE))
    with pytest.raises(ValueError, match=f"process {living.pid} on .* is making this run already"):
        locks.own(run, print)
    living.kill()
    living.join()
    locks.own(run, print).close()


def test_a_folder_that_takes_no_file_is_said_in_a_sentence(tmp_path):
    results = tmp_path / "results"
    for make in (Path.touch, lambda path: path.symlink_to("/nowhere/at/all")):
        make(results)
        with pytest.raises(ValueError, match=rf"^{results}.*; a run writes there: make it writabl"):
            locks.own(results / "mine", print)
        results.unlink()
