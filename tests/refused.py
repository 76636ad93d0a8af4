"""What a user sees of something wrong: one readable line, and nothing left behind."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import rule_main

LONGEST = 330
"""Characters of a line; a few names of columns or files have to fit in."""
TECHNICAL = re.compile(
    r"Traceback|<class|object at 0x|Errno|\w+Error\b|\w+Exception\b|NoneType|this should not happen"
)
"""What is of no use to whoever has to mend it."""


def refused(action: Callable[[], object], folder: Path) -> str:
    """The line on the terminal, where an action on a folder is refused."""
    before = {path for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(Exception) as raised:
        action()
    said = rule_main._line(raised.value, "the log")
    assert_readable(said)
    left = {path for path in folder.rglob("*") if path.is_file()} - before
    assert not left, f"left behind: {left}"
    return said


def assert_readable(line: str) -> None:
    assert len(line) <= LONGEST, line
    assert "\n" not in line
    assert not TECHNICAL.search(line), line
