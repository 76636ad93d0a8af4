"""Intervals over sequences, and tokens that are left out, beside the report's numbers."""

import shutil

import planted
import pyarrow.parquet as pq
import pytest
from pipeline import Run, config
from planted import ROWS
from test_report import Page, _section
from test_report import rendered as render

from outlier_atlas.report import figures
from outlier_atlas.report.svg import svg
from outlier_atlas.text import interval, number, percent
from outlier_atlas.workflow import closing_words

SITES = ["attn_in", "mlp_in", "mlp_hidden", "down_proj_out", "resid_post"]
UNTOUCHED = {"attention_sinks", "attention_sink_heads", "attention_sink_positions", "perplexity"}


def detected(model, folder, **detection):
    extraction = {"sites": [*SITES, "attn_sink"]}
    data = config(model, ROWS, folder / "data", extraction=extraction, detection=detection)
    run = Run(folder, data)
    run.all()
    return run


@pytest.fixture(scope="module")
def massive(tmp_path_factory):
    """Two runs, one of them without the first token of each sequence."""
    folder = tmp_path_factory.mktemp("massive")
    model, _ = planted.super_weight(folder / "model")
    # What a norm makes of the massive channel is above it.
    features = {"llm_int8": {"threshold": 5.0}}
    left_out = features | {"exclude": {"first_positions": 1}}
    return detected(model, folder / "a", **features), detected(model, folder / "b", **left_out)


def test_numbers_have_their_intervals_under_them(massive):
    run, _ = massive
    html, findings = render(run)
    rows = {name: run.table(name) for name in ("massive_channels", "super_weights")}
    (weight,) = (row for row in rows["super_weights"] if row["super_weight"])
    top = max(rows["massive_channels"], key=lambda row: abs(row["value"]))
    shown = _section(html, "massive") + _section(html, "super-weights")
    for row, name in ((top, "value"), (weight, "output")):
        assert f"{number(row[name])}<small>{interval(row, name, number)}</small></td>" in shown
    feature = run.table("llm_int8_features")[0]
    shown = _section(html, "llm-int8")
    for share in ("layer_share_layers", "position_share_union", "position_share_max"):
        ends = interval(feature, share, percent)
        assert f"<td>{percent(feature[share])}<small>{ends}</small></td>" in shown
    assert (
        f"reaches {number(top['value'])} ({interval(top, 'value', number)}) in layer"
        in (findings["findings"][0]["text"])
    )
    said = Page(html).said
    assert "small type under numbers: 95 % bootstrap intervals over sequences: percentiles" in said


def test_one_sequence_has_no_intervals(llama, tmp_path):
    run = Run(tmp_path, config(llama, [[5, 6, 7]], tmp_path / "data"))
    run.all()
    html, _ = render(run)
    assert "One sequence is all there is: no number has an interval" in html
    assert "<small>" not in html


def test_the_closing_words_of_a_run_say_what_is_left_out(massive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, run in zip(("every", "without"), massive, strict=True):
        _, findings = render(run)
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        for file in ("report.html", "findings.json"):
            shutil.copy(run.folder / file, folder)
        first, said = findings["findings"][0]["text"], run.settings.detection.exclude.sentence
        line = f"{first} {said}" if said else first
        assert closing_words(name) == f"\n{line}\n\nReport: results/{name}/report.html\n"
    assert said


def test_tables_and_figures_say_what_is_left_out_of_them(massive):
    every, without = massive
    said = "Left out (detection.exclude): the first 1 positions of each sequence."
    assert without.settings.detection.exclude.sentence == said
    for run in massive:
        for path in run.tables.glob("*.parquet"):
            metadata = pq.read_schema(path).metadata
            touched = run is without and path.stem not in UNTOUCHED
            touched &= path.stem not in ("weights", "weight_errors")
            assert metadata.get(b"left_out") == (said.encode() if touched else None), path.stem
    html, _ = render(without)
    sections = [_section(html, name) for name in ("sites", "massive", "llm-int8", "measures")]
    assert all(said in section for section in sections)
    assert said not in _section(html, "sinks")
    assert "but for those of attention sinks, perplexity" in html
    assert "detection.exclude" not in Page(render(every)[0].split('id="run"')[0]).said
    # The sentence stands in the figures themselves, but for those of sinks.
    before, after = (figures.drawings(run.tables) for run in massive)
    sinks = "attn_sink-heads"
    assert svg(sinks, before[sinks], "") == svg(sinks, after[sinks], "")
    assert said not in svg("k", before["resid_post-kurtosis"], "")
    assert said in svg("k", after["resid_post-kurtosis"], "")
