"""Lines on a terminal, followed by one progress line that is redrawn."""

from __future__ import annotations

import shutil
from typing import TextIO

from outlier_atlas.console import CLEAR, redraws
from outlier_atlas.sanitize import redacted, visible, visible_lines


class Screen:
    """A stream for lines. It shows the progress line only if it is a terminal.

    Args:
        stream: stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._progress = ""
        self.redraws = redraws(stream)

    def line(self, text: str) -> None:
        """Write one or several lines, without control characters."""
        clear, self._progress = CLEAR if self._progress else "", ""
        self._write(f"{clear}{visible_lines(redacted(text))}\n")

    def progress(self, text: str) -> None:
        """Replace the progress line; empty text removes it."""
        if not self.redraws or (not text and not self._progress):
            return
        width = shutil.get_terminal_size().columns - 1
        self._progress = visible(redacted(text))[:width]
        self._write(f"{CLEAR}{self._progress}")

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()
