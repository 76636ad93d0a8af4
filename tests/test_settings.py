"""Tests of the configuration: refused values, generated documentation, and agreement of files."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from outlier_atlas import documentation
from outlier_atlas.settings import sites
from outlier_atlas.settings.configuration import Settings, load
from outlier_atlas.settings.source import source_kind

ROOT = Path(__file__).parents[1]
LEAST = {"model": {"source": "./model"}, "dataset": {"source": "./text.txt"}}


def with_key(key, value):
    """Return the minimal configuration with one key set."""
    config = json.loads(json.dumps(LEAST))
    *path, last = key.split(".")
    section = config
    for part in path:
        section = section.setdefault(part, {})
    section[last] = value
    return config


def faults(config):
    with pytest.raises(ValueError) as error:
        load(config, "run")
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("modle", {}, "modle: unknown key; did you mean 'model'?"),
        ("model", None, "model = None: must be a section with the keys source, revision, dtype, "),
        ("model", "gpt2", "model = 'gpt2': must be a section with the keys source"),
        ("model.source", "", "model.source = '': must not be empty"),
        ("model.source", 7, "model.source = 7: must be text"),
        ("model.source", "builtin:gpt5", "model.source = 'builtin:gpt5': no such built-in; take"),
        ("model.revision", "main", "model: revision 'main': only a hub id has revisions"),
        ("model.dtype", "fp8", "model.dtype = 'fp8': must be 'bfloat16', 'float16' or 'float32'"),
        ("model.dtype", None, "model.dtype = None: must be 'bfloat16', 'float16' or 'float32'"),
        ("model.trust_remote_code", "yes", "model.trust_remote_code = 'yes': must be true or fals"),
        ("model.trust_remote_code", 1, "model.trust_remote_code = 1: must be true or false"),
        ("dataset.sequences", 0, "dataset.sequences = 0: must be at least 1"),
        (
            "dataset.sequences",
            "4",
            "dataset.sequences = '4': must be a whole number, not text: write",
        ),
        ("dataset.sequences", 4.0, "dataset.sequences = 4.0: must be a whole number"),
        ("dataset.sequences", True, "dataset.sequences = True: must be a whole number"),
        ("dataset.sequences", 2**31, "dataset.sequences = 2147483648: must be below 2147483648"),
        ("dataset.sequence_length", 1, "dataset.sequence_length = 1: must be at least 2"),
        ("dataset.packing", "pad", "dataset.packing = 'pad': must be 'concat' or 'document'"),
        ("dataset.bos", True, "dataset.bos = True: must be 'auto', 'always' or 'never'"),
        ("dataset.subset", "en", "dataset: subset 'en': only a hub dataset or a folder has one"),
        ("dataset.min_length", 9, "dataset: min_length 9 needs packing: document"),
        ("dataset.shuffle_seed", -1, "dataset.shuffle_seed = -1: must be at least 0"),
        ("dataset.text_colum", "x", "dataset.text_colum: unknown key; did you mean 'text_column'?"),
        ("extraction.sites", [], "extraction.sites = []: must not be empty"),
        ("extraction.sites", "attn_in", "extraction.sites = 'attn_in': must be a list"),
        ("extraction.sites", ["attn_inn"], "extraction.sites[0] = 'attn_inn': must be 'resid_pre'"),
        ("extraction.sites", ["mlp_in", "mlp_in"], "'mlp_in' is named more than once"),
        ("extraction.layers", "some", "extraction.layers = 'some': must be 'all' or a list"),
        ("extraction.layers", [], "extraction.layers = []: must not be empty"),
        ("extraction.layers", [-1], "extraction.layers[0] = -1: must be at least 0"),
        ("extraction.layers", [3, 3], "3 is named more than once"),
        ("extraction.layer_groups", 0, "extraction.layer_groups = 0: must be at least 1"),
        ("extraction.layer_groups", "some", "must be a whole number or 'auto'"),
        ("extraction.layer_groups", 4097, "extraction.layer_groups = 4097: must be at most 4096"),
        ("extraction.sequence_shards", 5, "extraction.sequence_shards = 5: above dataset.sequence"),
        ("extraction.advanced.chunk_tokens", "big", "extraction.advanced.chunk_tokens = 'big': m"),
        ("extraction.advanced.chunk_tokens", 0, "extraction.advanced.chunk_tokens = 0: must be at"),
        ("extraction.advanced.compression", "gzip", "extraction.advanced.compression = 'gzip': m"),
        ("detection.llm_int8.threshold", 0, "detection.llm_int8.threshold = 0: must be above 0"),
        ("detection.llm_int8.threshold", float("nan"), "detection.llm_int8.threshold = nan: must"),
        ("detection.llm_int8.layer_share", 25, "detection.llm_int8.layer_share = 25: must be at m"),
        ("detection.massive_activations.median", "mean", "must be 'tensor' or 'token'"),
        (
            "detection.hyper_weights",
            {},
            "detection.hyper_weights: unknown key; did you mean 'super_weights'?",
        ),
        ("report.text", "some", "report.text = 'some': must be 'full', 'tokens' or 'none'"),
        ("report.title", "x" * 201, "must have at most 200 characters"),
        ("report.rows", 0, "report.rows = 0: must be at least 1"),
        ("report.compare", "../other", "report.compare = '../other': must be letters, digits"),
        ("execution.device", "gpu", "execution.device = 'gpu': must be 'auto', 'cuda', 'mps' or"),
        (
            "execution.device_memory",
            "24GB",
            "execution.device_memory = '24GB': must be a number and",
        ),
        ("execution.device_memory", 24, "execution.device_memory = 24: must be text"),
        ("execution.batch_size", 0, "execution.batch_size = 0: must be at least 1"),
        ("run.name", "../elsewhere", "run.name = '../elsewhere': must be letters, digits"),
        ("run.name", ".hidden", "run.name = '.hidden': must be letters, digits"),
        ("run.name", "a/b", "run.name = 'a/b': must be letters, digits"),
        ("run.name", "a\x1b[2J", r"run.name = 'a\x1b[2J': must be letters, digits"),
        (7, {}, "7: unknown key; keys are text"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_key_value_and_what_is_allowed(key, value, line):
    config = LEAST | {key: value} if isinstance(key, int) else with_key(key, value)
    (said,) = faults(config)
    assert line in said
    assert len(said) < 400


def test_every_fault_has_its_own_line():
    config = with_key("dataset.sequences", 0)
    config["model"]["dtyp"] = "float32"
    config["report"] = {"rows": "many", "text": "some"}
    assert len(faults(config)) == 4


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({}, "model: missing; The model: its source and its dtype."),
        ({"model": {}}, "model.source: missing; `builtin:smollm2-135m-instruct`, a local folder"),
    ],
)
def test_what_is_missing_is_said_with_what_it_is(config, line):
    assert any(said.startswith(line) for said in faults(config))


def test_two_columns_or_a_chunk_over_two_shards_are_refused():
    config = with_key("dataset.text_column", "a")
    config["dataset"]["messages_column"] = "b"
    assert "text_column and messages_column are both set: name one column only" in faults(config)[0]
    config = with_key("dataset.sequence_length", 100)
    config["dataset"]["sequences"] = 3
    config["extraction"] = {"sequence_shards": 2, "advanced": {"chunk_tokens": 64}}
    assert "a chunk would straddle two sequence shards" in faults(config)[0]
    config["extraction"]["advanced"]["chunk_tokens"] = 50
    assert load(config, "run").chunk_tokens == 50


def test_layers_above_the_groups_are_refused():
    config = LEAST | {"extraction": {"layers": [0, 1], "layer_groups": 3}}
    assert "layer_groups 3 is above the 2 layers that must run" in faults(config)[0]


def test_the_order_of_sites_and_layers_means_nothing():
    one, two = (
        load(LEAST | {"extraction": {"sites": sites, "layers": layers}}, "run")
        for sites, layers in ((["mlp_in", "attn_in"], [3, 1]), (["attn_in", "mlp_in"], [1, 3]))
    )
    assert one.model_dump(mode="json") == two.model_dump(mode="json")


@pytest.mark.parametrize(
    ("length", "chunk"), [(2048, 2048), (4096, 4096), (8192, 4096), (100, 100), (5000, 2500)]
)
def test_automatic_chunks_divide_the_sequence(length, chunk):
    assert load(with_key("dataset.sequence_length", length), "run").chunk_tokens == chunk


@pytest.mark.parametrize(
    ("name", "run"), [("mine", "mine"), ("my run!", "my-run"), ("../..", "run"), ("é", "run")]
)
def test_a_run_is_named_for_its_file_and_stays_in_its_folder(name, run):
    assert load(LEAST, name).name == run


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("Qwen/Qwen3-30B-A3B", "hub"), ("gpt2", "hub"), ("./gpt2", "local"), ("~/gpt2", "local"),
        ("/models/x", "local"), ("../x", "local"), ("x.gguf", "gguf"), ("/a/x.gguf", "gguf"),
        ("texts.jsonl", "local"), ("builtin:sotu", "builtin"), (".", "local"),
    ],
)  # fmt: skip
def test_a_source_says_by_itself_where_it_comes_from(source, kind):
    assert source_kind(source) == kind


# --- What must agree -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", documentation.files(ROOT))
def test_generated_documentation_is_up_to_date(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text == documentation.files(ROOT)[path], "run `make docs`"


def test_every_key_and_its_default_is_documented():
    reference = documentation.reference()
    schema = Settings.model_json_schema()
    sections = [d for d in (schema, *schema["$defs"].values()) if "properties" in d]
    keys = [key for section in sections for key in section["properties"]]
    assert len(keys) > 40
    for key in keys:
        assert f"`{key}`" in reference or f"{key}`" in reference, key
    described = [p for s in sections for p in s["properties"].values()]
    assert all(p.get("description") for p in described)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda path: path.stem
)
def test_what_we_hand_out_is_a_valid_configuration(path):
    loaded = load(yaml.safe_load(path.read_text()), path.stem)
    assert loaded.name == ("smollm2-demo" if path.stem == "config" else path.stem)


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split(" ;")[0].strip().split("==") for line in lines if "==" in line)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "workflow" / "envs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_environments_have_the_pinned_versions(path):
    pip = yaml.safe_load(path.read_text())["dependencies"][-1]["pip"]
    pinned = pins()
    for requirement in pip:
        name, version = requirement.split("==")
        assert pinned[name] == version


@pytest.mark.parametrize(
    ("rules", "environment"),
    [
        (["fetch_dataset", "tokenize_dataset"], "data"),
        (["detect_outliers"], "detection"),
        (["render_report"], "report"),
    ],
)
def test_a_light_rule_imports_nothing_that_its_environment_lacks(rules, environment):
    """Compare the installed packages that the rules' modules import with the environment file."""
    names = {"yaml": "pyyaml", "huggingface_hub": "huggingface-hub", "markupsafe": "jinja2",
             "annotated_types": "pydantic", "pydantic_core": "pydantic", "httpx": "huggingface-hub",
             "tokenizers": "transformers"}  # fmt: skip
    text = (ROOT / "workflow/envs" / f"{environment}.yaml").read_text()
    code = "; ".join(f"import {rule}" for rule in rules)
    script = f"""
import sys; sys.path.insert(0, {str(ROOT / "workflow/scripts")!r}); {code}
import importlib.metadata as m
known = m.packages_distributions()
print(*sorted({{n.split(".")[0] for n in sys.modules}} & set(known)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "torch" not in loaded, "seconds of every job"
    direct = {
        match
        for module in loaded_modules(rules)
        for match in re.findall(r"^(?:from|import) (\w+)", module.read_text(), re.MULTILINE)
    }
    for name in direct & loaded - {"outlier_atlas", "rule_main"}:
        assert names.get(name, name.replace("_", "-")) in text, f"{name} in envs/{environment}.yaml"


def loaded_modules(rules):
    from outlier_atlas.sources import Sources

    scripts = ROOT / "workflow/scripts"
    return {scripts / path for rule in rules for path in Sources(scripts).of(f"{rule}.py")}


def test_the_settings_import_neither_torch_nor_zarr():
    code = "import sys, outlier_atlas.workflow; print({'torch', 'zarr'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_site_is_declared_and_the_types_are_what_the_declarations_say():
    assert set(sites.DECLARED) == set(sites.SITES)
    assert {*get_args(sites.AlterableSite)} < {*sites.CHANNEL_SITES}
    assert {*sites.LINEAR_INPUTS} < {*get_args(sites.AlterableSite)}
    table = sites.markdown().splitlines()
    assert len(table) == 2 + len(sites.SITES)
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
