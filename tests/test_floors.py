"""Another floor of the summaries: what is there counts as long as it holds what is asked for."""

import pytest
from pipeline import Run, config

from outlier_atlas.extraction.run import extract
from outlier_atlas.store.commits import Commit, Commits, Rows
from outlier_atlas.store.layout import SUMMARY, SUMMARY_VERSION, Target

LONG = [5, 17, 200, 9, 33, 41, 7, 8, 9, 10, 11]
ROWS = [LONG, [40, 6], LONG[::-1], [9, 250, 11]]  # chunks of 4 tokens
SITES = ["attn_in", "resid_post"]


def run_of(model, folder, floor, shards=1, **extraction):
    advanced = {"chunk_tokens": 4, "outlier_floor": floor, "massive_floor": 16 * floor}
    extraction = {"sites": SITES, "store": [], "advanced": advanced} | extraction
    extraction["sequence_shards"] = shards
    return Run(folder, config(model, ROWS, folder / "data", extraction=extraction))


def tables(run):
    return {path.name: path.read_bytes() for path in sorted(run.tables.iterdir())}


@pytest.fixture(scope="module")
def want(llama, tmp_path_factory):
    run = run_of(llama, tmp_path_factory.mktemp("want"), 4.0)
    run.all()
    return tables(run)


@pytest.mark.parametrize("detects", [True, False])
def test_a_higher_floor_computes_nothing_and_a_lower_one_only_the_first_time(
    detects, want, llama, tmp_path, loads
):
    """Whatever came before, verify and detection find it right, and the tables are the same."""
    for floor, loaded in ((4.0, 1), (3.0, 1), (4.0, 0), (3.5, 0), (3.0, 0), (6.0, 0), (2.0, 1)):
        loads.clear()
        run = run_of(llama, tmp_path, floor)
        run.prepare()
        run.extract()
        assert len(loads) == loaded, floor
        run.verify()
        if detects and floor <= 4:
            run.detect()
            run.verify()
            assert tables(run) == want
    # Detection takes away what is not needed beside that of a lower floor.
    left = {2.0} if detects else {4.0, 3.0, 2.0}
    folders = (run.folder / "summaries").iterdir()
    names = [folder.name.removesuffix(f".{SUMMARY_VERSION}") for folder in folders]
    floors = {float(name.partition("@")[2]) for name in names}
    assert floors == left | {16 * floor for floor in left}


def test_a_lower_floor_that_is_taken_back_half_way_costs_nothing(want, llama, tmp_path, loads):
    """One of two sequence shards has done it, which shared a chunk with the other."""
    run = run_of(llama, tmp_path, 4.0)
    run.prepare()
    run.extract()
    lower = run_of(llama, tmp_path, 3.0, shards=2)
    lower.prepare()
    extract(lower.job(0, 1))
    loads.clear()
    again = run_of(llama, tmp_path, 4.0, shards=2)
    again.prepare()
    again.extract()
    assert not loads
    again.verify()
    again.detect()
    assert tables(again) == want


def test_what_is_damaged_of_a_lower_floor_is_made_anew_or_found_at_a_higher_one(
    want, llama, tmp_path, loads
):
    for floor in (4.0, 3.0, 4.0):
        run = run_of(llama, tmp_path, floor)
        run.prepare()
        run.extract()
    for floor, loaded in ((4.0, 0), (3.0, 1)):
        path = next((run.folder / "summaries").glob(f"attn_in@{floor}.*/layer-2/chunk-1.*"))
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match="attn_in, layer 2, chunk 1: its summary is lost"):
            run.detect()
        loads.clear()
        run.extract()
        assert len(loads) == loaded
    run.verify()
    run.detect()
    assert tables(run) == want


def test_what_the_experts_put_out_has_no_floor(qwen3_moe, tmp_path, loads):
    for floor in (4.0, 3.0):
        loads.clear()
        run = run_of(qwen3_moe, tmp_path, floor, sites=["expert_out"])
        run.prepare()
        run.extract()
    assert not loads


def commit(floor, start, stop):
    return Commit(Rows(0, start, stop), "now", {Target(f"{SUMMARY}attn_in@{floor}.2", 1): "sum"})


def test_of_summaries_that_overlap_the_longest_is_taken(tmp_path):
    """No row counts twice, and none is left out that one of them has."""
    asked = Target(f"{SUMMARY}attn_in@4.0.2", 1)
    rows = {"4.0": [(0, 8)], "3.0": [(0, 4), (4, 8), (8, 12)], "5.0": [(12, 16)]}
    commits = Commits(commit(floor, *part) for floor, parts in rows.items() for part in parts)
    assert [(t.floor, r.start, r.stop) for t, r, _ in commits.serving(asked, 0)] == [
        (4.0, 0, 8), (3.0, 8, 12),
    ]  # fmt: skip
    assert commits.gaps(asked, Rows(0, 0, 16), "now") == [Rows(0, 12, 16)]
