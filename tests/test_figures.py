"""Figures of the page: what they show, and that odd values do not break them."""

import json
import logging
import os
import re
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest

from outlier_atlas.criteria.figure import Drawing, Heatmap, Line, Lines
from outlier_atlas.report import figures, pixels, ticks
from outlier_atlas.report.svg import svg
from outlier_atlas.report.theme import LINES, THEMES, style
from outlier_atlas.store.run_files import RunFiles


def elements(plot, excluded=""):
    drawn = ElementTree.fromstring(svg("site-kind", Drawing("q", plot, excluded), "what it shows"))
    assert drawn.get("role") == "img"
    numbers = re.findall(r'"[^"]*?(nan|inf)[^"]*?"', ElementTree.tostring(drawn).decode())
    assert not numbers, "no coordinate that is not finite"
    return list(drawn.iter())


def texts(drawn, tag="text"):
    return [element.text for element in drawn if element.tag == tag]


def test_every_point_tells_its_layer_and_value():
    line = Line("largest", [1.0, None, 10.0, 24926.2], "first", "o")
    drawn = elements(Lines([0, 1, 2, 3], [line], "|x| at q"))
    assert texts(drawn, "title") == ["layer 0: 1", "layer 2: 10", "layer 3: 24,926"]
    (path,) = [e.get("d") for e in drawn if e.get("fill") == "none"]
    assert path.count("M") == 2 and path.count("L") == 1, "a gap for the layer without a value"
    shown = texts(drawn)
    assert {"largest", "layer", "|x| at q", "1", "10", "100", "1,000", "10,000"} <= {*shown}


@pytest.mark.parametrize("marker", "os^DvPX")
@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([5.0], True), ([None], True), ([0.0], True), ([0.0, 0.0], True), ([3.0, 3.0], False),
        ([-2.0, 40.0], False), ([np.inf, 1.0], False), ([1e-30, 1e30], True), ([1.0, 1.01], True),
        ([0.0, 7.0], True),
    ],
)  # fmt: skip
def test_lines_of_odd_values_are_drawn(values, logarithmic, marker):
    lines = [Line("line", values, LINES[0], marker, dashed=True)]
    layers = list(range(len(values)))
    drawn = elements(Lines(layers, lines, "value", logarithmic, not_finite=[0]), "Left out.")
    assert {"line", "nothing finite", "Left out.", "0"} <= {*texts(drawn)}


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([[1.0, 2.0], [3.0, 4000.0]], True), ([[np.nan, np.nan], [1.0, 5.0]], True),
        ([[2.0]], True), ([[0.0, 1.0]], False), ([[np.nan, 0.3]], False), ([[0.0, 7.0]], True),
    ],
)  # fmt: skip
def test_heatmaps_of_odd_values_are_drawn(values, logarithmic):
    array = np.array(values)
    drawn = elements(Heatmap(array, [*range(len(array))], "channel", "|x|", logarithmic))
    assert [e.tag for e in drawn].count("image") == 1
    hatched = np.isnan(array).all(axis=1).any()
    assert any(t and "hatched: nothing finite" in t for t in texts(drawn)) == hatched


def test_a_heatmap_without_a_positive_value_says_so():
    drawn = elements(Heatmap(np.zeros((2, 3)), [0, 1], "channel", "|x|"))
    assert texts(drawn) == ["no finite value above zero"]


def test_the_image_has_the_first_layer_at_the_bottom_and_nothing_where_there_is_no_value():
    plot = Heatmap(np.array([[0.0, 0.5, 1.0], [1.0, np.nan, 0.0]]), [0, 1], "head", "share", False)
    image = pixels.scaled(plot)
    content = pixels.png(plot, image)
    assert struct.unpack(">II", content[16:24]) == (3, 2)
    data = content[content.index(b"IDAT") + 4 : content.index(b"IEND") - 8]
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(2, 4)[:, 1:]
    assert rows.tolist() == [[255, 0, 1], [1, 128, 255]]


def test_a_wide_heatmap_keeps_the_largest_of_the_channels_in_a_column():
    values = np.ones((1, 5000))
    values[0, 4321] = 9.0
    image = pixels.scaled(Heatmap(values, [0], "channel", "|x|"))
    assert image.shown.shape[1] <= pixels.COLUMNS
    assert image.shown[0, 4321 // image.width] == 9.0
    assert 4321 in pixels.peaks(values)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.5, 30_000, ["1", "10", "100", "1,000", "10,000"]),
        (2, 40, ["2", "5", "10", "20"]),
        (6.1, 6.3, ["6.1", "6.15"]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low, high, labels):
    assert [ticks.labelled(tick) for tick in ticks.logarithmic(low, high)][: len(labels)] == labels


def test_the_page_has_the_colours_of_both_themes():
    light, dark = style().split("@media (prefers-color-scheme: dark)")
    for theme, part in zip(THEMES, (light, dark), strict=True):
        for role, colour in theme.colours.items():
            assert f"--{role}: {colour};" in part


def test_static_figures_older_than_the_tables_are_named(tmp_path, caplog):
    run = RunFiles(tmp_path / "run")
    run.product_records.mkdir(parents=True)
    for time, rule in enumerate(("draw_figures", "detect_outliers"), 1):
        figures.report_outdated(run)
        assert not caplog.messages
        (run.product_records / f"{rule}.json").write_text(json.dumps({}))
        os.utime(run.product_records / f"{rule}.json", (time, time))
    with caplog.at_level(logging.INFO):
        figures.report_outdated(run)
    (line,) = caplog.messages
    assert line == f"{run.figures}: drawn from earlier tables; `snakemake figures` draws them again"
