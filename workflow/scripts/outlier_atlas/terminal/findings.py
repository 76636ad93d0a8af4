"""One-line results of stages, read from their output files.

The main process of Snakemake reads the files, so a cluster shows the same and no rule depends on
the lines.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outlier_atlas.compat.snakemake_internals import script_of
from outlier_atlas.sanitize import shortened
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.text import count
from outlier_atlas.units import shown

LONGEST = 240
"""Maximum number of characters of a line."""


def finding(jobs: Sequence[Any]) -> str:
    """Return a line on the results of the jobs of a rule, or "" without output files.

    Args:
        jobs: jobs of one rule, as Snakemake objects.
    """
    if not jobs[0].output:
        return ""
    script = Path(script_of(jobs[0])).stem
    try:
        return shortened(FINDINGS.get(script, _files)(jobs), LONGEST)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        # The line is only informative: a file that another process replaces must not stop the run.
        return ""


def _files(jobs: Sequence[Any]) -> str:
    """Return number and size of the outputs, such as `18 files in results/demo/figures`.

    Records of products are not counted.
    """
    paths = [Path(str(file)) for job in jobs for file in job.output]
    kept = [path for path in paths if path.parent.name != "outputs"] or paths
    size = shown(sum(path.stat().st_size for path in kept))
    if len(kept) == 1:
        return f"{kept[0]}, {size}"
    folders = sorted({str(path.parent) for path in kept})
    return f"{len(kept)} files in {', '.join(folders)}, {size}"


def _model(jobs: Sequence[Any]) -> str:
    record = _record(jobs[0].output[0])
    size = shown(record["weight_bytes"])
    return f"{record['architecture']}, {count(record['layers'], 'layer')}, {size} of weights"


def _layer_groups(jobs: Sequence[Any]) -> str:
    return count(_record(jobs[0].output.choice)["layer_groups"], "layer group")


def _documents(jobs: Sequence[Any]) -> str:
    record = _record(jobs[0].output.record)
    return count(record["documents"], "document")


def _tokens(jobs: Sequence[Any]) -> str:
    record = _record(jobs[0].output.record)
    tokens, sequences = count(record["tokens"], "token"), count(record["sequences"], "sequence")
    return f"{tokens} in {sequences}, of {count(record['documents'], 'document')}"


def _store(jobs: Sequence[Any]) -> str:
    shape = _record(jobs[0].output.record)
    return f"{_shape(shape)}; sites: {', '.join(shape['sites'])}"


def _activations(jobs: Sequence[Any]) -> str:
    shape = _record(jobs[0].input.store)
    values = sum(shape["channels"][site] for site in shape["store"])
    values *= len(shape["layers"]) * shape["tokens"]
    size = shown(values * (4 if shape["dtype"] == "float32" else 2))
    run = RunFiles.of_store_record(Path(str(jobs[0].input.store)))
    return f"{_shape(shape)}; {size} of values before compression in {run.activations}"


def _shape(shape: dict[str, Any]) -> str:
    layers, sites = count(len(shape["layers"]), "layer"), count(len(shape["sites"]), "site")
    return f"{layers}, {sites}, {count(shape['tokens'], 'token')}"


def _weights(jobs: Sequence[Any]) -> str:
    rows = _rows(jobs, "weights.csv")
    largest = max(rows, key=lambda row: abs(float(row["value"] or 0)))
    value = abs(float(largest["value"] or 0))
    weights = count(len(rows), "weight")
    return f"{weights}; the largest |value| is {value:.4g} in {largest['weight']}"


def _criteria(jobs: Sequence[Any]) -> str:
    rows = _rows(jobs, "criteria.csv")
    counts = [f"{row['criterion']} {row['findings']}" for row in rows if row["findings"]]
    missing = [row["criterion"] for row in rows if not row["findings"]]
    bad = sum(int(row["not_finite"] or 0) for row in rows)
    parts = [f"findings: {', '.join(counts)}"] if counts else []
    parts += [f"{bad:,} values are not finite"] if bad else []
    parts += [f"not measured: {', '.join(missing)}"] if missing else []
    return "; ".join(parts)


def _report(jobs: Sequence[Any]) -> str:
    page = Path(str(jobs[0].output.page))
    return f"{page}, {shown(page.stat().st_size)}"


def _ablations(jobs: Sequence[Any]) -> str:
    rows = _rows(jobs, "ablations.csv")
    whole = float(rows[0]["perplexity"])
    altered = [row for row in rows[1:] if row["perplexity"] and row["intervention"] != "random"]
    if not altered:
        return f"perplexity {whole:.4g}, nothing to ablate"
    worst = max(altered, key=lambda row: float(row["perplexity"]))
    return (
        f"perplexity {whole:.4g}; at most {float(worst['perplexity']):.4g} "
        f"({worst['target']}, {worst['intervention']})"
    )


def _rows(jobs: Sequence[Any], name: str) -> list[dict[str, str]]:
    """Return the rows of a table from its CSV file."""
    path = next(path for path in map(Path, map(str, jobs[0].output)) if path.name == name)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _record(path: object) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(str(path)).read_text("utf-8"))
    return record


FINDINGS: dict[str, Callable[[Sequence[Any]], str]] = {
    "fetch_model": _model,
    "fetch_dataset": _documents,
    "choose_layer_groups": _layer_groups,
    "tokenize_dataset": _tokens,
    "create_store": _store,
    "extract_activations": _activations,
    "detect_outliers": _criteria,
    "measure_weights": _weights,
    "ablate": _ablations,
    "render_report": _report,
}
"""Functions that return the line, by name of the rule's script; other rules use `_files`."""
