"""A run that grows under other versions of torch and transformers, or on another kind of device.

The versions are made up. What is computed under the old ones is twice as large in half of the
tests, so that a number of theirs would show wherever it went.
"""

import itertools
import json
import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from ablated import made
from pipeline import Run, config

from outlier_atlas.extraction import compute
from outlier_atlas.extraction import run as extraction
from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.extraction.run import extract
from outlier_atlas.store import origin
from outlier_atlas.store.commits import Commits, revise
from outlier_atlas.store.origin import Origin, others
from outlier_atlas.store.run_files import COMMITS

OLD = {"torch": "2.12.0", "transformers": "5.20.0"}
NEW = {"torch": "2.13.0", "transformers": "5.20.0"}
SITES = ["attn_in", "resid_post"]
CUT = {"layer_groups": 2, "sequence_shards": 2, "sites": SITES, "advanced": {"chunk_tokens": 16}}


def rows(count, length=8):
    return [[4 + (7 * i + 3 * k) % 290 for k in range(length)] for i in range(count)]


@pytest.fixture
def under(monkeypatch):
    """Sets the versions that are installed; under the old ones a model computes other numbers."""
    run_batch = LayerGroup.run

    def doubled(self, batch, keep):
        run_batch(self, batch, lambda tap, tensor: keep(tap, 2 * tensor))

    def set_versions(versions):
        monkeypatch.setattr(origin, "version", lambda name: versions[name])
        monkeypatch.setattr(LayerGroup, "run", doubled if versions == OLD else run_batch)

    return set_versions


def a_run(model, folder, count=4, on_new_versions="refuse", device="auto", **extraction):
    sections = {
        "extraction": CUT | extraction,
        "execution": {"on_new_versions": on_new_versions, "device": device},
    }
    return Run(folder, config(model, rows(count), folder / "data", **sections))


def versions(run):
    """The versions of torch that the commits of a run state."""
    return {each.details["versions"]["torch"] for each in Commits.load(run.folder / COMMITS)}


def files(run):
    return {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}


def arrays(run):
    return {site: run.array(site) for site in run.settings.extraction.stored}


def assert_fresh(run, model, folder, count, **extraction):
    """All numbers are those of a run of its own."""
    fresh = a_run(model, folder / "fresh", count, **extraction)
    fresh.all()
    run.detect()
    for site, values in arrays(fresh).items():
        assert np.array_equal(run.array(site), values)
    tables = {path.name: path.read_bytes() for path in fresh.tables.iterdir()}
    assert {path.name: path.read_bytes() for path in run.tables.iterdir()} == tables


def test_a_commit_says_what_it_was_computed_under(run):
    run.extract()
    (line, *_) = next((run.folder / COMMITS).glob("*.jsonl")).read_text().splitlines()
    entry = json.loads(line)
    assert entry["versions"] == Origin.now().versions
    assert entry["device"] == "cpu"
    assert set(entry["versions"]) == {"torch", "transformers"}


def test_a_complete_run_stays_as_it_is(llama, tmp_path, under, loads):
    under(OLD)
    run = a_run(llama, tmp_path)
    run.prepare()
    run.extract()
    before = files(run)
    under(NEW)
    loads.clear()
    for how in ("refuse", "recompute", "keep"):
        again = a_run(llama, tmp_path, on_new_versions=how)
        again.create_store()
        again.extract()
    assert not loads
    assert {path: data for path, data in files(run).items() if ".jsonl" in path.name} == {
        path: data for path, data in before.items() if ".jsonl" in path.name
    }


