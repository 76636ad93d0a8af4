"""Tests that foreign text is not interpreted, foreign code never runs, and secrets stay secret."""

import ast
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import tiny
import yaml
from hub_server import HubServer
from pipeline import Run, config

import rule_main
from outlier_atlas import tables
from outlier_atlas.builtin import Package
from outlier_atlas.builtin import fetch as fetch_package
from outlier_atlas.checkpoint.source import fetch, load_config, load_tokenizer
from outlier_atlas.criteria.figure import Drawing, Line, Lines
from outlier_atlas.criteria.massive_activations.tables import MASSIVE_CHANNELS
from outlier_atlas.data.tokens import write_tokens
from outlier_atlas.planned_run import PlannedRun
from outlier_atlas.report import static
from outlier_atlas.report.svg import svg
from outlier_atlas.report.theme import THEMES
from outlier_atlas.sanitize import VisibleFormatter, redacted, visible
from outlier_atlas.settings.configuration import load

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "workflow" / "scripts").rglob("*.py"))
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
"""Invisible characters that control a terminal or a page; line breaks are allowed."""

pytestmark = pytest.mark.usefixtures("own_logging")

# --- Text ----------------------------------------------------------------------------------------

HOSTILE = {
    "clear the screen": "\x1b[2J\x1b[H",
    "set the title": "\x1b]0;owned\x07",
    "an 8-bit escape": "\x9b2J",
    "overwrite the line": "fine\rbroken",
    "delete": "a\x7f\x08",
    "NUL": "a\x00b",
    "right to left": "\u202egpj.exe",
    "isolates": "\u2066x\u2069",
    "zero width": "a\u200b\u200d\ufeffb",
    "tags": "a\U000e0041\U000e0042",
    "half a pair": "a\udcff",
    "line separators": "a\u2028b\u2029c\x85d",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_print_is_made_visible(name):
    shown = visible(HOSTILE[name])
    assert not OBEYED.search(shown)
    assert shown.isprintable()
    assert shown != HOSTILE[name]


def ended(error, tmp_path, capsys):
    """Return the terminal output and the log of a job that ends in an error."""
    log = tmp_path / "job.log"

    def main(_):
        logging.getLogger("outlier_atlas.somewhere").info("on the way: %s", error)
        logging.getLogger("another.library").warning("aside: %s", error)
        raise error

    job = SimpleNamespace(rule="a_rule", threads=1, log=[log], input={}, output={})
    with pytest.raises(SystemExit) as exit_status:
        rule_main.run(main, job)
    assert exit_status.value.code == 1
    return capsys.readouterr().err, log.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", HOSTILE)
def test_an_error_or_a_log_line_cannot_move_the_cursor(name, tmp_path, capsys):
    terminal, log = ended(ValueError(f"column {HOSTILE[name]!s} of it"), tmp_path, capsys)
    assert not OBEYED.search(terminal)
    assert not OBEYED.search(log)
    assert terminal.count("\n") == 2
    assert "Traceback" not in terminal
    assert "Traceback (most recent call last):\n" in log
    assert "aside: column" in log


def test_the_terminal_has_the_trace_where_it_is_wanted(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OUTLIER_ATLAS_TRACEBACK", "1")
    terminal, _ = ended(ValueError("\x1b[2J"), tmp_path, capsys)
    assert "Traceback (most recent call last):\n" in terminal
    assert not OBEYED.search(terminal)


def test_a_system_error_names_the_file_and_not_a_number(tmp_path, capsys):
    terminal, _ = ended(PermissionError(13, "Permission denied", "/a/file"), tmp_path, capsys)
    assert terminal.endswith("a_rule: /a/file: Permission denied\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_snakemake_says_no_name_that_a_terminal_obeys(name):
    source = f"./texts/{HOSTILE[name]}.txt"
    config = {"model": {"source": source}, "dataset": {"source": source}}
    try:
        run = PlannedRun(load(config, "mine"), keep_digests=False)
        shown = f"{run.model.title} {run.dataset.title} {run.heldout.title}"
    except ValueError as refused:  # NUL, and half a surrogate pair
        shown = str(refused)
    assert shown and not OBEYED.search(shown)


TOKENS = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2",
    "@SUM(A1)",
    "\t=1",
    'a"b,c',
    "line\nbreak",
    "$x^2$",
    "\x1b[2J",
]


def test_the_csv_has_exactly_what_the_parquet_has(tmp_path):
    """A token that looks like a formula is data, and must be read back unchanged."""
    rows = {column.name: [None] * len(TOKENS) for column in MASSIVE_CHANNELS.columns}
    tables.write(tmp_path, MASSIVE_CHANNELS, rows | {"token_text": TOKENS})
    exact = pq.read_table(tmp_path / "massive_channels.parquet")["token_text"].to_pylist()
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    read = pyarrow.csv.read_csv(tmp_path / "massive_channels.csv", parse_options=options)
    assert read["token_text"].to_pylist() == exact == TOKENS


def test_half_a_surrogate_pair_of_a_tokenizer_is_replaced(tmp_path):
    write_tokens(tmp_path / "t.parquet", [[1]], lambda _: "a\udcff", lambda _: ["\ud800b"])
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["token_text"].to_pylist() == ["a\N{REPLACEMENT CHARACTER}"]
    assert table["text"].to_pylist() == ["\N{REPLACEMENT CHARACTER}b"]


@pytest.mark.parametrize("text", ["$\\frac{1}{2}$", "<script>alert(1)</script>", "&lt; ]]> -->"])
def test_text_in_a_figure_is_drawn_as_it_is(text, tmp_path):
    lines = [Line(text, [1.0, 2.0], "first", "o")]
    drawing = Drawing("q", Lines([0, 1], lines, text, title=text, notes=[(0, 1.0, text)]), text)
    static.save(tmp_path / "figure", drawing, THEMES[0])
    of_page = svg("q-kurtosis", drawing, text)
    for drawn in (tmp_path / "figure.svg").read_text(), of_page:
        elements = list(ElementTree.fromstring(drawn).iter())
        tags = {element.tag.rpartition("}")[2] for element in elements}
        assert not tags & {"script", "foreignObject", "image", "a"}
        assert not re.search(r"\son\w+=", drawn)
    texts = [element.text for element in elements if element.tag == "text"]
    assert texts.count(text) == 5, "legend, title, axis, note and footnote"
    assert elements[0].get("aria-label") == text


@pytest.mark.parametrize(
    "name",
    ["../../etc", "..", "/etc/passwd", ".", "~", "a/b", "a\\b", "\x1b[2J", "a\nb", "con$(id)"],
)
def test_a_run_stays_in_results_whatever_its_file_is_called(name):
    least = {"model": {"source": "./m"}, "dataset": {"source": "./t"}}
    run = load(least, name).name
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run)
    assert (Path("/results") / run).resolve().parent == Path("/results")
    with pytest.raises(ValueError, match=r"run\.name"):
        load(least | {"run": {"name": name}}, "run")


# --- Code of strangers ---------------------------------------------------------------------------

FORBIDDEN = {
    "pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "torch.load",
    "torch.jit.load", "torch.hub.load", "eval", "exec", "compile", "__import__", "os.system",
    "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle",
}  # fmt: skip


def called(tree):
    """Yield the dotted names of imports and calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name for alias in node.names)
            yield getattr(node, "module", None) or ""
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_no_pickle_is_loaded_and_no_text_is_run(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not FORBIDDEN & set(called(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert "shell" not in keywords
            assert keywords.get("allow_pickle", "False") == "False"
            if ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle") == "False"


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


CODE = "import pathlib\npathlib.Path({!r}).touch()\n"


@pytest.fixture
def poisoned(llama, tmp_path):
    """A valid checkpoint with code that must not run, and the file that the code would create."""
    mark, folder = tmp_path / "it ran", tmp_path / "model"
    shutil.copytree(llama, folder)
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    (folder / "own.py").write_text(CODE.format(str(mark)))
    for name, auto in (
        ("config.json", {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.T", None]}),
    ):
        held = json.loads((folder / name).read_text()) | {"auto_map": auto}
        (folder / name).write_text(json.dumps(held))
    return folder, mark


def test_the_bomb_would_go_off(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_a_poisoned_checkpoint_runs_and_nothing_in_it_does(poisoned, tmp_path):
    folder, mark = poisoned
    run = Run(tmp_path, config(folder, [[5, 6, 7]], tmp_path / "data"))
    run.all()
    assert run.array("attn_in").shape == (4, 3, 32)
    assert not mark.exists()


def test_code_that_a_checkpoint_needs_is_refused_and_not_run(poisoned, tmp_path):
    folder, mark = poisoned
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "own"}))
    with pytest.raises(ValueError, match="trust_remote_code: true"):
        load_config(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Own"}))
    with pytest.raises(ValueError, match="trust_remote_code: true"):
        load_tokenizer(folder)
    assert not mark.exists()
    with pytest.raises(ValueError, match="not a configuration that transformers knows"):
        load_config(folder, trust_remote_code=True)
    assert mark.exists(), "the code is such as would have run"


def test_a_datasets_own_script_and_pickles_are_not_run(tmp_path):
    """A dataset script of the hub, which `datasets` would run, has no data files for us."""
    mark = tmp_path / "it ran"
    repository = tmp_path / "hub" / "datasets" / "texts" / "scripted"
    repository.mkdir(parents=True)
    (repository / "scripted.py").write_text(CODE.format(str(mark)))
    (repository / "train.pkl").write_bytes(pickle.dumps(Bomb(mark)))
    code = """
from outlier_atlas.data import hub
from outlier_atlas.settings.dataset import DatasetSettings
settings = DatasetSettings(source="texts/scripted")
try: print(list(hub.stream(settings, hub.resolve(settings))))
except ValueError as error: print("refused:", error)
"""
    with HubServer(tmp_path / "hub") as server:
        done = python(["-c", code], tmp_path, {"HF_ENDPOINT": server.url})
    assert done.stdout.startswith("refused: dataset 'texts/scripted'"), done.stderr
    assert not mark.exists()


# --- Secrets -------------------------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_canaryAAAAAAAAAAAAAAAAAAAA",
    "HUGGING_FACE_HUB_TOKEN": "hf_canaryBBBBBBBBBBBBBBBBBBBB",
    "AWS_ACCESS_KEY_ID": "canaryCCCCCCCCCCCC",
    "AWS_SECRET_ACCESS_KEY": "canaryDDDDDDDDDDDDDDDDDDDD",
    "AWS_SESSION_TOKEN": "canaryEEEEEEEEEEEEEEEE",
    "OPENAI_API_KEY": "sk-canaryFFFFFFFFFFFF",
    "MY_PASSWORD": "canaryGGGGGGGG",
}
CANARY = re.compile(rb"canary[A-Z]{4}|pass-canary")


def python(arguments, folder, environment):
    kept = {
        k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    }
    own = {"HF_HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1", "OUTLIER_ATLAS_MAKE": ""}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=kept | own | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_secrets_in_a_line_are_blotted_out():
    line = f"GET https://me:pass-word@host/x with {SECRETS['HF_TOKEN']}, token true"
    environment = SECRETS | {"TOKENIZERS_PARALLELISM": "true"}
    assert redacted(line, environment) == "GET https://***@host/x with ***, token true"


def test_a_trace_is_blotted_out_as_well(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    try:
        raise RuntimeError(f"Authorization: Bearer {SECRETS['HF_TOKEN']}")
    except RuntimeError:
        text = traceback.format_exc()
    record = logging.LogRecord("a", logging.DEBUG, "b", 1, "%s", (text,), None)
    assert not CANARY.search(VisibleFormatter().format(record).encode())


def test_an_index_with_a_password_is_not_repeated(tmp_path, monkeypatch, caplog):
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:pass-canary@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ValueError) as error:
        fetch_package(Package("atlas-nothing==1", None, "x", "0", 1, "MIT"), tmp_path / "kept")
    assert "pass-canary" not in redacted(str(error.value) + caplog.text)


@pytest.fixture(scope="module")
def remains(tmp_path_factory):
    """Runs of the real workflow with secrets in the environment, of which one succeeds."""
    folder = tmp_path_factory.mktemp("secret")
    tiny.llama(folder / "hub" / "models" / "lab" / "good")
    shutil.copytree(folder / "hub" / "models" / "lab" / "good", folder / "model")
    shutil.copytree(folder / "model", folder / "hub" / "models" / "lab" / "gated")
    (folder / "hub" / "models" / "lab" / "gated" / ".gated").touch()
    (folder / "texts").mkdir()
    (folder / "texts" / "0.txt").write_text(tiny.SENTENCES[0] * 9)
    dataset = {"source": "./texts", "sequences": 2, "sequence_length": 16}
    sources = {
        "good": "./model",
        "gated": "lab/gated",
        "missing": "lab/nothing",
        "down": "lab/good",
    }
    command = ["-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--workflow-profile"]
    command += [str(ROOT / "profiles" / "default"), "--cores", "2", "--configfile"]
    said = {}
    with HubServer(folder / "hub") as server:
        for name, source in sources.items():
            held = {"model": {"source": source}, "dataset": dataset}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(held))
            host = "127.0.0.1:9" if name == "down" else server.url.removeprefix("http://")
            environment = SECRETS | {"HF_ENDPOINT": f"http://me:pass-canary@{host}"}
            done = python([*command, f"{name}.yaml"], folder, environment)
            said[name] = (done.returncode, done.stdout + done.stderr)
    return folder, said


@pytest.mark.slow
def test_runs_with_secrets_end_as_they_should(remains):
    _, said = remains
    assert [code for code, _ in said.values()] == [0, 1, 1, 1], said
    for name, (_, output) in said.items():
        assert "Traceback" not in output
        if name != "good":
            assert len(re.findall(r"^fetch_model: model 'lab/", output, re.MULTILINE)) == 1


@pytest.mark.slow
def test_no_secret_is_in_anything_that_a_run_leaves_or_says(remains):
    folder, said = remains
    for output in said.values():
        assert not CANARY.search(output[1].encode())
    files = [p for p in folder.rglob("*") if p.is_file() and "hub" not in p.parts[-4:]]
    assert len([p for p in files if "results" in p.parts]) > 50
    assert {".snakemake", "logs"} <= {part for p in files for part in p.parts}
    leaking = [p for p in files if CANARY.search(p.read_bytes())]
    assert not leaking


def test_a_model_is_fetched_without_a_word_of_the_token(tmp_path, monkeypatch):
    """The record of a local model contains nothing of the environment."""
    tiny.llama(tmp_path / "model")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings = load(
        {"model": {"source": str(tmp_path / "model")}, "dataset": {"source": "./t"}}, "r"
    )
    fetch(settings.model, tmp_path, tmp_path / "record.json")
    assert not CANARY.search((tmp_path / "record.json").read_bytes())
