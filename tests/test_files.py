"""Tests that files are written atomically, even by several writers."""

import os
import threading
import time
from pathlib import Path

import pytest

from outlier_atlas import files
from outlier_atlas.digests import SETTLED_NS, Digests
from outlier_atlas.files import (
    read_record,
    replacing,
    replacing_folder,
    scratch,
    sweep,
    write_whole,
)
from outlier_atlas.store.commits import Commit, CommitFile, Commits, Rows, revise, without
from outlier_atlas.store.layout import Target

WRITERS = 8


def side_by_side(act):
    """Run functions repeatedly in simultaneous threads; return their errors."""
    barrier, failures = threading.Barrier(WRITERS), []

    def work(number):
        for _ in range(10):
            barrier.wait()
            try:
                act(number)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def by_replacing(path, content):
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def unsynced(path, content):
    files.write_unsynced(path, [content[:5], content[5:]], path.parent)


@pytest.mark.parametrize("write", [write_whole, by_replacing, unsynced])
def test_several_writers_of_a_file_leave_one_of_theirs(write, tmp_path):
    path = tmp_path / "folder" / "file"
    contents = [bytes([number]) * 70_000 for number in range(WRITERS)]
    assert side_by_side(lambda number: write(path, contents[number])) == []
    assert path.read_bytes() in contents
    assert [each.name for each in tmp_path.rglob("*")] == ["folder", "file"]


def test_several_writers_of_a_folder_leave_one_of_theirs(tmp_path):
    def act(number):
        with replacing_folder(tmp_path / "folder") as target:
            target.mkdir()
            (target / "a").write_text(f"{number}")
            (target / "b").write_text(f"{number}")

    assert side_by_side(act) == []
    assert (tmp_path / "folder" / "a").read_text() == (tmp_path / "folder" / "b").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_parallel_jobs_keep_digests(tmp_path):
    file, cache = tmp_path / "file", tmp_path / "digests.json"
    file.write_text("text")
    os.utime(file, (1, 1))
    time.sleep(SETTLED_NS / 10**9 + 0.1)
    assert side_by_side(lambda _: Digests(cache).of({"file": file})) == []
    assert read_record(cache)["files"]["file"][4] == Digests().of({"file": file})["file"]


def test_a_temporary_file_follows_no_link_and_takes_the_place_of_none(tmp_path, monkeypatch):
    other, path = tmp_path / "other", tmp_path / "file"
    other.write_text("somebody else's")
    monkeypatch.setattr(files, "partial", lambda path: path.with_name("guessed.partial"))
    for lay in (lambda at: at.symlink_to(other), lambda at: at.symlink_to(tmp_path / "new")):
        lay(tmp_path / "guessed.partial")
        for write in (write_whole, by_replacing, unsynced):
            with pytest.raises(OSError, match="exists"):
                write(path, b"content")
        (tmp_path / "guessed.partial").unlink()
        assert other.read_text() == "somebody else's"
        assert [each.name for each in tmp_path.iterdir()] == ["other"]


def test_what_killed_processes_left_is_swept(tmp_path):
    kept = [tmp_path / "whole.json", tmp_path / "array" / "zarr.json"]
    left = [files.partial(kept[0]), files.partial(tmp_path / "array" / "0"), tmp_path / "link"]
    left[2] = tmp_path / "link.partial"
    for path in (*kept, *left[:2]):
        path.parent.mkdir(exist_ok=True)
        path.write_text("content")
    left[2].symlink_to(kept[0])
    left.append(files.partial(tmp_path / "folder"))
    (left[3] / "in").mkdir(parents=True)
    (tmp_path / "array" / "c" / "0").mkdir(parents=True)
    sweep(tmp_path, older_than=3600)
    assert all(os.path.lexists(path) for path in left)
    for path in left:
        os.utime(path, (0, time.time() - 7200), follow_symlinks=False)
    sweep(tmp_path, older_than=3600)
    assert not any(os.path.lexists(path) for path in left)
    assert all(path.exists() for path in kept)
    sweep(tmp_path / "nowhere", older_than=0)


def test_a_scratch_is_nobody_elses(tmp_path):
    with scratch(tmp_path / "file") as one, scratch(tmp_path / "file") as other:
        assert one != other
        assert list(one.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def commit(chunk):
    return Commit(Rows(chunk, 4 * chunk, 4 * chunk + 4), "f", {Target("attn_in", 0): "00000000"})


def test_a_commit_file_that_was_revised_away_is_there_again_with_the_next_line(tmp_path):
    file = CommitFile(tmp_path / "commits" / "job.jsonl")
    file.append(commit(0))
    revise(tmp_path / "commits", lambda each: without(each, lambda target: True))
    assert not (tmp_path / "commits" / "job.jsonl").exists()
    file.append(commit(1))
    commits = Commits.load(tmp_path / "commits")
    assert [len(commits.of(Target("attn_in", 0), chunk)) for chunk in (0, 1)] == [0, 1]


def test_jobs_append_while_others_revise(tmp_path):
    folder = tmp_path / "commits"
    file = CommitFile(folder / "job.jsonl")
    chunks = iter(range(10_000))

    def act(number):
        if number < WRITERS // 2:
            file.append(commit(next(chunks)))
        else:
            revise(folder, lambda each: without(each, lambda target: each.rows.chunk % 3 == 0))

    assert side_by_side(act) == []
    commits = Commits.load(folder)
    assert not commits.unreadable
    counted = [len(commits.of(Target("attn_in", 0), chunk)) for chunk in range(next(chunks))]
    assert all(counted[chunk] == 1 for chunk in range(len(counted)) if chunk % 3)


def test_only_whole_lines_that_differ_are_called_damaged(tmp_path):
    """A line that a kill has cut short is not damage."""
    file = CommitFile(tmp_path / "job.jsonl")
    file.append(commit(0))
    file.append(commit(1))
    path = Path(tmp_path / "job.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert (Commits.load(tmp_path).damaged, Commits.load(tmp_path).cut) == ([], [path])
    path.write_bytes(whole.replace(b"attn_in", b"attn_io"))
    assert (Commits.load(tmp_path).damaged, Commits.load(tmp_path).cut) == ([path], [])
