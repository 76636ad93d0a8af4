"""Conversion of foreign text to a form that is safe in a terminal, a log and a page."""

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
"""Least number of characters of a secret: redacting `true` or `1` would ruin a log."""


def visible(text: str) -> str:
    """Return a text with all characters that do not print replaced by visible ones.

    Control characters could move a terminal's cursor, and direction marks could reverse a line. The
    result must still be escaped in HTML.
    """
    return "".join(_visible(character) for character in text)


def visible_lines(text: str) -> str:
    """Return a text of several lines, made visible except for its line ends."""
    return "\n".join(visible(line) for line in text.split("\n"))


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a text without credentials in URLs and without secrets of the environment."""
    text = USER_IN_URL.sub("***", text)
    for name, value in environment.items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def gist(error: BaseException, folder: Path | None = None) -> str:
    """Return the first sentence of a library's error message, for use inside a message of ours.

    Args:
        error: the error.
        folder: folder that the message already names, and whose path is removed.
    """
    message = " ".join(str(error).replace(f"{folder}/", "").split()) or type(error).__name__
    # Keep only the inner error of an error that wraps another one.
    message = re.sub(
        r"^.*?\b[A-Za-z]+(?:Error|Exception): |^Error while deserializing header: ", "", message
    )
    sentence = re.split(r"(?<=[a-z0-9`'\")\]])\. (?=[A-Z])", message)[0].rstrip(".")
    return shortened(sentence, 160)


def shortened(text: str, most: int) -> str:
    """Return a text, cut to at most `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


class VisibleFormatter(logging.Formatter):
    """A formatter that redacts log lines and stack traces and makes them safe for a terminal."""

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
