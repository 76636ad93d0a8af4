"""Devices of a job, and leases that keep two jobs of one machine off the same GPU.

A lease is an exclusive lock on a file per GPU. The kernel releases it when the job ends in any way.
A job that waits for several GPUs holds none of them meanwhile, so no two jobs wait for each other.
Slurm and Kubernetes assign GPUs themselves, and number them from 0 in each allocation. There each
allocation has its own leases, for the jobs that run concurrently in it.
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
from outlier_atlas.phases import WAIT, phase

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Mean time between two attempts to lease."""
FIRST_SECONDS, REMINDER_SECONDS = 5.0, 60.0
"""Seconds after which a waiting job logs for the first time, and seconds between reminders."""


@contextmanager
def devices(device: str, count: int, job: str) -> Iterator[list[str]]:
    """Provide devices for a job's forward pass, and lease GPUs while the block lasts.

    Enter it before torch initializes CUDA: the job then sees no other GPU.

    Args:
        device: `auto`, `cuda`, `mps` or `cpu`.
        count: number of GPUs; a job uses one device of any other kind.
        job: name of the job, shown to jobs that wait for its GPUs.

    Yields:
        Names of the devices in torch.

    Raises:
        ValueError: this machine does not have the device, or has fewer GPUs.
    """
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    # CUDA shows a process only one partition of a GPU.
    most = 1 if gpus and gpus[0].startswith(MIG) else len(gpus)
    if 0 < most < count:
        raise ValueError(
            f"execution.gpus_per_job = {count}: a job sees only {most} CUDA "
            f"device{'s' * (most > 1)} on this machine; set at most {most}"
        )
    if gpus:
        gpu_by_identity = dict(zip(identities(gpus), gpus, strict=True))
        with lease(list(gpu_by_identity), lease_folder(), job, count) as leased:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_by_identity[gpu] for gpu in leased)
            yield [f"cuda:{index}" for index in range(count)]
        return
    names = candidates(device)
    if not names:
        raise ValueError(
            f"execution.device = {device!r}: this machine has no {device.upper()} device; set auto"
        )
    yield names


def lease_folder() -> Path:
    """Return the folder of the lock files: one per machine, step of a Slurm job, or pod."""
    parts = ["outlier-atlas-leases"]
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        parts += ["pod", socket.gethostname()]
    elif "SLURM_JOB_ID" in os.environ:
        parts += ["slurm", os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_STEP_ID", "batch")]
    return Path(tempfile.gettempdir()) / "-".join(parts).replace("/", "-")


@contextmanager
def lease(gpus: Sequence[str], folder: Path, job: str, count: int = 1) -> Iterator[list[str]]:
    """Lease some of the GPUs until the block ends, waiting while too many of them are leased.

    Args:
        gpus: GPUs to choose from.
        folder: folder of the lock files.
        job: name of the job, written into the lock files for waiting jobs.
        count: number of GPUs; all are leased at the same time, or none.

    Yields:
        The leased GPUs.
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
    """Wait until GPUs are free, and hold their lock files until the block ends."""
    started = time.monotonic()
    next_message = started + FIRST_SECONDS
    while True:
        with ExitStack() as open_files:
            held, holders = _try(gpus, folder, count, open_files)
            if len(held) == count:
                yield held
                return
        now = time.monotonic()
        if now >= next_message:
            next_message = now + REMINDER_SECONDS
            log.warning("waiting for a GPU for %d s; held by %s", now - started, "; ".join(holders))
        # Random waits keep two jobs that need the same GPUs from blocking each other repeatedly.
        with phase(WAIT):
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))


def _try(
    gpus: Sequence[str], folder: Path, count: int, open_files: ExitStack
) -> tuple[dict[str, IO[str]], list[str]]:
    """Lock the files of up to `count` free GPUs.

    Returns:
        The locked files by GPU, and the holders of the other GPUs.
    """
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
    """Open the lock file of a GPU, creating it if it is missing."""
    path = folder / f"gpu-{gpu.replace('/', '-')}"
    try:
        # With `fs.protected_regular` Linux refuses O_CREAT for another user's file.
        number = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT, 0o666)
        _open_to_all(path, 0o666)
    return os.fdopen(number, "r+", encoding="utf-8")


def _open_to_all(path: Path, mode: int) -> None:
    """Give a path a mode whatever the umask, so that jobs of other users can lock it."""
    if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o7777 != mode:
        path.chmod(mode)
