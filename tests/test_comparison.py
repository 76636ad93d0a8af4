"""Two runs that differ in BOS alone, one beside the other in the report."""

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest
import tiny
from pipeline import Run, config
from test_report import Page, _section
from test_report import rendered as render
from test_workflow import ROOT

from outlier_atlas.criteria.massive_activations.comparison import change
from outlier_atlas.files import write_record
from outlier_atlas.report.compared_runs import refuse_missing
from outlier_atlas.settings.configuration import load
from outlier_atlas.settings.document import settings
from outlier_atlas.store.run_files import STORE_RECORD

ROWS = [[12, 11, 9, 11], [12, 11, 11, 9]]
CHANNELS = {0: 7, 9: 5, 12: 3}  # of BOS, of a token in the middle, and of the first but for BOS
SITES = ["resid_post", "mlp_in", "attn_sink"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A run with BOS, and one without; some tokens have a massive channel of their own."""
    folder = tmp_path_factory.mktemp("bos")
    model, weights = tiny.silent(folder / "model", layers=3)
    for token, channel in CHANNELS.items():
        weights["model.embed_tokens.weight"][token, channel] = 4096
    tiny.save_weights(model, weights)
    runs = []
    for bos, name in (("always", "with-bos"), ("never", "without-bos")):
        run = Run(folder, config(
            model, ROWS, folder / "<i>data</i>", run={"name": name},
            dataset={"bos": bos, "sequence_length": 8},
            extraction={"sites": SITES, "perplexity": True},
        ))  # fmt: skip
        run.all()
        runs.append(run)
    return runs


def cells(html):
    """The rows of tables, each a list of its cells' texts."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
    return [[Page(c).said for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", r)] for r in rows]


def test_the_report_shows_both_runs(both):
    html, _ = render(both[0], compare="without-bos")
    section = _section(html, "comparison")
    rows = {row[0]: row[1:] for row in cells(section.split("<h3>")[0])}
    assert rows["begin-of-sequence token"] == ["at every sequence: <|bos|>", "none added"]
    assert rows["tokens"] == ["10 in 2 sequences", "8 in 2 sequences"]
    assert rows["model"] == [str(both[0].settings.model.source)] * 2
    assert rows["tokens left out"] == ["none", "none"]
    assert "Both runs are of the same weights." in section
    for side, run in zip(rows["perplexity of its own tokens"], both, strict=True):
        whole = run.table("perplexity")[-1]
        assert side.startswith(f"{whole['perplexity']:.4g} ({whole['perplexity_low']:.4g} to ")
    for side, run in zip(rows["sink metric of the first token"], both, strict=True):
        assert side.startswith(f"{run.table('attention_sink_positions')[0]['sink_metric']:.3g} %")
    assert rows["Massive activations: findings"] == ["18", "12"]
    assert "<i>" not in html
    assert '<a href="#comparison">Compared with without-bos</a>' in html


def test_what_appears_vanishes_or_moves_is_said(both):
    html, _ = render(both[0], compare="without-bos")
    part = _section(html, "comparison").split("<h3>")[1]
    (_, *rows) = cells(part)
    span, largest = "layers 0 to 2", "4,096 (4,096 to 4,096)"
    assert rows == [
        ["3", "moves", "this run", span, largest, "0", "0 %"],
        ["without-bos", span, largest, "0", "100 %"],
        ["7", "only here", "this run", span, largest, "0", "100 %"],
        ["without-bos", "none"],
        ["5", "in both", "this run", span, largest, "0", "0 %"],
        ["without-bos", span, largest, "0", "0 %"],
    ]
    assert (
        "Channels with massive activations: 1 in both runs, 1 that move, 1 in this run alone, 0 in "
        "without-bos alone."
    ) in part
    reverse, _ = render(both[1], compare="with-bos")
    assert ["7", "only there", "this run", "none"] in cells(_section(reverse, "comparison"))


def test_every_layer_has_the_largest_of_both(both):
    html, _ = render(both[0], compare="without-bos")
    site = _section(html, "comparison").split("<code>resid_post</code>")[1].split("</details>")[0]
    rows = [row for row in cells(site) if row[0] != "layer"]
    tops = [
        {r["layer"]: r for r in run.table("layer_magnitudes") if r["site"] == "resid_post"}
        for run in both
    ]
    assert rows == [
        [
            str(layer), *(
                said for of in tops for said in (
                    "4,096 (4,096 to 4,096)", str(of[layer]["channel"])
                )
            ), "1",
        ]
        for layer in range(3)
    ]  # fmt: skip
    assert [of[0]["channel"] for of in tops] == [7, 3]
    assert site.count("<mark>") == 6


def test_what_only_one_run_measured_is_said(both, tmp_path):
    run = Run(tmp_path, config(
        both[0].folder.parents[1] / "model", ROWS, tmp_path / "d", run={"name": "few"},
        extraction={"sites": ["mlp_in"]},
    ))  # fmt: skip
    run.all()
    both[1].folder.rename(tmp_path / "results" / "other")
    try:
        html, _ = render(run, compare="other")
    finally:
        (tmp_path / "results" / "other").rename(both[1].folder)
    section = _section(html, "comparison")
    rows = {row[0]: row[1:] for row in cells(section)}
    assert rows["perplexity of its own tokens"][0] == "not measured"
    assert rows["Massive activations: findings"] == ["not measured", "12"]
    assert "Not measured in both." in section


def beside(both, folder, model, **detection):
    """Another run of these tokens in the folder of the two."""
    run = Run(both[0].folder.parents[1], config(
        model, ROWS, folder / "d", run={"name": folder.name}, detection=detection,
        dataset={"bos": "never", "sequence_length": 8}, extraction={"sites": SITES},
    ))  # fmt: skip
    run.all()
    return run


def test_a_run_of_other_weights_is_said_to_be_one(both, tmp_path):
    model, weights = tiny.silent(tmp_path / "tuned", layers=3)
    tiny.save_weights(model, weights)
    detection = {"exclude": {"first_positions": 1}, "super_weights": {"threshold": 60}}
    run = beside(both, tmp_path, model, **detection)
    section = _section(render(both[1], compare=tmp_path.name)[0], "comparison")
    rows = {row[0]: row[1:] for row in cells(section)}
    assert rows["model"] == [str(both[1].settings.model.source), str(model)]
    assert rows["tokens left out"] == ["none", run.settings.detection.exclude.said]
    said = f"different weights, this one of {both[1].settings.model.source} and {tmp_path.name} of "
    assert said in section
    # Left out tokens and another threshold are other definitions; those of sinks are alike.
    assert "Massive activations: findings, otherwise defined there" in rows
    assert "Attention sinks: findings" in rows


@pytest.mark.parametrize(
    ("layers", "sizes", "said"),
    [
        (2, {}, "2 layers, and this run of {}, which has 3: "),
        (3, {"hidden_size": 64}, "64 channels at mlp_in, and this run of {}, which has 32: "),
    ],
)
def test_a_run_of_a_model_of_another_shape_is_refused(both, tmp_path, layers, sizes, said):
    model = tiny.llama(tmp_path / "other", num_hidden_layers=layers, **sizes)
    beside(both, tmp_path, model)
    here = re.escape(said.format(both[1].settings.model.source))
    with pytest.raises(ValueError, match=rf"^report\.compare: .*, which has {here}layers and "):
        render(both[1], compare=tmp_path.name)


def test_a_run_that_is_not_there_is_one_sentence(both):
    said = r"^report\.compare: .*/before has no tables/criteria\.parquet; run before first \(make "
    with pytest.raises(ValueError, match=said):
        render(both[0], compare="before")
    whole = both[1].folder
    refuse_missing(whole)
    record = whole / STORE_RECORD
    record.rename(record.with_suffix(".away"))
    try:
        with pytest.raises(ValueError, match=r"has no manifests/store\.json"):
            refuse_missing(whole)
    finally:
        record.with_suffix(".away").rename(record)


def test_a_run_is_not_compared_with_itself():
    data = {"model": {"source": "a/b"}, "dataset": {"source": "c/d"}}
    data["report"] = {"compare": "same"}
    with pytest.raises(ValueError, match=r"^report\.compare = 'same': this is the run itself"):
        load(data, "same")
    assert load(data, "another").report.compare == "same"


def at(first, *layers, count=2):
    row = {"value": -1.0, "massive_activations": count, "first_position_share": first}
    return [row | {"layer": layer} for layer in layers]


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        (at(1.0, 3), None, "only here"),
        (None, at(1.0, 3), "only there"),
        (at(1.0, 3, 4), at(0.6, 4, 5), "in both"),
        (at(1.0, 3), at(1.0, 4), "moves"),
        (at(0.4, 3), at(0.6, 3), "moves"),
        (at(0.5, 3), at(0.1, 3), "in both"),
        (at(1.0, 3, count=9) + at(0.0, 4), at(1.0, 3), "in both"),
    ],
)
def test_changes(here, there, said):
    assert change(here, there) == said


def test_the_ready_pair_differs_in_bos_alone():
    folder = ROOT / "config" / "bos"
    with_bos, without = (
        settings([folder / f"{name}.yaml"]).model_dump() for name in ("with-bos", "without-bos")
    )
    assert with_bos["report"].pop("compare") == without["run"]["name"] == "without-bos"
    assert without["report"].pop("compare") is None
    assert (with_bos.pop("run"), without.pop("run")) == (
        {"name": "with-bos"},
        {"name": "without-bos"},
    )
    assert (with_bos["dataset"].pop("bos"), without["dataset"].pop("bos")) == ("always", "never")
    assert with_bos == without


def test_a_table_of_another_version_is_one_sentence(both, tmp_path):
    folder = shutil.copytree(both[1].folder, both[1].folder.parent / "elsewhere")
    path = folder / "tables" / "criteria.parquet"
    table = pq.read_table(path)
    field = table.schema.field("findings")
    renamed = table.schema.set(
        table.schema.get_field_index("findings"), field.with_metadata({"definition": "Another."})
    )
    broken = {
        "has no column findings": table.drop_columns("findings"),
        "column findings has another definition": table.cast(renamed),
        "column findings is string, not ": table.set_column(
            table.schema.get_field_index("findings"), "findings", table["findings"].cast("string")
        ),
    }
    for said, other in broken.items():
        pq.write_table(other, path)
        with pytest.raises(
            ValueError, match=rf"written by another version .*{said}.* run .* again"
        ):
            render(both[0], compare="elsewhere")
    pq.write_table(table.slice(1), path)
    with pytest.raises(
        ValueError, match=r"^report\.compare: elsewhere was made by another version"
    ):
        render(both[0], compare="elsewhere")
    pq.write_table(table, path)
    record = json.loads((folder / STORE_RECORD).read_text())
    lacking = {k: v for k, v in record.items() if k not in ("model", "checksum")}
    write_record(folder / STORE_RECORD, lacking)
    with pytest.raises(ValueError, match=r"store\.json does not say model: an older version"):
        render(both[0], compare="elsewhere")
