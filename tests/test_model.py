"""Models: built-in models are checked before use; which checkpoints are read, and which refused."""

import json
import shutil
import zipfile

import pytest
import tiny
from safetensors.torch import load_file, save_file

from outlier_atlas import builtin
from outlier_atlas.checkpoint import source
from outlier_atlas.checkpoint.folder import fingerprint, weight_files
from outlier_atlas.files import read_record, sha256
from outlier_atlas.settings.model import ModelSettings

# --- Packages of the index -----------------------------------------------------------------------


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Return a package index of one wheel, for the real pip."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "atlas_fixture-1.0-py3-none-any.whl"
    info = "atlas_fixture-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("atlas_fixture/model.gguf", b"GGUF of a sort")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: atlas-fixture\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheel


def package(member, sum_, requirement="atlas-fixture==1.0"):
    return builtin.Package(requirement, member, "kept", sum_, 1000, "MIT")


def test_a_package_is_kept_when_its_sum_is_right(index, tmp_path):
    destination = tmp_path / "resources" / "kept"
    builtin.fetch(package(None, sha256(index)), destination)
    assert destination.read_bytes() == index.read_bytes()
    inside = tmp_path / "inside"
    inside.write_bytes(b"GGUF of a sort")
    builtin.fetch(package("atlas_fixture/model.gguf", sha256(inside)), destination)
    assert destination.read_bytes() == b"GGUF of a sort"
    assert [path.name for path in destination.parent.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("package", "sentence"),
    [
        (package(None, "0" * 64), "and should have 0{64}; it was not kept"),
        (package("atlas_fixture/none", "0" * 64), "atlas_fixture/none cannot be extracted"),
        (package(None, "0" * 64, "atlas-fixture==2.0"), "could not be downloaded .* pip says: .*2"),
    ],
)
def test_a_package_that_is_not_right_leaves_nothing_behind(index, tmp_path, package, sentence):
    destination = tmp_path / "resources" / "kept"
    with pytest.raises(ValueError, match=sentence):
        builtin.fetch(package, destination)
    assert list(destination.parent.iterdir()) == []


# --- Checkpoints ---------------------------------------------------------------------------------


def fetched(folder, tmp_path):
    record = tmp_path / "record.json"
    source.fetch(ModelSettings(source=str(folder)), tmp_path, record)
    return read_record(record)


def test_a_local_checkpoint_is_recorded(llama, qwen3_moe, tmp_path):
    record = fetched(llama, tmp_path)
    assert (record["kind"], record["layers"], record["hidden_size"]) == ("local", 4, 32)
    assert record["files"] == ["model.safetensors"]
    assert record["weight_bytes"] == (llama / "model.safetensors").stat().st_size
    assert source.locate(record, tmp_path) == llama
    assert len(fetched(qwen3_moe, tmp_path)["files"]) > 1


def test_another_weight_is_another_fingerprint(tmp_path):
    first = tiny.llama(tmp_path / "first")
    before = fingerprint(first, weight_files(first), code=False)
    shutil.copytree(first, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy", ["model.safetensors"], code=False) == before
    weights = load_file(first / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, first / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(first, weight_files(first), code=False) != before


def _pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _without_shard(folder):
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def _truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def _config(**changes):
    def change(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


@pytest.mark.parametrize(
    ("model", "damage", "sentence"),
    [
        ("llama", shutil.rmtree, "no such folder"),
        ("llama", lambda f: (f / "config.json").unlink(), "the folder has no config.json"),
        ("llama", lambda f: (f / "model.safetensors").unlink(), "no weights: neither"),
        ("llama", _pickled, r"only pickled weights \(pytorch_model.bin\), which can run code"),
        ("llama", _truncated, "model.safetensors: truncated, or not a safetensors file"),
        ("llama", lambda f: (f / "config.json").write_text("{"), "not JSON"),
        ("llama", _config(model_type="own"), "not a configuration that transformers knows"),
        ("llama", _config(model_type="t5"), "t5"),
        ("llama", lambda f: (f / "tokenizer.json").write_text("{"), None),
        ("qwen3_moe", _without_shard, r"index.json lists 'model-00002-of-.*', which is missing"),
        (
            "qwen3_moe",
            lambda f: (f / "model.safetensors.index.json").write_text("[]"),
            "not a safetensors index",
        ),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said(model, damage, sentence, request, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(request.getfixturevalue(model), folder)
    damage(folder)
    if sentence is None:  # known by its record already; the tokenizer is read when it is needed
        fetched(folder, tmp_path)
        with pytest.raises(ValueError, match="its tokenizer cannot be read"):
            source.load_tokenizer(folder)
        return
    with pytest.raises(ValueError, match=sentence):
        fetched(folder, tmp_path)
    assert not (tmp_path / "record.json").exists()


def test_code_of_a_checkpoint_does_not_run_by_itself(llama, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    _config(model_type="own", auto_map={"AutoConfig": "own.Own"})(folder)
    (folder / "own.py").write_text("raise SystemExit('code of a checkpoint ran')")
    with pytest.raises(ValueError, match=r"if you trust that code, set model\.trust_remote_code"):
        fetched(folder, tmp_path)


def test_a_model_that_went_away_is_missed(tmp_path):
    folder = tiny.llama(tmp_path / "model")
    record = fetched(folder, tmp_path)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no longer exists"):
        source.locate(record, tmp_path)


@pytest.mark.parametrize("content", [b"PK not", None])
def test_what_is_no_gguf_file_is_refused(tmp_path, content):
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="no such GGUF file" if content is None else "not a GGUF"):
        fetched(path, tmp_path)
    assert not list((tmp_path / "models").glob("*"))
