"""Figures of the page, as SVG elements in its HTML.

Text is text in the font of the page, and colours are the page's, which follow a light or a dark
theme (`theme.style`). A point tells its layer and value when the pointer rests on it. matplotlib,
which takes half a second to import and as long for a figure, is not needed (see `static.py`).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from outlier_atlas.criteria.figure import Drawing, Heatmap, Line, Lines
from outlier_atlas.report import pixels, ticks
from outlier_atlas.text import number

WIDTH = 960.0
FONT = 14.0
SMALL = 12.0
LETTER = 0.54
"""Width of a letter in font sizes, roughly; texts must not overlap in any font."""

SHAPES = {
    "s": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "^": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    "v": ((0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
    "D": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
    "P": (
        (-0.5, -1.3), (0.5, -1.3), (0.5, -0.5), (1.3, -0.5), (1.3, 0.5), (0.5, 0.5), (0.5, 1.3),
        (-0.5, 1.3), (-0.5, 0.5), (-1.3, 0.5), (-1.3, -0.5), (-0.5, -0.5),
    ),
    "X": (
        (0, -0.6), (0.8, -1.4), (1.4, -0.8), (0.6, 0), (1.4, 0.8), (0.8, 1.4), (0, 0.6),
        (-0.8, 1.4), (-1.4, 0.8), (-0.6, 0), (-1.4, -0.8), (-0.8, -1.4),
    ),
}  # fmt: skip
"""Corners of markers of size 1; a circle has none."""

SIZE = 3.1
"""Half the width of a marker."""


def svg(name: str, drawing: Drawing, alt: str) -> Markup:
    """Return a figure as an SVG element.

    Args:
        name: name of the figure, unique on the page.
        drawing: the figure.
        alt: description for screen readers.
    """
    height = 100 * drawing.height + (22 if drawing.excluded else 0)
    plot, bottom = drawing.plot, height - (70 if drawing.excluded else 48)
    draw = _lines(plot, bottom) if isinstance(plot, Lines) else _heatmap(name, plot, bottom)
    parts = [*draw]
    if drawing.excluded:
        parts.append(_text(WIDTH / 2, height - 8, drawing.footnote, "middle", SMALL))
    body = Markup("").join(parts)
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" font-size="{}">{}</svg>'
    ).format(_n(WIDTH), _n(height), alt, _n(FONT), body)


@dataclass(frozen=True)
class _Scale:
    """The places of values between two ends of an axis."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        value, low, high = (self._of(each) for each in (value, self.low, self.high))
        return self.first + (self.last - self.first) * (value - low) / (high - low)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def _lines(plot: Lines, bottom: float) -> Iterator[Markup]:
    legend, rows = _legend(plot)
    top = 14 + 20.0 * max(rows, 1 if plot.title else 0)
    if plot.title:
        yield _text(WIDTH - 12, 17, plot.title, "end")
    y = _value_axis(plot, top, bottom)
    at = ticks.logarithmic(y.low, y.high) if y.logarithmic else ticks.linear(y.low, y.high)
    left = 34 + LETTER * FONT * max(len(ticks.labelled(tick)) for tick in at)
    first, last = min(plot.layers), max(plot.layers)
    room = max(0.02 * (last - first), 0.5)
    x = _Scale(first - room, last + room, left, WIDTH - 12)
    yield from legend
    for layer in sorted(plot.not_finite):
        begin, end = (min(max(x(layer + half), left), WIDTH - 12) for half in (-0.5, 0.5))
        yield _rect(begin, top, end - begin, bottom - top, "f-faint")
    for tick in at:
        yield _segment(left, y(tick), WIDTH - 12, y(tick), "s-faint")
        yield _text(left - 8, y(tick) + 0.35 * FONT, ticks.labelled(tick), "end")
    yield _segment(left, top, left, bottom, "s-faint")
    yield _segment(left, bottom, WIDTH - 12, bottom, "s-faint")
    for layer in ticks.whole(x.low, x.high):
        if first <= layer <= last:
            yield _segment(x(layer), bottom, x(layer), bottom + 4, "s-text")
            yield _text(x(layer), bottom + 19, str(layer), "middle")
    yield _text((left + WIDTH - 12) / 2, bottom + 40, "layer", "middle")
    yield _upright(15, (top + bottom) / 2, plot.value)
    for line in reversed(plot.lines):
        yield from _line(line, plot.layers, x, y)
    for layer, value, note in plot.notes:
        yield _text(x(layer) + 8, y(value) - 4, note, "start", SMALL, "f-contrast")


