"""A full disk, and activations that are no numbers: said in a sentence, and nothing lost."""

import json
import os
import re
import resource
import subprocess
import zipfile
from contextlib import contextmanager
from pathlib import Path

import disturbed
import numpy as np
import planned
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import zarr
from disturbed import NAME, History, copy, launch, work_of
from test_model import index, package  # noqa: F401 - a fixture

from outlier_atlas import builtin
from outlier_atlas.ablation.streams import Streams
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.files import read_record, sha256
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import Commits
from outlier_atlas.store.run_files import COMMITS, RunFiles

DISK = 32 * 2**20
EXTRACTION = "extract_activations.group-0.shard-0"


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(tmp_path_factory.mktemp("history"))


@contextmanager
def small_disk(folder):
    """A file system of `DISK` bytes, where this process may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no program to mount a file system with")
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder, free):
    """Leave so many bytes free; the file that takes the others."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    ballast.write_bytes(bytes(room.f_bavail * room.f_bsize - free))
    return ballast


class Fill:
    """Before operation `at`, leaves so many bytes of a disk free."""

    def __init__(self, at: int, free: int, part: str) -> None:
        self.left, self.free, self.part = at, free, part

    def __call__(self, kind: str, path: str) -> None:
        self.left -= 1
        if self.left == -1:
            fill(Path(self.part), self.free)


NO_SPACE = r"No space left on device; (its coordinates take up to |more than )?[\d,]+ bytes"


@pytest.mark.parametrize(
    ("name", "at", "free"),
    [
        ("tokenize_dataset", 0, 0),
        ("create_store", 0, 4096),
        ("create_store", 0, 40960),
        (EXTRACTION, 0, 0),
        (EXTRACTION, 10, 0),
        (EXTRACTION, 60, 8192),
        ("detect_outliers", 0, 0),
        ("detect_outliers", 0, 16384),
        ("measure_weights", 0, 0),
        ("measure_weights", 3, 4096),
        ("join_weights", 0, 0),
        ("ablate", 3, 0),
        ("ablate", 3, 4096),
        ("ablate", 20, 0),
        ("render_report", 0, 8192),
    ],
)
def test_a_full_disk_is_said_in_a_sentence_and_loses_nothing(history, name, at, free, tmp_path):
    shared = name in ("measure_weights", "tokenize_dataset")
    part = "resources" if shared else f"results/{NAME}"
    assert_loses_nothing(history, name, Fill(at, free, part), tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "free"),
    [
        ("fetch_dataset", disturbed.FROM_THE_HUB, 0),
        ("fetch_package", disturbed.FROM_THE_INDEX, 0),
        ("fetch_package", disturbed.FROM_THE_INDEX, 40960),
    ],
)
def test_a_full_disk_is_said_by_those_who_fetch(name, config, free, tmp_path):
    history = History(tmp_path / "history", config, only="fetch_")
    assert_loses_nothing(history, name, Fill(0, free, "resources"), tmp_path)


def test_a_pip_that_finds_no_room_is_not_left_to_say_so(index, tmp_path):  # noqa: F811
    with zipfile.ZipFile(index, "a") as archive:
        archive.writestr("atlas_fixture/more", np.random.default_rng(0).bytes(2**20))
    kept = tmp_path / "disk" / "kept"
    kept.parent.mkdir()
    with small_disk(kept.parent):
        fill(kept.parent, 2**16)
        with pytest.raises(OSError, match=NO_SPACE) as error:
            builtin.fetch(package(None, sha256(index)), kept)
        assert error.value.filename == str(kept)
        (kept.parent / "ballast").unlink()
        assert list(kept.parent.iterdir()) == []
        builtin.fetch(package(None, sha256(index)), kept)
        assert kept.read_bytes() == index.read_bytes()


def assert_loses_nothing(history, name, fault, tmp_path):
    folder = copy(history.before(name), tmp_path / "project")
    with disk_of(folder, fault.part.partition("/")[0]) as disk:
        full = launch(folder, name, fault)
        assert_said_in_one_line(full, name, NO_SPACE, fault.part)
        assert_nothing_half_written(disk)
        assert_readable(folder)
        (folder / fault.part / "ballast").unlink()
        again = launch(folder, name)
        assert again.status == 0, again.said
        assert history.differences(folder, name) == []