def test_a_run_that_would_grow_is_refused_before_anything_happens(
    llama, tmp_path, under, loads, monkeypatch
):
    under(OLD)
    a_run(llama, tmp_path).all()
    under(NEW)
    more = a_run(llama, tmp_path, 5)
    more.prepare()
    before = files(more)
    loads.clear()
    monkeypatch.setattr(extraction, "_compute", lambda *args: pytest.fail("torch is imported"))
    with pytest.raises(ValueError, match="on_new_versions") as refused:
        more.extract()
    assert str(refused.value) == (
        f"{more.folder}: was computed under torch 2.12.0 and transformers 5.20.0 on cpu, and would "
        "grow under torch 2.13.0 and transformers 5.20.0 on cpu, which gives other last bits; set "
        "execution.on_new_versions: recompute (all of it is computed again) or keep (both are "
        "mixed), or go back to what it was computed under"
    )
    assert not loads
    left = {p: data for p, data in files(more).items() if "extraction" not in p.parts}
    assert left == {p: data for p, data in before.items() if "extraction" not in p.parts}


def test_keep_computes_what_is_missing_and_says_so(llama, tmp_path, under, caplog):
    under(OLD)
    run = a_run(llama, tmp_path)
    run.all()
    old = arrays(run)
    under(NEW)
    more = a_run(llama, tmp_path, 5, "keep")
    more.prepare()
    with caplog.at_level(logging.WARNING):
        more.extract()
    said = [record.message for record in caplog.records if "on_new_versions" in record.message]
    assert said[0] == (
        "layers 0 to 1: the run has numbers of torch 2.12.0 and transformers 5.20.0 on cpu, and "
        "goes on under torch 2.13.0 and transformers 5.20.0 on cpu (execution.on_new_versions: "
        "keep)"
    )
    assert versions(more) == {"2.12.0", "2.13.0"}
    assert np.array_equal(more.array("resid_post")[:, :32], old["resid_post"])
    caplog.clear()
    more.extract()
    assert not caplog.records, "nothing is missing any more"


@pytest.mark.parametrize("store", ["all", []])
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_recompute_leaves_nothing_of_the_old_whichever_job_is_first(
    order, store, llama, tmp_path, under
):
    """Only the second sequence shard lacks something: the first one is computed again, too."""
    under(OLD)
    a_run(llama, tmp_path, store=store).all()
    under(NEW)
    more = a_run(llama, tmp_path, 5, "recompute", store=store)
    more.prepare()
    for group, shard in itertools.product(range(2), order):
        extract(more.job(group, shard))
    assert versions(more) == {"2.13.0"}
    assert_fresh(more, llama, tmp_path, 5, store=store)


def test_recompute_makes_a_boundary_of_before_again(llama, tmp_path, under):
    """The run ended between the layer groups, so that Snakemake starts the second one alone."""
    under(OLD)
    run = a_run(llama, tmp_path, sequence_shards=1)
    run.prepare()
    extract(run.job(0, 0))
    under(NEW)
    again = a_run(llama, tmp_path, on_new_versions="recompute", sequence_shards=1)
    with pytest.raises(ValueError, match=r"lacks tokens 0 to 15; run again: only what is missing"):
        extract(again.job(1, 0))
    assert not again.job(0, 0).manifest.exists(), "Snakemake starts the first one, too"
    again.extract()
    assert_fresh(again, llama, tmp_path, 4, sequence_shards=1)


def test_another_site_and_a_lost_chunk_make_a_run_grow(llama, tmp_path, under):
    under(OLD)
    run = a_run(llama, tmp_path, sites=["resid_post"])
    run.all()
    under(NEW)
    site = a_run(llama, tmp_path)
    site.create_store()
    with pytest.raises(ValueError, match=r"torch 2\.12\.0 .* would grow under torch 2\.13\.0"):
        site.extract()
    (run.folder / COMMITS / "group-1.shard-0.jsonl").unlink()
    run.create_store()
    with pytest.raises(ValueError, match=r"torch 2\.12\.0 .* would grow under torch 2\.13\.0"):
        extract(run.job(1, 0))
    extract(run.job(0, 0))  # which lacks nothing


def rewritten(run, change):
    """Change the details of all commits."""
    revise(run.folder / COMMITS, lambda commit: replace(commit, details=change(commit.details)))