def _value_axis(plot: Lines, top: float, bottom: float) -> _Scale:
    logarithmic = plot.is_logarithmic
    values = [
        value
        for line in plot.lines
        for value in line.values
        if value is not None and math.isfinite(value) and (value > 0 or not logarithmic)
    ] or [0.0, 1.0]
    low, high = min(values), max(values)
    if logarithmic:
        room = max((high / low) ** 0.05, 1.1)
        return _Scale(low / room, high * room, bottom, top, logarithmic=True)
    room = 0.05 * (high - low) or max(0.05 * abs(high), 0.05)
    return _Scale(low - room, high + room, bottom, top)


def _line(line: Line, layers: Sequence[int], x: _Scale, y: _Scale) -> Iterator[Markup]:
    points = [
        (layer, value)
        if value is not None and math.isfinite(value) and (value > 0 or not y.logarithmic)
        else None
        for layer, value in zip(layers, line.values, strict=True)
    ]
    path = "".join(
        f"{'L' if index and points[index - 1] else 'M'}{_n(x(point[0]))} {_n(y(point[1]))}"
        for index, point in enumerate(points)
        if point
    )
    if not path:
        return
    dashed = Markup(' stroke-dasharray="5 3"') if line.dashed else ""
    yield Markup('<path class="s-{}" fill="none" stroke-width="1.7" d="{}"{}/>').format(
        line.colour, path, dashed
    )
    for point in filter(None, points):
        label = f"layer {point[0]}: {number(point[1])}"
        yield _marker(line, x(point[0]), y(point[1]), label)


def _marker(line: Line, x: float, y: float, title: str = "") -> Markup:
    said = Markup("<title>{}</title>").format(title) if title else ""
    if line.marker not in SHAPES:
        return Markup('<circle class="f-{}" cx="{}" cy="{}" r="{}">{}</circle>').format(
            line.colour, _n(x), _n(y), _n(SIZE), said
        )
    corners = " ".join(f"{_n(x + SIZE * dx)},{_n(y + SIZE * dy)}" for dx, dy in SHAPES[line.marker])
    return Markup('<polygon class="f-{}" points="{}">{}</polygon>').format(
        line.colour, corners, said
    )


def _legend(plot: Lines) -> tuple[list[Markup], int]:
    """Return the legend and its number of rows."""
    entries: list[tuple[str, Line | None]] = [(each.label, each) for each in plot.lines]
    entries = [entry for entry in entries if entry[0]]
    if plot.not_finite:
        entries.append(("nothing finite", None))
    parts: list[Markup] = []
    x, row = 44.0, 0
    # A title is in the first row, on the right.
    stop = WIDTH - 12 - (LETTER * FONT * len(plot.title) + 20 if plot.title else 0)
    for label, line in entries:
        width = 34 + LETTER * FONT * len(label) + 16
        if x + width > (WIDTH if row else stop) and x > 44:
            x, row = 44.0, row + 1
        y = 12.0 + 20 * row
        if line is None:
            parts.append(_rect(x, y - 5, 24, 10, "f-faint"))
        else:
            parts += [_segment(x, y, x + 24, y, f"s-{line.colour}", 1.7), _marker(line, x + 12, y)]
        parts.append(_text(x + 30, y + 5, label))
        x += width
    return parts, row + 1 if entries else 0


