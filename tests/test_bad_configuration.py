"""Tests of invalid configuration files, one of each kind, and of the messages about them.

Single values of wrong types and ranges are also tested in `test_settings.py`.
"""

import subprocess
import sys

import pytest
import yaml
from refused import assert_readable

from outlier_atlas.settings.document import settings

LEAST = "model: {source: ./m}\ndataset: {source: ./t}\n"


def with_line(line):
    return LEAST + line + "\n"


def model(line):
    return f"model: {{source: ./m, {line}}}\ndataset: {{source: ./t}}\n"


def dataset(line):
    return f"model: {{source: ./m}}\ndataset: {{source: ./t, {line}}}\n"


def source(name):
    return f"model: {{source: {name}}}\ndataset: {{source: ./t}}\n"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)

FILES = {
    "empty": ("", "a configuration has keys"),
    "only a comment": ("# nothing\n", "a configuration has keys"),
    "a list": ("- model\n- dataset\n", "a configuration has keys"),
    "a word": ("model\n", "a configuration has keys"),
    "a number": ("7\n", "a configuration has keys"),
    "null": ("null\n", "a configuration has keys"),
    "no closing brace": ("model: {source: ./m\n", "line 2, column 1: not YAML"),
    "a tab": ("model:\n\tsource: ./m\n", "line 2, column 1: not YAML (found character"),
    "an open quote": ('model: {source: "./m}\n', "not YAML (found unexpected end of stream)"),
    "bad indentation": ("model:\n  source: ./m\n dtype: x\n", "line 3, column 2: not YAML"),
    "a colon too many": ("model: source: ./m\n", "line 1, column 14: not YAML (mapping values"),
    "an unknown alias": ("model: *m\n", "line 1, column 8: not YAML (found undefined alias"),
    "two documents": (LEAST + "---\n" + LEAST, "line 3, column 1: not YAML"),
    "a control character": ("model: \x07\n", "not YAML (unacceptable character"),
    "not UTF-8": (b"model: {source: \xff}\n", "not UTF-8, at byte 16; convert it"),
    "UTF-16": (LEAST.encode("utf-16"), "not UTF-8, at byte 0"),
    "binary": (bytes(range(256)), "not UTF-8, at byte 128"),
    "a section twice": (LEAST + "model: {source: ./n}\n", "line 3: 'model' is a repeated key, fir"),
    "a key twice": (model("dtype: float32, dtype: float16"), "'dtype' is a repeated key"),
    "a key twice, by merging": ("a: &a {x: 1}\n<<: *a\n<<: *a\n", "line 3: '<<' is a repeated key"),
    "an unhashable key": ("? [1]\n: 2\n", "line 1: found unhashable key"),
    "a Python object": ("model: !!python/object/apply:os.system [ls]\n", "line 1: could not det"),
    "an unknown tag": ("model: !mine {source: ./m}\n", "line 1: could not determine a constructor"),
    "no date": (
        "model: {source: 2024-13-45}\n",
        "line 1: model.source = 2024-13-45: cannot be read as a date; put it in quotes if it is te",
    ),
    "no number that there is": (
        dataset("sequences: " + "9" * 5000),
        "cannot be read as a whole number; put it in quotes if it is text",
    ),
    "an empty number": (dataset('sequences: !!int ""'), "dataset.sequences = : cannot be read as"),
    "a number of words": (dataset("sequences: !!int ten"), "dataset.sequences = ten: cannot be r"),
    "a truth of words": (dataset("split: !!bool maybe"), "dataset.split = maybe: cannot be read"),
    "a time of words": (dataset("date: !!timestamp x"), "dataset.date = x: cannot be read as a"),
    "an alias bomb": (BOMB, "more than 10,000 values with all aliases (`*name`) expanded"),
    "a merge bomb": (MERGE_BOMB, "more than 10,000 values with all aliases"),
    "an alias of itself": ("a: &a [*a]\n", "more than 10,000 values with all aliases"),
    "a deep nest": ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "expressions": ("__use_yte__: true\n" + LEAST, "__use_yte__ lets a configuration run Python"),
    "no keys of ours": (with_line("layers: 3"), "layers: unknown key; known here: run, model, dat"),
    # Values that YAML reads differently.
    "bos: no is false": (dataset("bos: no"), "dataset.bos = no (which YAML reads as false): must "),
    "a number for a name": (with_line("run: {name: 2024}"), "run.name = 2024: must be text (in qu"),
    "a date for a name": (
        with_line("run: {name: 2024-01-02}"),
        "run.name = 2024-01-02 (which YAML reads as a date): must be text (in quotes",
    ),
    "a truth for a name": (dataset("split: on"), "dataset.split = on (which YAML reads as true): "),
    "a truth for a number": (dataset("sequences: Yes"), "dataset.sequences = Yes (which YAML re"),
    "a truth in a list": (
        with_line("extraction: {sites: [attn_in, off]}"),
        "extraction.sites[1] = off (which YAML reads as false): must be 'resid_pre'",
    ),
    "a truth or words": (
        with_line("extraction: {layers: no}"),
        "extraction.layers = no (which YAML reads as false): must be 'all' or a list",
    ),
    "a time for a date": (
        dataset("date: 2024-01-02 10:00:00"),
        "dataset.date = 2024-01-02 10:00:00",
    ),
    "an exponent without point": (
        with_line("detection: {llm_int8: {threshold: 6e0}}"),
        "detection.llm_int8.threshold = '6e0': must be a number; YAML wants a point and a sign in "
        "it, such as 1.0e-3",
    ),
    "leading zeros": (dataset("sequences: 08"), "'08': must be a whole number; write it without"),
    "base sixty": (
        dataset("sequences: 1:30:00:00"),
        "line 2: dataset.sequences = 1:30:00:00: YAML reads a number in base 60, 324000; write it "
        "in decimal digits, or in quotes if it is text",
    ),
    "base sixty in a list": (
        with_line("extraction: {layers: [0, 1:30]}"),
        "line 3: extraction.layers[1] = 1:30: YAML reads a number in base 60, 90;",
    ),
    "base sixty with a fraction": (
        with_line("detection: {llm_int8: {threshold: 1:30.5}}"),
        "line 3: detection.llm_int8.threshold = 1:30.5: YAML reads a number in base 60, 90.5;",
    ),
    "base sixty for text": (
        with_line("report: {title: 12:30}"),
        "line 3: report.title = 12:30: YAML reads a number in base 60, 750; write it in decimal di",
    ),
    "base sixty, by an alias and by merging": (
        "a: &a {sequences: -1:30}\nmodel: {source: ./m}\ndataset: {source: ./t, <<: *a}\n",
        "line 1: a.sequences = -1:30: YAML reads a number in base 60, -90;",
    ),
    "base eight": (
        dataset("sequence_length: 0100"),
        "line 2: dataset.sequence_length = 0100: YAML reads a number in base 8, 64; write it in de",
    ),
    "base eight for text": (
        with_line("run: {name: 007}"), "line 3: run.name = 007: YAML reads a number in base 8, 7;",
    ),
    "infinity": (
        with_line("detection: {massive_activations: {ratio: .inf}}"),
        "detection.massive_activations.ratio = inf: must be a finite number",
    ),
    "a list for a section": (with_line("report: [title]"), "report = ['title']: must be a section"),
    "a null for a section": (with_line("detection:"), "detection = None: must be a section"),
    "a mapping for a value": (dataset("sequences: {a: 1}"), "dataset.sequences = {'a': 1}: must b"),
    "a list for a word": (dataset("split: [train]"), "dataset.split = ['train']: must be text"),
    "a null for a word": (dataset("split:"), "dataset.split = None: must be text"),
    "a null for a number": (dataset("sequences:"), "dataset.sequences = None: must be a whole nu"),
    # Ranges that `test_settings.py` does not test.
    "huge sequences": (dataset(f"sequences: {10**30}"), "must be below 2147483648"),
    "a negative length": (dataset("sequence_length: -5"), "dataset.sequence_length = -5: must be"),
    "a huge seed": (dataset("shuffle_seed: 4294967296"), "shuffle_seed = 4294967296: must be belo"),
    "a negative threshold": (
        with_line("detection: {massive_activations: {absolute: -1}}"),
        "detection.massive_activations.absolute = -1: must be above 0",
    ),
    "a share of nothing": (
        with_line("detection: {llm_int8: {position_share: 0}}"),
        "detection.llm_int8.position_share = 0: must be above 0",
    ),
    "no sites for a criterion": (
        with_line("detection: {llm_int8: {sites: []}}"),
        "detection.llm_int8.sites = []: must not be empty",
    ),
    "a site without channels": (
        with_line("detection: {llm_int8: {sites: [expert_out]}}"),
        "detection.llm_int8.sites[0] = 'expert_out': must be 'resid_pre'",
    ),
    "too much context": (
        with_line("report: {context_tokens: 201}"),
        "report.context_tokens = 201: must be at most 200",
    ),
    "no threads": (with_line("execution: {threads: 0}"), "execution.threads = 0: must be at least"),
    "half a GPU": (with_line("execution: {gpus_per_job: 0.5}"), "execution.gpus_per_job = 0.5: mu"),
    "no memory": (
        with_line("execution: {device_memory: 0GiB}"),
        "execution.device_memory = '0GiB': must be from 1MiB to 1024TiB",
    ),
    "more memory than there is": (
        with_line(f"execution: {{device_memory: {'9' * 9}TiB}}"), "must be from 1MiB to 1024TiB",
    ),
    "memory in other digits": (
        with_line('execution: {device_memory: "\u0663GiB"}'), "must be a number and MiB, GiB or T",
    ),
    "memory without unit": (
        with_line('execution: {device_memory: "24"}'),
        "execution.device_memory = '24': must be a number and MiB, GiB or TiB",
    ),
    "a batch of words": (
        with_line("execution: {batch_size: all}"),
        "execution.batch_size = 'all': must be a whole number or 'auto'",
    ),
    "a long run name": (with_line(f"run: {{name: {'x' * 101}}}"), "must have at most 100 characte"),
    "a layer of words": (
        with_line("extraction: {layers: [first]}"),
        "extraction.layers[0] = 'first': must be a whole number",
    ),
    "a level that no draw is within": (
        with_line("detection: {bootstrap: {level: 1.0e-300}}"),
        "detection.bootstrap: level 1e-300: none of 1,000 resamples lies within such an interval; "
        "take a level of at least 0.001",
    ),
    "a level that no draw is beyond": (
        with_line("detection: {bootstrap: {level: 0.9999}}"),
        "detection.bootstrap: level 0.9999: none of 1,000 resamples lies beyond the ends of such a"
        "n interval; take resamples of at least 20,000 or a level of at most 0.998",
    ),
    "too few resamples": (
        with_line("detection: {bootstrap: {resamples: 39}}"),
        "detection.bootstrap: level 0.95: none of 39 resamples lies beyond the ends of such an int"
        "erval; take resamples of at least 40 or a level of at most 0.948718",
    ),
    "a level next to one": (
        with_line("detection: {bootstrap: {level: 0.9999999}}"), "; take a level of at most 0.998",
    ),
    "a threshold that float32 takes for zero": (
        with_line("detection: {llm_int8: {threshold: 1.0e-300}}"),
        "detection.llm_int8.threshold = 1e-300: must be from 1.18e-38 to 3.4e+38, as values are fl",
    ),
    "a threshold that float32 takes for infinite": (
        with_line("extraction: {advanced: {massive_floor: 1.0e+300}}"),
        "extraction.advanced.massive_floor = 1e+300: must be from 1.18e-38 to 3.4e+38",
    ),
    "a weight of two numbers": (
        with_line("ablation: {weights: [[0, 1]]}"),
        "ablation.weights[0] = [0, 1]: must be a list [layer, row, column]",
    ),
    "a weight of nothing": (
        with_line("ablation: {weights: [[]]}"),
        "ablation.weights[0] = []: must be a list [layer, row, column]",
    ),
    "a weight of five numbers": (
        with_line("ablation: {expert_weights: [[0, 1, 2, 3, 4]]}"),
        "ablation.expert_weights[0] = [0, 1, 2, 3, 4]: must be a list [layer, expert, row, column]",
    ),
    "a weight that is a number": (
        with_line("ablation: {weights: [3]}"), "ablation.weights[0] = 3: must be a list [layer, r",
    ),
    "a channel without a number": (
        with_line("ablation: {channels: [[resid_post, all]]}"),
        "ablation.channels[0] = ['resid_post', 'all']: must be a list [site, layer, channel]",
    ),
    "a channel of a word": (
        with_line("ablation: {channels: [[resid_post, some, 3]]}"),
        "ablation.channels[0][1] = 'some': must be a whole number or 'all'",
    ),
    "a weight twice": (
        with_line("ablation: {weights: [[0, 1, 2], [0, 1, 2]]}"),
        "[0, 1, 2] is named more than once",
    ),
    "a file twice": (dataset("files: [a, a]"), "'a' is named more than once"),
    "a sequence without end": (
        dataset("sequence_length: 16777217"),
        "dataset.sequence_length = 16777217: must be at most 16777216",
    ),
    # Combinations.
    "groups above layers": (
        with_line("extraction: {layers: [0], layer_groups: 2}"),
        "layer_groups 2 is above the 1 layers that must run to measure layer 0",
    ),
    "shards above sequences": (
        dataset("sequences: 1") + "extraction: {sequence_shards: 2}\n",
        "extraction.sequence_shards = 2: above dataset.sequences = 1; take at most 1",
    ),
    "texts and ids": (
        dataset("text_column: a, input_ids_column: b"),
        "text_column and input_ids_column are both set: name one column only",
    ),
    "chats and ids": (
        dataset("messages_column: a, input_ids_column: b"),
        "messages_column and input_ids_column are both set",
    ),
    "a revision of a folder": (model("revision: v1"), "revision 'v1': only a hub id has revisions"),
    "a revision of a file": (dataset("revision: v1"), "revision 'v1': only a hub dataset has one"),
    "least above most": (
        dataset("packing: document, min_length: 9, sequence_length: 8"),
        "min_length 9 is above sequence_length 8",
    ),
    "a threshold below what is kept": (
        with_line("extraction: {store: [resid_post]}\ndetection: {llm_int8: {threshold: 3}}"),
        "detection asks for |x| down to 3 at attn_in, which is not stored, and its summaries keep "
        "values from 4: raise the threshold, or name attn_in in extraction.store, or lower extract",
    ),
    "massive ones below what is kept": (
        with_line("extraction: {store: []}\ndetection: {massive_activations: {absolute: 50}}"),
        "down to 50 at resid_post, which is not stored, and its summaries keep values from 64: ",
    ),
    "rounding what is not kept": (
        with_line("extraction: {store: []}\ndetection: {quantization_error: {sites: [mlp_in]}}"),
        "detection.quantization_error.sites: mlp_in is not stored; name it in extraction.store",
    ),
    "rounding what is not measured": (
        with_line("detection: {quantization_error: {sites: [mlp_out]}}"),
        "detection.quantization_error.sites: mlp_out is not measured; name it in extraction.sites",
    ),
    "leaving out of what is not kept": (
        with_line("extraction: {store: []}\ndetection: {exclude: {first_positions: 1}}"),
        "detection.exclude: tokens cannot be excluded at attn_in, because its values are not ",
    ),
    # Sources.
    "a URL": (source("https://hf.co/a/b"), "neither a hub id (`name`, `owner/name`) nor a path"),
    "a bucket": (source("s3://bucket/model"), "neither a hub id"),
    "a path without ./": (source("models/llama/7b"), "neither a hub id (`name`, `owner/name`) nor"),
    "a name with spaces": (source("my model"), "model.source = 'my model': neither a hub id"),
    "dots that climb": (source("a/../../etc"), "neither a hub id"),
    "a NUL": (source('"./m\\0"'), r"model.source = './m\x00': contains a NUL character"),
    "Windows' path": (source(r"C:\models\x"), r"model.source = 'C:\\models\\x': neither a hub id"),
    "another's built-in": (source("builtin:sotu"), "no such built-in; take builtin:smollm2"),
    "text for a model": (source('"builtin:"'), "model.source = 'builtin:': no such built-in"),
}  # fmt: skip


