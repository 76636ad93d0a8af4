"""Leases: two jobs of one machine never share a GPU."""

import itertools
import logging
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from outlier_atlas.devices import gpus, leases
from outlier_atlas.devices.leases import lease, lease_folder

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def outside_of_a_cluster(monkeypatch):
    for name in ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


# Takes leases one after the other. Each GPU has a mark beside its lease, locked in another way that
# ends with the process, too: a mark that is locked already is a GPU that two processes hold.
HOLDER = """
import fcntl, os, random, sys, time
from pathlib import Path
from outlier_atlas.devices import leases

leases.POLL_SECONDS = 0.002
folder, gpus, count = Path(sys.argv[1]), sys.argv[2].split(), int(sys.argv[3])
while True:
    with leases.lease(gpus, folder / "leases", "a test", count) as held:
        assert len(set(held)) == count
        marks = [(folder / f"mark-{gpu}").open("w") for gpu in held]
        for mark in marks:
            try:
                fcntl.lockf(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                (folder / "held-twice").touch()
        with (folder / "taken").open("a") as taken:
            taken.write(" ".join([str(os.getpid()), *held]) + "\\n")
        time.sleep(random.uniform(0, 0.004))
        for mark in marks:
            mark.close()
"""


def holder(folder, gpus, count):
    arguments = [str(folder), " ".join(gpus), str(count)]
    return subprocess.Popen([sys.executable, "-c", HOLDER, *arguments], stderr=subprocess.PIPE)


@pytest.mark.parametrize(("gpus", "count"), [(["0", "1"], 1), (["0", "1", "2"], 2)])
def test_killed_at_random_processes_never_hold_one_gpu_together(gpus, count, tmp_path):
    """Four processes compete for 1,000 leases, while one after the other is killed."""
    draw, kills = random.Random(0), 0
    processes = [holder(tmp_path, gpus, count) for _ in range(4)]
    taken = tmp_path / "taken"
    taken.touch()
    try:
        while kills < 20 or len(taken.read_text().splitlines()) < 1000:
            time.sleep(draw.uniform(0.05, 0.3))
            victim = draw.randrange(len(processes))
            assert processes[victim].poll() is None, processes[victim].stderr.read().decode()
            processes[victim].kill()
            processes[victim].communicate()
            processes[victim] = holder(tmp_path, gpus, count)
            kills += 1
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert not (tmp_path / "held-twice").exists()
    leases = [line.split() for line in taken.read_text().splitlines()]
    assert {tuple(held) for _, *held in leases} <= {*itertools.combinations(gpus, count)}
    assert len({process for process, *_ in leases}) > 10


def test_a_job_that_waits_for_two_gpus_holds_none_of_them(tmp_path, monkeypatch):
    asleep, go_on, got = threading.Event(), threading.Event(), []

    def want_both():
        with lease(["0", "1"], tmp_path, "both", count=2) as held:
            got.extend(held)

    waiting = threading.Thread(target=want_both)

    def sleep(seconds):
        assert threading.current_thread() is waiting, "nobody else has to wait"
        asleep.set()
        assert go_on.wait(60)

    monkeypatch.setattr(time, "sleep", sleep)
    with lease(["1"], tmp_path, "one"):
        waiting.start()
        assert asleep.wait(60)
        with lease(["0"], tmp_path, "the other") as held:
            assert (held, got) == (["0"], [])
    go_on.set()
    waiting.join()
    assert got == ["0", "1"]


def hold_forever(folder, ready):
    with lease(["0"], folder, "the holder"):
        ready.set()
        time.sleep(600)


def test_a_job_waits_says_so_and_goes_on_when_the_holder_is_killed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(leases, "FIRST_SECONDS", 0.3)
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=hold_forever, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(timeout=60)
    threading.Timer(1.0, holder.kill).start()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), lease(["0"], tmp_path, "the next") as held:
        assert held == ["0"]
    assert time.monotonic() - started >= 0.6
    holder.join()
    said = [record.getMessage() for record in caplog.records]
    assert f"held by GPU 0: the holder (process {holder.pid} on {socket.gethostname()})" in said[0]
    assert len(said) == 1, "a reminder, not a stream"


