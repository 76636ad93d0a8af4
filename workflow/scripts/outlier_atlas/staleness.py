"""What a change to the configuration runs again: one table for documentation and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from outlier_atlas.settings.configuration import Settings

REPORT = ("render_report",)
FIGURES = ("draw_figures", *REPORT)
WEIGHTS = ("join_weights", *REPORT)
DETECTION = ("detect_outliers", "join_weights", *FIGURES)
STORE = ("create_store", "extract_activations", *DETECTION)
TOKENS = ("tokenize_dataset", *STORE)
MODEL = ("fetch_model", "measure_weights", *TOKENS)
ABLATION = ("tokenize_dataset", "ablate", *REPORT)
RULES = (*MODEL[:-1], "ablate", *REPORT)


@dataclass(frozen=True)
class Effect:
    """What a change to a key runs again.

    Attributes:
        rules: that run.
        computed: what extraction recomputes then; empty where it does not run.
    """

    rules: tuple[str, ...]
    computed: str = ""


NOTHING = Effect(())
MISSING = Effect(STORE, "what is missing")
NO_ROW = Effect(STORE, "nothing")
EVERYTHING = Effect(STORE, "everything")
SUMMARIES = Effect(STORE, "a lower one: summaries of sites that are not stored")
OTHER_SEQUENCES = Effect(TOKENS, "sequences that are not there")
OTHER_MODEL = Effect(MODEL, "everything, where the weights are other ones")

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
"""By key, or by section for all keys of it that are not named themselves."""

INTRODUCTION = """\
# What a change runs again

Generated from `outlier_atlas/staleness.py` by `make docs`; do not edit. `tests/test_staleness.py`
compares every line of it with the jobs that Snakemake plans, and a line of each kind with a real
run, whose jobs, model loads and written chunks it counts.

A rule runs again where there is a cross. Extraction jobs that run look first at what is committed:
what exists under the same fingerprint (weights, tokens, dtype, version of the numerics) is kept,
only what is missing is computed, and where nothing is missing a job ends within seconds, without a
model or a GPU. The last column says what that comes to.

The lines are of a run without the ablation stage, where its keys show in the report alone. Where
`ablation.sequences` turns it on, `ablate` runs again after its own keys and whenever `create_store`
or `detect_outliers` does; what its variants have computed is kept.

With `extraction.layer_groups: auto` the rule `choose_layer_groups` comes before `create_store`: the
fewest layer groups that fit, by the plan. It is recorded in `manifests/layer_groups.json` with
everything that it was chosen from: the model, `model.dtype`, `dataset.sequence_length` and
`packing`, `extraction` but for what changes no memory, whether there is an ablation stage, and
`execution.device`, `device_memory`, `gpus_per_job` and `batch_size`. While these stay the number
stays, also on a machine with other memory. After a change to one of them the rule runs again; where
the number comes out the same, nothing else does, and a number that is written out in place of the
same number from `auto` runs nothing again. Until the number is chosen, `--dry-run` lists the rules
that follow and no extraction job, because it does not know how many there will be.

Of a hub dataset `fetch_dataset` runs before `tokenize_dataset`, with the same crosses. Nothing runs
again after the keys were put in another order, after comments, defaults spelled out, `touch`, or a
fresh checkout of the code.

Each rule has a record of what it is made from, `manifests/inputs/<rule>.json` of the run or
`resources/inputs/<rule>.json`: its settings, a digest of its code, and the sha256 of each of the
user's files that it reads. The record is an input of the rule, and is written, before any job
starts, only where it differs from what the rule's products were made from. So the crosses hold for
a named target as for the whole run, with `.snakemake` deleted, where two checkouts make a run by
turns, and for a file that was replaced by one of the same size and time. `--dry-run` compares
without writing, and names each rule that is out of date with the reason. After a change to the code
the rules that use the module run again; extraction recomputes nothing, unless the change says
that it gives other numbers (`NUMERICS_VERSION`).

Each rule but `extract_activations` leaves a record of its products, too, `manifests/outputs/` or
`resources/outputs/`, with their sha256. A product that was deleted is made again, and a job that
reads one that is not what was written stops and names it.
"""


def keys(section: type[BaseModel] = Settings, path: str = "") -> Iterator[str]:
    """Every key of the configuration, with dots."""
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def effect(key: str) -> Effect:
    """What a change to a key runs again.

    Raises:
        KeyError: the table does not say.
    """
    names = (key.rsplit(".", parts)[0] for parts in range(key.count(".") + 1))
    return EFFECTS[next((name for name in names if name in EFFECTS), key)]


def table() -> str:
    """The documentation: every key, and the rules that run again, in Markdown."""
    rows: list[Sequence[str]] = [("key", *(f"`{rule}`" for rule in RULES), "extraction computes")]
    rows.append(["---"] * len(rows[0]))
    for key in keys():
        of_key = effect(key)
        crosses = ("x" if rule in of_key.rules else "" for rule in RULES)
        rows.append((f"`{key}`", *crosses, of_key.computed))
    lines = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([INTRODUCTION, *lines, ""])
