"""What a Snakemake process imports to read the Snakefile, and what jobs without a model import."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import tiny
from test_workflow import CONFIG, snakemake, write

from outlier_atlas.sources import IMPORT

WORKFLOW = Path(__file__).parents[1] / "workflow"
HEAVY = {"numpy", "pyarrow", "torch", "transformers", "datasets", "zarr", "matplotlib"}
AT_EVENTS = ["outlier_atlas.terminal.handler"]
"""Modules that Snakemake's process imports once jobs are planned."""

IMPORTED = """\
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    module, _, attribute = name.partition(":")
    importlib.import_module(module)
    if attribute:
        try:
            importlib.import_module(f"{module}.{attribute}")
        except ModuleNotFoundError:
            getattr(sys.modules[module], attribute)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def imports():
    """What the Snakefile and its rules import of the library: `module:name`."""
    for path in (WORKFLOW / "Snakefile", *(WORKFLOW / "rules").glob("*.smk")):
        for statement in IMPORT.findall(path.read_text()):
            if statement.startswith("from outlier_atlas"):
                (node,) = ast.parse(statement).body
                yield from (f"{node.module}:{alias.name}" for alias in node.names)


def imported(names):
    """The top-level packages that a new process has once it has imported the names."""
    command = [sys.executable, "-c", IMPORTED, json.dumps(names)]
    done = subprocess.run(
        command, cwd=WORKFLOW / "scripts", capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_the_snakefile_is_read_without_numpy():
    names = sorted({*imports()})
    assert {"outlier_atlas:tables", "outlier_atlas.report:figures"} <= {*names}
    assert not HEAVY & imported([*names, *AT_EVENTS])


def test_tokenizing_imports_no_torch_and_gives_the_same_tokens(tmp_path):
    tiny.llama(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for index, sentence in enumerate(tiny.SENTENCES):
        (tmp_path / "texts" / f"{index}.txt").write_text(sentence * 3)
    write(tmp_path, CONFIG)
    tokens = ["--configfile", "mine.yaml", "--until", "tokenize_dataset"]
    snakemake(tmp_path, *tokens)  # torch is there before the job begins
    (path,) = (tmp_path / "resources/tokens").glob("*.parquet")
    before = path.read_bytes()
    path.unlink()
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPROFILEIMPORTTIME": "1"}
    done = snakemake(tmp_path, *tokens, env=env, python=sys.executable)
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "transformers.tokenization_utils_tokenizers" in imported
    assert "torch" not in imported
    assert "PyTorch was not found" not in done.stdout + done.stderr
    assert path.read_bytes() == before