def test_a_residual_stream_that_finds_no_room_ends_in_a_sentence(history, tmp_path):
    """Larger than a page of memory, as those of the run above are not."""
    layout = work_of(history.before("ablate"), EXTRACTION).layout
    heldout = TokenStore(Path(), np.zeros(2048, np.int32), np.arange(0, 2049, 256))
    with small_disk(tmp_path):
        streams = Streams(RunFiles(tmp_path), layout, "weights", heldout)
        fill(tmp_path, 2**16)
        with (
            pytest.raises(OSError, match=NO_SPACE),
            streams.writing(("variant", 1)) as put,
        ):
            for _ in range(8):
                put(np.zeros((256, 4096), np.uint8))
        assert streams.there() == set()
        (tmp_path / "ballast").unlink()
        with streams.writing(("variant", 1)) as put:
            for _ in range(8):
                put(np.ones((256, 4096), np.uint8))
        assert all(streams.read(("variant", 1), s, torch.uint8).all() for s in range(8))


def test_a_disk_that_is_full_from_the_start_is_refused_by_the_plan(history, tmp_path):
    folder = copy(history.before(EXTRACTION), tmp_path / "project")
    with disk_of(folder) as disk:
        fill(disk, 0)
        full = launch(folder, EXTRACTION)
        said = r"the run will take about [\d.]+ \w+ more on the disk, and \S+ has 0.0 KiB; "
        assert_said_in_one_line(full, EXTRACTION, said)
        assert full.batches == []
        (disk / "ballast").unlink()
        assert launch(folder, EXTRACTION).status == 0
        assert history.differences(folder, EXTRACTION) == []


@contextmanager
def disk_of(folder, part="results"):
    """A project's results or resources, on a disk of their own."""
    disk = folder / part
    kept = folder / "kept"
    disk.rename(kept) if disk.exists() else kept.mkdir()
    disk.mkdir()
    with small_disk(disk):
        subprocess.run(["cp", "-a", f"{kept}/.", str(disk)], check=True)
        (folder / "results" / NAME / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "resources" / "logs").mkdir(parents=True, exist_ok=True)
        yield disk


def assert_said_in_one_line(ended, name, said, where=f"results/{NAME}"):
    """With the path, and the bytes that are needed."""
    assert ended.status == 1, ended.said
    lines = re.findall(rf"\b{name.split('.')[0]}: .*", ended.said)
    assert len(lines) == 1, ended.said
    assert re.search(said, lines[0]), lines[0]
    assert where in lines[0]
    assert "make room" in lines[0]
    assert "Traceback" not in ended.said and "Logging error" not in ended.said


def assert_nothing_half_written(results):
    assert [path.name for path in results.rglob("*.partial*")] == []
    for path in results.rglob("commits/*.jsonl"):
        assert path.read_bytes()[-1:] in (b"", b"\n")


def assert_readable(folder):
    """Whatever is committed can be read, with nothing but zarr as well."""
    run = folder / "results" / NAME
    if not list((run / COMMITS).glob("*.jsonl")):
        return
    work, commits = work_of(folder, EXTRACTION), Commits.load(run / COMMITS)
    arrays = Arrays(RunFiles(run), work.layout, work.counted(commits))
    for rows in work.rows:
        for target in work.layout.measured(0):
            if not commits.missing([target], rows, work.fingerprint(rows.chunk)):
                assert np.isfinite(arrays.read(target, rows.start, rows.stop)).all()
    zarr.open_group(run / "activations.zarr", mode="r")["attn_in"][:]


