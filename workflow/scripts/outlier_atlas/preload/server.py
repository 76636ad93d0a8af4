"""Server that has imported libraries, and forks a process for each job that asks for one.

python server.py SOCKET MODULE..., with the number of a listening socket. It ends when its standard
input ends, that is, with the process that started it. It imports nothing of this project: a job
imports the library next to its script.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

SHARED = "OUTLIER_ATLAS_SHARED_MEMORY"
"""Environment variable of jobs: bytes that they share with this process when they begin."""


def serve(listening: socket.socket, modules: list[str]) -> None:
    """Fork a process for each connection, and send its exit status when it has ended.

    Args:
        listening: the socket.
        modules: modules to import before the first connection is accepted.
    """
    for name in modules:
        with suppress(Exception):  # jobs report it when they import it themselves
            importlib.import_module(name)
    shared = _resident()
    gc.freeze()  # a collection would write to all objects, and copy the shared memory
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        readable = select.select([sys.stdin, listening, *running], [], [])[0]
        for ended in running.keys() & set(readable):
            process, connection = running.pop(ended)
            _, status = os.waitpid(process, 0)
            os.close(ended)
            _send(connection, os.waitstatus_to_exitcode(status))
            connection.close()
        if sys.stdin in readable:
            return
        if listening in readable:
            connection, _ = listening.accept()
            process = os.fork()
            if process == 0:
                listening.close()
                _work(connection, shared)
            running[os.pidfd_open(process)] = process, connection


def _resident() -> int:
    """Return the bytes of memory of this process that its forks share."""
    _, pages, of_files, *_ = Path("/proc/self/statm").read_text("ascii").split()
    return (int(pages) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")


def _send(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # the client may have ended
        connection.sendall(b"%d\n" % number)


def _work(connection: socket.socket, shared: int) -> None:
    """Run the script of a client in this process, and end it as Python would."""
    status = 1
    try:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as requests:
            request = json.loads(requests.readline())
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"], **{SHARED: str(shared)})
        sys.argv, sys.path[:] = request["arguments"], request["path"]
        signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
        _send(connection, os.getpid())
        threading.Thread(target=_watch, args=(connection,), daemon=True).start()
        status = _status(sys.argv[0])
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _watch(connection: socket.socket) -> None:
    """End this process if its client was killed: for others, the client is the job."""
    with suppress(OSError):
        while connection.recv(1):
            pass
    os.kill(os.getpid(), signal.SIGKILL)


def _status(script: str) -> int:
    """Run a script and return its exit status."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    # The jobs end at signals, and their clients. The server ends after them.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
