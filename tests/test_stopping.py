"""Tests that a signal, or missing threads, stop a job with one line, at once or after a batch."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from outlier_atlas import signals, stopping, supervision, threads
from outlier_atlas.extraction.writer import RowWriter

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
PATIENCE = 60
STOPPED = "stopped by {}; committed results are kept: run the same command again\n"

SCRIPT = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
import rule_main
from outlier_atlas import stopping

def ready():
    print("ready", flush=True)

def main(job):
{main}

job = dict(rule="a_rule", threads=1, log=["run/logs/a_rule.log"], input={{}}, output={{}})
a_rule = SimpleNamespace(**job)
rule_main.run(main, a_rule)
"""


def start(folder, main, **options):
    """Start a job that runs `main`, lines of Python, in a separate process."""
    (folder / "run" / "logs").mkdir(parents=True, exist_ok=True)
    body = "\n".join(f"    {line}" for line in main.strip("\n").splitlines())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.pop(stopping.SUPERVISED, None)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(main=body)], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        **{"env": environment | {"PYTHONPATH": str(SCRIPTS)}} | options,
    )  # fmt: skip


def await_ready(process):
    assert process.stdout.readline() == "ready\n", process.stderr.read()


def ended(process):
    """Return the exit status and the output."""
    said = process.communicate(timeout=PATIENCE)[1]
    return process.returncode, said


WORK = {
    "waits": "ready(); time.sleep(60)",
    "waits for threads": """
with ThreadPoolExecutor(2) as pool:
    waiting = [pool.submit(time.sleep, 60) for _ in range(4)]
    ready()
    waiting[0].result()
""",
    "swallows what is raised": """
ready()
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
""",
    "fails while it is cut off": """
ready()
try:
    time.sleep(60)
finally:
    raise RuntimeError("cut off")
""",
    "finds its terminal full": """
os.set_blocking(2, False)
try:
    while True:
        os.write(2, b"x" * 1000)
except BlockingIOError:
    os.set_blocking(2, True)
ready()
print("y" * 1000, file=sys.stderr, flush=True)
""",
    "computes in a library": """
import ctypes
ready()
ctypes.CDLL(None).usleep(60_000_000)
""",
}


@pytest.mark.parametrize("work", WORK)
def test_a_signal_ends_a_job_in_one_line_whatever_it_does(work, tmp_path):
    number = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP][list(WORK).index(work) % 3]
    process = start(tmp_path, WORK[work])
    await_ready(process)
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(PATIENCE) == 128 + number
    if "full" not in work:
        assert ended(process)[1] == STOPPED.format(number.name)
    assert time.monotonic() - begun < 2 * stopping.PATIENCE_SECONDS
    assert STOPPED.format(number.name).strip() in (tmp_path / "run/logs/a_rule.log").read_text()


BATCHES = """
with stopping.deferred():
    for batch in range(1000):
        stopping.raise_if_asked()
        ready() if batch == 0 else None
        time.sleep({seconds})
        open("done", "a").write(f"{{batch}}\\n")
"""


def test_the_batch_in_flight_is_finished_and_no_other_begun(tmp_path):
    """Signals that arrive together are one request, such as those of Ctrl-C."""
    process = start(tmp_path, BATCHES.format(seconds=0.5))
    await_ready(process)
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    status, said = ended(process)
    assert status in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert said in (STOPPED.format("SIGINT"), STOPPED.format("SIGTERM"))
    assert (tmp_path / "done").read_text() == "0\n"


def test_a_second_signal_does_not_wait_for_the_batch(tmp_path):
    process = start(tmp_path, BATCHES.format(seconds=60))
    await_ready(process)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(signals.REPEATED_SECONDS + 0.2)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (128 + signal.SIGTERM, STOPPED.format("SIGTERM"))
    assert not (tmp_path / "done").exists()


def test_an_error_of_the_batch_in_flight_is_not_hidden(tmp_path):
    main = "with stopping.deferred():\n    ready(); time.sleep(1)\n    raise ValueError('no room')"
    process = start(tmp_path, main)
    await_ready(process)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (1, "a_rule: no room\n")


def test_a_signal_that_is_ignored_stays_so_and_stop_and_continue_change_nothing(tmp_path):
    """A job ignores signals that were ignored at its start, such as SIGHUP under `nohup`."""
    main = "ready(); time.sleep(0.5); print('went on', flush=True)"
    process = start(tmp_path, main, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    await_ready(process)
    for number in (signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT):
        process.send_signal(number)
    assert process.stdout.readline() == "went on\n"
    assert ended(process) == (0, "")


def test_a_signal_to_a_job_that_does_not_listen_yet_waits_for_it(tmp_path):
    """Snakemake's jobs start with these signals blocked."""
    process = start(tmp_path, "ready()", preexec_fn=signals.block)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (128 + signal.SIGINT, STOPPED.format("SIGINT"))


def test_a_job_whose_snakemake_speaks_says_it_in_its_log_alone(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS), stopping.SUPERVISED: "1"}
    process = start(tmp_path, "ready(); time.sleep(60)", env=environment)
    await_ready(process)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (128 + signal.SIGTERM, "")
    assert "stopped by SIGTERM" in (tmp_path / "run/logs/a_rule.log").read_text()


