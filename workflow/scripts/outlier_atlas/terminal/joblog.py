"""Reader for the log of a running job: its progress and its messages."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from outlier_atlas.console import NOTICE, PROGRESS

LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ ([A-Z]+|Level \d+) (\S+): (.*)$")
MOST_BYTES = 2**18
"""Maximum number of bytes to read at a time; of more bytes, only the last are read."""


@dataclass
class Message:
    """A log message of one or several lines."""

    level: str
    logger: str
    text: str

    @property
    def notable(self) -> bool:
        """Whether the terminal shows the message."""
        level = logging.getLevelNamesMapping().get(self.level.upper(), NOTICE)
        return level >= NOTICE


class JobLog:
    """A log file of a job that is read while it grows.

    Until the job opens its log, the file is from an earlier run of the job and is ignored.

    Attributes:
        progress: last progress message of the job.
    """

    def __init__(self, path: Path) -> None:
        self.progress = ""
        self._path = path
        self._before = _stamp(path)
        self._offset = 0

    def read(self) -> list[Message]:
        """Return the messages that were added since the last call."""
        stamp = _stamp(self._path)
        if stamp is None or stamp == self._before:
            return []
        self._before = None
        try:
            messages = self._messages(stamp[1])
        except OSError:
            return []
        for message in messages:
            if message.logger == PROGRESS:
                self.progress = message.text
        return messages

    def _messages(self, size: int) -> list[Message]:
        if size < self._offset:
            self._offset = 0
        with self._path.open("rb") as file:
            file.seek(max(self._offset, size - MOST_BYTES))
            content = file.read(MOST_BYTES)
            whole = content.rfind(b"\n") + 1
            self._offset = file.tell() - len(content) + whole
        messages: list[Message] = []
        for line in content[:whole].decode("utf-8", "replace").removesuffix("\n").split("\n"):
            if match := LINE.match(line):
                messages.append(Message(*match.groups()))
            elif messages:
                messages[-1].text += f"\n{line}"
        return messages


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