def _heatmap(name: str, plot: Heatmap, bottom: float) -> Iterator[Markup]:
    image = pixels.scaled(plot)
    if image is None:
        yield _text(WIDTH / 2, bottom / 2, "no finite value above zero", "middle")
        return
    left, right, top = 62.0, WIDTH - 118, 26.0 if plot.logarithmic else 10.0
    layers, columns = plot.values.shape
    x = _Scale(-0.5, columns - 0.5, left, right)
    y = _Scale(-0.5, layers - 0.5, bottom, top)
    pooled_right = x(image.shown.shape[1] * image.width - 0.5)  # the last column may be padded
    content = base64.b64encode(pixels.png(plot, image)).decode()
    yield Markup(
        '<image class="pixels" x="{}" y="{}" width="{}" height="{}" preserveAspectRatio="none" '
        'href="data:image/png;base64,{}"/>'
    ).format(_n(left), _n(top), _n(pooled_right - left), _n(bottom - top), content)
    if empty := pixels.empty_rows(plot) if plot.logarithmic else []:
        yield Markup(
            '<pattern id="hatch-{0}" width="7" height="7" patternUnits="userSpaceOnUse">'
            '<path class="s-faint" stroke-width="1.5" d="M0 7L7 0"/></pattern>'
        ).format(name)
        for row in empty:
            yield Markup('<rect fill="url(#hatch-{})" {}/>').format(
                name, _box(left, y(row + 0.5), right - left, y(row - 0.5) - y(row + 0.5))
            )
    for row in range(0, layers, -(-layers // 12)):
        yield _segment(left - 4, y(row), left, y(row), "s-text")
        yield _text(left - 8, y(row) + 0.35 * FONT, str(plot.layers[row]), "end")
    for column in ticks.whole(x.low, x.high):
        yield _segment(x(column), bottom, x(column), bottom + 4, "s-text")
        yield _text(x(column), bottom + 19, str(column), "middle")
    yield _text((left + right) / 2, bottom + 40, pixels.column_label(plot, image), "middle")
    yield _upright(15, (top + bottom) / 2, "layer")
    if plot.logarithmic:
        for peak in pixels.peaks(plot.values):
            yield _segment(x(peak), top - 5, x(peak), top, "s-contrast")
            yield _text(x(peak), top - 9, str(peak), "middle", colour="f-contrast")
    yield from _colour_bar(name, plot, image, top, bottom)


def _colour_bar(
    name: str, plot: Heatmap, image: pixels.Scaled, top: float, bottom: float
) -> Iterator[Markup]:
    left, width = WIDTH - 108, 18.0
    stops = Markup("").join(
        Markup('<stop offset="{}" stop-color="#{}"/>').format(
            _n(100 * at / (len(pixels.MAGMA) - 1)) + "%", colour
        )
        for at, colour in enumerate(pixels.MAGMA)
    )
    yield Markup('<linearGradient id="bar-{0}" x1="0" y1="1" x2="0" y2="0">{1}').format(name, stops)
    yield Markup("</linearGradient>")
    yield Markup('<rect fill="url(#bar-{})" {}/>').format(
        name, _box(left, top, width, bottom - top)
    )
    y = _Scale(image.low, image.high, bottom, top, plot.logarithmic)
    of = ticks.logarithmic if plot.logarithmic else ticks.linear
    for tick in of(image.low, image.high):
        yield _segment(left + width, y(tick), left + width + 4, y(tick), "s-text")
        yield _text(left + width + 8, y(tick) + 0.35 * FONT, ticks.labelled(tick))
    yield _upright(WIDTH - 8, (top + bottom) / 2, plot.value)


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: float = FONT, colour: str = "f-text"
) -> Markup:
    sized = Markup("") if size == FONT else Markup(' font-size="{}"').format(_n(size))
    anchored = Markup("") if anchor == "start" else Markup(' text-anchor="{}"').format(anchor)
    return Markup('<text class="{}" x="{}" y="{}"{}{}>{}</text>').format(
        colour, _n(x), _n(y), anchored, sized, text
    )


def _upright(x: float, y: float, text: str) -> Markup:
    return Markup(
        '<text class="f-text" text-anchor="middle" transform="translate({} {}) rotate(-90)">{}'
        "</text>"
    ).format(_n(x), _n(y), text)


def _segment(x: float, y: float, to_x: float, to_y: float, colour: str, width: float = 1) -> Markup:
    return Markup('<path class="{}" stroke-width="{}" d="M{} {}L{} {}"/>').format(
        colour, _n(width), _n(x), _n(y), _n(to_x), _n(to_y)
    )


def _rect(x: float, y: float, width: float, height: float, colour: str) -> Markup:
    return Markup('<rect class="{}" {}/>').format(colour, _box(x, y, width, height))


def _box(x: float, y: float, width: float, height: float) -> Markup:
    return Markup('x="{}" y="{}" width="{}" height="{}"').format(
        _n(x), _n(y), _n(width), _n(height)
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
