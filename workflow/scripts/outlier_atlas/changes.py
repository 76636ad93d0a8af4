"""What differs between two records of a rule's inputs, in words: a setting's key, old → new."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from outlier_atlas.sanitize import redacted, shortened, visible

NAMED = 3
"""Changes that are named; of the others there is the number."""
LONGEST = 60
"""Characters of a value."""

KEYS = {
    "bootstrap": "detection.bootstrap",
    "chunk_tokens": "extraction.advanced.chunk_tokens",
    "configuration": "",
    "dtype": "model.dtype",
    "measured": "weights.measure",
    "smoothquant": "detection.smoothquant",
    "trust_remote_code": "model.trust_remote_code",
}
"""Keys of the configuration, by those of the settings that rules have of it."""

FILES = {
    "fetch_model": "the model's file",
    "tokenize_dataset": "the dataset's file",
    "render_report": "the compared run's file",
}
"""What the user's files of a rule are."""


def changes_in_words(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Return what has changed between two records.

    Args:
        name: of the record, which begins with that of its rule.
        before: what the products were made from; None where that is not known.
        now: what they would be made from.
    """
    if before is None:
        return "settings, code or files that it was made from are not known"
    found = list(dict.fromkeys(_changes(name, before, now)))
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return "; ".join(found[:NAMED]) + more


def _changes(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    rule = name.partition(".")[0]
    for section in sorted(before.keys() | now.keys()):
        old, new = before.get(section), now.get(section)
        if old == new:
            continue
        if section == "code":
            yield "code changed"
        elif section == "files":
            yield from _files(FILES.get(rule, "the file"), old or {}, new or {})
        else:
            for key, one, other in _leaves("", old, new):
                yield _setting(_key(key), one, other)


def _files(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for file in sorted(before.keys() | now.keys()):
        if before.get(file) != now.get(file):
            how = "is new" if file not in before else "is gone" if file not in now else "changed"
            yield f"{what} {_text(file)} {how}"


def _leaves(key: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every key at which two settings differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            path = f"{key}.{name}" if key else name
            yield from _leaves(path, before.get(name), now.get(name))
    elif before != now:
        yield key, before, now


def _key(key: str) -> str:
    """The key of the configuration."""
    first, _, rest = key.partition(".")
    return ".".join(part for part in (KEYS.get(first, first), rest) if part)


def _setting(key: str, before: Any, now: Any) -> str:
    if isinstance(before, list) and isinstance(now, list):
        parts = [
            f"{verb} {_text(', '.join(map(_value, values)))}"
            for verb, values in (
                ("without", [value for value in before if value not in now]),
                ("with", [value for value in now if value not in before]),
            )
            if values
        ]
        return f"{_text(key)} {' and '.join(parts) or 'in another order'}"
    old, new = _text(_value(before)), _text(_value(now))
    return f"{_text(key)} changed" if old == new else f"{_text(key)} {old} → {new}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _text(text: str) -> str:
    """Text of the user, which a terminal may show."""
    return shortened(visible(redacted(text)), LONGEST)
