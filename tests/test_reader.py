"""The reader of stored values: what zarr reads, and only what is committed."""

import re
import shutil

import numpy as np
import pytest
import zarr
from pipeline import Run, config
from test_workflow import ROOT

from outlier_atlas.files import read_record, write_record
from outlier_atlas.store import shard_size
from outlier_atlas.store.reader import Reader
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.store.target_chunks import DamagedChunkError

ROWS = [[(7 * i + 3 * k) % 290 + 4 for k in range(11)] for i in range(5)]
"""55 tokens in chunks of 8: the last chunk is not full."""

SELECTIONS = [
    {},
    {"layers": 2},
    {"layers": [3, 0]},
    {"layers": slice(1, None)},
    {"tokens": 17},
    {"tokens": slice(8, 24)},
    {"tokens": slice(None, None, -3)},
    {"tokens": [54, 0, 3, 3, -1]},
    {"channels": 5},
    {"channels": [30, 2]},
    {"layers": [1, 2], "tokens": np.arange(6, 40), "channels": slice(4, 9)},
    {"layers": 1, "tokens": 50, "channels": 31},
    {"tokens": []},
]


def made(model, folder, **extraction):
    extraction = {"layers": [0, 1, 2, 3], "advanced": {"chunk_tokens": 8}} | extraction
    run = Run(folder, config(model, ROWS, folder / "data", extraction=extraction))
    run.prepare()
    run.extract()
    return run


@pytest.fixture(scope="module")
def single(llama, tmp_path_factory):
    return made(llama, tmp_path_factory.mktemp("single"), sequence_shards=2)


@pytest.fixture(scope="module")
def sharded(llama, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_size, "MOST_FILES", 40)
        compressed = {"advanced": {"chunk_tokens": 8, "compression": "zstd"}}
        return made(llama, tmp_path_factory.mktemp("sharded"), **compressed)


def plain(run, layers=None, tokens=None, channels=None):
    array = zarr.open_group(run.activations, mode="r")["mlp_in"][:]
    for axis, chosen in ((2, channels), (1, tokens), (0, layers)):
        if chosen is not None:
            every = np.arange(array.shape[axis])
            at = every[chosen] if isinstance(chosen, slice) else np.asarray(chosen, int)
            array = np.take(array, at, axis, mode="wrap")
    return array


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_values_are_those_that_zarr_reads(kind, request):
    run = request.getfixturevalue(kind)
    reader = Reader(run.folder, threads=2)
    assert reader.arrays == ("attn_in", "mlp_in", "resid_post")
    assert (reader.layers, reader.dtype) == ((0, 1, 2, 3), "bfloat16")
    for selection in SELECTIONS:
        got, want = reader.read("mlp_in", **selection), plain(run, **selection)
        assert (got.dtype, got.shape) == (np.float32, want.shape), selection
        assert np.array_equal(got, want), selection


def test_arrays_of_experts_are_read_by_name(qwen3_moe, tmp_path):
    run = made(qwen3_moe, tmp_path, sites=["expert_out"], layers=[1, 3])
    reader = Reader(run.folder)
    group = zarr.open_group(run.activations, mode="r")
    assert set(reader.arrays) < set(group)
    for name in reader.arrays:
        got = reader.read(name, layers=3, tokens=slice(5, 30))
        assert got.dtype == group[name].dtype
        assert np.array_equal(got, group[name][1, 5:30])


def test_what_does_not_exist_is_named(single, tmp_path):
    reader = Reader(single.folder)
    for call, said in {
        lambda: reader.read("mlp_out"): r"mlp_out: is not stored; stored are attn_in, mlp_in and",
        lambda: reader.read("mlp_in", 4): r"layers = 4: is not measured; measured are 0 to 3",
        lambda: reader.read("mlp_in", tokens=[3, 55]): r"tokens = 55: there are 55; take 0 to 54",
        lambda: reader.read("mlp_in", channels=99): r"channels = 99: there are 32; take 0 to 31",
        lambda: Reader(tmp_path): r"has no store; name a folder such as results/<run>",
    }.items():
        with pytest.raises(ValueError, match=said):
            call()


def test_a_record_without_the_model_is_named(llama, single, tmp_path):
    shutil.copytree(single.folder, tmp_path / "run")
    record = read_record(tmp_path / "run" / "manifests" / "store.json")
    del record["model"]
    write_record(tmp_path / "run" / "manifests" / "store.json", record)
    with pytest.raises(ValueError, match=r"store\.json: does not name the model; run the"):
        Reader(tmp_path / "run")


def test_only_what_is_committed_and_intact_is_read(llama, tmp_path):
    run = made(llama, tmp_path, sequence_shards=2)
    commits = RunFiles(run.folder).commit_files
    path = run.activations / "mlp_in" / "c" / "1" / "2" / "0"
    whole = path.read_bytes()
    path.write_bytes((path.parents[1] / "1" / "0").read_bytes())
    reader = Reader(run.folder)
    with pytest.raises(DamagedChunkError, match="mlp_in, layer 1, chunk 2: damaged"):
        reader.read("mlp_in", tokens=17)
    assert np.array_equal(reader.read("mlp_in", tokens=7), plain(run, tokens=7)), "another chunk"
    path.write_bytes(whole)
    file = sorted(commits.glob("*.jsonl"))[1]
    file.unlink()
    reader = Reader(run.folder)
    said = r"mlp_in, layer 0, tokens 22 to 23 are not computed yet as configured now; run the"
    with pytest.raises(ValueError, match=said):
        reader.read("mlp_in", tokens=[2, 17])
    assert reader.read("mlp_in", tokens=[2, 9]).shape == (4, 2, 32)


def test_the_example_of_the_documentation_runs(single, monkeypatch):
    text = (ROOT / "docs" / "store.md").read_text()
    code = re.search(r"```python\n(from outlier_atlas\.store\.reader.*?)```", text, re.DOTALL)[1]
    changed = code.replace("results/smollm2-demo", str(single.folder)).replace(
        "layers=11", "layers=1"
    )
    names = {}
    exec(changed.replace("507", "5").replace("[3, 800, 4000]", "[3, 8, 40]"), names)
    assert names["one_layer"].shape == (55, 32)
    assert names["one_channel"].shape == (4, 55)
    assert names["some_tokens"].shape == (4, 3, 32)
