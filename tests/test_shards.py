"""Shards: several chunks in a file, with the same values, promises and repairs as single files."""

import contextlib
import json
import shutil
import threading
import time

import numpy as np
import pytest
import xarray
import zarr
from pipeline import Run, config, named_by_verify
from store_files import chunk_files

from outlier_atlas.extraction.run import extract
from outlier_atlas.files import DamagedFileError, read_record
from outlier_atlas.store import create, gather_chunks, shard_size
from outlier_atlas.store.commits import CommitFile
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.store.shards import MissingChunkError, Shard

SITES = ["mlp_in", "resid_post"]
ADVANCED = {"chunk_tokens": 8}
CHUNKS = 4
"""Chunks in a shard of these tests."""


def rows(count, length=8):
    return [[4 + (7 * i + 3 * k) % 290 for k in range(length)] for i in range(count)]


def made(model, folder, count=10, length=8, **extraction):
    """A run of `count` chunks: two shards of 4, and one that is not full."""
    extraction = {"sites": SITES, "advanced": ADVANCED} | extraction
    return Run(folder, config(model, rows(count, length), folder / "data", extraction=extraction))


def contents(run):
    """Bytes of each chunk's file, by its path in the run's folder."""
    return {path: data for path, (_, data) in chunk_files(run).items()}


def values(run):
    return {site: run.array(site) for site in SITES}


@pytest.fixture
def few_files(monkeypatch):
    """At most as many files as `CHUNKS` chunks in each make of the runs of these tests."""
    monkeypatch.setattr(shard_size, "MOST_FILES", 30)


@pytest.fixture(scope="module")
def plain(llama, tmp_path_factory):
    """A run with a chunk in each file."""
    run = made(llama, tmp_path_factory.mktemp("plain"))
    run.all()
    return run


@pytest.fixture(scope="module")
def sharded(llama, tmp_path_factory):
    """The same run in shards, after extraction and before detection."""
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_size, "MOST_FILES", 30)
        run = made(llama, folder)
        run.prepare()
        run.extract()
    return run


def copy(run, model, folder, **changed):
    shutil.copytree(run.folder.parents[1], folder, dirs_exist_ok=True)
    return made(model, folder, **changed)


def test_a_run_with_many_files_is_in_shards_and_has_the_same_values_and_tables(
    llama, plain, sharded, tmp_path
):
    run = copy(sharded, llama, tmp_path)
    assert read_record(run.store_record)["shard_chunks"] == CHUNKS
    assert len(contents(run)) * 3 < len(contents(plain)), "3 files instead of 10"
    for site, want in values(plain).items():
        assert np.array_equal(values(run)[site], want)
        opened = xarray.open_zarr(run.activations, consolidated=False)[site]
        assert np.array_equal(opened[2, 30:50].values, want[2, 30:50])
    run.detect()
    for path in plain.tables.iterdir():
        assert (run.tables / path.name).read_bytes() == path.read_bytes(), path.name
    run.verify()


def test_another_division_into_jobs_writes_the_same_bytes(llama, sharded, tmp_path, few_files):
    """Of 10 sequences, 3 sequence shards begin within Zarr shards; jobs run in any order."""
    run = made(llama, tmp_path, sequence_shards=3, layer_groups=2)
    run.prepare()
    for group in range(2):
        for shard in (1, 2, 0):
            extract(run.job(group, shard))
    ours, others = contents(run), contents(sharded)
    assert {p: ours[p] for p in others} == others
    assert len(list(run.folder.glob("boundaries.zarr/*/c/*/0"))) == 3


@pytest.mark.parametrize("length", [5, 12])
def test_sequences_that_share_chunks_are_written_into_shards(length, llama, tmp_path, few_files):
    parts = {"sequence_shards": 3, "layer_groups": 2}
    run = made(llama, tmp_path / "sharded", 7, length, **parts)
    run.prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_size, "MOST_FILES", 10**6)
        single = made(llama, tmp_path / "plain", 7, length, **parts)
        single.prepare()
    for each in (run, single):
        each.extract()
    assert read_record(run.store_record)["shard_chunks"] > 1
    for site, want in values(single).items():
        assert np.array_equal(values(run)[site], want)
    run.verify()


