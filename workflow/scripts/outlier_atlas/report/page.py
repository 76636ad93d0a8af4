"""The page: everything of a run that a reader wants to see, in one file that opens offline."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from outlier_atlas import __version__, tables
from outlier_atlas.criteria.llm_int8.settings import LayerShare, PositionShare
from outlier_atlas.criteria.perplexity.tables import PERPLEXITY
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.files import read_record, write_whole
from outlier_atlas.measured import records
from outlier_atlas.report import (
    ablation,
    comparison,
    criteria,
    experts,
    facts,
    massive,
    measures,
    missing,
    perplexity,
    sinks,
    weights,
)
from outlier_atlas.report.figures import THEMES
from outlier_atlas.report.finding import Finding
from outlier_atlas.report.findings import (
    Evidence,
    alarms,
    findings,
    largest_by_site,
)
from outlier_atlas.report.text import (
    count,
    interval,
    number,
    percent,
    percentage,
    shown,
)
from outlier_atlas.settings.detection import ExcludeSettings
from outlier_atlas.settings.report import ReportSettings
from outlier_atlas.settings.sites import (
    ATTN_SINK,
    EXPERT_OUT,
    SITE_NAMES,
    SUPER_WEIGHT_SITES,
)
from outlier_atlas.store.commits import COMMITS, Commits
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.origin import Origin
from outlier_atlas.visible import visible, visible_lines

HERE = Path(__file__).parent
PARTS = tuple(
    HERE / name
    for name in (
        "template.html.j2",
        "found.html.j2",
        "measures.html.j2",
        "comparison.html.j2",
        "style.css",
    )
)
"""The files beside this module that the page is made of."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What a report is made from: files of the run, and the configuration without `execution`.

    `ablations` says whether the table of the ablation stage is there.
    """

    configuration: Mapping[str, Any]
    folder: Path
    tables: Path
    figures: Path
    tokens: Path
    model_record: Path
    tokens_record: Path
    store_record: Path
    ablations: bool = False


def render(settings: Mapping[str, Any], inputs: Inputs, page: Path, findings_file: Path) -> None:
    """Write the page, and the findings as JSON.

    Args:
        settings: the `report` section of the configuration.
        page: the HTML file.
        findings_file: `{"findings": [{"text", "definition"}, ...], "alarms": [...],
            "left_out": "..."}`, the last one the sentence of `detection.exclude`.

    Raises:
        ValueError: the token store or a record is damaged, or the run to compare is not there.
    """
    report = ReportSettings.model_validate(settings)
    tokens = TokenStore.recorded(inputs.tokens, inputs.tokens_record)
    evidence = Evidence.read(inputs.tables, tokens.sequences, inputs.ablations)
    sentences = findings(evidence, report.text != "none")
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "number": number, "percent": percent}
    environment.filters |= {
        "interval": partial(interval, said=number),
        "interval_in_percent": partial(interval, said=percent),
        "interval_of_percentage": partial(interval, said=percentage),
    }
    html = environment.get_template("template.html.j2").render(
        **_head(report, inputs, evidence, sentences),
        **_body(report, inputs, evidence, tokens),
    )
    write_whole(page, html.encode("utf-8", errors="replace"))
    told = {
        "findings": [asdict(f) for f in sentences],
        "alarms": alarms(evidence, read_record(inputs.store_record)["dtype"]),
        "left_out": _left_out(inputs),
    }
    write_whole(findings_file, f"{json.dumps(told, indent=2)}\n".encode("ascii"))


def _head(
    report: ReportSettings, inputs: Inputs, evidence: Evidence, sentences: Sequence[Finding]
) -> Row:
    model, tokens = read_record(inputs.model_record), read_record(inputs.tokens_record)
    store = read_record(inputs.store_record)
    style = (HERE / "style.css").read_text("utf-8")
    losses = tables.read(inputs.tables, PERPLEXITY).to_pylist()
    name = visible(str(model["source"]).removeprefix("builtin:"))
    # A local folder's name is enough of its path.
    name = name.rstrip("/").rsplit("/", 1)[-1] if model["kind"] in ("local", "gguf") else name
    measured = count(len(store["layers"]), "layer")
    origins = {Origin.of(commit.details) for commit in Commits.load(inputs.folder / COMMITS)}
    tokens_said = f"{count(tokens['tokens'], 'token')} in {count(tokens['sequences'], 'sequence')}"
    return {
        "title": visible(report.title) if report.title else f"The outliers of {name}",
        "run_line": f"{name} on {tokens_said} of "
        f"{visible(str(tokens['source']))}, computed in {store['dtype']}: {measured}, "
        f"{count(len(store['sites']), 'site')}.{perplexity.short(losses)}",
        "tokens_said": tokens_said,
        "alarms": alarms(evidence, store["dtype"]),
        "left_out": _left_out(inputs),
        "intervals": facts.intervals(inputs.configuration, tokens["sequences"], inputs.ablations),
        "findings": sentences,
        # Our own file, and the only text that is not escaped.
        "style": Markup(style),
        "style_hash": _hash(style),
        "folder": visible(str(inputs.folder)),
        "version": __version__,
        "facts": [
            *facts.facts(model, tokens, store, origins),
            ("perplexity", perplexity.line(losses)),
        ],
        "first_array": store["store"][0] if store["store"] else None,
        "first_axis": Layout.from_record(store).dimension(store["store"][0])
        if store["store"]
        else None,
        "measured": [facts.measured(record) for record in records(inputs.folder)],
        "configuration": visible_lines(yaml.safe_dump(dict(inputs.configuration), sort_keys=False)),
    }


def _left_out(inputs: Inputs) -> str:
    detection = inputs.configuration["detection"]
    return ExcludeSettings.model_validate(detection["exclude"]).said


def _hash(text: str) -> Markup:
    """What the page's Content-Security-Policy lets through: this text, and no other style."""
    digest = hashlib.sha256(text.encode()).digest()
    return Markup("sha256-") + base64.b64encode(digest).decode()


