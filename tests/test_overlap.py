"""Reading, computing and writing overlap within a bound, and an error loses nothing."""

import errno
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import zarr
from pipeline import Run, config

from outlier_atlas import stopping
from outlier_atlas.extraction import writer
from outlier_atlas.extraction.batched_queue import BatchedQueue, pin_to_core_share
from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.extraction.run import extract
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.layout import BOUNDARY
from outlier_atlas.store.run_files import COMMITS

PATIENCE = 60
"""Seconds to wait for an event that should happen immediately."""
SEQUENCES = 6
ONE_BATCH = 4 * 3 * 8 * 32 * 2
"""Bytes of the sites of a sequence: layers x sites x tokens x channels, bfloat16."""


@pytest.fixture
def run(llama, tmp_path):
    rows = [[5 + i, 17, 200, 9, 33, 41, 7, 250] for i in range(SEQUENCES)]
    run = Run(
        tmp_path,
        config(
            llama, rows, tmp_path / "data",
            extraction={"verify": "never", "advanced": {"chunk_tokens": 8}},
        ),
    )  # fmt: skip
    run.prepare()
    return run


def stored(run):
    group = zarr.open_group(run.activations, mode="r")
    return {site: np.asarray(group[site][:]) for site in run.settings.extraction.sites}


@pytest.fixture
def want(run, tmp_path):
    """Return what an undisturbed job stores."""
    other = Run(tmp_path / "other", run.settings.model_dump(mode="json"))
    other.prepare()
    other.extract()
    return stored(other)


def committed(run):
    """Return the number of committed sequences; each is a chunk."""
    return sum(p.read_text().count("\n") for p in (run.folder / COMMITS).glob("*.jsonl"))


def assert_stored(run, want):
    for site, values in stored(run).items():
        assert np.array_equal(values, want[site])


def counting_forwards(monkeypatch, reached=lambda count: None):
    """Count the forward passes that have begun."""
    begun = []
    forward = LayerGroup.run

    def counted(self, batch, keep):
        begun.append(1)
        reached(len(begun))
        forward(self, batch, keep)

    monkeypatch.setattr(LayerGroup, "run", counted)
    return begun


def test_a_batch_computes_while_the_one_before_is_written(run, want, monkeypatch):
    second = threading.Event()
    counting_forwards(monkeypatch, lambda count: second.set() if count == 2 else None)
    write = Arrays.write

    def patient(self, target, start, values):
        assert second.wait(PATIENCE), "the forward pass waits for the writer"
        write(self, target, start, values)

    monkeypatch.setattr(Arrays, "write", patient)
    run.extract()
    assert_stored(run, want)


def test_no_more_than_one_batch_waits_to_be_written(run, monkeypatch):
    """A kill would lose all waiting batches, which are many if batches are small."""
    write = Arrays.write
    behind = []

    def look(begun):
        behind.append(begun - 1 - committed(run))

    def slow(self, target, start, values):
        time.sleep(0.01)  # gives the forward pass time to run ahead
        write(self, target, start, values)

    monkeypatch.setattr(Arrays, "write", slow)
    counting_forwards(monkeypatch, look)
    run.extract()
    assert max(behind) == 1