KILLS = {
    "before the chunk is named": (Shard, "_write_index"),
    "before it is committed": (CommitFile, "append"),
    "before shards are in order": (Shard, "put_in_order"),
}


@pytest.mark.parametrize("place", KILLS)
@pytest.mark.parametrize("calls", [0, 7])
def test_after_a_kill_the_files_end_up_the_same(place, calls, llama, sharded, tmp_path, few_files):
    run = made(llama, tmp_path)
    run.prepare()
    of, name = KILLS[place]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, name, killed_after(calls, getattr(of, name)))
        with pytest.raises(KeyboardInterrupt):
            run.extract()
    committed = committed_lines(run)
    run.extract()
    assert contents(run) == contents(sharded)
    assert committed_lines(run)[: len(committed)] == committed, "nothing was computed again"
    assert not list(run.folder.rglob("*.partial"))


def killed_after(calls, whole):
    left = calls

    def killed(*args, **more):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return whole(*args, **more)

    return killed


def committed_lines(run):
    files = sorted(RunFiles(run.folder).commit_files.glob("*.jsonl"))
    return [line for path in files for line in path.read_text().splitlines()]


def flip(path, index):
    data = bytearray(path.read_bytes())
    data[index] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "the index": (lambda path: flip(path, 20), {4, 5, 6, 7}),
    "the checksum of the index": (lambda path: flip(path, 16 * CHUNKS + 1), {4, 5, 6, 7}),
    "a chunk": (lambda path: flip(path, -9), {7}),
    "the end": (lambda path: path.write_bytes(path.read_bytes()[:-3]), {7}),
    "emptied": (lambda path: path.write_bytes(b""), {4, 5, 6, 7}),
    "cut within the index": (lambda path: path.write_bytes(path.read_bytes()[:30]), {4, 5, 6, 7}),
    "deleted": (lambda path: path.unlink(), {4, 5, 6, 7}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_a_damaged_shard_and_the_same_command_repairs_it(
    damage, llama, sharded, tmp_path
):
    run = copy(sharded, llama, tmp_path)
    before, path = contents(run), run.activations / "mlp_in" / "c" / "1" / "1" / "0"
    act, lost = DAMAGES[damage]
    act(path)
    lines = named_by_verify(run)
    assert {line.partition(": damaged")[0] for line in lines} == {
        f"{path}: mlp_in, layer 1, chunk {chunk}" for chunk in lost
    }
    run.extract()
    assert contents(run) == before
    run.verify()


def test_detection_refuses_a_damaged_shard_once(llama, sharded, tmp_path):
    run = copy(sharded, llama, tmp_path)
    before = contents(run)
    flip(run.activations / "mlp_in" / "c" / "1" / "1" / "0", 20)
    with pytest.raises(ValueError, match=r"mlp_in, layer 1, chunk 4: damaged .*, and 3 more"):
        run.detect()
    run.extract()
    assert contents(run) == before
    run.detect()


def test_a_job_that_shares_a_damaged_shard_repairs_it(llama, sharded, tmp_path, few_files):
    """More sequences go into the last shard, whose index is damaged."""
    run = copy(sharded, llama, tmp_path, count=12)
    path = run.activations / "mlp_in" / "c" / "1" / "2" / "0"
    flip(path, 20)
    run.prepare()
    with pytest.raises(ValueError, match=r"mlp_in, layer 1, chunk 8: damaged .*index"):
        run.extract()
    run.extract()
    fresh = made(llama, tmp_path / "fresh", count=12)
    fresh.prepare()
    fresh.extract()
    assert contents(run) == contents(fresh)


@pytest.mark.parametrize("count", [7, 9, 12])
def test_a_run_in_shards_grows_and_shrinks(count, llama, sharded, tmp_path, few_files):
    run = copy(sharded, llama, tmp_path, count=count)
    before = committed_lines(run)
    run.prepare()
    run.extract()
    fresh = made(llama, tmp_path / "fresh", count=count)
    fresh.prepare()
    fresh.extract()
    assert read_record(fresh.store_record)["shard_chunks"] == CHUNKS
    assert contents(run) == contents(fresh)
    kept = len(set(before) & set(committed_lines(run)))
    assert kept >= min(count, 10) - 1, "what is still right was not computed again"
    run.detect()
    run.verify()


def test_a_run_whose_chunks_are_not_full_grows_in_shards(llama, tmp_path, few_files):
    """Of 8 sequences of 5 tokens, those of the last chunk share it with later ones."""
    parts = {"length": 5, "sequence_shards": 2, "layer_groups": 2}
    run = made(llama, tmp_path, 9, **parts)
    run.prepare()
    run.extract()
    run = made(llama, tmp_path, 11, **parts)
    run.prepare()
    run.extract()
    fresh = made(llama, tmp_path / "fresh", 11, **parts)
    fresh.prepare()
    fresh.extract()
    assert contents(run) == contents(fresh)
    run.verify()


def test_boundaries_in_shards_are_deleted_once_they_are_read(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_size, "MOST_FILES", 3)
    run = made(llama, tmp_path, store=[], layer_groups=2, sequence_shards=3)
    run.prepare()
    assert zarr.open_group(run.stored.boundaries, mode="r")["into_layer_2"].shards == (32, 32)
    run.extract()
    assert not [path for path in run.folder.glob("boundaries.zarr/*/c/*/*") if path.is_file()]
    run.verify()


def everything(run):
    """Bytes of all files of the arrays, with their metadata."""
    paths = (path for path in run.folder.glob("*.zarr/*/**/*") if path.is_file())
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in paths}


