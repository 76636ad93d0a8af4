"""A Python that is forked from one which has imported what takes long: for runs of the workflow.

A job imports torch and transformers for three seconds and works for a tenth of one; here it starts
at once. `python()` is an executable that a test runs in place of Python, and that Snakemake then
runs its scripts with: each is a process of its own, in the folder, with the environment and with
the streams of whoever asked for it. Libraries of others are imported beforehand, ours are not.

What others read of the environment while they are imported is as it was for the server. Some tests
run `sys.executable`, as users do.

python tests/forked.py SOCKET: the server; it ends with its standard input.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path

PRELOADED = [
    "snakemake.cli", "torch", "transformers", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama",
    "nnsight", "zarr", "pyarrow.parquet", "pydantic", "jinja2", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
]  # fmt: skip
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({place!r})
    socket.send_fds(server, [b" "], [0, 1, 2])
    request = sys.argv, os.getcwd(), dict(os.environ)
    server.sendall(json.dumps(request).encode())
    server.shutdown(socket.SHUT_WR)
    status = server.recv(1)
sys.exit(status[0] if status else "the process was killed")
"""


def python(environment: Mapping[str, str] | None = None) -> str:
    """The executable; its server is started once, and ends with the tests.

    Args:
        environment: in which what others read of it is read; None: that of the tests, offline.
    """
    return _started(None if environment is None else tuple(environment.items()))


@functools.cache
def _started(environment: tuple[tuple[str, str], ...] | None) -> str:
    folder = tempfile.TemporaryDirectory(prefix="forked-")
    place, client = Path(folder.name) / "socket", Path(folder.name) / "python"
    client.write_text(CLIENT.format(python=sys.executable, place=str(place)))
    client.chmod(0o700)
    server = subprocess.Popen(
        [sys.executable, __file__, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} if environment is None else dict(environment),
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.read(1), "the server has ended"

    def end() -> None:
        server.communicate()
        folder.cleanup()

    atexit.register(end)
    return str(client)


def serve(place: str) -> None:
    """Run what clients ask for, each in a fork, until the standard input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # the forks share what is there as long as nobody looks at it
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen(64)
        os.write(1, b".")
        while listening in select.select([listening, sys.stdin], [], [])[0]:
            client, _ = listening.accept()
            if os.fork() == 0:
                _work(client)
            client.close()
            while _ended():
                pass


def _ended() -> bool:
    """Whether a fork has ended since it was asked last."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _work(client: socket.socket) -> None:
    """Do in this process what a client asks for, and end it as Python would."""
    _, streams, _, _ = socket.recv_fds(client, 1, 3)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    with client.makefile("rb") as request:
        (executable, *arguments), folder, environment = json.loads(request.read())
    sys.executable = executable
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment, OUTLIER_ATLAS_PRELOAD="0")  # jobs are forked from this one
    status = _status(arguments)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at the end of Python
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    client.sendall(bytes([status]))
    os._exit(status)


def _status(arguments: list[str]) -> int:
    """Run a module (`-m name`) or a file with arguments; its exit status."""
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], str(Path.cwd())
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if not isinstance(ended.code, str):
            return int(ended.code or 0)
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
