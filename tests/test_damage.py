"""Damage: said in a line, never counted, and made anew, it alone, by the same command."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from pipeline import Run, config, named_by_verify
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from store_files import chunk_files, written

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.extraction.run import extract
from outlier_atlas.files import DamagedFileError, read_record
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import Commit, Commits
from outlier_atlas.store.run_files import COMMITS

SITES = ("attn_in", "mlp_in", "resid_post")


def rows(count, length=8):
    return [[4 + (7 * i + 3 * k) % 290 for k in range(length)] for i in range(count)]


class Extracted:
    """A run that every test takes a copy of. Detection is still to come: it has read nothing, and
    keeps no summaries yet that would do for what is stored."""

    def __init__(self, model: Path, folder: Path, **extraction):
        self.folder = folder / "extracted"
        self.config = config(model, rows(7), folder / "data", extraction=extraction)
        run = Run(self.folder, self.config)
        run.prepare()
        run.extract()

    def copy(self, folder: Path) -> Run:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Run(folder, self.config)


@pytest.fixture(scope="module")
def whole(llama, tmp_path_factory):
    """Each chunk is one job's."""
    advanced = {"chunk_tokens": 8}
    return Extracted(llama, tmp_path_factory.mktemp("whole"), layer_groups=2, advanced=advanced)


@pytest.fixture(scope="module")
def shared(llama, tmp_path_factory):
    """The chunk in the middle is shared by two sequence shards, and the last is not filled."""
    extraction = {"layer_groups": 2, "sequence_shards": 2, "advanced": {"chunk_tokens": 16}}
    return Extracted(llama, tmp_path_factory.mktemp("shared"), **extraction)


@pytest.fixture(scope="module")
def unstored(llama, tmp_path_factory):
    """Summaries alone: boundaries went when they had been read."""
    extraction = {"store": [], "layer_groups": 2, "advanced": {"chunk_tokens": 8}}
    return Extracted(llama, tmp_path_factory.mktemp("unstored"), **extraction)


def values(run):
    group = zarr.open_group(run.activations, mode="r", use_consolidated=False)
    return {site: np.asarray(group[site][:]) for site in SITES}


def assert_repaired(run, before):
    """All bytes are what they were."""
    assert {p: data for p, (_, data) in chunk_files(run).items()} == {
        p: data for p, (_, data) in before.items()
    }


def flip(path, index=None, bit=1):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if index is None else index] ^= bit
    path.write_bytes(data)


def neighbour(path):
    """Intact, and of another layer: what an interrupted copy or a mixed-up backup leaves."""
    other = path.parents[2] / "3" / path.parent.name / path.name
    path.write_bytes(other.read_bytes())


DAMAGES = {
    "a flipped bit": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
    "intact, but another": neighbour,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["whole", "shared"])
def test_a_damaged_chunk_is_named_refused_and_alone_made_anew(
    kind, damage, request, tmp_path, loads
):
    run = request.getfixturevalue(kind).copy(tmp_path)
    before = chunk_files(run)
    place = Path("activations.zarr") / "mlp_in" / "c" / "1" / "1" / "0"
    DAMAGES[damage](run.folder / place)
    with pytest.raises(ValueError, match=r"mlp_in, layer 1, chunk 1: damaged \(.*\); run again"):
        run.detect()
    loads.clear()
    run.extract()
    assert len(loads) == (2 if kind == "shared" else 1), "a load for each shard that has a part"
    assert written(before, chunk_files(run)) == {str(place)}
    assert_repaired(run, before)
    run.detect()


def test_damage_to_what_does_not_count_is_in_nobodys_way(shared, tmp_path):
    """Damaged chunks that sequence shards share, whose commits are gone: they are written over."""
    run = shared.copy(tmp_path)
    before = chunk_files(run)
    for layer in range(4):
        for site in SITES:
            flip(run.activations / site / "c" / str(layer) / "1" / "0")
    for path in (run.folder / COMMITS).glob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["chunk"] != 1))
    run.extract()
    assert_repaired(run, before)
    run.detect()