def test_another_kind_of_device_is_another_origin(llama, tmp_path):
    run = a_run(llama, tmp_path)
    run.all()
    rewritten(run, lambda details: details | {"device": "cuda:0"})
    more = a_run(llama, tmp_path, 5)
    more.prepare()
    with pytest.raises(ValueError, match=r"on cuda, and would grow under torch .* on cpu, which"):
        more.extract()
    auto = replace(more.job(0, 1), on_new_versions="recompute", device="auto")
    with pytest.raises(ValueError, match=r"recompute needs execution\.device: cpu"):
        extract(auto)
    again = a_run(llama, tmp_path, 5, "recompute")
    again.extract()
    assert {each.details["device"] for each in Commits.load(run.folder / COMMITS)} == {"cpu"}
    assert_fresh(again, llama, tmp_path, 5)


def test_commits_that_state_no_versions_count_as_the_same(llama, tmp_path):
    run = a_run(llama, tmp_path)
    run.all()
    rewritten(run, lambda details: {k: v for k, v in details.items() if k != "versions"})
    more = a_run(llama, tmp_path, 5)
    more.prepare()
    more.extract()
    assert any("versions" not in each.details for each in Commits.load(run.folder / COMMITS))


def test_origins_differ_in_what_both_state():
    now = Origin("2.13.0", "5.20.0", "cpu")
    assert Origin.of({"device": "cuda:3"}) == Origin(device="cuda")
    assert Origin.of({}) == Origin()
    same = [now, Origin(), Origin(device="cpu"), Origin("2.13.0")]
    other = [Origin("2.12.0"), Origin(transformers="5.19.0"), Origin(device="mps")]
    assert others([*same, *other, *other], now) == sorted(other)
    assert str(now) == "torch 2.13.0 and transformers 5.20.0 on cpu"
    assert str(Origin(device="mps")) == "mps"


def test_the_versions_are_known_without_torch():
    code = "import sys, outlier_atlas.extraction.run as r; r.settle; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert compute.check.__module__ == "outlier_atlas.extraction.versions"


# --- The ablation stage ---------------------------------------------------------------------------

CHANNELS = [["resid_post", 1, 3]]
LESS = {"targets": [], "random_draws": 0, "interventions": ["zero"]}


def ablating(model, folder, how="refuse", channels=CHANNELS):
    run = made(model, folder, 2, channels=channels, **LESS)
    run.settings = run.settings.model_copy(
        update={"execution": run.settings.execution.model_copy(update={"on_new_versions": how})}
    )
    return run


def test_the_ablation_stage_keeps_to_the_same(llama, tmp_path, under, caplog, loads):
    under(NEW)
    want = ablating(llama, tmp_path / "want", channels=[*CHANNELS, ["attn_in", 2, 4]])
    want.ablate()
    run = ablating(llama, tmp_path)
    run.ablate()
    under(OLD | {"device": "cpu"})
    ablating(llama, tmp_path).take_away()  # nothing is missing
    more = [*CHANNELS, ["attn_in", 2, 4]]
    (folder,) = (run.folder / "ablation").iterdir()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        ValueError, match=r"ablation: was computed under torch 2\.13\.0 .*would gro"
    ):
        ablating(llama, tmp_path, channels=more).take_away()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with caplog.at_level(logging.WARNING):
        ablating(llama, tmp_path, "keep", more).take_away()
    assert any("execution.on_new_versions: keep" in r.message for r in caplog.records)
    kept = {path: path.read_bytes() for path in folder.glob("*.rows")}
    assert {path.name for path in kept} > {p.name for p in before if p.suffix == ".rows"}
    (folder / next(iter(sorted(path.name for path in kept)))).unlink()
    with caplog.at_level(logging.WARNING):
        ablating(llama, tmp_path, "recompute", more).take_away()
    assert any("execution.on_new_versions: recompute" in r.message for r in caplog.records)
    assert json.loads((folder / "origins.json").read_text())["origins"] == [
        {"device": "cpu", "versions": OLD}
    ]
    assert run.table("ablations") == want.table("ablations")
