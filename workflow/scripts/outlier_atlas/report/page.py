"""Rendering of the report as one HTML file that opens offline."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from outlier_atlas import __version__, tables
from outlier_atlas.criteria.figure import Drawing
from outlier_atlas.criteria.show import Evidence, Finding, Page, ReportSection, Show
from outlier_atlas.criteria.shows import ALL, BEHIND, SHOWS
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.earlier_jobs import remember_pause
from outlier_atlas.files import write_whole
from outlier_atlas.job_metrics import records
from outlier_atlas.job_times import JobTimes, behind
from outlier_atlas.report import ablation, comparison, facts, job_times, missing, theme, weights
from outlier_atlas.report.critical_path import between
from outlier_atlas.report.figures import drawings
from outlier_atlas.report.findings import alarms, findings
from outlier_atlas.report.svg import svg
from outlier_atlas.report.templates import CRITERIA, REPORT
from outlier_atlas.sanitize import visible, visible_lines
from outlier_atlas.settings.detection import ExcludeSettings
from outlier_atlas.settings.report import ReportSettings
from outlier_atlas.store.origin import Origin
from outlier_atlas.store.run import Run
from outlier_atlas.text import count, interval, number, percent, percentage

Row = dict[str, Any]


@dataclass(frozen=True)
class PageInputs:
    """The inputs of a report.

    Attributes:
        configuration: the configuration without the section `execution`.
        run: the run.
        ablations: whether the run has the table of the ablation stage.
        now: function that returns the times of this job until its call; None outside of a job.
    """

    configuration: Mapping[str, Any]
    run: Run
    ablations: bool = False
    now: Callable[[], JobTimes] | None = None


def render(
    settings: Mapping[str, Any], inputs: PageInputs, page: Path, findings_file: Path
) -> None:
    """Write the page as HTML, and the findings as JSON.

    Args:
        settings: the section `report` of the configuration.
        inputs: the inputs of the report.
        page: path of the HTML file.
        findings_file: path of the JSON file `{"findings": [{"text", "definition"}, ...], "alarms":
            [...], "left_out": "..."}`; `left_out` is the sentence on `detection.exclude`.

    Raises:
        ValueError: the token store or a record is damaged, or the run to compare is missing.
    """
    report = ReportSettings.model_validate(settings)
    tokens = inputs.run.tokens
    evidence = Evidence(inputs.run.tables, tokens.sequences)
    ablations = evidence.rows(tables.ABLATIONS) if inputs.ablations else []
    sentences = findings(evidence, ablations, report.text != "none")
    environment = Environment(
        loader=FileSystemLoader([REPORT, CRITERIA]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "number": number, "percent": percent}
    environment.filters |= {
        "interval": partial(interval, show=number),
        "interval_in_percent": partial(interval, show=percent),
        "interval_of_percentage": partial(interval, show=percentage),
    }
    jobs = _jobs(inputs)
    html = environment.get_template("template.html.j2").render(
        **_head(report, inputs, evidence, sentences, jobs),
        **_body(report, inputs, evidence, tokens, environment),
    )
    write_whole(page, html.encode("utf-8", errors="replace"))
    content = {
        "findings": [asdict(f) for f in sentences],
        "alarms": alarms(evidence, inputs.run.store_description["dtype"]),
        "left_out": _left_out(inputs),
    }
    write_whole(findings_file, f"{json.dumps(content, indent=2)}\n".encode("ascii"))


def _head(
    report: ReportSettings,
    inputs: PageInputs,
    evidence: Evidence,
    sentences: Sequence[Finding],
    jobs: Sequence[JobTimes],
) -> Row:
    run = inputs.run
    model, tokens, store = run.model, run.tokens_description, run.store_description
    style = (REPORT / "style.css").read_text("utf-8") + theme.style()
    name = visible(str(model["source"]).removeprefix("builtin:"))
    # For a local folder, the last part of the path is the name.
    name = name.rstrip("/").rsplit("/", 1)[-1] if model["kind"] in ("local", "gguf") else name
    measured = count(len(store["layers"]), "layer")
    origins = {Origin.of(commit.details) for commit in run.commits()}
    tokens_said = f"{count(tokens['tokens'], 'token')} in {count(tokens['sequences'], 'sequence')}"
    headlines = "".join(f" {line}" for show in ALL if (line := show.headline(evidence)))
    return {
        "title": visible(report.title) if report.title else f"The outliers of {name}",
        "run_line": f"{name} on {tokens_said} of "
        f"{visible(str(tokens['source']))}, computed in {store['dtype']}: {measured}, "
        f"{count(len(store['sites']), 'site')}.{headlines}",
        "tokens_said": tokens_said,
        "alarms": alarms(evidence, store["dtype"]),
        "left_out": _left_out(inputs),
        "intervals": facts.intervals(inputs.configuration, tokens["sequences"], inputs.ablations),
        "findings": sentences,
        # The style sheet of the project is the only text that is not escaped.
        "style": Markup(style),
        "style_hash": _hash(style),
        "folder": visible(str(run.folder)),
        "version": __version__,
        "facts": [
            *facts.facts(model, tokens, store, origins),
            *(fact for show in ALL for fact in show.facts(evidence)),
        ],
        "first_array": store["store"][0] if store["store"] else None,
        "first_axis": run.layout.dimension(store["store"][0]) if store["store"] else None,
        "times": job_times.section(jobs),
        "measured": [facts.measured(record) for record in records(run.folder)],
        "configuration": visible_lines(yaml.safe_dump(dict(inputs.configuration), sort_keys=False)),
    }


def _jobs(inputs: PageInputs) -> list[JobTimes]:
    """Return the times of the jobs behind this page, after writing their table."""
    if inputs.now is None:
        return []
    run = inputs.run
    jobs = behind(inputs.now(), run.folder, run.resources)
    tables.write(run.tables, tables.JOB_TIMES, job_times.columns(jobs))
    pause = between(jobs)
    if pause is not None:
        remember_pause(run.resources, pause)
    return jobs


def _left_out(inputs: PageInputs) -> str:
    detection = inputs.configuration["detection"]
    return ExcludeSettings.model_validate(detection["exclude"]).sentence


def _hash(text: str) -> Markup:
    """Return the hash that allows this style in the Content-Security-Policy of the page."""
    digest = hashlib.sha256(text.encode()).digest()
    return Markup("sha256-") + base64.b64encode(digest).decode()


def _body(
    report: ReportSettings,
    inputs: PageInputs,
    evidence: Evidence,
    tokens: TokenStore,
    environment: Environment,
) -> Row:
    picture = partial(_picture, drawings(inputs.run.tables))
    page = Page(report, inputs.configuration, evidence, tokens, picture)
    everywhere = {"left_out": _left_out(inputs), "text_shown": report.text}

    def sections(shows: Sequence[Show]) -> list[Row]:
        shown = [section for show in shows if (section := show.section(page))]
        return [_rendered(environment, section, everywhere) for section in shown]

    return {
        "missing": missing.missing(page),
        "sections": sections(SHOWS),
        "sections_behind": sections(BEHIND),
        "weights": _weights_section(report, inputs),
        "ablation": _ablation(inputs) if inputs.ablations else None,
        "comparison": _comparison(report, inputs, environment) if report.compare else None,
    }


def _rendered(
    environment: Environment, section: ReportSection, everywhere: Mapping[str, Any]
) -> Row:
    html = environment.get_template(section.template).render(**section.values, **everywhere)
    # The template has escaped the values.
    return {"id": section.id, "label": section.label, "shown": section.shown, "html": Markup(html)}


def _weights_section(report: ReportSettings, inputs: PageInputs) -> Row | None:
    if not inputs.configuration["weights"]["measure"]:
        return None
    rows, errors = (
        tables.read(inputs.run.tables, table).to_pylist()
        for table in (tables.WEIGHTS, tables.WEIGHT_ERRORS)
    )
    return weights.section(rows, errors, report.rows)


def _ablation(inputs: PageInputs) -> Row:
    return ablation.section(tables.read(inputs.run.tables, tables.ABLATIONS).to_pylist())


def _comparison(report: ReportSettings, inputs: PageInputs, environment: Environment) -> Row:
    folder = inputs.run.folder
    section = comparison.section(folder, folder.with_name(str(report.compare)))
    # Parts keep the trailing newline of their template, like other lines of the section.
    whole = environment.overlay(keep_trailing_newline=True)
    parts = [
        # The template has escaped the values.
        Markup(whole.get_template(part.template).render(part.values, other=section["name"]))
        for part in section["parts"]
    ]
    return section | {"parts": parts}


def _picture(drawings: Mapping[str, Drawing], name: str, alt: str, caption: str) -> Row:
    return {"svg": svg(name, drawings[name], alt), "caption": caption}
