"""Makes foreign text harmless for a terminal, a log and a page."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

SYMBOLS = {"\n": "↵", "\r": "␍", "\t": "⇥"}

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.I)
"""Names of environment variables whose values are secret."""
USER_IN_URL = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
SHORTEST_SECRET = 8
"""Characters; what is shorter (`true`, `1`) would blot out half of a log."""


def visible(text: str) -> str:
    """Text from a dataset or a tokenizer, with everything in it that does not print made visible.

    Control characters could move a terminal's cursor, and direction marks turn a line around; what
    is left still has to be escaped where it is put into HTML.
    """
    return "".join(_visible(character) for character in text)


def visible_lines(text: str) -> str:
    """Text of several lines, everything else that does not print made visible."""
    return "\n".join(visible(line) for line in text.split("\n"))


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Text without the credentials of a URL, and without secrets of the environment."""
    text = USER_IN_URL.sub("***", text)
    for name, value in environment.items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def gist(error: BaseException, folder: Path | None = None) -> str:
    """What another library's error says, short enough to stand in a sentence of ours.

    Args:
        folder: that is named in our sentence already.
    """
    said = " ".join(str(error).replace(f"{folder}/", "").split()) or type(error).__name__
    # Of an error that wraps another one, the other one.
    said = re.sub(
        r"^.*?\b[A-Za-z]+(?:Error|Exception): |^Error while deserializing header: ", "", said
    )
    sentence = re.split(r"(?<=[a-z0-9`'\")\]])\. (?=[A-Z])", said)[0].rstrip(".")
    return shortened(sentence, 160)


def shortened(text: str, most: int) -> str:
    """The text, or as much of it as there is room for."""
    return text if len(text) <= most else text[: most - 3] + "..."


class VisibleFormatter(logging.Formatter):
    """Formats log lines, and traces, in which nothing is left to hide or to do harm."""

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(redacted(super().format(record)))


def _visible(character: str) -> str:
    if character in SYMBOLS:
        return SYMBOLS[character]
    category = unicodedata.category(character)
    if category == "Cc" and ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"⟨U+{ord(character):04X}⟩"
    return character
