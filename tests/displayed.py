"""Commands that only show something, one after the other in one process.

python tests/displayed.py OPTIONS...: in a folder with a configuration; prints a line of JSON for
each string of options, with the exit status and what the command printed.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from snakemake.cli import main

SNAKEFILE = Path(__file__).parents[1] / "workflow" / "Snakefile"


def shown(options: list[str]) -> tuple[int, str]:
    """The status and the output of a command; without `--cores`."""
    printed = io.StringIO()
    status = 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(["--snakefile", str(SNAKEFILE), *options])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return status, printed.getvalue()


if __name__ == "__main__":
    for options in sys.argv[1:]:
        print(json.dumps(shown(options.split())), flush=True)
