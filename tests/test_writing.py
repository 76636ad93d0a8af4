"""Tests that files are written atomically, even if the disk accepts only a part."""

import errno
import json

import pytest

from outlier_atlas.files import (
    DamagedFileError,
    append,
    canonical,
    read_record,
    replacing,
    write_all,
    write_error,
    write_record,
    write_whole,
)


class Slow:
    """A file that accepts a few bytes at a time, and raises when the disk is full."""

    def __init__(self, room=10**6):
        self.held, self.room = b"", room

    def write(self, view):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = bytes(view[: min(3, self.room)])
        self.held, self.room = self.held + taken, self.room - len(taken)
        return len(taken)


def test_what_a_file_takes_in_parts_is_written_whole():
    file = Slow()
    write_all(file, b"0123456789")
    assert file.held == b"0123456789"
    full = Slow(room=7)
    with pytest.raises(OSError, match="No space left"):
        write_all(full, b"0123456789")
    assert full.held == b"0123456"


def full_after(monkeypatch, room):
    """Limit the bytes that the disk still accepts."""

    def write_part(file, content):
        file.write(content[:room])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("outlier_atlas.files.write_all", write_part)


@pytest.mark.parametrize("write", [append, write_whole])
def test_a_full_disk_leaves_a_file_as_it_was_and_says_what_is_needed(write, monkeypatch, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before\n")
    full_after(monkeypatch, 4)
    with pytest.raises(OSError, match=r"1,234 bytes were to be written; make room") as error:
        write(path, b"x" * 1234)
    assert (error.value.filename, error.value.errno) == (str(path), errno.ENOSPC)
    assert path.read_bytes() == b"before\n"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_file_is_appended_to_or_replaced(tmp_path):
    path = tmp_path / "deep" / "file"
    write_whole(path, b"one\n")
    append(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    with replacing(path) as temporary:
        temporary.write_bytes(b"three\n")
        assert path.read_bytes() == b"one\ntwo\n", "a reader sees the old one until it is whole"
    assert path.read_bytes() == b"three\n"
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"four")
        raise RuntimeError
    assert path.read_bytes() == b"three\n"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_room_is_asked_for_where_that_helps(tmp_path):
    for number in errno.ENOSPC, errno.EDQUOT, errno.EFBIG:
        assert "make room" in str(write_error(OSError(number, "full"), tmp_path, "9 bytes"))
    assert "make room" not in str(write_error(OSError(errno.EACCES, "no"), tmp_path, "9 bytes"))


def test_a_record_that_was_changed_anywhere_is_damaged(tmp_path):
    path = tmp_path / "record.json"
    record = {"b": [1, {"ü": None}], "a": 0.1}
    write_record(path, record)
    assert read_record(path) == record
    first = path.read_bytes()
    write_record(path, dict(reversed(record.items())))
    assert path.read_bytes() == first, "equal records give equal bytes"
    held = json.loads(first)
    for damage in (
        *(json.dumps(held | {key: 7}) for key in held),
        *(json.dumps({k: v for k, v in held.items() if k != key}) for key in held),
        json.dumps(held | {"more": 1}), "[]", "", first[:-3].decode(), "\udcff",
    ):  # fmt: skip
        path.write_bytes(damage.encode(errors="surrogateescape"))
        with pytest.raises(DamagedFileError) as error:
            read_record(path)
        assert error.value.path == path
    assert canonical({"b": 1, "a": "é"}) == '{"a":"\\u00e9","b":1}'