class Limit:
    """No file may grow beyond so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, kind: str, path: str) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


def test_a_commit_that_finds_no_room_is_not_there_by_half(history, tmp_path):
    """Chunks are small enough, the commit file is not, in the middle of a line."""
    folder = copy(history.before(EXTRACTION), tmp_path / "project")
    assert launch(folder, EXTRACTION).status == 0
    done = next((folder / "results" / NAME / COMMITS).glob("*.jsonl"))
    lines = done.read_bytes().splitlines(keepends=True)
    limit = sum(map(len, lines[:-1])) + len(lines[-1]) // 2
    chunks = (folder / "results" / NAME).glob("*.zarr/*/c/**/*")
    assert max(path.stat().st_size for path in chunks if path.is_file()) < limit

    folder = copy(history.before(EXTRACTION), tmp_path / "again")
    full = launch(folder, EXTRACTION, Limit(limit))
    assert_said_in_one_line(full, EXTRACTION, r"/commits/\S+ File too large; [\d,]+ bytes were ")
    assert_nothing_half_written(folder / "results")
    assert_readable(folder)
    again = launch(folder, EXTRACTION)
    assert again.status == 0
    assert len(again.batches) < len(history.batches[EXTRACTION]), "what was committed counts"
    assert history.differences(folder, EXTRACTION) == []


@pytest.fixture(scope="module")
def no_numbers(tmp_path_factory):
    """A finished run of a model whose last layer makes infinite values and NaN of everything."""
    config = disturbed.CONFIG | {
        "extraction": {"sites": ["attn_in", "mlp_in", "resid_post"]},
        "detection": {"llm_int8": {"threshold": 1.5}},
    }
    folder = disturbed.project(tmp_path_factory.mktemp("no-numbers"), config)
    _, weights = tiny.silent(folder / "model", layers=3)
    norm = weights["model.layers.2.post_attention_layernorm.weight"]
    norm[3], norm[4] = float("inf"), float("nan")
    weights["model.embed_tokens.weight"][:, 5] = 2
    tiny.save_weights(folder / "model", weights)
    for name in planned.jobs(folder):
        done = launch(folder, name)
        assert done.status == 0, done.said
    return folder / "results" / NAME


def rows(run, table):
    return pq.read_table(run / "tables" / f"{table}.parquet").to_pylist()


def test_nan_and_infinity_are_counted_by_site_and_layer(no_numbers):
    tokens = read_record(no_numbers / "manifests" / "tokens.json")["tokens"]
    counted = {
        (row["site"], row["layer"]): (row["nan"], row["infinite"])
        for row in rows(no_numbers, "layer_magnitudes")
        if row["nan"] or row["infinite"]
    }
    assert counted == {
        ("mlp_in", 2): (tokens, tokens),
        ("resid_post", 2): (32 * tokens, 0),
    }


def test_extremes_are_those_of_the_finite_rest(no_numbers):
    store = zarr.open_group(no_numbers / "activations.zarr", mode="r")
    for row in rows(no_numbers, "layer_magnitudes"):
        values = np.abs(np.asarray(store[row["site"]][row["layer"]]))
        finite = np.sort(values[np.isfinite(values)])
        if row["site"] == "resid_post" and row["layer"] == 2:
            assert (row["top1"], row["median"], row["channel"]) == (None, None, None)
            continue
        assert (row["top1"], row["channel"]) == (finite[-1], 5)
        assert row["median"] == finite[(len(finite) - 1) // 2]
    for table in ("channel_maxima", "llm_int8_features", "massive_activations"):
        for row in rows(no_numbers, table):
            numbers = [value for value in row.values() if isinstance(value, float)]
            assert np.isfinite(numbers).all(), (table, row)
    nameless = [
        (row["site"], row["layer"], row["channel"])
        for row in rows(no_numbers, "channel_maxima")
        if row["value"] is None
    ]
    assert nameless == [
        ("mlp_in", 2, 3), ("mlp_in", 2, 4), *(("resid_post", 2, channel) for channel in range(32)),
    ]  # fmt: skip


def test_the_report_says_so_before_anything_else(no_numbers):
    tokens = read_record(no_numbers / "manifests" / "tokens.json")["tokens"]
    page = (no_numbers / "report.html").read_text()
    said = [
        f"mlp_in holds {tokens:,} NaN and {tokens:,} infinite values, in layer 2: every number "
        f"here leaves them out.",
        f"resid_post holds {32 * tokens:,} NaN and 0 infinite values, in layer 2: every number "
        f"here leaves them out.",
    ]
    for sentence in said:
        assert 0 < page.index(f'role="alert">{sentence}') < page.index('class="findings')
    first, *others = json.loads((no_numbers / "findings.json").read_text())["alarms"]
    assert first.startswith("No value is finite in layer 2 at resid_post: ")
    assert "The first are at mlp_in of layer 2." in first
    assert others == said