@pytest.fixture
def grows(monkeypatch):
    """The run of 10 sequences has 90 files, which is few; that of 12 would have 108."""
    monkeypatch.setattr(shard_size, "MOST_FILES", 100)


@pytest.fixture(scope="module")
def grown(llama, tmp_path_factory):
    """The run of 12 sequences, in shards from the beginning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_size, "MOST_FILES", 100)
        run = made(llama, tmp_path_factory.mktemp("grown"), count=12, layer_groups=2)
        run.prepare()
        run.extract()
    return everything(run)


@pytest.fixture(scope="module")
def small(llama, tmp_path_factory):
    """The run of 10 sequences with a chunk in each file, and a layer that has no row."""
    run = made(llama, tmp_path_factory.mktemp("small"), layer_groups=2)
    run.prepare()
    run.extract()
    return run


def test_a_run_that_grows_is_gathered_in_shards(llama, small, grown, tmp_path, grows, loads):
    run = copy(small, llama, tmp_path, count=12, layer_groups=2)
    before = committed_lines(run)
    run.prepare()
    assert np.isfinite(values(run)["mlp_in"][:, :80]).all(), "zarr reads what was there"
    run.extract()
    assert everything(run) == grown
    assert set(before) <= set(committed_lines(run)), "nothing was computed again"
    run.detect()
    run.verify()


def test_chunks_of_layers_without_a_row_are_gathered_too(llama, small, grown, tmp_path, grows):
    run = copy(small, llama, tmp_path, layer_groups=2, layers=[0, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_size, "MOST_FILES", 10**6)
        run.prepare()
    run = made(llama, tmp_path, count=12, layer_groups=2)
    before = committed_lines(run)
    run.prepare()
    run.extract()
    assert grown.items() <= everything(run).items(), "also a boundary of before"
    assert set(before) <= set(committed_lines(run))


@pytest.mark.parametrize("name", ["replacing", "write_whole", "Path.unlink", "Path.rename"])
@pytest.mark.parametrize("calls", [0, 3])
def test_a_conversion_that_was_killed_is_completed(
    name, calls, llama, small, grown, tmp_path, grows
):
    run = copy(small, llama, tmp_path, count=12, layer_groups=2)
    before = committed_lines(run)
    of = gather_chunks.Path if name.startswith("Path") else gather_chunks
    name = name.removeprefix("Path.")
    gather = gather_chunks.gather

    def killing(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(of, name, killed)
            gather(*args)

    killed = killed_after(calls, getattr(of, name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(create, "gather", killing)
        with contextlib.suppress(KeyboardInterrupt):
            run.prepare()
    run.prepare()
    run.extract()
    assert everything(run) == grown
    assert set(before) <= set(committed_lines(run)), "nothing was computed again"


def test_shards_become_larger_with_the_run(llama, small, tmp_path, grows):
    run = copy(small, llama, tmp_path, layer_groups=2)
    for count, size in ((12, 2), (23, 4), (12, 4)):
        run = made(llama, tmp_path, count, layer_groups=2)
        run.prepare()
        assert zarr.open_group(run.activations, mode="r")["mlp_in"].shards[1] == 8 * size
    run.extract()
    run.verify()
    for site in SITES:
        assert np.array_equal(values(run)[site][:, :80], values(small)[site])


def test_a_store_that_has_many_files_already_keeps_them(llama, small, tmp_path, few_files):
    run = copy(small, llama, tmp_path, count=12, layer_groups=2)
    before = contents(run)
    run.prepare()
    assert read_record(run.store_record)["shard_chunks"] > 1, "for arrays that are new"
    run.extract()
    assert zarr.open_group(run.activations, mode="r")["mlp_in"].shards is None
    assert before.items() <= contents(run).items()
    run.detect()
    run.verify()


def test_a_store_of_the_version_before_shards_is_read_and_grows(llama, plain, tmp_path, caplog):
    run = copy(plain, llama, tmp_path, count=12)
    before = contents(run)
    path = run.activations / "zarr.json"
    path.write_text(path.read_text().replace('"store_version": 3', '"store_version": 2'))
    record = json.loads(run.store_record.read_text())
    layout = {key: value for key, value in record.items() if key != "shard_chunks"}
    assert Layout.from_record(layout).shard_chunks == 1
    RunFiles(run.folder).metadata_record.unlink()
    run.prepare()
    assert "made by an older version of Outlier Atlas" in caplog.text
    run.extract()
    assert before.items() <= contents(run).items()
    run.detect()
    run.verify()


def test_the_size_of_shards_keeps_the_number_of_files_below_the_limit():
    def chosen(tokens, layers=72):
        layout = Layout(
            sites={"attn_in": 8, "mlp_in": 8}, store=("attn_in", "mlp_in"),
            layers=tuple(range(layers)), hidden_size=8, tokens=tokens, chunk_tokens=2048,
            compression="lz4", layer_groups=((0, 35), (36, layers - 1)), sequence_shards=1,
            dtype="bfloat16", outlier_floor=4.0, massive_floor=64.0,
        )  # fmt: skip
        return shard_size.with_shards(layout).shard_chunks

    assert [chosen(10**power) for power in (5, 6, 7, 8, 9)] == [1, 1, 8, 128, 128]


PIECES = {slot: [bytes([slot]) * (20 + 7 * slot), b"sums"] for slot in range(CHUNKS)}


def written(path, slots):
    shard = Shard(path, CHUNKS)
    for slot in slots:
        shard.write(slot, PIECES[slot])
    return shard


def test_the_order_of_writing_does_not_matter_once_a_shard_is_in_order(tmp_path):
    for name, slots in {"one": [0, 1, 2, 3], "other": [2, 0, 3, 0, 1]}.items():
        shard = written(tmp_path / name / "0", slots)
        shard.put_in_order(tmp_path, CHUNKS)
        assert [shard.read(slot, 4) for slot in range(CHUNKS)] == [
            (PIECES[slot][0], b"sums") for slot in range(CHUNKS)
        ]
    assert (tmp_path / "one" / "0").read_bytes() == (tmp_path / "other" / "0").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_chunks_of_a_shard_are_removed_one_by_one(tmp_path):
    path = tmp_path / "c" / "0"
    shard = written(path, [1, 2])
    assert [shard.has(slot) for slot in range(CHUNKS)] == [False, True, True, False]
    assert shard.remove(1) is False
    with pytest.raises(MissingChunkError, match="chunk 1 of the shard is missing"):
        shard.read(1, 4)
    assert shard.read(2, 4)[0] == PIECES[2][0]
    assert shard.remove(2) is False
    assert not path.exists()
    assert shard.remove(2) is False
    written(path, [3])
    flip(path, 2)
    for act in (lambda: shard.read(3, 4), lambda: shard.write(0, PIECES[0]),
                lambda: shard.put_in_order(tmp_path, CHUNKS)):  # fmt: skip
        with pytest.raises(DamagedFileError, match="index"):
            act()
    assert shard.has(0), "it may have been there"
    assert shard.remove(0) is True
    assert not path.exists()


def test_jobs_that_write_one_shard_at_once_lose_nothing(tmp_path):
    path, chunks = tmp_path / "c" / "0", 64
    barrier = threading.Barrier(4)

    def write(first):
        barrier.wait()
        for slot in range(first, chunks, 4):
            shard = Shard(path, chunks)
            shard.write(slot, [bytes([slot]) * 999, b"sums"])
            if slot % 7 == 0:
                shard.put_in_order(tmp_path, chunks)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shard = Shard(path, chunks)
    assert [shard.read(slot, 4)[0] for slot in range(chunks)] == [
        bytes([slot]) * 999 for slot in range(chunks)
    ]


def test_a_full_disk_leaves_the_chunks_of_a_shard(tmp_path, monkeypatch):
    shard = written(tmp_path / "c" / "0", [0])
    size = (tmp_path / "c" / "0").stat().st_size

    def full(file, content):
        file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("outlier_atlas.store.shards.write_all", full)
    with pytest.raises(OSError, match="31 bytes were to be written; make room"):
        shard.write(1, PIECES[1])
    assert (tmp_path / "c" / "0").stat().st_size == size
    assert shard.read(0, 4)[0] == PIECES[0][0]
    with pytest.raises(OSError, match="make room"):
        Shard(tmp_path / "c" / "1", CHUNKS).write(1, PIECES[1])
    monkeypatch.undo()
    assert written(tmp_path / "c" / "1", [1]).read(1, 4)[0] == PIECES[1][0], "there is room again"


def test_large_batches_are_written_in_order(llama, sharded, tmp_path, few_files, monkeypatch):
    """Of each target several chunks are written at once, by two threads."""
    given = config(llama, rows(10), tmp_path / "data", execution={"batch_size": 5})
    run = Run(tmp_path, given | {"extraction": {"sites": SITES, "advanced": ADVANCED}})
    run.prepare()
    write = Shard.write

    def slow_at_first(shard, slot, parts):
        time.sleep(0.01 if slot == 0 else 0)
        write(shard, slot, parts)

    def no_copy(*args):
        raise AssertionError("no shard is rewritten")

    monkeypatch.setattr(Shard, "write", slow_at_first)
    monkeypatch.setattr("outlier_atlas.store.shards.replacing", no_copy)
    run.extract()
    assert contents(run) == contents(sharded)


def test_other_readers_see_a_shard_that_is_not_full(sharded):
    array = zarr.open_group(sharded.activations, mode="r")["mlp_in"]
    assert (array.shards, array.chunks) == ((1, 32, 32), (1, 8, 32))
    assert array.shape[1] == 80
