"""Run a Python module so that Ctrl-C ends it with one line, even during its imports.

`python -m outlier_atlas.interruptible MODULE ARGUMENTS...` runs as `python -m MODULE ARGUMENTS...`.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from types import FrameType


def end(number: int, _: FrameType | None) -> None:
    """End this process immediately: it has done nothing yet that needs cleanup."""
    os.write(2, b"stopped before a job began; run the same command again\n")
    os._exit(128 + number)


def main() -> None:
    """Run the module that the command line names as a program."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
