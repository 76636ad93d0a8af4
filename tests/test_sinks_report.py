"""What is stored of attention sinks, in the tables and the report."""

import itertools

import numpy as np
import planted
import pytest
from pipeline import Run, config
from sinks import ROWS, extracted
from test_report import Page, rendered

from outlier_atlas.criteria.attention_sinks.measure import AttentionSinks
from outlier_atlas.report import figures

T, THRESHOLD = 5, 0.3
PLACES = [(sequence, k) for sequence, ids in enumerate(ROWS) for k in range(len(ids))]


@pytest.fixture(scope="module")
def run(llama, tmp_path_factory):
    run = extracted(llama, tmp_path_factory.mktemp("sinks"), tokens=T)
    run.detect()
    return run


def sinks_of(values, position):
    """The numbers of a layer, (token, head), at a position, sequence after sequence."""
    return [values[i] for i, (_, k) in enumerate(PLACES) if k == position]


def test_the_tables_are_those_of_a_loop(run):
    array = run.array("attn_sink")
    for layer, values in enumerate(array):
        first = np.array(sinks_of(values, 0))
        row = run.table("attention_sinks")[layer]
        assert (row["layer"], row["heads"], row["sequences"], row["nan"]) == (layer, 4, 4, 0)
        assert row["sink_metric"] == 100 * np.mean(first > THRESHOLD)
        assert row["sink_heads"] == sum(np.mean(first, axis=0, dtype=np.float64) > THRESHOLD)
        assert row["value"] == np.nanmax(values)
        token, head = np.argwhere(values == np.nanmax(values))[0]
        assert (row["token_index"], row["head"]) == (token, head)
        assert (row["sequence"], row["position"]) == PLACES[token]
        for head in range(4):
            of_head = run.table("attention_sink_heads")[layer * 4 + head]
            assert (of_head["layer"], of_head["head"]) == (layer, head)
            assert of_head["mean"] == np.mean(first[:, head], dtype=np.float64)
            assert of_head["sink_share"] == np.mean(first[:, head] > THRESHOLD)
    rows = run.table("attention_sink_positions")
    assert [row["position"] for row in rows] == list(range(T))
    assert [row["sequences"] for row in rows] == [4, 3, 3, 2, 2]
    for row in rows:
        values = np.array([sinks_of(layer, row["position"]) for layer in array], np.float64)
        assert row["sink_metric"] == 100 * np.mean(values > THRESHOLD)
        # Added in another order.
        assert row["mean"] == pytest.approx(np.mean(values), rel=1e-12)
    metrics = [row["sink_metric"] for row in run.table("attention_sinks")]
    assert rows[0]["sink_metric"] == np.mean(metrics)


def test_any_cut_into_tiles_gives_the_same_bits():
    random = np.random.default_rng(0)
    values = random.random((40, 3), np.float32)
    values[7, 1] = np.nan
    values[3, 1] = values[30, 2] = 1
    sequences, positions = np.divmod(np.arange(40), 9)
    made = []
    for size in (1, 6, 40):
        sinks = AttentionSinks(3, 4, THRESHOLD, 5)
        for start in range(0, 40, size):
            part = slice(start, start + size)
            sinks.update(values[part], sequences[part], positions[part], start)
        made.append(sinks)
        assert sinks.largest == (1, 1, 3), "the first of equals"
    for one, other in itertools.pairwise(made):
        assert one.largest == other.largest
        for name in ("sequences", "values", "sinks", "sums", "of_sequences"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("first", "largest_of_sequences"):
            assert np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)


def test_nan_is_counted_and_left_out():
    sinks = AttentionSinks(2, 3, THRESHOLD, 1)
    nan = np.nan
    values = np.array([[0.5, nan], [0.1, 0.2], [nan, nan], [nan, nan]], np.float32)
    sinks.update(values, np.zeros(4, np.int64), np.array([0, 1, 2, 3]), start=10)
    assert sinks.nan == 3, "what lies beyond T is none"
    assert sinks.largest == (0.5, 0, 10)
    assert sinks.mean()[0].tolist() == pytest.approx([0.5, nan], nan_ok=True)
    assert sinks.sinks.tolist() == [[1, 0], [0, 0], [0, 0]]


def test_the_threshold_is_exceeded_and_not_reached():
    sinks = AttentionSinks(3, 1, THRESHOLD, 1)
    at = np.float32(THRESHOLD)
    values = np.array([[at, np.nextafter(at, 1, dtype=np.float32), 0]])
    sinks.update(values, np.array([0]), np.array([0]), 0)
    assert sinks.sinks.tolist() == [[0, 1, 0]]


def test_the_report_shows_heads_layers_and_positions(tmp_path):
    folder, layer = planted.attention_sink(tmp_path / "model")
    extraction = {"sites": ["attn_sink"]}
    run = Run(tmp_path, config(folder, planted.ROWS, tmp_path / "data", extraction=extraction))
    run.all()
    html, _ = rendered(run, rows=7)
    section = html.split('<section id="sinks">')[1].split("</section>")[0]
    said = Page(section).said
    assert (
        "The first token is a sink in 6.25 % (0 to 12.5 %) of all (sequence, layer, head), and on "
        "average over the sequences in 4 of 32 heads."
    ) in said
    assert "where T is 64 or the length of a shorter sequence" in said
    assert f"<tr><td>{layer}</td><td>50 %<small>0 to 100 %</small></td><td>4 of 4</td>" in section
    assert "The first 7 of 8 layers are shown" in said
    assert section.count("<svg") == 1
    assert '["attn_sink"]     # (layer, token, head), float32' in Page(html).said
    assert {*figures.drawings(run.tables)} == {"attn_sink-heads"}


def test_what_was_not_measured_is_said(llama, tmp_path):
    run = Run(tmp_path, config(llama, [[5, 6]], tmp_path / "data"))
    run.all()
    for table in ("attention_sinks", "attention_sink_heads", "attention_sink_positions"):
        assert run.table(table) == []
    html = rendered(run)[0]
    assert '<section id="sinks">' not in html
    section = html.split('<section id="missing">')[1].split("</section>")[0]
    assert "attn_sink is not among the sites" in Page(section).said


def test_it_is_stored_whatever_else_is_not(llama, tmp_path):
    sites = ["attn_sink", "mlp_in", "resid_post"]
    made = []
    for name, store in (("all", "all"), ("none", [])):
        extraction = {"sites": sites, "store": store, "layer_groups": 2}
        run = extracted(llama, tmp_path, name, extraction=extraction)
        run.detect()
        made.append([run.table(t) for t in ("attention_sinks", "massive_activations", "criteria")])
    assert made[0] == made[1]
    assert not list((run.folder / "boundaries.zarr").glob("*/c/*/*")), "they are gone"
