"""Start of the server by Snakemake's process, and hand-over of a job to it."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from outlier_atlas import signals
from outlier_atlas.phases import STARTED, process_seconds

RULES = (
    "ablate",
    "choose_layer_groups",
    "create_store",
    "extract_activations",
    "measure_weights",
)
"""Rules whose jobs need the libraries."""

LIBRARIES = (
    "snakemake.script",
    "snakemake.logging",
    "zarr",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    # The code of any model imports nearly everything that the code of another one does.
    "transformers.models.llama.modeling_llama",
    "nnsight",
)
"""Modules that the server imports, torch among them."""

SWITCH = "OUTLIER_ATLAS_PRELOAD"
"""Environment variable: `0` turns the server off. For jobs, it has the path of the server's socket
and the Python of the server."""

FORKED = "OUTLIER_ATLAS_SHARED_MEMORY"
"""Environment variable of a forked job: bytes that it shares with the server when it begins."""

MEMORY = 4 * 2**30
"""Bytes that have to be available on this machine. The server takes 0.3 GiB, which a machine with
little memory needs for the jobs."""


def start(rules: Iterable[str]) -> None:
    """Start the server if at least two of the planned jobs can use it.

    It ends with this process.

    Args:
        rules: the rule of each planned job.
    """
    if os.environ.get(SWITCH) or sum(map(is_of, rules)) < 2 or not _possible():
        return
    folder = tempfile.mkdtemp(prefix="outlier-atlas-")
    place = str(Path(folder) / "socket")
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(place)
        listening.listen(64)
        server = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("server.py")),
                str(listening.fileno()),
                *LIBRARIES,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
        )  # fmt: skip
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        return  # each job imports the libraries itself
    finally:
        listening.close()
    os.environ[SWITCH] = f"{place}\n{sys.executable}"

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)


def is_of(rule: str) -> bool:
    """Return whether a rule is one of `RULES`, which have a prefix in a module."""
    return rule in RULES or rule.endswith(tuple(f"_{name}" for name in RULES))


def _possible() -> bool:
    """Return whether this system can fork safely and report the end of a process to its parent."""
    if sys.platform != "linux" or _available() < MEMORY:
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:  # an old kernel, or a sandbox
        return False
    return True


def _available() -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 2**10
    return 0


def hand_over() -> None:
    """Let a process of the server run this script, and end as that process ends.

    Signals are passed on. The function returns if there is no server, or if it was started with
    another Python, such as that of another conda environment.
    """
    place, _, python = os.environ.get(SWITCH, "").partition("\n")
    if python != sys.executable:
        return
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    started = time.clock_gettime(time.CLOCK_BOOTTIME) - process_seconds()
    environment[STARTED] = str(started)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(place)
        request = {
            "arguments": sys.argv,
            "path": sys.path,
            "folder": str(Path.cwd()),
            "environment": environment,
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        }
        socket.send_fds(connection, [b" "], [0, 1, 2])
        connection.sendall(json.dumps(request).encode() + b"\n")
    except OSError:  # the server has ended
        return
    with connection, connection.makefile("r") as answers:
        process = answers.readline()
        if not process:
            return  # it has ended, too; it runs no job before it answers
        _pass_signals_on(int(process))
        status = answers.readline()
    # Without a status, the server was killed, and the job has ended after it.
    _end(int(status) if status else 1)


def _pass_signals_on(process: int) -> None:
    def pass_on(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, number)

    for number in signals.ASK_TO_STOP:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.ASK_TO_STOP)


def _end(status: int) -> None:
    """End this process like another one.

    Args:
        status: exit status, or the negative number of the signal that ended the process.
    """
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