def check(path):
    with pytest.raises(SystemExit) as ended:
        settings([path])
    return str(ended.value).splitlines()


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_configuration_is_one_line_that_says_what_and_where(name, tmp_path):
    content, sentence = FILES[name]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    first, *_ = check(path)
    assert first.startswith(f"{path}: ")
    assert sentence in first
    assert_readable(first.removeprefix(f"{path}: "))


@pytest.mark.parametrize(
    ("path", "sentence"), [("nothing.yaml", "no such file"), (".", "Is a directory")]
)
def test_what_is_no_file_is_said(path, sentence, tmp_path):
    (line,) = check(tmp_path / path)
    assert sentence in line


def test_credentials_in_a_wrong_source_are_not_repeated(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(source("https://me:pass-word-9@mirror.example/model"))
    (line,) = check(path)
    assert "neither a hub id" in line
    assert "pass-word-9" not in line


def test_aliases_and_anchors_as_people_use_them_are_fine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("x: &x 5\n" + dataset("sequences: 3"))
    assert "x: unknown key" in check(path)[0]
    path.write_text(
        "model: {source: ./m}\ndataset: {source: ./t, sequences: &n 8, sequence_length: *n}\n"
    )
    assert settings([path]).dataset.sequence_length == 8


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("dataset: {sequences: 1_000}", "dataset.sequences", 1000),
        ("dataset: {sequences: 0x10}", "dataset.sequences", 16),
        ("dataset: {sequences: +8}", "dataset.sequences", 8),
        ("extraction: {perplexity: yes}", "extraction.perplexity", True),
        ("extraction: {perplexity: Off}", "extraction.perplexity", False),
        ("dataset: {date: 2025-01-31}", "dataset.date", "2025-01-31"),
        ("dataset: {date: '2025-01-31'}", "dataset.date", "2025-01-31"),
        ("run: {name: '007'}", "run.name", "007"),
        ("report: {title: '12:30'}", "report.title", "12:30"),
        ("report: {title: '010'}", "report.title", "010"),
        ("detection: {smoothquant: {alpha: 0.50}}", "detection.smoothquant.alpha", 0.5),
        ("detection: {smoothquant: {alpha: 0}}", "detection.smoothquant.alpha", 0),
        ("detection: {bootstrap: {resamples: 20, level: 0.9}}", "detection.bootstrap.level", 0.9),
    ],
)
def test_what_has_one_meaning_is_read(text, key, value, tmp_path):
    path = tmp_path / "mine.yaml"
    sections = yaml.safe_load(LEAST)
    for section, keys in yaml.load(text, yaml.BaseLoader).items():
        sections[section] = sections.get(section, {}) | keys
    lines = [text, *(f"{name}: {keys}" for name, keys in sections.items() if name not in text)]
    if text.startswith("dataset"):
        lines[0] = text.replace("{", "{source: ./t, ", 1)
    path.write_text("\n".join(lines))
    held = settings([path])
    for part in key.split("."):
        held = getattr(held, part)
    assert held == value


def test_make_checks_the_file_before_snakemake_reads_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "outlier_atlas.settings.document", "nothing.yaml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "nothing.yaml: no such file; see config/README.md\n"