REFUSE = """
import threading
def refuse(*_):
    raise RuntimeError("can't start new thread")
threading._start_new_thread = refuse
"""


def test_threads_that_cannot_start_are_said_in_one_line(tmp_path):
    pool = "with ThreadPoolExecutor(2) as pool:\n    pool.submit(time.sleep, 60)"
    assert ended(start(tmp_path, REFUSE + pool)) == (1, f"a_rule: {threads.REFUSED}\n")


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_job_for_which_there_are_too_few_threads_is_refused_and_leaves_none(error, monkeypatch):
    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", refusing(after=12, error=error))
    with pytest.raises(ValueError, match="raise the limit") as refused:
        threads.require(1)
    assert str(refused.value) == threads.REFUSED
    assert threading.active_count() == before


def refusing(after, error):
    """Return a `Thread.start` that raises after a number of starts."""
    begin, count = threading.Thread.start, iter(range(1000))

    def start_or_refuse(thread):
        if next(count) == after:
            raise error
        begin(thread)

    return start_or_refuse


def test_what_a_library_raises_as_no_exception_is_one_line(tmp_path):
    """A Rust library that panics raises such an exception."""
    main = "class PanicException(BaseException): pass\nraise PanicException('no threads')"
    status, said = ended(start(tmp_path, main))
    assert status == 1
    assert said.startswith("a_rule: PanicException: no threads (this should not happen")
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_writer_whose_second_thread_cannot_start_leaves_none_waiting(error, monkeypatch):
    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", refusing(after=1, error=error))
    with pytest.raises(type(error)), RowWriter(None, None, {}, None, 1):
        raise AssertionError("it is not entered")
    end = time.monotonic() + PATIENCE
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_program_is_quiet_about_ctrl_c_from_its_first_import_on(tmp_path):
    """Ctrl-C ends Snakemake as `make run` starts it, even during its imports."""
    (tmp_path / "slow.py").write_text(
        "import sys, time\nprint('ready', sys.argv[1:], flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "outlier_atlas.interruptible", "slow", "--cores", "2"],
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
    )  # fmt: skip
    assert process.stdout.readline() == "ready ['--cores', '2']\n"
    process.send_signal(signal.SIGINT)
    said = "stopped before a job began; run the same command again\n"
    assert ended(process) == (128 + signal.SIGINT, said)


def record(message):
    return logging.LogRecord("snakemake", logging.ERROR, "", 0, message, (), None)


def test_a_job_that_was_stopped_alone_is_told_once_by_its_snakemake(capfd):
    supervisor = supervision._Supervisor()
    command = "CalledProcessError in file \"a.smk\", line 3:\nCommand 'python a.py' "
    for how in ("returned non-zero exit status 143.", "died with <Signals.SIGTERM: 15>."):
        assert not supervisor.keep(record(f"{command}{how}"))
    assert supervisor.keep(record(f"{command}returned non-zero exit status 1."))
    assert supervisor.keep(record("Error in rule a:"))
    said = "a job was stopped by a signal; committed results are kept: run the same command again\n"
    assert capfd.readouterr().err == said


SNAKEMAKE = """
import os, signal, sys, time
sys.argv = ["snakemake"]
from outlier_atlas import supervision
supervision.watch()
signal.signal(signal.SIGTERM, print)  # as Snakemake does
supervision.jobs_begin(local=False)
print("ready", flush=True)
time.sleep(60)
"""


def test_too_few_threads_for_snakemake_are_said_in_one_line_too():
    done = subprocess.run(
        [sys.executable, "-c", REFUSE + SNAKEMAKE], text=True, capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)}, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, f"{threads.REFUSED}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_on_a_cluster_signals_are_left_to_snakemake(number, tmp_path):
    """Snakemake itself cancels jobs on a cluster at Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-c", SNAKEMAKE], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
    )  # fmt: skip
    await_ready(process)
    process.send_signal(number)
    status, said = ended(process)
    assert status == -number
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)


def test_processes_that_a_process_has_started_are_found_and_no_others():
    command = ["sh", "-c", "sleep 60 & echo; wait"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    other = subprocess.Popen(["sleep", "60"])
    try:
        started.stdout.readline()
        found = list(supervision._descendants(started.pid))
        assert len(found) == 1 and other.pid not in found
        assert list(supervision._descendants(os.getpid())).index(started.pid) >= 0
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        other.kill()
        started.wait()
        other.wait()
