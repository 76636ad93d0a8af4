"""Tests of hub models and datasets with a local server that implements the hub's protocol."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from hub_server import COMMIT, HubServer
from safetensors.torch import load_file

from outlier_atlas.checkpoint.source import fetch
from outlier_atlas.files import DamagedFileError
from outlier_atlas.settings.model import ModelSettings

DRIVER = """
import json, sys
from pathlib import Path
from outlier_atlas.data.prepare import fetch_dataset
from outlier_atlas.checkpoint.source import fetch
from outlier_atlas.roles.architecture import describe
from outlier_atlas.settings.configuration import load

folder, results = Path(sys.argv[1]), {}
for name, config in json.loads((folder / "cases.json").read_text()).items():
    settings = load(config, "run")
    try:
        fetch(settings.model, folder, folder / f"{name}.model.json", describe)
        if settings.dataset.source.startswith("texts/"):
            fetch_dataset(settings.dataset, folder / f"{name}.model.json", folder, False,
                          folder / f"{name}.jsonl", folder / f"{name}.json")
        results[name] = None
    except ValueError as error:
        results[name] = str(error)
print(json.dumps(results))
"""


def model(source, **settings):
    return {"model": {"source": source, **settings}, "dataset": {"source": "./none.txt"}}


def dataset(source="texts/speeches", **settings):
    sizes = {"sequences": 2, "sequence_length": 16}
    return {"model": {"source": "lab/good"}, "dataset": {"source": source, **sizes, **settings}}


CASES = {
    "good": model("lab/good"),
    "by_tag": model("lab/good", revision="v1"),
    "sharded": model("lab/sharded"),
    "gated": model("lab/gated"),
    "missing": model("lab/nothing"),
    "no_revision": model("lab/good", revision="v9"),
    "pickled": model("lab/pickled"),
    "missing_shard": model("lab/missing-shard"),
    "needs_code": model("lab/needs-code"),
    "gptq": model("lab/gptq"),
    "packed": model("lab/packed"),
    "too_few": model("lab/too-few"),
    "no_decoder": model("lab/no-decoder"),
    "no_safetensors": model("lab/no-safetensors"),
    "text": dataset(),
    "subset_and_split": dataset(subset="long", split="test"),
    "other_column": dataset(subset="long", split="test", text_column="body"),
    "shuffled": dataset("texts/many", shuffle_seed=1),
    "named_files": dataset(split="test", text_column="body", files=["long/*.parquet"]),
    "messages": dataset("texts/chats", messages_column="messages", packing="document"),
    "ids": dataset("texts/ids", input_ids_column="ids"),
    "too_little": dataset(sequences=4000),
    "no_dataset": dataset("texts/nothing"),
    "no_dataset_revision": dataset(revision="v9"),
    "no_subset": dataset(subset="short"),
    "no_split": dataset(split="validation"),
    "no_column": dataset(text_column="content"),
    "gated_dataset": dataset("texts/gated"),
    "no_data": dataset("texts/empty"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    models, datasets = root / "models" / "lab", root / "datasets" / "texts"
    tiny.llama(models / "good")
    (models / "good" / "pytorch_model.bin").write_bytes(b"a pickle that nobody asked for")
    (models / "good" / "onnx").mkdir()
    (models / "good" / "onnx" / "model.onnx").write_bytes(b"not wanted")
    tiny.qwen3_moe(models / "sharded")
    shutil.copytree(models / "sharded", models / "missing-shard")
    sorted((models / "missing-shard").glob("*.safetensors"))[1].unlink()
    shutil.copytree(models / "good", models / "gated")
    (models / "gated" / ".gated").touch()
    shutil.copytree(models / "good", models / "pickled")
    (models / "pickled" / "model.safetensors").unlink()
    shutil.copytree(models / "good", models / "needs-code")
    config = json.loads((models / "needs-code" / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (models / "needs-code" / "config.json").write_text(json.dumps(config))
    (models / "needs-code" / "own.py").write_text("raise SystemExit('code of a checkpoint ran')")
    _unusable(models)
    _datasets(datasets)
    return root


def _unusable(models):
    """Models that cannot run, according to their configuration or the headers of their weights."""
    good = json.loads((models / "good" / "config.json").read_text())
    encoder = {"model_type": "distilbert", "vocab_size": 320, "n_layers": 4, "dim": 32}
    for name, config in {
        "gptq": good | {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "packed": good,
        "too-few": good | {"num_hidden_layers": 4000},
        "no-decoder": encoder,
        "no-safetensors": good,
    }.items():
        shutil.copytree(models / "good", models / name)
        (models / name / "config.json").write_text(json.dumps(config))
    (models / "no-safetensors" / "model.safetensors").write_bytes(b"not at all" * 10)
    packed = load_file(models / "packed" / "model.safetensors")
    packed["model.layers.0.mlp.up_proj.weight"] = torch.ones(64, 8, dtype=torch.int32)
    tiny.save_weights(models / "packed", packed)


def _datasets(root):
    def table(path, **columns):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)

    texts = [sentence * 4 for sentence in tiny.SENTENCES]
    table(root / "speeches" / "data" / "train-00000-of-00001.parquet", text=texts)
    table(root / "speeches" / "long" / "test.parquet", text=["long " * 50], body=["body " * 50])
    (root / "speeches" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  default: true\n  data_files:\n"
        "  - split: train\n    path: data/train-*\n"
        "- config_name: long\n  data_files:\n  - split: test\n    path: long/test.parquet\n---\n"
    )
    table(root / "many" / "train.parquet", text=[f"document {i}: {texts[0]}" for i in range(60)])
    shutil.copytree(root / "many", root / "gated")
    (root / "gated" / ".gated").touch()
    (root / "ids").mkdir()
    (root / "ids" / "train.jsonl").write_text(json.dumps({"ids": list(range(4, 60))}) + "\n")
    chat = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am."}]
    (root / "chats").mkdir()
    (root / "chats" / "train.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 3)
    (root / "empty").mkdir()
    (root / "empty" / "picture.bin").write_bytes(b"x")


def environment(home, url):
    drop = {"HF_HUB_OFFLINE", "HF_TOKEN", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"}
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return kept | {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}


def drive(cases, folder, url):
    (folder / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder)],
        env=environment(folder / "home", url), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def outcome(hub, tmp_path_factory):
    """The outcome of each case; one separate process fetches them, as a rule would."""
    folder = tmp_path_factory.mktemp("fetched")
    with HubServer(hub) as server:
        results = drive(CASES, folder, server.url)
        (folder / "requests.txt").write_text("\n".join(server.requests))
    return folder, results


def kept(outcome, name):
    folder, results = outcome
    assert results[name] is None, results[name]
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["good", "by_tag", "sharded"])
def test_a_model_is_fetched_and_its_commit_recorded(outcome, name):
    folder, results = outcome
    assert results[name] is None
    record = json.loads((folder / f"{name}.model.json").read_text())
    assert record["commit"] == COMMIT
    assert record["layers"] == 4
    snapshot = folder / "home/hub" / f"models--lab--{record['repository'][4:]}/snapshots" / COMMIT
    assert all((snapshot / file).stat().st_size for file in record["files"])
    assert (len(record["files"]) > 1) == (name == "sharded")


def test_nothing_but_what_is_needed_is_downloaded(outcome):
    folder, _ = outcome
    fetched = [line for line in (folder / "requests.txt").read_text().splitlines() if "GET" in line]
    assert not [line for line in fetched if line.endswith((".bin", ".onnx", ".py"))]


@pytest.mark.parametrize("name", ["gptq", "packed", "too-few", "no-decoder", "needs-code"])
def test_what_cannot_run_is_refused_before_its_weights_are_fetched(outcome, name):
    folder, _ = outcome
    snapshot = folder / "home/hub" / f"models--lab--{name}/snapshots" / COMMIT
    assert (snapshot / "config.json").exists()
    assert not (snapshot / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gated", "model 'lab/gated' is gated: accept its terms on its page, then log in"),
        ("missing", "model 'lab/nothing': no such model on the hub, or it is private"),
        ("no_revision", "model 'lab/good' has no revision 'v9'"),
        ("pickled", "lab/pickled: only pickled weights (pytorch_model.bin)"),
        ("missing_shard", "lab/missing-shard: model.safetensors.index.json lists"),
        ("needs_code", "if you trust that code, set model.trust_remote_code: true"),
        ("gptq", "its weights are quantized ('gptq') in a way that cannot be dequantized while"),
        ("packed", "model.layers.0.mlp.up_proj.weight is stored as I32, but its config.json"),
        ("too_few", "num_hidden_layers is 4000, but the checkpoint has"),
        ("no_decoder", "distilbert"),
        ("no_safetensors", "lab/no-safetensors: model.safetensors is not a safetensors"),
        ("no_dataset", "dataset 'texts/nothing': no such dataset on the hub"),
        ("no_dataset_revision", "dataset 'texts/speeches' has no revision 'v9'"),
        ("no_subset", "dataset 'texts/speeches'"),
        ("no_split", "dataset 'texts/speeches'"),
        ("no_column", "there is no column 'content'; its columns are 'text'"),
        ("gated_dataset", "dataset 'texts/gated' is gated"),
        ("no_data", "dataset 'texts/empty': it has no data files"),
        ("too_little", "too little text: "),
    ],
)
def test_what_cannot_be_had_is_said_in_one_sentence(outcome, name, sentence):
    folder, results = outcome
    assert results[name] is not None
    assert sentence in results[name]
    assert "\n" not in results[name]
    assert not (folder / f"{name}.json").exists()
    assert not (folder / f"{name}.jsonl").exists()


def test_the_wrong_subset_or_split_names_those_that_are_there(outcome):
    _, results = outcome
    assert "'default', 'long'" in results["no_subset"].replace('"', "'")
    assert "train" in results["no_split"]


def test_a_column_of_a_subset_and_split_is_streamed(outcome):
    assert kept(outcome, "text")[0] == {"text": tiny.SENTENCES[0] * 4}
    assert kept(outcome, "subset_and_split") == [{"text": "long " * 50}]
    assert kept(outcome, "other_column") == [{"body": "body " * 50}]
    assert kept(outcome, "named_files") == [{"body": "body " * 50}]
    assert kept(outcome, "ids") == [{"ids": list(range(4, 60))}]
    assert [m["role"] for m in kept(outcome, "messages")[0]["messages"]] == ["user", "assistant"]


def test_only_what_the_tokens_need_is_kept(outcome):
    assert len(kept(outcome, "shuffled")) < 10


def test_a_shuffle_depends_on_its_seed_alone(outcome, hub, tmp_path):
    first = kept(outcome, "shuffled")
    assert not first[0]["text"].startswith("document 0:")
    cases = {
        "same": CASES["shuffled"],
        "other": dataset("texts/many", shuffle_seed=2),
    }
    with HubServer(hub) as server:
        drive(cases, tmp_path, server.url)
    same, other = ((tmp_path / f"{name}.jsonl").read_text() for name in cases)
    assert [json.loads(line) for line in same.splitlines()] == first
    assert other != same


def test_without_a_network_one_sentence_says_so(tmp_path):
    results = drive({"model": model("lab/good"), "data": dataset()}, tmp_path, "http://127.0.0.1:9")
    for sentence in results.values():
        assert sentence.startswith("model 'lab/good': the hub cannot be reached")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_of_the_cache_is_downloaded_again_and_is_no_other_model(
    hub, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    settings = ModelSettings(source="lab/good")
    record = tmp_path / "models" / "good.json"
    with HubServer(hub) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        fetch(settings, tmp_path, record)
        known = record.read_bytes()
        (blob,) = {path.resolve() for path in (tmp_path / "cache").rglob(f"snapshots/*/{name}")}
        content = blob.read_bytes()
        # In the text of a value, where JSON stays JSON.
        at = content.index(b"llama") if name == "config.json" else len(content) - 1
        blob.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(
            DamagedFileError, match=f"{name} differs from the file on the hub"
        ) as error:
            fetch(settings, tmp_path, record)
        assert error.value.path == blob
        blob.unlink()
        fetch(settings, tmp_path, record)
    assert record.read_bytes() == known


def test_after_fetch_a_whole_run_needs_no_network(hub, tmp_path):
    root = Path(__file__).parents[1]
    config = dataset(revision="v1") | {"detection": {"llm_int8": {"threshold": 2.0}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
    command += ["--workflow-profile", str(root / "profiles/default"), "--cores", "2"]

    def snakemake(target, url):
        return subprocess.run(
            [*command, *target, "--configfile", "mine.yaml"],
            cwd=tmp_path, env=environment(tmp_path / "home", url),
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    with HubServer(hub) as server:
        planned = snakemake(["plan"], server.url)
        assert planned.returncode == 0, planned.stderr
        assert "Plan: 4 layers of LlamaForCausalLM" in planned.stdout
        assert not list((tmp_path / "home").rglob("model.safetensors"))
        fetched = snakemake(["fetch"], server.url)
        assert fetched.returncode == 0, fetched.stderr
    done = snakemake([], "http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "results/mine/report.html").read_text()
    assert html.count(COMMIT) == 2
    assert "fetch" not in done.stderr.split("jobs to run:")[1].split("done in")[0]