def _body(report: ReportSettings, inputs: Inputs, evidence: Evidence, tokens: TokenStore) -> Row:
    sites = dict.fromkeys(row["site"] for row in evidence.magnitudes)
    return {
        "missing": missing.missing(evidence.criteria, inputs.configuration),
        "sites": _sites(evidence, inputs.figures),
        "int8": _int8(report, evidence),
        "massive": massive.section(report, inputs.tables, evidence, tokens),
        "experts": _experts(report, inputs, evidence) if evidence.experts else None,
        "weights": _weights_section(report, inputs),
        "sinks": _sinks(report, inputs, evidence),
        "ablation": _ablation(inputs) if inputs.ablations else None,
        "comparison": _comparison(report, inputs) if report.compare else None,
        "text_shown": report.text,
        **measures.pictures(inputs.figures, sites, inputs.configuration["detection"], _picture),
        "found": _found(report, inputs, evidence),
    }


def _found(report: ReportSettings, inputs: Inputs, evidence: Evidence) -> list[Row]:
    sections = criteria.sections(
        inputs.tables, evidence.criteria, report.rows, report.text != "none"
    )
    for section in sections:
        drawn = section["table"] == "super_weights" and (
            SUPER_WEIGHT_SITES[1] in section["criterion"]["sites"].split()
        )
        section["picture"] = measures.down_proj(inputs.figures, _picture) if drawn else None
    return sections


def _experts(report: ReportSettings, inputs: Inputs, evidence: Evidence) -> Row:
    min_tokens = inputs.configuration["detection"]["experts"]["min_tokens"]
    heatmap = _picture(
        inputs.figures,
        f"{EXPERT_OUT}-experts",
        "Largest |down_proj output| by layer and expert",
        "The largest |down_proj output| of each expert, over all tokens routed to it; logarithmic "
        "colour. An unseen expert has no colour. The experts with the largest are named above.",
    )
    return experts.section(evidence.experts, min_tokens, report.rows) | {"heatmap": heatmap}


def _weights_section(report: ReportSettings, inputs: Inputs) -> Row | None:
    if not inputs.configuration["weights"]["measure"]:
        return None
    rows, errors = (
        tables.read(inputs.tables, table).to_pylist()
        for table in (tables.WEIGHTS, tables.WEIGHT_ERRORS)
    )
    return weights.section(rows, errors, report.rows)


def _sinks(report: ReportSettings, inputs: Inputs, evidence: Evidence) -> Row:
    criterion = evidence.criteria["attention_sinks"]
    shown = sinks.section(criterion, evidence.sinks, evidence.sink_positions, report.rows)
    if not criterion["measured"]:
        return dict(shown)
    heatmap = _picture(
        inputs.figures,
        f"{ATTN_SINK}-heads",
        "Attention that the first token receives, by layer and head",
        "The attention that the first token of a sequence receives in each head, as a mean over "
        "the sequences; colour from 0 to 1.",
    )
    return {**shown, "heatmap": heatmap}


def _ablation(inputs: Inputs) -> Row:
    return ablation.section(tables.read(inputs.tables, tables.ABLATIONS).to_pylist())


def _comparison(report: ReportSettings, inputs: Inputs) -> Row:
    return comparison.section(inputs.folder, inputs.folder.with_name(str(report.compare)))


def _sites(evidence: Evidence, folder: Path) -> list[Row]:
    """Each site with its figures; that of the largest |x| is unfolded, the last of equals."""
    tops = largest_by_site(evidence)
    unfolded = max(reversed(tops), key=lambda site: tops[site]["top1"] or 0, default=None)
    return [_site(site, top, folder) | {"open": site == unfolded} for site, top in tops.items()]


def _site(site: str, top: Row, folder: Path) -> Row:
    return {
        "name": site,
        "meaning": SITE_NAMES[site],
        "top": top,
        "magnitudes": _picture(
            folder,
            f"{site}-magnitudes",
            f"Largest three and median of |x| at {site}, by layer",
            "The three largest |x| of each layer, over all tokens and channels, and the median of "
            "|x|, the lower of the two middle values (exact for bfloat16). Logarithmic axis.",
        ),
        "maxima": _picture(
            folder,
            f"{site}-maxima",
            f"Largest |x| at {site}, by layer and channel",
            "The largest |x| of each channel in each layer, over all tokens; logarithmic colour. "
            "The channels with the largest maxima are named above.",
        ),
    }


def _picture(folder: Path, name: str, alt: str, caption: str) -> Row:
    def data(suffix: str) -> str:
        content = (folder / f"{name}{suffix}.svg").read_bytes()
        return "data:image/svg+xml;base64," + base64.b64encode(content).decode()

    light, dark = (data(theme.suffix) for theme in THEMES)
    return {"light": light, "dark": dark, "alt": alt, "caption": caption}


def _int8(report: ReportSettings, evidence: Evidence) -> Row:
    rows = evidence.features
    return {
        "criterion": evidence.criteria["llm_int8"],
        "rows": rows[: report.rows],
        "shown": shown(len(rows), report.rows, "channel"),
        "over": get_args(LayerShare),
        "by": get_args(PositionShare),
        "variants": {
            (row["layer_share_over"], row["position_share_by"]): row for row in evidence.variants
        },
    }
