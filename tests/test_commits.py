"""Commit records, one by one: which rows count, and what a damaged or shortened line is worth."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlier_atlas.store.commits import Commit, CommitFile, Commits, Rows, revise, without
from outlier_atlas.store.layout import SUMMARY, Target

SITE, OTHER = Target("attn_in", 0), Target("attn_in", 1)
CHUNK, SIZE = 3, 24
FIRST = CHUNK * SIZE
parts = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).filter(lambda part: part[0] < part[1]),
    max_size=5,
)


def rows(start, stop):
    return Rows(CHUNK, FIRST + start, FIRST + stop)


def commit(start, stop, *targets, fingerprint="now", checksum="sum", **details):
    return Commit(
        rows(start, stop), fingerprint, dict.fromkeys(targets or [SITE], checksum), ("s",), details
    )


def summary(floor, layer=0, version="3"):
    return Target(f"{SUMMARY}attn_in@{floor!r}.{version}", layer)


@given(parts, parts, st.integers(0, SIZE - 1), st.integers(1, SIZE))
def test_gaps_are_the_tokens_that_no_commit_of_the_fingerprint_names(own, old, start, length):
    stop = min(SIZE, start + length)
    commits = Commits(
        [commit(*part) for part in own]
        + [commit(*part, fingerprint="before") for part in old]
        + [commit(0, SIZE, OTHER)]
        + [Commit(Rows(CHUNK + 1, FIRST, FIRST + SIZE), "now", {SITE: "sum"})]
    )
    gaps = commits.gaps(SITE, rows(start, stop), "now")
    lacking = [token for token in range(start, stop) if not any(a <= token < b for a, b in own)]
    assert [t - FIRST for gap in gaps for t in range(gap.start, gap.stop)] == lacking
    assert all(gap.chunk == CHUNK and gap.start < gap.stop for gap in gaps)
    assert all(one.stop < other.start for one, other in pairwise(gaps))
    missing = commits.missing([SITE, OTHER], rows(start, stop), "now")
    assert missing == (frozenset({SITE}) if lacking else frozenset())


def test_rows_that_touch_do_not_overlap():
    assert rows(0, 4).overlaps(rows(3, 5))
    assert rows(3, 5).overlaps(rows(0, 4))
    assert not rows(0, 4).overlaps(rows(4, 8))
    assert not rows(4, 8).overlaps(rows(0, 4))


def test_of_summaries_that_serve_the_longer_one_counts_then_the_one_of_the_higher_floor():
    asked = summary(4.0)
    commits = Commits(
        [
            commit(0, 8, summary(4.0), checksum="short"),
            commit(0, 16, summary(2.0), checksum="long"),
            commit(16, 24, summary(1.0), checksum="low"),
            commit(16, 24, summary(3.0), checksum="high"),
            commit(0, 24, summary(5.0), checksum="above what is asked for"),
            commit(0, 24, summary(4.0, version="2"), checksum="of another version"),
            commit(0, 24, summary(4.0, layer=1), checksum="of another layer"),
            commit(0, 24, summary(4.0), checksum="of before", fingerprint="before"),
        ]
    )
    assert commits.serving(asked, CHUNK, "now") == [
        (summary(2.0), rows(0, 16), "long"),
        (summary(3.0), rows(16, 24), "high"),
    ]
    assert commits.of(asked, CHUNK, "now") == [(rows(0, 16), "long"), (rows(16, 24), "high")]
    assert commits.of(asked, CHUNK, "before") == [(rows(0, 24), "of before")]
    assert commits.gaps(summary(0.5), rows(0, 24), "now") == [rows(0, 24)]


def test_a_line_is_read_back_and_no_other_line_is(tmp_path):
    whole = commit(0, 8, SITE, OTHER, summary(4.0), batch_size=2, versions={"torch": "2"})
    assert Commit.parse(whole.line()) == whole
    entry = json.loads(whole.line())
    for key in entry:
        changed = entry | {key: "else"}
        with pytest.raises(ValueError, match="checksum"):
            Commit.parse(json.dumps(changed))
        with pytest.raises(ValueError, match="checksum"):
            Commit.parse(json.dumps({name: v for name, v in entry.items() if name != key}))
    with pytest.raises(ValueError, match="checksum"):
        Commit.parse("[]")


def test_a_line_that_a_kill_cut_short_is_closed_off_and_does_not_count(tmp_path):
    file = CommitFile(tmp_path / "commits" / "job.jsonl")
    file.append(commit(0, 8))
    path = tmp_path / "commits" / "job.jsonl"
    path.write_text(path.read_text() + "\n" + commit(8, 16).line()[:40])
    file.append(commit(16, 24))
    file.append(commit(8, 16, OTHER))
    loaded = Commits.load(path.parent)
    assert (loaded.damaged, loaded.cut) == ([], [path]), "an empty line is neither"
    assert sorted(each.rows for each in loaded) == [rows(0, 8), rows(8, 16), rows(16, 24)]
    assert loaded.gaps(SITE, rows(0, 24), "now") == [rows(8, 16)]
    assert revise(path.parent, lambda each: each) == 0
    assert Commits.load(path.parent).unreadable == [], "damaged lines go"
    assert path.read_text().count("\n") == 3


def test_revised_commits_are_counted_where_they_stand_for_less(tmp_path):
    assert revise(tmp_path / "nothing", lambda each: each) == 0
    for name, start in ("a", 0), ("b", 8):
        CommitFile(tmp_path / f"{name}.jsonl").append(commit(start, start + 8, SITE, OTHER))
    again = {"batch_size": 9}

    def fewer(each):
        if each.rows.start == FIRST:
            return without(each, lambda target: target == OTHER)
        return Commit(each.rows, each.fingerprint, each.checksums, each.sequences, again)

    assert revise(tmp_path, fewer) == 1
    left = {each.rows: each for each in Commits.load(tmp_path)}
    assert left[rows(0, 8)] == commit(0, 8, SITE)
    assert left[rows(8, 16)] == commit(8, 16, SITE, OTHER, **again)
    shorter = {rows(0, 8): rows(0, 4)}
    assert revise(tmp_path, lambda e: Commit(shorter.get(e.rows, e.rows), "now", e.checksums)) == 1
    assert revise(tmp_path, lambda each: without(each, lambda target: True)) == 2
    assert not list(Commits.load(tmp_path))