@pytest.mark.parametrize("kind", ["whole", "shared"])
def test_all_damaged_chunks_of_a_boundary_are_named_at_once(kind, request, tmp_path):
    """Of a layer group that reads them; and those that it shares and writes."""
    extracted = request.getfixturevalue(kind)
    run = extracted.copy(tmp_path)
    before = chunk_files(run)
    for chunk in (0, 1, 2):
        flip(run.folder / f"boundaries.zarr/into_layer_2/c/{chunk}/0")
    for path in (run.folder / COMMITS).glob("group-1*.jsonl"):
        path.unlink()
    for manifest in (run.folder / "manifests" / "extraction").glob("*.json"):
        manifest.unlink()
    with pytest.raises(ValueError, match=r"into_layer_2/c/\d/0: boundary, .*damaged.*and . more"):
        run.extract()
    run.extract()
    assert_repaired(run, before)


def test_a_chunk_of_an_earlier_configuration_is_not_current(whole, llama, tmp_path):
    run = whole.copy(tmp_path / "run")
    place = run.activations / "mlp_in" / "c" / "2" / "0" / "0"
    older = Run(
        tmp_path / "older", whole.config | {"model": {"source": str(llama), "dtype": "float32"}}
    )
    older.prepare()
    older.extract()
    shutil.copy2(older.activations / "mlp_in" / "c" / "2" / "0" / "0", place)
    with pytest.raises(ValueError, match=r"chunk 0: damaged .it is not the one that was committed"):
        run.detect()


def test_all_damage_is_named_at_once_and_made_anew_in_one_go(whole, tmp_path, loads):
    run = whole.copy(tmp_path)
    before = chunk_files(run)
    places = [
        f"activations.zarr/{site}/c/{layer}/{layer}/0" for layer in range(4) for site in SITES
    ]
    for place in places:
        flip(run.folder / place)
    with pytest.raises(ValueError, match="and 11 more; run again: only they will be recomputed"):
        run.detect()
    loads.clear()
    run.extract()
    assert len(loads) == 2
    # Whoever runs the upper layers again needs the boundary, which is there.
    assert written(before, chunk_files(run)) == set(places)
    assert_repaired(run, before)
    run.detect()


def summaries(run):
    """What the files hold; the order of a header's entries is not always the same."""
    return {
        path: {name: values.tobytes() for name, values in load_arrays(path).items()}
        for path in (run.folder / "summaries").rglob("*.safetensors")
    }


def all_tables(run):
    return {path.name: path.read_bytes() for path in run.tables.iterdir()}


def summary_of(run, layer, chunk):
    folder = run.folder / "summaries"
    return next(folder.glob(f"mlp_in*/layer-{layer}/chunk-{chunk}.*"))


SUMMARY_DAMAGES = DAMAGES | {
    "intact, but another": lambda path: shutil.copy(
        path.parents[1] / "layer-3" / path.name, path
    )
}  # fmt: skip


@pytest.mark.parametrize("damage", SUMMARY_DAMAGES)
def test_damaged_summaries_are_named_and_made_anew(unstored, damage, tmp_path, loads):
    run = unstored.copy(tmp_path)
    before = summaries(run)
    for chunk in (1, 4):
        SUMMARY_DAMAGES[damage](summary_of(run, 1, chunk))
    lines = said(run)
    for chunk in (1, 4):
        assert f"mlp_in, layer 1, chunk {chunk}: its summary is lost" in lines
    assert len(lines.splitlines()) == 2
    loads.clear()
    run.extract()
    assert len(loads) == 1, "of the lower layers alone"
    assert summaries(run) == before
    run.detect()
    run.verify()


@pytest.mark.parametrize("damage", SUMMARY_DAMAGES)
def test_detection_refuses_a_damaged_summary_and_it_alone_is_made_anew(
    unstored, damage, tmp_path, loads
):
    run = unstored.copy(tmp_path)
    run.detect()
    before, tables = summaries(run), all_tables(run)
    path = summary_of(run, 1, 2)
    SUMMARY_DAMAGES[damage](path)
    with pytest.raises(ValueError, match=r"mlp_in, layer 1, chunk 2: its summary is lost .*again"):
        run.detect()
    times = {path: path.stat().st_mtime_ns for path in before if path.exists()}
    loads.clear()
    run.extract()
    assert len(loads) == 1, "of the lower layers alone"
    assert summaries(run) == before
    assert {p for p in before if p.stat().st_mtime_ns != times.get(p)} == {path}
    run.detect()
    assert all_tables(run) == tables


