"""What the Snakefile needs to know: the code behind a script, and the words that end a run."""

from __future__ import annotations

import ast
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from outlier_atlas.files import readable, sha256
from outlier_atlas.settings.document import settings
from outlier_atlas.visible import visible


class Sources:
    """The local modules behind the rules' scripts.

    Snakemake sees only that a script's own file was touched, not what is in it, and nothing of the
    modules that it imports. So each rule takes its script and these modules as inputs: Snakemake
    compares their checksums, and a rule reruns when code that it uses has changed, and only then.

    Args:
        folder: of the scripts and the library.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, script: str) -> list[str]:
        """Paths of a script and of all local modules that it imports, directly or not, sorted."""
        found: set[Path] = set()
        waiting = [self._folder / script]
        while waiting:
            path = waiting.pop()
            if path not in found:
                found.add(path)
                waiting += _imports(self._folder, path)
        return sorted(readable(path) for path in found)


def short_errors(folder: Path) -> Callable[[logging.LogRecord], bool]:
    """A filter of Snakemake's log, for what it says around a failed job.

    The job has said in a line what went wrong. Snakemake adds the command that it ran, and a list
    of all inputs, most of which are our code; the line would be lost before them.

    Args:
        folder: of the scripts and the library.
    """
    code = readable(folder)

    def keep(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if ".snakemake/scripts/" in said and said.endswith("returned non-zero exit status 1."):
            return False
        if said.startswith("Error in rule ") and hasattr(record, "input"):
            record.input = [file for file in record.input if not file.startswith(code)]
            record.msg = ""  # a heading for a message that there is not
        return True

    return keep


def wants_closing_words(targets: Collection[str]) -> bool:
    """Whether an invocation was for the report; `make run` says the words itself, even when
    nothing was left to do."""
    return not os.environ.get("OUTLIER_ATLAS_MAKE") and (not targets or "all" in targets)


def closing_words(run: str) -> str:
    """Where the report is, and the most striking finding with the tokens that are left out of the
    run's numbers, behind what is not finite; nothing where there is no report."""
    report = Path("results") / run / "report.html"
    findings = Path("results") / run / "findings.json"
    if not report.exists() or not findings.exists():
        return ""
    told = json.loads(findings.read_text("utf-8"))
    said = f"{told['findings'][0]['text']} {told.get('left_out', '')}".rstrip()
    lines = [*told.get("alarms", [])[:1], said]
    return "\n".join(["", *(f"{visible(line)}\n" for line in lines), f"Report: {report}\n"])


@functools.cache
def _imports(folder: Path, path: Path) -> tuple[Path, ...]:
    tree = ast.parse(path.read_bytes(), str(path))
    modules = (folder.joinpath(*name.split(".")) for name in _names(tree))
    return tuple(
        candidate
        for module in modules
        for candidate in (module.with_suffix(".py"), module / "__init__.py")
        if candidate.is_file()
    )


def _names(tree: ast.Module) -> Iterator[str]:
    """Names of all modules imported anywhere in a file, packages on the way included."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def jobs_at_once(chains: int, cores: int, threads: int, gpus: int | None, of_job: int) -> int:
    """How many jobs Snakemake has at work at a time, all with the same resources.

    Args:
        chains: jobs of different ones do not wait for each other.
        cores, gpus: to be shared out; without a number of GPUs, or with 0, they are no limit.
        threads, of_job: cores and GPUs of a job; it gets no more than there are.
    """
    most = min(chains, max(1, cores // min(threads, cores)))
    return min(most, max(1, gpus // min(of_job, gpus))) if gpus else most


SMALL = 2**20
"""Bytes of a file up to which Snakemake compares what is in it, and not only its time."""


def identities(files: Iterable[str]) -> list[list[str]]:
    """What files are, as a parameter of a rule.

    Snakemake takes a file for changed only if it is newer than what was made of it. One that was
    moved into place, copied with its time, or reached through a link that leads elsewhere now may
    be older; here it is seen. A touched file is the same.
    """
    return [_identity(Path(file)) for file in files]


def _identity(path: Path) -> list[str]:
    try:
        size = path.stat().st_size
        content = sha256(path) if size <= SMALL else f"changed {path.stat().st_mtime_ns}"
    except OSError:
        return [str(path), "missing"]
    return [str(path), readable(path.resolve()), str(size), content]


def nameable(files: Iterable[str]) -> list[str]:
    """The files that Snakemake can name: it takes braces for wildcards, and has no way around, and
    says names as they are, with what a terminal would obey.

    The others are seen by their identities alone.
    """
    return [file for file in files if file.isprintable() and not {"{", "}"} & set(file)]


def literal(text: str) -> str:
    """Text in which Snakemake finds nothing to fill in, and a terminal nothing to obey."""
    return visible(text).replace("{", "{{").replace("}", "}}")


def main(configuration: Path) -> None:
    """Print the closing words of the run that a configuration file describes."""
    print(closing_words(settings([configuration]).name))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
