"""Tests that every user of a lock refuses a file system without locks in one sentence."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

from outlier_atlas import locks
from outlier_atlas.devices import leases
from outlier_atlas.store import commits
from outlier_atlas.store.arrays import Arrays

ROOT = Path(__file__).parents[1]


def without_locks(monkeypatch, number=errno.ENOSYS):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def arrays(folder):
    """Return an `Arrays` object with nothing but the folder of its locks."""
    made = object.__new__(Arrays)
    made._locks = folder
    return made


USERS = {
    "the Snakemake of a run": lambda folder: locks.own(folder, print),
    "a job": lambda folder: locks.job_lock(folder / "locks" / "job", print).__enter__(),
    "who asks": lambda folder: locks.is_held(folder / "locks" / "job"),
    "commits": lambda folder: commits._lock(folder, fcntl.LOCK_EX).__enter__(),
    "a shared chunk": lambda folder: arrays(folder)._chunk_lock(3).__enter__(),
    "a GPU": lambda folder: leases.lease(["0"], folder, "a job").__enter__(),
}


@pytest.mark.parametrize("user", USERS)
def test_who_takes_a_lock_refuses_a_file_system_without(user, tmp_path, monkeypatch):
    without_locks(monkeypatch)
    with pytest.raises(ValueError, match=f"^{tmp_path}.*cannot be locked .flock: ") as refused:
        USERS[user](tmp_path)
    assert ("TMPDIR" if user == "a GPU" else "run in a folder of") in str(refused.value)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP])
def test_every_way_to_say_so_is_understood(number, tmp_path, monkeypatch):
    without_locks(monkeypatch, number)
    with pytest.raises(ValueError, match="two processes might write the same file"):
        locks.own(tmp_path, print)


def test_snakemake_says_it_and_runs_nothing(tmp_path):
    tiny.llama(tmp_path / "model")
    (tmp_path / "a.txt").write_text(tiny.SENTENCES[0])
    config = {"model": {"source": "./model"}, "dataset": {"source": "./a.txt"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, fcntl\n"
        "def flock(*_):\n    raise OSError(errno.ENOSYS, 'Function not implemented')\n"
        "fcntl.flock = flock\n"
    )
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    done = subprocess.run(
        [*command, "--cores", "1", "--configfile", "mine.yaml"], cwd=tmp_path, text=True,
        capture_output=True, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    said = "results/mine/locks: files on this file system cannot be locked (flock: Function not "
    assert [line for line in done.stderr.splitlines() if line.startswith(said)], done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("resources"))