def test_the_holder_is_named_within_seconds_and_then_once_a_minute(tmp_path, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def sleep(_):
        now[0] += 1
        if now[0] == 130:
            raise TimeoutError

    monkeypatch.setattr(time, "sleep", sleep)
    with lease(["0"], tmp_path, "one"), pytest.raises(TimeoutError), lease(["0"], tmp_path, "next"):
        pass
    assert [record.args[0] for record in caplog.records] == [5, 65, 125]


def test_a_gpu_has_one_lock_by_whichever_name_it_is_known(monkeypatch, tmp_path):
    listed = {"0": "GPU-aa11", "1": "GPU-bb22"}
    monkeypatch.setattr(gpus, "_uuids", lambda: listed)
    monkeypatch.setattr(leases, "lease_folder", lambda: tmp_path)
    assert gpus.identities(["1", "GPU-aa", "GPU-bb22", "MIG-cc"]) == [
        "GPU-bb22", "GPU-aa11", "GPU-bb22", "MIG-cc"
    ]  # fmt: skip
    monkeypatch.setattr(leases, "visible_gpus", lambda: ["GPU-aa", "GPU-bb"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,GPU-bb")
    with lease(gpus.identities(["0"]), tmp_path, "another"), leases.devices("auto", 1, "one"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bb"


def test_uuids_are_those_that_nvidia_smi_lists(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.identities(["0", "1"]) == ["0", "1"], "without it"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 0, GPU-aa; echo 1, GPU-bb\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpus.identities(["0", "1"]) == ["GPU-aa", "GPU-bb"]


def test_each_allocation_of_a_scheduler_has_leases_of_its_own(monkeypatch):
    machine = lease_folder()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    job = lease_folder()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    step = lease_folder()
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    other = lease_folder()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    pod = lease_folder()
    assert len({machine, job, step, other, pod}) == 5
    assert {folder.parent for folder in (job, step, other, pod)} == {machine.parent}


def test_jobs_of_one_allocation_share_its_gpus_out(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with lease(["2", "3"], tmp_path, "a") as a, lease(["2", "3"], tmp_path, "b") as b:
        assert sorted(a + b) == ["2", "3"]


def test_devices_of_the_environment_are_kept_to(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpus.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa, GPU-bb")
    assert gpus.visible_gpus() == ["GPU-aa", "GPU-bb"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for none in ("-1", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert gpus.visible_gpus() == []


def test_parts_of_a_gpu_are_leased_one_by_one_without_asking_cuda(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("initializes CUDA"))
    monkeypatch.setattr(gpus, "_uuids", lambda: {"0": "GPU-aa"})
    monkeypatch.setattr(leases, "lease_folder", lambda: tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a1,MIG-a2")
    with lease(["MIG-a1"], tmp_path, "another"), leases.devices("auto", 1, "one"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-a2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a1,MIG-a2")
    said = pytest.raises(
        ValueError, match="a job sees only 1 CUDA device on this machine; set at most 1"
    )
    with said, leases.devices("auto", 2, "one"):
        pass


@pytest.mark.parametrize("order", [None, "FASTEST_FIRST"])
def test_gpus_have_the_numbers_that_nvidia_smi_gives_them(order, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if order is not None:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    gpus.visible_gpus()
    assert os.environ["CUDA_DEVICE_ORDER"] == (order or "PCI_BUS_ID")


@pytest.mark.parametrize("count", [1, 2])
def test_leased_gpus_are_the_only_ones_that_torch_will_see(count, monkeypatch, tmp_path):
    monkeypatch.setattr(leases, "visible_gpus", lambda: ["4", "GPU-aa", "5"])
    monkeypatch.setattr(gpus, "_uuids", dict)
    monkeypatch.setattr(leases, "lease_folder", lambda: tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-aa,5")
    with lease(["4"], tmp_path, "another"), leases.devices("auto", count, "one") as where:
        assert where == ["cuda:0", "cuda:1"][:count]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ["GPU-aa", "GPU-aa,5"][count - 1]


def test_more_gpus_than_there_are_is_said(monkeypatch):
    monkeypatch.setattr(leases, "visible_gpus", lambda: ["4"])
    monkeypatch.setattr(leases, "lease", lambda *_: pytest.fail("would wait for ever"))
    sentence = "gpus_per_job = 2: a job sees only 1 CUDA device on this machine; set at most 1"
    with pytest.raises(ValueError, match=sentence), leases.devices("auto", 2, "one"):
        pass


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_said(monkeypatch, wanted):
    monkeypatch.setattr(leases, "visible_gpus", lambda: [])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    said = pytest.raises(ValueError, match=f"execution.device = '{wanted}'")
    with said, leases.devices(wanted, 1, "one"):
        pass


@pytest.mark.parametrize(("mps", "wanted", "where"), [
    (False, "auto", "cpu"), (True, "auto", "mps"), (True, "mps", "mps"), (True, "cpu", "cpu"),
])  # fmt: skip
def test_without_cuda_there_is_one_device(monkeypatch, mps, wanted, where):
    monkeypatch.setattr(leases, "visible_gpus", lambda: [])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    with leases.devices(wanted, 2, "one") as found:
        assert found == [where]
