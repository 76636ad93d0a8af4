"""Jobs that are forked from a process which has imported the libraries."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from test_workflow import CONFIG, snakemake, write
from times import has_times

from outlier_atlas.preload import client

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"

MAIN = """\
import os, subprocess, sys
sys.path.insert(0, {scripts!r})
from outlier_atlas.preload import client
client.LIBRARIES, client.MEMORY = ("json",), 0
client.start(["create_store", "join_weights", "extract_activations"])
job = subprocess.Popen([sys.executable, {job!r}, "an argument"])
print(job.pid, flush=True)
print("main:", job.wait(), flush=True)
sys.stdin.read()
"""
JOB = """\
import os, signal, sys, time
sys.path.insert(0, {scripts!r})
from outlier_atlas.preload.client import FORKED, hand_over
hand_over()
"""


@pytest.fixture
def started(tmp_path):
    """A function that starts a main process with a server and one job, and yields the main one."""
    mains = []

    def start(body, env=None):
        job, main = tmp_path / "job.py", tmp_path / "main.py"
        job.write_text(JOB.format(scripts=str(SCRIPTS)) + body)
        main.write_text(MAIN.format(scripts=str(SCRIPTS), job=str(job)))
        pipe = subprocess.PIPE
        mains.append(
            subprocess.Popen(
                [sys.executable, str(main)], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT,
                text=True, cwd=tmp_path, env=os.environ | {"A_VARIABLE": "set"} | (env or {}),
            )
        )  # fmt: skip
        return mains[-1], int(mains[-1].stdout.readline())

    yield start
    for main in mains:
        main.kill()
        main.wait()


def lines(main, count):
    return [main.stdout.readline().rstrip("\n") for _ in range(count)]


def ended(process):
    """Wait until a process is gone, which is no child of this one; it may be a zombie."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


IDENTITY = """\
print(os.getpid(), FORKED in os.environ, sys.argv[1:], os.getcwd(), os.environ["A_VARIABLE"],
      "json" in sys.modules, flush=True)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("os._exit(143)", 143),
        ("sys.exit('a message')", 1),
        ("1 / 0", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_a_job_ends_as_its_process_does(started, tmp_path, end, status):
    main, client = started(IDENTITY + end)
    said = lines(main, 1)[0].split(" ", 1)
    assert int(said[0]) != client
    assert said[1] == f"True ['an argument'] {tmp_path} set True"
    main.stdin.close()
    rest = main.stdout.read()
    assert rest.endswith(f"main: {status}\n")
    assert ("a message" in rest) == ("message" in end)
    assert ("ZeroDivisionError" in rest) == ("/" in end)
    assert main.wait() == 0


def test_rules_of_a_module_have_a_prefix():
    assert client.is_of("ablate") and client.is_of("atlas_extract_activations")
    assert not client.is_of("tokenize_dataset") and not client.is_of("reablate")


WAITS = IDENTITY + "time.sleep(600)\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_process_of_the_job(started, number):
    handler = "signal.signal({0}, lambda *_: os._exit(128 + {0}))\n".format(int(number))
    main, client = started(handler + WAITS)
    process = int(lines(main, 1)[0].split()[0])
    os.kill(client, number)
    assert lines(main, 1) == [f"main: {128 + number}"]
    assert ended(process)


def test_a_job_that_is_killed_computes_no_longer(started):
    main, client = started(WAITS)
    process = int(lines(main, 1)[0].split()[0])
    os.kill(client, signal.SIGKILL)
    assert lines(main, 1) == ["main: -9"]
    assert ended(process)


def test_a_job_goes_on_if_the_server_or_the_main_process_is_killed(started):
    main, client = started(WAITS.replace("600", "2") + "open('done', 'w').close()\n")
    process = int(lines(main, 1)[0].split()[0])
    stat = Path(f"/proc/{process}/stat").read_text()
    server = int(stat.rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    main.kill()
    assert ended(process)
    assert ended(client)
    assert Path(f"{main.args[1]}").with_name("done").exists()


def test_the_server_ends_with_the_main_process(started):
    main, _ = started(IDENTITY.replace("os.getpid()", "os.getppid()"))
    server = int(lines(main, 1)[0].split()[0])
    lines(main, 1)
    main.kill()
    assert ended(server)


@pytest.mark.parametrize("switch", ["0", f"nowhere\n{sys.executable}"])
def test_without_a_server_a_job_runs_by_itself(started, switch):
    main, client = started(IDENTITY, {"OUTLIER_ATLAS_PRELOAD": switch})
    assert lines(main, 1)[0].split()[:2] == [str(client), "False"]
    assert lines(main, 1) == ["main: 0"]


@pytest.mark.skipif(not client._possible(), reason="no server starts on this machine")
def test_jobs_of_a_run_are_forked_and_write_what_others_write(tmp_path):
    tiny.llama(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for index, sentence in enumerate(tiny.SENTENCES):
        (tmp_path / "texts" / f"{index}.txt").write_text(sentence * 3)
    folders = {}
    for name, python in (("forked", sys.executable), ("tests", None)):
        write(tmp_path, CONFIG | {"run": {"name": name}})
        snakemake(tmp_path, "--configfile", "mine.yaml", python=python)
        folders[name] = tmp_path / "results" / name
    logs = {
        path.name.partition(".")[0]: path.read_text() for path in folders["forked"].glob("logs/*")
    }
    before = {rule for rule, text in logs.items() if "imported before this job" in text}
    assert before == {"create_store", "extract_activations"}
    assert not [p for p in folders["tests"].glob("logs/*") if "imported before" in p.read_text()]
    for pattern in ("activations.zarr/**/c/**/*", "tables/*.csv"):
        files = [p.relative_to(folders["tests"]) for p in folders["tests"].glob(pattern)]
        for file in files:
            if has_times(file) or not (folders["tests"] / file).is_file():
                continue
            assert (folders["forked"] / file).read_bytes() == (folders["tests"] / file).read_bytes()
    assert not re.search(r"Traceback", "".join(logs.values()))
