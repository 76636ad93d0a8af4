"""Refuses words that read as poetry or as a translation, where technical English has its own.

python tests/words.py: a line for each of them in the project's files; `make lint` runs it.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow/scripts"
INSTEAD = {
    "anew": "again; recompute",
    "besides?": "next to; also; in addition",
    "whoever": "the process that; the user who",
    "nobody": "no one; or the subject that does not",
    "(take|takes|taking|took|taken) away": "ablate; remove; leave out",
    "(hold|holds|holding|held) .{0,30}\\bagainst": "compare with",
    "what is there": "what exists",
    "(it|they|that|these|those) alone\\b": "only",
    "does not lie in": "is not in",
    "(come|comes|came) to nothing": "fail; have no effect",
}
"""Patterns of words to avoid, and what to write."""

PATTERNS = {re.compile(rf"\b{words}\b", re.IGNORECASE): words for words in INSTEAD}
TEXT = {".py", ".md", ".smk", ".rst", ".j2", ".yaml", ".yml", ".toml", ".txt", ".css", ""}
EXEMPT = {"CHANGELOG.md", "LICENSE", "constraints.txt", "tests/words.py"}
"""History, and texts of others."""

FIRST_WORDS = re.compile(
    r"(Of|On|To|In|By|From|As|Whose|Those|That|This|These|It|Its|They|The same|The other|"
    r"Whether (it|they)|What|Which|Where|When|How|Such|Here|Not)\b"
)
"""Beginnings of a docstring that name no subject."""

NO_VERB = re.compile(r"(The|A|An|Whether|Its|Number|All|Each)\b")
"""Beginnings of a function's docstring that are no verb. A property may begin with a noun."""

PROPERTIES = {"property", "cached_property"}


def words_to_avoid(path: Path) -> list[str]:
    """Return a line for each word to avoid in a file, with what to write instead."""
    lines = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        for pattern, words in PATTERNS.items():
            if match := pattern.search(line):
                where = f"{path.relative_to(ROOT)}:{number}"
                lines.append(f"{where}: {match[0]!r}: write: {INSTEAD[words]}")
    return lines


def docstring_faults(source: str, name: str) -> list[str]:
    """Return a line for each docstring whose first line begins with neither a verb nor a noun.

    Args:
        source: source code of a module.
        name: name of the module, for the lines.
    """
    lines = []
    for number, text, is_function in docstrings(ast.parse(source)):
        first = text.strip().partition("\n")[0]
        if match := FIRST_WORDS.match(first):
            advice = "begin with a verb, or with the noun that is defined"
        elif is_function and (match := NO_VERB.match(first)):
            advice = "begin with a verb: Return, Read, Yield, ..."
        else:
            continue
        lines.append(f"{name}:{number}: docstring begins with {match[0]!r}: {advice}")
    return lines


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Yield line number, text, and whether it is a function's, of each docstring in a module.

    A string statement after a constant or a field counts as its docstring.
    """
    for parent in ast.walk(tree):
        if not isinstance(parent, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        names = {ast.unparse(node) for node in getattr(parent, "decorator_list", ())}
        is_function = isinstance(parent, ast.FunctionDef) and not names & PROPERTIES
        for statement in parent.body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    yield statement.lineno, text, is_function


def main() -> int:
    lines = [line for path in texts() for line in words_to_avoid(path)]
    for path in sorted(SCRIPTS.rglob("*.py")):
        lines += docstring_faults(path.read_text("utf-8"), str(path.relative_to(ROOT)))
    print("\n".join(lines) or "no words to avoid")
    return bool(lines)


def texts() -> list[Path]:
    """Return the project's texts that a user may read: all but its tests."""
    folders = [ROOT / name for name in ("benchmarks", "config", "docs", "profiles", "workflow")]
    paths = [path for folder in folders for path in sorted(folder.rglob("*"))]
    paths += sorted(path for path in ROOT.iterdir() if path.is_file())
    names = {path: str(path.relative_to(ROOT)) for path in paths}
    return [
        path
        for path, name in names.items()
        if path.is_file() and path.suffix in TEXT and name not in EXEMPT and "/." not in f"/{name}"
    ]


if __name__ == "__main__":
    sys.exit(main())
