"""A job that goes on with the other sequence shards of its layer group."""

import dataclasses
import fcntl
import shutil

import pytest
from pipeline import Run, config
from store_files import chunk_files
from test_extraction import rows

from outlier_atlas.extraction import compute
from outlier_atlas.extraction.run import extract
from outlier_atlas.locks import LOCKS
from outlier_atlas.stopping import Stopped
from outlier_atlas.store.commits import without

EXTRACTION = {"sites": ["attn_in", "resid_post"], "layer_groups": 2, "sequence_shards": 3}


@pytest.fixture
def run(llama, tmp_path):
    lengths = [16, 12, 16, 7, 16, 16]
    prepared = config(
        llama, rows(lengths), tmp_path / "data", extraction=EXTRACTION,
        dataset={"packing": "document", "min_length": 2, "sequences": 6, "sequence_length": 16},
    )  # fmt: skip
    run = Run(tmp_path, prepared)
    run.prepare()
    return run


@pytest.fixture
def loads(monkeypatch):
    """The layer groups that jobs load, in order."""
    loaded = []
    load = compute.load

    def counted(job, *rest):
        loaded.append((job.group, job.shard))
        return load(job, *rest)

    monkeypatch.setattr(compute, "load", counted)
    return loaded


def job(run, group, shard, **more):
    return dataclasses.replace(run.job(group, shard), **{"ahead": True} | more)


def commits(run):
    return {path.name: path.read_bytes() for path in run.stored.commit_files.iterdir()}


def test_one_load_serves_all_shards_and_leaves_what_their_own_jobs_leave(run, loads, tmp_path):
    apart = shutil.copytree(run.folder, tmp_path / "apart")
    for group in range(2):
        for shard in range(3):
            extract(job(run, group, shard))
    assert loads == [(0, 0), (1, 0)]
    together, lines, manifests = (
        chunk_files(run),
        commits(run),
        sorted(run.folder.glob("mani*/*/*")),
    )
    shutil.rmtree(run.folder)
    apart.rename(run.folder)
    del loads[:]
    run.extract()
    assert len(loads) == 6
    assert {p: b for p, (_, b) in together.items()} == {
        p: b for p, (_, b) in chunk_files(run).items()
    }
    assert lines == commits(run)
    assert manifests == sorted(run.folder.glob("mani*/*/*"))


def test_it_takes_the_last_shards_first(run, loads, monkeypatch):
    taken = []
    stream = compute.stream
    monkeypatch.setattr(
        compute, "stream", lambda job, *rest: taken.append(job.shard) or stream(job, *rest)
    )
    extract(job(run, 0, 1))
    assert taken == [1, 2, 0]
    extract(job(run, 0, 0))
    extract(job(run, 0, 2))
    assert loads == [(0, 1)]


def test_a_shard_that_another_process_works_on_is_left_to_it(run, loads):
    lock = run.folder / LOCKS / "extract_activations.group-0.shard-1"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        extract(job(run, 0, 0))
    extract(job(run, 0, 2))
    assert loads == [(0, 0)]
    extract(job(run, 0, 1))
    assert loads == [(0, 0), (0, 1)]


def test_a_layer_group_waits_for_the_boundary_of_a_shard(run, loads):
    extract(job(run, 0, 0, ahead=False))
    extract(job(run, 1, 0))
    extract(job(run, 0, 1))
    extract(job(run, 1, 1))
    extract(job(run, 1, 2))
    assert loads == [(0, 0), (1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("damaged"), Stopped(15)])
def test_an_error_in_another_shard_costs_the_own_one_nothing(run, loads, monkeypatch, error):
    stream = compute.stream

    def failing(job, *rest):
        if job.shard == 1:
            raise error
        stream(job, *rest)

    monkeypatch.setattr(compute, "stream", failing)
    first = job(run, 0, 0)
    if isinstance(error, Stopped):
        with pytest.raises(Stopped):
            extract(first)
    else:
        extract(first)
    before = chunk_files(run)
    assert before
    monkeypatch.setattr(compute, "stream", stream)
    extract(first)
    assert loads == [(0, 0)]
    assert first.manifest.exists()
    assert chunk_files(run) == before
    extract(job(run, 0, 1))
    assert loads == [(0, 0), (0, 1)]


def test_a_shard_that_lacks_more_than_was_loaded_is_left_to_its_own_job(run, loads):
    """The first shard has one target of the first layer left, and the second one has all."""
    for shard in range(3):
        extract(job(run, 0, shard, ahead=False))
    del loads[:]
    (second,) = run.stored.commit_files.glob("*shard-1*")
    second.unlink()
    lost = min(
        target for target in next(iter(run.stored.commits())).checksums if target.site == "attn_in"
    )
    run.stored.revise(
        lambda commit: without(commit, lambda target: target == lost and commit.rows.start == 0)
    )
    extract(job(run, 0, 0))
    assert loads == [(0, 0)]
    extract(job(run, 0, 1))
    assert loads == [(0, 0), (0, 1)]
