"""The architecture of a model that is described once, for all jobs."""

import json

import pytest
import tiny
from pipeline import Run, config

from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.roles import cached_architecture
from outlier_atlas.roles.architecture import describe


@pytest.fixture
def run(tmp_path):
    model = tiny.llama(tmp_path / "model")
    run = Run(tmp_path, config(model, [[4, 5, 6, 7]] * 2, tmp_path / "data"))
    run.prepare()
    return run


@pytest.fixture
def counted(monkeypatch):
    """The number of times that a model is described, from now on, as if in another process."""
    times = []

    def count(*arguments):
        times.append(arguments)
        return describe(*arguments)

    monkeypatch.setattr(cached_architecture, "describe", count)
    cached_architecture._described.cache_clear()
    return times


def again(run):
    cached_architecture._described.cache_clear()
    return cached_architecture.described(run.stored.model, run.resources, False)[2]


def cache_of(run):
    (path,) = (run.resources / "architectures").glob("*.json")
    return path


def test_another_process_reads_what_the_first_one_described(run, counted):
    assert again(run) == describe(load_config(run.stored.resources.parent / "model"))
    assert counted == []


@pytest.mark.parametrize("how", ["removed", "cut", "flipped", "of another version", "hostile"])
def test_a_file_that_cannot_be_used_is_written_again(run, counted, how, monkeypatch):
    path = cache_of(run)
    before = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "cut":
        path.write_bytes(before[:100])
    elif how == "flipped":
        path.write_bytes(before.replace(b"mlp", b"mlq", 1))
    elif how == "of another version":
        monkeypatch.setattr(cached_architecture, "_code", lambda: "another")
    else:
        record = json.loads(before) | {"key": json.loads(before)["key"]}
        record["architecture"]["model_class"] = "logging"
        record.pop("checksum")
        cached_architecture.write_record(path, record)
    known = again(run)
    assert len(counted) == 1
    assert known == again(run)
    assert len(counted) == 1
    assert (path.read_bytes() == before) == (how != "of another version")


def test_a_folder_that_cannot_be_written_is_no_error(run, counted, monkeypatch):
    path = cache_of(run)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file")
    again(run)
    again(run)
    assert len(counted) == 2
