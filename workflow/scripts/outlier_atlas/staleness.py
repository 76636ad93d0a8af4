"""Rules that a change to the configuration reruns: one table for documentation and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from outlier_atlas.settings.configuration import Settings

REPORT = ("render_report",)
WEIGHTS = ("join_weights", *REPORT)
DETECTION = ("detect_outliers", *WEIGHTS)
STORE = ("create_store", "extract_activations", *DETECTION)
TOKENS = ("tokenize_dataset", *STORE)
MODEL = ("fetch_model", "measure_weights", *TOKENS)
ABLATION = ("tokenize_dataset", "ablate", *REPORT)
RULES = (*MODEL[:-1], "ablate", *REPORT)


@dataclass(frozen=True)
class Effect:
    """The effect of a change to a key.

    Attributes:
        rules: the rules that rerun.
        computed: description of the data that extraction recomputes; empty if it does not run.
    """

    rules: tuple[str, ...]
    computed: str = ""


NOTHING = Effect(())
MISSING = Effect(STORE, "missing values")
NO_ROW = Effect(STORE, "nothing")
EVERYTHING = Effect(STORE, "everything")
SUMMARIES = Effect(STORE, "if lowered: summaries of sites that are not stored")
OTHER_SEQUENCES = Effect(TOKENS, "missing sequences")
OTHER_MODEL = Effect(MODEL, "everything, if the weights differ")

EFFECTS = {
    "run.name": Effect(STORE, "everything, in another folder"),
    "model": OTHER_MODEL,
    "model.dtype": EVERYTHING,
    "dataset": OTHER_SEQUENCES,
    "extraction.sites": MISSING,
    "extraction.store": MISSING,
    "extraction.layers": MISSING,
    "extraction.layer_groups": NO_ROW,
    "extraction.sequence_shards": NO_ROW,
    "extraction.perplexity": MISSING,
    "extraction.verify": NOTHING,
    "extraction.advanced": EVERYTHING,
    "extraction.advanced.sink_tokens": Effect(STORE, "`attn_sink`"),
    "extraction.advanced.outlier_floor": SUMMARIES,
    "extraction.advanced.massive_floor": SUMMARIES,
    "detection": Effect(DETECTION),
    "detection.smoothquant": Effect(WEIGHTS),
    "weights": Effect(WEIGHTS),
    "ablation": Effect(REPORT),
    "ablation.sequences": Effect(ABLATION),
    "report": Effect(REPORT),
    "execution": NOTHING,
}
"""Effects by key, or by section for all keys of it that have no entry of their own."""

INTRODUCTION = """\
# What a change runs again

Generated from `outlier_atlas/staleness.py` by `make docs`; do not edit. `tests/test_staleness.py`
compares every line of it with the jobs that Snakemake plans, and a line of each kind with a real
run, whose jobs, model loads and written chunks it counts.

A cross marks a rule that runs again. An extraction job first looks at the commits of the store. It
keeps everything with the same fingerprint (weights, tokens, dtype, version of the numerics) and
computes only what is missing. If nothing is missing, the job ends within seconds, without a model
or a GPU. The last column lists what the extraction computes.

The table describes a run without the ablation stage, whose keys then appear only in the report. If
`ablation.sequences` turns the stage on, `ablate` runs again after a change to its own keys and
whenever `create_store` or `detect_outliers` runs; computed variants are kept.

With `extraction.layer_groups: auto`, the rule `choose_layer_groups` runs before `create_store`. It
takes the smallest number of layer groups that, by the plan, fits into memory. The number is
recorded in `manifests/layer_groups.json` together with everything that it depends on: the model,
`model.dtype`, `dataset.sequence_length` and `packing`, those settings of `extraction` that change
memory, whether there is an ablation stage, and `execution.device`, `device_memory`, `gpus_per_job`
and `batch_size`. The number stays the same until one of these changes, also on a machine with other
memory. After a change the rule runs again; if the number is the same, nothing else runs. Replacing
`auto` by the number that it has chosen reruns nothing. Before the number is chosen, `--dry-run`
lists the rules that follow but no extraction jobs, because their number is not known.

Static figures (`draw_figures`) are drawn and kept up to date only by `snakemake figures`. The
ordinary command ignores them, also if they are deleted or out of date.

For a hub dataset, `fetch_dataset` runs before `tokenize_dataset`, with the same crosses. Nothing
runs again after a change to the order of keys or to comments, after defaults are written out, after
`touch`, or after a fresh checkout of the code.

Each rule has a record of its inputs, `manifests/inputs/<rule>.json` in the run or
`resources/inputs/<rule>.json`: its settings, a digest of its code, and the sha256 of each of the
user's files that it reads. The record is an input of the rule. It is written before any job starts,
and only if it differs from the inputs that the rule's outputs were made from. So the crosses hold
for a named target as well as for the whole run. They also hold after `.snakemake` was deleted, when
two checkouts alternate on a run, and for a file that was replaced by another one of the same size
and time. `--dry-run` compares without writing, and names each rule that is out of date with the
reason. After a change to the code, the rules that use the module run again; extraction recomputes
nothing, unless the change declares that it alters numbers (`NUMERICS_VERSION`).

Each rule except `extract_activations` also has a record of its outputs in `manifests/outputs/` or
`resources/outputs/`, with their sha256. A deleted output is made again. A job that reads an output
that differs from its record stops and names the file.
"""


def keys(section: type[BaseModel] = Settings, path: str = "") -> Iterator[str]:
    """Yield every key of the configuration, such as `model.source`."""
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def effect(key: str) -> Effect:
    """Return the effect of a change to a key.

    Raises:
        KeyError: The table has no entry for the key or its sections.
    """
    names = (key.rsplit(".", parts)[0] for parts in range(key.count(".") + 1))
    return EFFECTS[next((name for name in names if name in EFFECTS), key)]


def table() -> str:
    """Return the documentation in Markdown: every key, and the rules that a change reruns."""
    rows: list[Sequence[str]] = [("key", *(f"`{rule}`" for rule in RULES), "extraction computes")]
    rows.append(["---"] * len(rows[0]))
    for key in keys():
        change = effect(key)
        crosses = ("x" if rule in change.rules else "" for rule in RULES)
        rows.append((f"`{key}`", *crosses, change.computed))
    lines = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([INTRODUCTION, *lines, ""])