def test_a_signal_commits_the_batch_in_flight_and_no_other_is_begun(run, want, monkeypatch):
    asked = stopping._Request()
    monkeypatch.setattr(stopping, "_request", asked)
    for module, hook in ((sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, hook, getattr(module, hook))  # it sets them; put them back
    begun = counting_forwards(
        monkeypatch, lambda count: asked.register(signal.SIGTERM) if count == 3 else None
    )
    with pytest.raises(stopping.Stopped):
        run.extract()
    assert committed(run) == len(begun) == 3
    monkeypatch.setattr(stopping, "_request", stopping._Request())
    run.extract()
    assert len(begun) == SEQUENCES
    assert_stored(run, want)


def test_a_batch_is_read_while_the_one_before_computes(run, monkeypatch):
    again = Run(
        run.folder.parents[1],
        run.settings.model_dump(mode="json")
        | {"extraction": {"layer_groups": 2, "verify": "never"}},
    )
    again.create_store()
    extract(again.job(0, 0))
    ahead = threading.Event()
    reads = []
    read = Arrays.read

    def noted(self, target, start, stop):
        if target.array == BOUNDARY:
            reads.append(start)
            if len(reads) == 2:
                ahead.set()
        return read(self, target, start, stop)

    monkeypatch.setattr(Arrays, "read", noted)
    waited = []
    counting_forwards(monkeypatch, lambda count: waited.append(ahead.wait(PATIENCE)))
    extract(again.job(1, 0))
    assert waited == [True] * SEQUENCES


def test_a_slow_disk_holds_the_forward_pass_back_and_loses_nothing(run, want, monkeypatch):
    monkeypatch.setattr(writer, "QUEUE_BYTES", ONE_BATCH)
    enough, go_on = threading.Event(), threading.Event()
    begun = counting_forwards(monkeypatch)
    write, waiting = Arrays.write, writer.RowWriter._enqueue

    def slow(self, target, start, values):
        assert go_on.wait(PATIENCE)
        write(self, target, start, values)

    def enqueue(self, piece):
        if self._waiting_bytes >= ONE_BATCH:
            enough.set()  # the bound is reached: from here on it waits
        waiting(self, piece)

    monkeypatch.setattr(Arrays, "write", slow)
    monkeypatch.setattr(writer.RowWriter, "_enqueue", enqueue)
    job = threading.Thread(target=run.extract)
    job.start()
    assert enough.wait(PATIENCE)
    job.join(0.5)
    ahead = len(begun)
    go_on.set()
    job.join(PATIENCE)
    assert ahead <= 2, "one batch waits to be written, and one computes"
    assert len(begun) == SEQUENCES
    assert_stored(run, want)


def test_an_error_of_the_writer_stops_the_job_with_its_cause_and_loses_nothing(
    run, want, monkeypatch
):
    write = Arrays.write
    begun = counting_forwards(monkeypatch)

    def full(self, target, start, values):
        if start >= 16:
            raise OSError(errno.ENOSPC, "No space left on device", "the/chunk")
        write(self, target, start, values)

    # Not before the error can have happened do more batches come.
    monkeypatch.setattr(writer, "QUEUE_BYTES", 1)
    monkeypatch.setattr(Arrays, "write", full)
    with pytest.raises(OSError, match=r"No space left on device: 'the/chunk'"):
        run.extract()
    assert len(begun) < SEQUENCES, "the forward pass stops, too"
    assert committed(run) == 2, "the chunks before it count"
    begun.clear()
    monkeypatch.setattr(Arrays, "write", write)
    run.extract()
    assert len(begun) == SEQUENCES - 2
    assert_stored(run, want)


def test_what_is_written_beside_the_forward_pass_is_handed_out_together():
    handout, got = BatchedQueue(2), []
    taker = threading.Thread(target=lambda: got.extend(iter(handout.get, None)))
    taker.start()
    handout.put("first")
    time.sleep(0.05)
    assert got == []  # it waits for a second one
    handout.put("second")
    handout.put("third")
    wait_until(lambda: got == ["first", "second"])
    handout.release()
    wait_until(lambda: got == ["first", "second", "third"])
    handout.put("fourth")
    handout.close(1)
    taker.join(10)
    assert got == ["first", "second", "third", "fourth"]


def wait_until(reached):
    until = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.skipif(sys.platform != "linux", reason="cores are given to threads on Linux alone")
def test_writing_threads_do_not_meet_on_a_core():
    cores, threads = [], len(os.sched_getaffinity(0))

    def work(index):
        pin_to_core_share(index, threads)
        cores.append(os.sched_getaffinity(0))

    for index in range(threads):
        thread = threading.Thread(target=work, args=(index,))
        thread.start()
        thread.join()
    assert sorted(core for of_thread in cores for core in of_thread) == sorted(
        os.sched_getaffinity(0)
    )
    assert all(len(of_thread) == 1 for of_thread in cores)


def test_a_tensor_larger_than_what_may_wait_is_not_waited_for_in_vain(run, want, monkeypatch):
    """A piece waits for a second one, which may not come before the first is written."""
    monkeypatch.setattr(writer, "HOST_QUEUE_BYTES", 1)
    run.extract()
    assert_stored(run, want)
