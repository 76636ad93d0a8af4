"""Differences between two records of a rule's inputs, in words: the key of a setting, old → new."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from outlier_atlas.sanitize import redacted, shortened, visible

NAMED = 3
"""Maximum number of changes that are named; the others are counted."""
LONGEST = 60
"""Maximum number of characters of a value."""

KEYS = {
    "bootstrap": "detection.bootstrap",
    "chunk_tokens": "extraction.advanced.chunk_tokens",
    "configuration": "",
    "dtype": "model.dtype",
    "measured": "weights.measure",
    "smoothquant": "detection.smoothquant",
    "trust_remote_code": "model.trust_remote_code",
}
"""Keys of the configuration, by the names that they have in a rule's settings."""

FILES = {
    "fetch_model": "the model's file",
    "tokenize_dataset": "the dataset's file",
    "render_report": "the compared run's file",
}
"""Descriptions of the user's files that a rule reads."""


def changes_in_words(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Return the differences between two records.

    Args:
        name: name of the record, which begins with the name of its rule.
        before: the inputs that the outputs were made from; None if they are not known.
        now: the current inputs.
    """
    if before is None:
        return "settings, code or files that it was made from are not known"
    changes = list(dict.fromkeys(_changes(name, before, now)))
    more = f"; and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    return "; ".join(changes[:NAMED]) + more


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
            for key, old_value, new_value in _differences("", old, new):
                yield _setting(_key(key), old_value, new_value)


def _files(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for file in sorted(before.keys() | now.keys()):
        if before.get(file) != now.get(file):
            how = "is new" if file not in before else "is gone" if file not in now else "changed"
            yield f"{what} {_text(file)} {how}"


def _differences(key: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield every key at which two settings differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            path = f"{key}.{name}" if key else name
            yield from _differences(path, before.get(name), now.get(name))
    elif before != now:
        yield key, before, now


def _key(key: str) -> str:
    """Return the key of the configuration for a key of a rule's settings."""
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
    """Return text of the user in a form that is safe for a terminal."""
    return shortened(visible(redacted(text)), LONGEST)
