"""The devices of a job, and the lease that keeps two jobs of one machine off the same GPU.

A lease is an exclusive lock on a file per GPU. The kernel releases it when the job ends in
any way. A job that waits for several GPUs holds none of them meanwhile: so no two wait for each
other. Slurm and Kubernetes hand out GPUs themselves, and number them from 0 in every allocation: so
there each allocation has leases of its own, for the jobs that run side by side within it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from outlier_atlas.devices.gpus import MIG, identities, visible_gpus
from outlier_atlas.devices.registry import candidates
from outlier_atlas.locks import flock

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
FIRST_SECONDS, REMINDER_SECONDS = 5.0, 60.0
"""After which a job that waits says so for the first time, and again."""


@contextmanager
def devices(wanted: str, count: int, job: str) -> Iterator[list[str]]:
    """The devices for a job's forward pass, its own for as long as the block lasts.

    Must be entered before torch touches CUDA: the job then sees no other GPU.

    Args:
        wanted: `auto`, `cuda`, `mps` or `cpu`.
        count: of GPUs; of anything else there is one.
        job: what the job is called where others wait for it.

    Raises:
        ValueError: the wanted device is not on this machine, or not so many of them.
    """
    gpus = visible_gpus() if wanted in ("auto", "cuda") else []
    # Of the parts of GPUs CUDA shows a process only one.
    most = 1 if gpus and gpus[0].startswith(MIG) else len(gpus)
    if 0 < most < count:
        raise ValueError(
            f"execution.gpus_per_job = {count}: this machine shows a job {most} CUDA "
            f"device{'s' * (most > 1)}; take at most {most}"
        )
    if gpus:
        known = dict(zip(identities(gpus), gpus, strict=True))
        with lease(list(known), lease_folder(), job, count) as leased:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(known[gpu] for gpu in leased)
            yield [f"cuda:{index}" for index in range(count)]
        return
    others = candidates(wanted)
    if not others:
        raise ValueError(
            f"execution.device = {wanted!r}: this machine shows no {wanted.upper()} device; "
            f"take auto"
        )
    yield others


def lease_folder() -> Path:
    """Where the lock files lie: one folder a machine, a step of a Slurm job, or a pod."""
    parts = ["outlier-atlas-leases"]
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        parts += ["pod", socket.gethostname()]
    elif "SLURM_JOB_ID" in os.environ:
        parts += ["slurm", os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_STEP_ID", "batch")]
    return Path(tempfile.gettempdir()) / "-".join(parts).replace("/", "-")


@contextmanager
def lease(gpus: Sequence[str], folder: Path, job: str, count: int = 1) -> Iterator[list[str]]:
    """Some of the GPUs, held until the block ends; waits while others hold too many of them.

    Args:
        gpus: those to choose from.
        folder: of the lock files.
        job: written into the lock files, for those who wait.
        count: how many; all of them at once, or none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _open_to_all(folder, 0o1777)
    with _wait(gpus, folder, count) as held:
        for file in held.values():
            file.truncate(0)
            file.write(f"{job} (process {os.getpid()} on {socket.gethostname()})")
            file.flush()
        yield list(held)


@contextmanager
def _wait(gpus: Sequence[str], folder: Path, count: int) -> Iterator[dict[str, IO[str]]]:
    waited_since = time.monotonic()
    due = waited_since + FIRST_SECONDS
    while True:
        with ExitStack() as open_files:
            held, holders = _try(gpus, folder, count, open_files)
            if len(held) == count:
                yield held
                return
        now = time.monotonic()
        if now >= due:
            due = now + REMINDER_SECONDS
            log.warning(
                "waiting for a GPU for %d s; held by %s", now - waited_since, "; ".join(holders)
            )
        # Two that take from each other what both need do not do so again at the same moment.
        time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))


def _try(
    gpus: Sequence[str], folder: Path, count: int, open_files: ExitStack
) -> tuple[dict[str, IO[str]], list[str]]:
    """The lock files of up to `count` GPUs that were free, and who holds the others."""
    held: dict[str, IO[str]] = {}
    holders: list[str] = []
    for gpu in gpus:
        if len(held) == count:
            break
        file = open_files.enter_context(_lock_file(folder, gpu))
        if flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, folder, "set TMPDIR to a folder with locks"):
            held[gpu] = file
        else:
            holders.append(f"GPU {gpu}: {file.read(200).strip() or 'another job'}")
    return held, holders


def _lock_file(folder: Path, gpu: str) -> IO[str]:
    path = folder / f"gpu-{gpu.replace('/', '-')}"
    try:
        # Linux may refuse to create (`fs.protected_regular`) what another user has made there.
        number = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT, 0o666)
        _open_to_all(path, 0o666)
    return os.fdopen(number, "r+", encoding="utf-8")


def _open_to_all(path: Path, mode: int) -> None:
    """Other users' jobs on this machine lock the same files, whatever this one's umask."""
    if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o7777 != mode:
        path.chmod(mode)
