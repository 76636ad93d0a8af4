"""Refuses words that read as poetry or as a translation, where technical English has its own.

python tests/words.py: a line for each of them in the project's files; `make lint` runs it.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
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


def found(path: Path) -> list[str]:
    """The lines of a file that have such words, each with what to write."""
    lines = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        for pattern, words in PATTERNS.items():
            if match := pattern.search(line):
                place = f"{path.relative_to(ROOT)}:{number}"
                lines.append(f"{place}: {match[0]!r}: write: {INSTEAD[words]}")
    return lines


def main() -> int:
    lines = [line for path in texts() for line in found(path)]
    print("\n".join(lines) or "no words to avoid")
    return bool(lines)


def texts() -> list[Path]:
    """The texts of the project but for its tests: what a user may read."""
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
