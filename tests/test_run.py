"""`Run`, which the stages are given, and the names of a run's files in one place."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

import outlier_atlas
from outlier_atlas.data.tokens import write_tokens
from outlier_atlas.files import DamagedFileError, write_record
from outlier_atlas.store.commits import Commit, Rows
from outlier_atlas.store.layout import BOUNDARY, Layout, Target
from outlier_atlas.store.run import Run
from outlier_atlas.store.run_files import RunFiles

SCRIPTS = Path(outlier_atlas.__file__).parents[1]
LAYOUT = Layout(
    sites={"resid_post": 3}, store=("resid_post",), layers=(0, 1), hidden_size=3, tokens=8,
    chunk_tokens=4, compression="none", layer_groups=((0, 0), (1, 1)), sequence_shards=1,
    dtype="float32", outlier_floor=6.0, massive_floor=100.0,
)  # fmt: skip
RUN_FILES = SCRIPTS / "outlier_atlas" / "store" / "run_files.py"
OWN_MODULES = {"run_files.py", "job_metrics.py", "workflow.py"}
"""The modules in which a name of a run's files is written. The others ask `RunFiles`."""


@pytest.fixture
def run(tmp_path):
    """A run whose arrays have their shape, and hold nothing."""
    run = Run(tmp_path / "results" / "run", tmp_path / "model.json", tmp_path)
    write_record(run.model_record, {"fingerprint": "weights"})
    written = write_tokens(
        run.tokens_file, [[1, 2, 3], [4, 5, 6, 7, 8]], str, lambda ids: [*map(str, ids)]
    )
    write_record(run.tokens_record, {"sha256": written.sha256, "special_ids": []})
    run.create_arrays(LAYOUT, {"token_id": np.arange(8, dtype=np.int32)})
    write_record(run.store_record, LAYOUT.record() | {"model": {"fingerprint": "weights"}})
    return run


def again(run):
    """The run as the next job is given it."""
    return Run(run.folder, run.model_record, run.resources)


def stored(run, target, chunk):
    """Write a chunk and commit it as a job does."""
    arrays, rows = run.arrays(), Rows(chunk, *run.layout.chunk_range(chunk))
    arrays.write(target, rows.start, np.full((rows.stop - rows.start, 3), chunk, np.float32))
    sequences = run.fingerprints.sequences(rows.start, rows.stop)
    checksums = arrays.written(rows, [target])
    commit = Commit(rows, run.fingerprints.of(chunk), checksums, sequences, {})
    run.commit_file("group-0.shard-0").append(commit)


def test_every_file_of_a_run_is_in_its_folder():
    names = [name for name, member in inspect.getmembers(RunFiles) if isinstance(member, property)]
    paths = [getattr(RunFiles(Path("results/{run}")), name) for name in names if name != "name"]
    assert len(set(paths)) == len(paths) > 15
    assert all(path.is_relative_to("results/{run}") for path in paths)
    assert RunFiles(Path("results/{run}")).report == Path("results/{run}/report.html")
    record = RunFiles(Path("results/mine")).store_record
    assert RunFiles.of_store_record(record).name == "mine"


def test_no_other_module_spells_the_names_of_a_runs_files():
    written = {text for text in texts(RUN_FILES) if " " not in text}
    names = {text for text in written if "/" in text or "." in text}
    names |= {"summaries", "manifests", "commits"}
    assert {"activations.zarr", "tokens.parquet", "manifests/store.json"} < names
    for path in SCRIPTS.rglob("*.py"):
        if path.name not in OWN_MODULES:
            spelled = names & set(texts(path))
            assert not spelled, f"{path}: ask RunFiles for {spelled}"


def texts(path):
    """The texts in a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    explain = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [c.value for c in constants if isinstance(c.value, str) and id(c) not in explain]


def test_tokens_lie_where_a_rule_says(tmp_path):
    shared = tmp_path / "resources" / "tokens" / "digest"
    run = Run(tmp_path / "run", tmp_path / "model.json", tmp_path, tokens_file=shared / "t.parquet",
              tokens_record=shared / "t.json")  # fmt: skip
    shared.mkdir(parents=True)
    written = write_tokens(run.tokens_file, [[1, 2]], str, lambda ids: [*map(str, ids)])
    write_record(run.tokens_record, {"sha256": written.sha256})
    assert run.tokens.token_ids.tolist() == [1, 2]
    assert run.heldout_file is None
    other = Run(run.folder, run.model_record, run.resources, heldout_file=run.tokens_file,
                heldout_record=run.tokens_record)  # fmt: skip
    assert other.tokens_file == tmp_path / "run" / "tokens.parquet"
    assert other.heldout.token_ids.tolist() == [1, 2]


def test_records_are_read_once_and_commits_by_every_call(run):
    job = again(run)
    assert job.layout == LAYOUT
    run.store_record.unlink()
    assert job.layout == LAYOUT, "a job goes on with what it has read"
    assert not list(job.commits())
    stored(job, Target("resid_post", 0), 1)
    assert [commit.rows for commit in job.commits()] == [Rows(1, 4, 8)]


def test_a_chunk_counts_once_it_is_committed_and_no_longer_when_it_is_damaged(run):
    job, target = again(run), Target("resid_post", 0)
    for chunk in (0, 1):
        stored(job, target, chunk)
    arrays = job.arrays()
    assert (arrays.read(target, 4, 8) == 1).all()
    manifest = job.job_manifests / "group-0.shard-0.json"
    write_record(manifest, {})
    path = arrays.chunks.path(target, 1)
    path.write_bytes(path.read_bytes()[:-1])
    damages = list(job.damaged_chunks(arrays, threads=1))
    assert [(damage.target, damage.chunk) for damage in damages] == [(target, 1)]
    assert "run again: only it will be recomputed" in str(job.give_up(arrays, damages))
    assert [commit.rows.chunk for commit in job.commits()] == [0]
    assert not path.exists() and not manifest.exists()


def test_chunks_that_were_deleted_on_purpose_have_no_commit(run):
    job, boundary = again(run), Target(BOUNDARY, 1)
    for chunk in (0, 1):
        stored(job, boundary, chunk)
    job.delete_chunks(boundary, [0])
    assert [commit.rows.chunk for commit in job.commits()] == [1]
    chunks = job.arrays().chunks
    assert [chunks.exists(boundary, chunk) for chunk in (0, 1)] == [False, True]


def test_what_other_records_know_of_a_run_whose_records_are_damaged(run):
    for record in (run.store_record, run.model_record):
        record.write_text("{}")
    job = again(run)
    with pytest.raises(DamagedFileError):
        _ = job.layout
    assert job.known_layout() == job.layout == LAYOUT, "from the record of the metadata"
    assert job.known_model_fingerprint() is None, "both records are damaged"
    run.tokens_file.unlink()
    assert again(run).known_tokens() is None
    run.metadata_record.unlink()
    assert again(run).known_layout() is None


def test_the_record_of_the_store_knows_the_weights(run):
    run.model_record.unlink()
    job = again(run)
    assert job.known_model_fingerprint() == "weights"
    assert job.fingerprints.model == "weights"
