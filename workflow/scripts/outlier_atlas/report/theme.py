"""Colours of figures on a light and on a dark page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """The colours of a figure, which colour-blind readers can tell apart (Okabe and Ito)."""

    suffix: str
    background: str
    text: str
    faint: str
    top: tuple[str, str, str]
    median: str
    colormap: str


THEMES = (
    Theme(
        "", "#ffffff", "#1c2430", "#d8dee6", ("#0b5fa5", "#4a9ad4", "#a3cdea"), "#c25a00", "magma"
    ),
    Theme(
        "-dark",
        "#171b22",
        "#dde3ea",
        "#343c48",
        ("#8cc8f5", "#4a93cc", "#2a5f8c"),
        "#f0a050",
        "magma",
    ),
)
