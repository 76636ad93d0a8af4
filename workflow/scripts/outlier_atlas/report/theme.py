"""Colours of figures on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FORMATS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a")
"""Colours for up to seven lines of equal rank: Okabe and Ito, with a grey."""

LINES = tuple(f"line{number}" for number in range(1, len(FORMATS) + 1))
"""Roles of the colours in `FORMATS`."""


@dataclass(frozen=True)
class Theme:
    """The colours of a figure, which colour-blind readers can tell apart (Okabe and Ito).

    Attributes:
        suffix: suffix of the names of static files.
        background, text, faint: colours of the page, of text, and of axes and grids.
        first, second, third: colours of the largest, second and third values.
        contrast: a colour that stands out from these.
    """

    suffix: str
    background: str
    text: str
    faint: str
    first: str
    second: str
    third: str
    contrast: str

    @property
    def colours(self) -> Mapping[str, str]:
        """The colour of each role that a line can have (`criteria.figure.Line`)."""
        ranked = {name: getattr(self, name) for name in ("first", "second", "third", "contrast")}
        return ranked | dict(zip(LINES, FORMATS, strict=True))


THEMES = (
    Theme("", "#ffffff", "#1c2430", "#d8dee6", "#0b5fa5", "#4a9ad4", "#a3cdea", "#c25a00"),
    Theme("-dark", "#171b22", "#dde3ea", "#343c48", "#8cc8f5", "#4a93cc", "#2a5f8c", "#f0a050"),
)


def style() -> str:
    """Return the style sheet of the figures in the report, which follow the page's colours."""
    light, dark = (
        "".join(f"--{role}: {colour}; " for role, colour in _properties(theme).items())
        for theme in THEMES
    )
    rules = [
        f".s-{role} {{ stroke: var(--{role}); }} .f-{role} {{ fill: var(--{role}); }}"
        for role in _properties(THEMES[0])
    ]
    return "\n".join(
        [
            f":root {{ {light}}}",
            f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}",
            *rules,
            "",
        ]
    )


def _properties(theme: Theme) -> dict[str, str]:
    return {"text": theme.text, "faint": theme.faint, **theme.colours}