@pytest.mark.parametrize("damage", SUMMARY_DAMAGES)
def test_a_damaged_summary_of_what_is_stored_is_made_from_it_anew(whole, damage, tmp_path, loads):
    """Detection has made it, and needs no extraction to make it again."""
    run = whole.copy(tmp_path)
    run.detect()
    before, tables = summaries(run), all_tables(run)
    SUMMARY_DAMAGES[damage](summary_of(run, 1, 2))
    run.detect()
    assert not loads
    assert summaries(run) == before
    assert all_tables(run) == tables


def test_a_summary_of_values_that_were_replaced_is_made_anew(whole, tmp_path, monkeypatch):
    """Where the same is computed with other last bits (other batches, say), and committed."""
    run = whole.copy(tmp_path)
    run.detect()
    tables = all_tables(run)
    (run.activations / "mlp_in" / "c" / "1" / "2" / "0").unlink()
    said(run)
    write = Arrays.write
    monkeypatch.setattr(Arrays, "write", lambda self, *args: write(self, *args[:2], 2 * args[2]))
    run.extract()
    run.detect()
    assert all_tables(run) != tables
    detected = summaries(run)
    shutil.rmtree(run.folder / "summaries")
    run.detect()
    assert summaries(run) == detected, "of the values that lie in the store"


def test_detection_names_all_lost_summaries_at_once(unstored, tmp_path):
    run = unstored.copy(tmp_path)
    for layer in (1, 2):
        flip(summary_of(run, layer, 3))
    with pytest.raises(ValueError, match=r"mlp_in, layer 1, chunk 3: .*, and 1 more; run again"):
        run.detect()
    run.extract()
    run.detect()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_boundary_is_named_refused_and_alone_made_anew(whole, damage, tmp_path, loads):
    run = Run(tmp_path, whole.config)
    run.prepare()
    extract(run.job(0, 0))
    before = chunk_files(run)
    place = Path("boundaries.zarr") / "into_layer_2" / "c" / "1" / "0"
    if damage == "intact, but another":
        shutil.copy(run.folder / place.parent.parent / "0" / "0", run.folder / place)
    else:
        DAMAGES[damage](run.folder / place)
    with pytest.raises(ValueError, match=r"boundary, layer 2, chunk 1: damaged .* run again"):
        extract(run.job(1, 0))
    before = chunk_files(run)  # with the first sequence, which came before the damage
    loads.clear()
    extract(run.job(0, 0))
    assert len(loads) == 1
    assert written(before, chunk_files(run)) == {str(place)}
    extract(run.job(1, 0))
    for site, want in values(whole.copy(tmp_path / "whole")).items():
        assert np.array_equal(values(run)[site], want)


