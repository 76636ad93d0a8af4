"""The lease: two jobs of one machine never share a GPU."""

import logging
import multiprocessing
import os
import threading
import time

import pytest
import torch

from outlier_atlas.extraction import devices
from outlier_atlas.extraction.devices import device, lease, lease_folder

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def outside_of_a_cluster(monkeypatch):
    for name in ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def hold(folder, gpus, taken, done):
    """Take leases one after the other, and say so in a file that only one process can make."""
    for _ in range(5):
        with lease(gpus, folder / "leases", "a test") as gpu:
            mark = folder / f"in-use-{gpu}"
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # an error if another holds it, too
            time.sleep(0.01)
            mark.unlink()
            taken.put(gpu)
    done.set()


def test_processes_never_hold_one_gpu_together(tmp_path):
    taken = SPAWN.Queue()
    finished = [SPAWN.Event() for _ in range(4)]
    processes = [
        SPAWN.Process(target=hold, args=(tmp_path, ["0", "1"], taken, done)) for done in finished
    ]
    for process in processes:
        process.start()
    gpus = [taken.get(timeout=120) for _ in range(20)]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert set(gpus) == {"0", "1"}


def hold_forever(folder, ready):
    with lease(["0"], folder, "the holder"):
        ready.set()
        time.sleep(600)


def test_a_job_waits_says_so_and_goes_on_when_the_holder_is_killed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(devices, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(devices, "REMINDER_SECONDS", 0.3)
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=hold_forever, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(timeout=60)
    threading.Timer(1.0, holder.kill).start()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), lease(["0"], tmp_path, "the next") as gpu:
        assert gpu == "0"
    assert time.monotonic() - started >= 0.6
    holder.join()
    said = [record.getMessage() for record in caplog.records]
    assert f"held by GPU 0: the holder (process {holder.pid})" in said[0]
    assert len(said) <= 4, "a reminder, not a stream"


def test_a_reminder_comes_once_a_minute():
    assert devices.REMINDER_SECONDS == 60


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
        assert {a, b} == {"2", "3"}


def test_devices_of_the_environment_are_kept_to(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa, GPU-bb")
    assert devices.visible_gpus() == ["GPU-aa", "GPU-bb"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert devices.visible_gpus() == []


def test_a_leased_gpu_is_the_only_one_that_torch_will_see(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["4", "5"])
    monkeypatch.setattr(devices, "lease_folder", lambda: tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with device("auto", "one") as where:
        assert where == "cuda:0"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_said(monkeypatch, wanted):
    monkeypatch.setattr(devices, "visible_gpus", lambda: [])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"execution.device = '{wanted}'"), device(wanted, "one"):
        pass
    with device("auto", "one") as where:
        assert where == "cpu"
