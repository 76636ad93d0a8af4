"""Wrong input from the command line: what a user sees, and what is left.

The tables of what can be wrong are in `test_bad_configuration.py`, `test_bad_checkpoint.py` and
`test_bad_dataset.py`; here a case of each kind goes through Snakemake itself.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import forked
import pytest
import tiny
import yaml
from refused import assert_readable

ROOT = Path(__file__).parents[1]


def snakemake(folder, *arguments, **environment):
    """Run Snakemake on the project; return its exit status and all of its output."""
    command = [forked.python(), "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--workflow-profile", str(ROOT / "profiles" / "default"), "--cores", "2"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"OUTLIER_ATLAS_MAKE": "", "HF_HUB_OFFLINE": "1"} | environment,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and texts, valid and invalid ones."""
    folder = tmp_path_factory.mktemp("project")
    tiny.llama(folder / "model")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.jsonl").write_text(json.dumps({"text": tiny.SENTENCES[0] * 9}) + "\n")
    for name in ("pickled", "cut", "bad-tokenizer"):
        shutil.copytree(folder / "model", folder / name)
    (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    (folder / "cut" / "model.safetensors").write_bytes(b"12345678")
    (folder / "bad-tokenizer" / "tokenizer.json").write_text("{")
    (folder / "esc.csv").write_text("\x1b[2Jcolumn\nx\n")
    return folder


def written(folder, name, **sections):
    dataset = {"source": "./texts", "sequences": 2, "sequence_length": 16}
    config = {"model": {"source": "./model"}, "dataset": dataset}
    for section, keys in sections.items():
        config[section] = config.get(section, {}) | keys
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{name}.yaml"


JOBS = {
    "no-model": ("fetch_model", {"model": {"source": "./none"}}, "'./none': no such folder"),
    "pickled": ("fetch_model", {"model": {"source": "./pickled"}}, "only pickled weights"),
    "cut": ("fetch_model", {"model": {"source": "./cut"}}, "truncated, or not a safetensors file"),
    "gguf": ("fetch_model", {"model": {"source": "./none.gguf"}}, "no such GGUF file"),
    "offline": ("fetch_model", {"model": {"source": "lab/model"}}, "the hub cannot be reached (of"),
    "no-data": ("tokenize_dataset", {"dataset": {"source": "./none.txt"}}, "no such file or folde"),
    "esc": ("tokenize_dataset", {"dataset": {"source": "esc.csv"}}, r"columns are '\x1b[2Jcolumn'"),
    "tokenizer": ("tokenize_dataset", {"model": {"source": "./bad-tokenizer"}}, "its tokenizer ca"),
    "no-layer": ("create_store", {"extraction": {"layers": [9]}}, "the model has no layer 9; it h"),
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_is_refused_ends_in_one_line_and_leaves_only_its_log(name, folder):
    rule, sections, sentence = JOBS[name]
    status, said = snakemake(folder, "--configfile", written(folder, name, **sections))
    assert status == 1
    (line,) = re.findall(rf"^{rule}: .*$", said, re.MULTILINE)
    assert sentence in line
    assert_readable(line)
    assert "Traceback" not in said
    assert "\x1b[2J" not in said
    # What Snakemake says around it names no file of ours, nor the command that it ran.
    around = said.split(line)[1]
    assert "workflow/scripts" not in around
    assert "CalledProcessError" not in around
    (log,) = re.findall(rf" {rule}: failed; log: (\S+)$", around, re.MULTILINE)
    assert "Traceback" in (folder / log).read_text()
    (snakemakes,) = re.findall(r"^Complete log\(s\): (.*)$", around, re.MULTILINE)
    outputs = re.findall(r"^    output: (.*)$", Path(snakemakes).read_text(), re.MULTILINE)
    assert not [file for file in outputs[0].split(", ") if (folder / file).exists()]
    assert not [path for path in (folder / "results").rglob(".*") if path.is_file()]


CONFIGURATIONS = {
    "twice": ("model: {source: ./a}\nmodel: {source: ./b}\n", "line 2: 'model' is a repeated key"),
    "bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{f'*{a},' * 10}]\n" for a, b in pairwise("abcdef")),
        "more than 10,000 values with all aliases",
    ),
    "unknown": ("model: {source: ./a}\ndataset: {source: ./t}\nrun: {nam: x}\n", "did you mean 'n"),
    "escape": ('model: {source: "\\e[2J"}\ndataset: {source: ./t}\n', r"model.source = '\x1b[2J'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_wrong_configuration_ends_in_one_line_before_anything_runs(name, tmp_path):
    content, sentence = CONFIGURATIONS[name]
    (tmp_path / f"{name}.yaml").write_text(content)
    status, said = snakemake(tmp_path, "--configfile", f"{name}.yaml")
    assert status == 1
    (line,) = [line for line in said.splitlines() if line.startswith(f"{name}.yaml: ")]
    assert sentence in line
    assert "Traceback" not in said
    assert not (tmp_path / "results").exists()
    _, said = snakemake(tmp_path, "--configfile", f"{name}.yaml", OUTLIER_ATLAS_TRACEBACK="1")
    assert "Traceback" in said


@pytest.mark.parametrize("content", ["model: {source\n", "- a\n", ""])
def test_snakemake_itself_refuses_what_is_no_mapping(content, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    status, said = snakemake(tmp_path, "--configfile", "mine.yaml")
    assert status == 1
    assert "Traceback" not in said
    assert re.search(r"^Config file .*", said, re.MULTILINE)


@pytest.mark.parametrize("target", ["run", "plan"])
def test_make_says_where_a_file_is_no_yaml(target, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"model: {source: \xff}\n")
    rules = (ROOT / "Makefile").read_text().split(f"\n{target}: ")[1].split("\n\n")[0]
    assert rules.splitlines()[1] == "\t$(CHECK)"
    done = subprocess.run(
        [sys.executable, "-m", "outlier_atlas.settings.document", "mine.yaml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "mine.yaml: not UTF-8, at byte 16; convert it, with iconv\n"
