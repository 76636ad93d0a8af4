"""The code behind a rule's script: its own file and the local modules that it imports."""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

IMPORT = re.compile(r"^[ \t]*(?:from|import)\b(?:[^\n(\\]|\\\n)*(?:\([^)]*\).*)?", re.M)
"""What may be an import: a statement that begins a line."""


class Sources:
    """The local modules behind the rules' scripts.

    Snakemake sees only that a script's own file was touched, not what is in it, and nothing of the
    modules that it imports. So the record of a rule's inputs has a digest of them all
    (`inputs.py`): a rule reruns when code that it uses has changed, and only then.

    Args:
        folder: of the scripts and the library.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, script: str, without: str | None = None) -> list[str]:
        """A script and all local modules that it imports, directly or not.

        Args:
            script: its file name.
            without: a folder of modules that only check what the script is given: whatever they
                become, the script's outputs stay the same.

        Returns:
            Paths relative to the folder, sorted.
        """
        left_out = self._folder / without if without else None
        found: set[Path] = set()
        waiting = [self._folder / script]
        while waiting:
            path = waiting.pop()
            if path not in found and not (left_out and path.is_relative_to(left_out)):
                found.add(path)
                waiting += _imports(self._folder, path)
        return sorted(path.relative_to(self._folder).as_posix() for path in found)

    def digest(self, script: str, others: Sequence[Path] = (), without: str | None = None) -> str:
        """Thirty-two hexadecimal digits that stand for the code behind a script.

        Args:
            script: its file name.
            others: files that count as its code, such as templates.
            without: modules that do not count, as in `of`.
        """
        digest = hashlib.sha256()
        for name in self.of(script, without):
            digest.update(f"{name}\0{_digest(self._folder / name)}\0".encode())
        for path in sorted(others):
            digest.update(f"{path.name}\0{_digest(path)}\0".encode())
        return digest.hexdigest()[:32]


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _imports(folder: Path, path: Path) -> tuple[Path, ...]:
    names = {
        name
        for statement in _statements(path.read_text(encoding="utf-8"), folder)
        for name in _names(statement)
    }
    return tuple(module for name in sorted(names) if (module := _module(folder, name)))


def _statements(source: str, folder: Path) -> Iterator[ast.AST]:
    """The import statements of a file that name a local module, or more of the file's nodes.

    To parse all files takes a second at each start of Snakemake, so only these statements are. A
    line of a docstring that reads like one counts as one, and where a statement cannot be parsed by
    itself, all of the file is.
    """
    for found in IMPORT.finditer(source):
        statement = found[0]
        if any(_module(folder, word) for word in re.findall(r"\w+", statement)):
            try:
                yield from ast.parse(textwrap.dedent(statement)).body
            except SyntaxError:
                yield from ast.walk(ast.parse(source))
                return


def _names(node: ast.AST) -> Iterator[str]:
    """Names of the modules that a statement imports, packages on the way included."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


@functools.cache
def _module(folder: Path, name: str) -> Path | None:
    """The file of a local module or package."""
    module = folder.joinpath(*name.split("."))
    for path in (module.with_suffix(".py"), module / "__init__.py"):
        if path.is_file():
            return path
    return None
