"""Facts about a run for the report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from outlier_atlas.job_metrics import JobMetrics
from outlier_atlas.sanitize import visible
from outlier_atlas.settings.detection import BootstrapSettings
from outlier_atlas.store.origin import Origin, in_words
from outlier_atlas.text import count, ranges

Row = dict[str, Any]
SHOWN = 8
"""Maximum number of file names in a line of the report; the record lists all."""


def facts(
    model: Row, tokens: Row, store: Row, origins: Collection[Origin] = ()
) -> list[tuple[str, str]]:
    """Return names and values of the inputs of a run.

    Args:
        model: record of the model.
        tokens: record of the tokens.
        store: record of the store.
        origins: versions and devices with which the numbers were computed.
    """
    groups = ranges_of_groups(store["layer_groups"])
    facts = [
        ("model", str(model["source"])),
        ("commit", model["commit"] or "none: not from a hub"),
        ("architecture", f"{model['architecture']}, {count(model['layers'], 'layer')}"),
        ("weights", _weights(model, store["dtype"])),
        ("dtype", store["dtype"]),
        ("text", str(tokens["source"])),
        ("its commit", tokens["commit"] or "none: not from a hub"),
        (
            "sequences",
            f"{tokens['sequences']:,} of {_span(tokens['shortest'], tokens['longest'])} tokens, "
            f"from {count(tokens['documents'], 'document')}, packing {tokens['packing']}",
        ),
        ("begin-of-sequence token", start(tokens)),
        *_reading(tokens),
        ("sites", ", ".join(f"{site} ({store['channels'][site]:,})" for site in store["sites"])),
        ("of them stored", ", ".join(store["store"]) or "none: only summaries"),
        ("layers measured", ranges(store["layers"])),
        ("layer groups", groups),
        ("sequence shards", str(store["sequence_shards"])),
        ("versions", ", ".join(f"{name} {v}" for name, v in sorted(store["versions"].items()))),
    ]
    mixed = sorted(origin for origin in origins if any(map(origin.differs, origins)))
    if mixed:
        facts.append(("numbers of several versions", f"computed under {in_words(mixed)}"))
    return [(name, visible(value)) for name, value in facts]


def start(tokens: Row) -> str:
    """Return a phrase on the tokens that were added at the beginning of sequences."""
    if not tokens["bos"]:
        return "none added"
    names = " ".join(tokens.get("start", []))
    of = tokens.get("sequences_with_start", tokens["sequences"])
    every = "every sequence" if of == tokens["sequences"] else f"{of:,} of the sequences"
    return f"at {every}{f': {visible(names)}' if names else ''}"


def _reading(tokens: Row) -> Iterator[tuple[str, str]]:
    """Yield names and values on the files of the dataset that were read or skipped."""
    reading = tokens.get("reading")
    if reading:
        names = ", ".join(
            f"{file['name']} ({_rows(file['rows'], file['empty_rows'])})"
            for file in reading["files"][:SHOWN]
        )
        more = _more(reading["files_read"])
        unread = reading["files_not_needed"]
        rest = f"; {count(unread, 'more file')} not needed" if unread else ""
        yield "files read", f"{names}{more}{rest}"
    if reading and reading["files_skipped"]:
        names = ", ".join(f"{n} ({why})" for n, why in list(reading["skipped"].items())[:SHOWN])
        yield "files skipped", f"{names}{_more(reading['files_skipped'])}"
    if tokens.get("special_tokens_in_text") is not None:
        cut = tokens["special_tokens"] == "split"
        number = count(tokens["special_tokens_in_text"], "token")
        yield "special tokens from the text", "cut into pieces" if cut else number
    if tokens.get("template_date"):
        yield "date in the chat template", str(tokens["template_date"])


def _rows(read: int, empty: int) -> str:
    return count(read, "row") + (f", {empty:,} empty" if empty else "")


def _more(files: int) -> str:
    return f" and {files - SHOWN:,} more" if files > SHOWN else ""


def intervals(configuration: Mapping[str, Any], sequences: int, ablations: bool) -> str:
    """Return a sentence on the intervals in the page.

    Args:
        configuration: the configuration.
        sequences: number of sequences of the run.
        ablations: whether the run has an ablation stage, which uses file-out sequences.
    """
    none = "One sequence is all there is: no number has an interval over sequences"
    heldout = configuration["ablation"]["sequences"] if ablations else 0
    if max(sequences, heldout) < 2:
        return f"{none}."
    sentence = BootstrapSettings.model_validate(configuration["detection"]["bootstrap"]).sentence
    if sequences < 2:
        return f"{none}, but for those of ablation; in small type under these: {sentence}"
    return f"In brackets, and in small type under numbers: {sentence}"


def _weights(model: Row, dtype: str) -> str:
    method = model.get("quantization")
    stored = f", {method}, dequantized to {dtype}" if method else ""
    return f"{model['weight_bytes'] / 2**20:,.1f} MiB{stored}, fingerprint {model['fingerprint']}"


def measured(record: JobMetrics) -> Row:
    """Return memory and time of one extraction job, with the memory that its plan predicted."""

    def mebibytes(size: int | None) -> str:
        return f"{size / 2**20:,.0f}" if size else "none"

    return {
        "group": record.layer_group,
        "shard": record.sequence_shard,
        "layers": _span(*record.layers),
        "device": visible(record.device),
        "batch": record.batch_size,
        "weights": mebibytes(record.weights),
        "predicted_device": mebibytes(record.predicted_device),
        "on_device": mebibytes(record.on_device),
        "predicted_host": mebibytes(record.predicted_host),
        "host": mebibytes(record.host),
        "load": f"{record.load_seconds:.1f}",
        "rate": f"{record.tokens / record.compute_seconds:,.0f}",
    }


def ranges_of_groups(groups: Sequence[Sequence[int]]) -> str:
    """Return the layers of each layer group, such as `0 to 9; 10 to 19`."""
    return "; ".join(_span(first, last) for first, last in groups)


def _span(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