def test_no_flipped_bit_of_a_commit_is_believed(whole):
    line = (
        next((whole.folder / "results/run" / COMMITS).glob("*.jsonl")).read_bytes().splitlines()[0]
    )
    commit = Commit.parse(line.decode())
    for index in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[index // 8] ^= 1 << index % 8
        try:
            read = Commit.parse(bytes(flipped).decode("utf-8", "replace"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        assert read == commit


def test_what_a_damaged_commit_stood_for_is_computed_again_and_nothing_else(whole, tmp_path, loads):
    run = whole.copy(tmp_path)
    before = chunk_files(run)
    path = next((run.folder / COMMITS).glob("group-1*.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    chunk = json.loads(lines[1])["chunk"]
    lines[1] = lines[1].replace(b'"start":', b'"start": ', 1).replace(b"a", b"b", 1)
    path.write_bytes(b"".join(lines))
    assert (
        f"{path}: damaged (not all commits are there of layers 2 to 3, sequence shard 0)"
        in said(run)
    )
    loads.clear()
    run.extract()
    assert len(loads) == 1
    places = written(before, chunk_files(run))
    assert places == {f"activations.zarr/{s}/c/{k}/{chunk}/0" for s in SITES for k in (2, 3)}
    assert_repaired(run, before)
    run.verify()


def said(run):
    """What `verify` names of a damaged run."""
    return "\n".join(named_by_verify(run))


RECORDS = {
    "store": "manifests/store.json",
    "tokens": "manifests/tokens.json",
    "manifest": "manifests/extraction/group-1.shard-0.json",
    "token store": "tokens.parquet",
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_named_refused_and_taken_away(whole, name, tmp_path):
    run = whole.copy(tmp_path)
    path = run.folder / RECORDS[name]
    flip(path)
    with pytest.raises(DamagedFileError, match=f"{path}: damaged .*run again: it will be"):
        run.detect()
    assert said(run).count(str(path)) == 1
    assert not path.exists()


def test_a_damaged_record_of_the_model_is_named_and_taken_away(whole, tmp_path):
    run = whole.copy(tmp_path)
    flip(run.model_record)
    with pytest.raises(DamagedFileError, match=f"{run.model_record}: damaged"):
        run.detect()
    assert str(run.model_record) in said(run)
    assert not run.model_record.exists()


def test_no_flipped_bit_of_a_record_is_believed(whole):
    path = whole.folder / "results/run/manifests/store.json"
    copy = path.with_name("copy.json")
    want, data = read_record(path), path.read_bytes()
    for index in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[index // 8] ^= 1 << index % 8
        copy.write_bytes(flipped)
        try:
            assert read_record(copy) == want
        except DamagedFileError:
            continue
    copy.unlink()


def test_no_flipped_bit_of_the_token_store_is_believed(whole, tmp_path):
    run = whole.copy(tmp_path)
    data = run.tokens.read_bytes()
    for index in range(0, len(data), 97):
        flipped = bytearray(data)
        flipped[index] ^= 4
        run.tokens.write_bytes(flipped)
        with pytest.raises(DamagedFileError, match=r"not the file that tokens\.json describes"):
            TokenStore.recorded(run.tokens, run.tokens_record)


@pytest.fixture
def own_model(llama, tmp_path):
    return Path(shutil.copytree(llama, tmp_path / "model"))


def own_run(model, folder):
    data = config(model, rows(5), folder / "data", extraction={"advanced": {"chunk_tokens": 8}})
    run = Run(folder, data)
    run.prepare()
    return run


def change(model):
    weights = load_file(model / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"] *= 0.5
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_were_replaced_are_not_run(own_model, tmp_path, loads):
    run = own_run(own_model, tmp_path)
    change(own_model)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors: not the file that .*replaced"):
        run.extract()
    assert not loads, "not even loaded"
    assert "model.safetensors: not the file that" in said(run)
    assert not run.model_record.exists(), "and is made anew"


def test_weights_that_change_under_a_run_are_not_committed(own_model, tmp_path, monkeypatch):
    run = own_run(own_model, tmp_path)
    forward, batches = LayerGroup.run, []

    def replaced_at_the_third(self, batch, keep):
        batches.append(1)
        if len(batches) == 3:
            change(own_model)
        forward(self, batch, keep)

    monkeypatch.setattr(LayerGroup, "run", replaced_at_the_third)
    with pytest.raises(DamagedFileError, match="not the file that"):
        run.extract()
    commits = Commits.load(run.folder / COMMITS)
    committed = sum(len(c) for c in commits._by_chunk.values())
    assert committed <= 2


def test_weights_that_were_only_touched_are_the_same(own_model, tmp_path, loads):
    run = own_run(own_model, tmp_path)
    os.utime(own_model / "model.safetensors", (1, 1))
    loads.clear()
    run.extract()
    assert len(loads) == 1
    run.verify()


def test_what_is_undamaged_is_said_to_be(whole, shared, unstored, tmp_path):
    for extracted in (whole, shared, unstored):
        extracted.copy(tmp_path / extracted.folder.parent.name).verify()


def test_without_a_store_there_is_nothing_to_verify(whole, tmp_path):
    with pytest.raises(ValueError, match="there is no store yet"):
        Run(tmp_path, whole.config).verify()
