"""What an extraction job has to do, worked out from commits alone."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from outlier_atlas.extraction.work import Work
from outlier_atlas.store.commits import Commit, Commits, Rows
from outlier_atlas.store.layout import Layout, Target

CHUNK = 5
lengths = st.lists(st.integers(2, 7), min_size=1, max_size=9)


def of(lengths, shards=1, shard=0, groups=((0, 1), (2, 3)), group=0):
    """A layer group over a sequence shard of sequences of some lengths."""
    starts = np.cumsum([0, *lengths]).astype(np.int64)
    layout = Layout(
        sites={"resid_post": 4}, store=("resid_post",), layers=(0, 3), hidden_size=4,
        tokens=int(starts[-1]), chunk_tokens=CHUNK, compression="lz4", layer_groups=groups,
        sequence_shards=shards, dtype="bfloat16", outlier_floor=4.0, massive_floor=64.0,
    )  # fmt: skip
    tokens = SimpleNamespace(
        sequences=len(lengths), sequence_starts=starts,
        token_ids=np.arange(starts[-1], dtype=np.int32),
    )  # fmt: skip
    return Work(layout, tokens, "model", group, shard)


@settings(deadline=None)
@given(lengths, st.integers(1, 4), st.data())
def test_batches_are_cut_alike_whatever_is_missing(lengths, size, data):
    work = of(lengths)
    chosen = data.draw(st.sets(st.sampled_from(work.rows)))
    every, some = work.batches(work.rows, size), work.batches(chosen, size)
    assert [sequence for batch in every for sequence in batch] == [*range(len(lengths))]
    for before, after in zip(every, [*every[1:], None], strict=True):
        assert len({lengths[sequence] for sequence in before}) == 1, "nothing is padded"
        assert len(before) <= size
        if after and lengths[after.start] == lengths[before.start]:
            assert len(before) == size, "as few batches as can be"
    starts = work.tokens.sequence_starts

    def reaches(batch):
        first, stop = starts[batch.start], starts[batch.stop]
        return any(rows.start < stop and first < rows.stop for rows in chosen)

    assert some == [batch for batch in every if reaches(batch)]


@settings(deadline=None)
@given(lengths, st.integers(1, 3), st.integers(1, 3), st.data())
def test_what_is_missing_is_what_no_commit_names(lengths, shards, size, data):
    """Of two layer groups: sites of both, and the boundary where the second one lacks something."""
    shards = min(shards, len(lengths))
    shard = data.draw(st.integers(0, shards - 1))
    first, last = (of(lengths, shards, shard, group=group) for group in (0, 1))
    boundary = Target("boundary", 2)
    own, later = Target("resid_post", 0), Target("resid_post", 3)
    done = {
        target: data.draw(st.sets(st.sampled_from(first.rows))) for target in (own, later, boundary)
    }
    commits = Commits(
        Commit(rows, first.fingerprint(rows.chunk), {target: "sum"})
        for target, each in done.items()
        for rows in each
    )
    of_last = last.missing(commits, size)
    assert of_last == {rows: frozenset({later}) for rows in last.rows if rows not in done[later]}
    read = {
        rows
        for batch in last.batches(of_last, size)
        for rows in last.rows
        if rows.start < last.tokens.sequence_starts[batch.stop]
        and last.tokens.sequence_starts[batch.start] < rows.stop
    }
    assert last.unfounded(commits, size) == read - done[boundary]
    wanted = {
        rows: {own} - {own for each in done[own] if each == rows}
        | ({boundary} if rows in read - done[boundary] else set())
        for rows in first.rows
    }
    assert first.missing(commits, size) == {r: frozenset(t) for r, t in wanted.items() if t}
    assert first.unfounded(commits, size) == frozenset()


def test_of_a_part_of_a_chunk_that_is_committed_the_rest_is_missing():
    work = of([5, 5], groups=((0, 3),))
    one, other = Target("resid_post", 0), Target("resid_post", 3)
    now = work.fingerprint(0)
    commits = Commits(
        [Commit(Rows(0, 0, 3), now, {one: "a"}), Commit(Rows(0, 1, 4), now, {other: "b"}),
         Commit(Rows(1, 5, 10), work.fingerprint(1), {one: "c", other: "d"})]
    )  # fmt: skip
    assert work.missing(commits, 1) == {
        Rows(0, 0, 1): frozenset({other}),
        Rows(0, 3, 4): frozenset({one}),
        Rows(0, 4, 5): frozenset({one, other}),
    }
