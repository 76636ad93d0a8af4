"""The code of a rule's script: its own file and the local modules that it imports."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

IMPORT = re.compile(r"^[ \t]*(?:from|import)\b(?:[^\n(\\]|\\\n)*(?:\([^)]*\).*)?", re.M)
"""Pattern of a statement at the beginning of a line that may be an import."""
WORD = re.compile(r"\w+")


class Sources:
    """The local modules that the rules' scripts import.

    Snakemake notices only that a script's own file was touched, regardless of its content and of
    the modules that it imports. So the record of a rule's inputs (`inputs.py`) has a digest of all
    of them: a rule reruns if and only if code that it uses has changed.

    Args:
        folder: folder of the scripts and the library.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, script: str, without: str | None = None) -> list[str]:
        """Return a script and all local modules that it imports, directly or indirectly.

        Args:
            script: file name of the script.
            without: folder of modules that only check the script's inputs, so that no change to
                them changes the outputs.

        Returns:
            Paths relative to the folder, sorted.
        """
        excluded = self._folder / without if without else None
        modules: set[Path] = set()
        pending = [self._folder / script]
        while pending:
            path = pending.pop()
            if path not in modules and not (excluded and path.is_relative_to(excluded)):
                modules.add(path)
                pending += _imports(self._folder, path)
        return sorted(path.relative_to(self._folder).as_posix() for path in modules)

    def digest(self, script: str, others: Sequence[Path] = (), without: str | None = None) -> str:
        """Return a digest of the code of a script, as 32 hexadecimal digits.

        Args:
            script: file name of the script.
            others: other files that belong to its code, such as templates.
            without: folder of modules that are left out, see `of`.
        """
        digest = hashlib.sha256()
        for name in self.of(script, without):
            digest.update(f"{name}\0{_digest(self._folder / name)}\0".encode())
        for path in sorted(others):
            digest.update(f"{path.name}\0{_digest(path)}\0".encode())
        return digest.hexdigest()[:32]


@functools.cache
def _read(path: Path) -> bytes:
    return path.read_bytes()


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(_read(path)).hexdigest()


@functools.cache
def _imports(folder: Path, path: Path) -> tuple[Path, ...]:
    modules = _modules(folder)
    names = {name for node in _statements(_read(path).decode(), folder) for name in _names(node)}
    return tuple(modules[name] for name in sorted(names & modules.keys()))


def _statements(source: str, folder: Path) -> Iterable[ast.AST]:
    """Return the import statements of a file that name a local module, and possibly other nodes.

    Only these statements are parsed, because parsing all files takes a second at each start of
    Snakemake. A line of a docstring that looks like an import counts as one. If the statements
    cannot be parsed by themselves, the whole file is parsed.
    """
    modules = _modules(folder)
    found = [
        textwrap.dedent(statement)
        for statement in IMPORT.findall(source)
        if not modules.keys().isdisjoint(WORD.findall(statement))
    ]
    try:
        return ast.parse("\n".join(found)).body
    except SyntaxError:
        return ast.walk(ast.parse(source))


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names of the modules that a statement imports, including their parent packages."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


@functools.cache
def _modules(folder: Path) -> dict[str, Path]:
    """Return the file of each local module or package by its name; a module hides a package."""
    modules: dict[str, Path] = {}
    for parent, _, files in os.walk(folder, followlinks=True):
        package = Path(parent).relative_to(folder).parts
        if "__init__.py" in files:
            modules.setdefault(".".join(package), Path(parent, "__init__.py"))
        for file in files:
            if file.endswith(".py"):
                modules[".".join([*package, file.removesuffix(".py")])] = Path(parent, file)
    return modules
