"""Records of the inputs of rules: settings, code and users' files.

Snakemake stores settings in `.snakemake`, which may be deleted or belong to another checkout. It
compares only the times of a user's files. Therefore a small record for each rule contains settings,
code and digests of the user's files. The record is `manifests/inputs/<rule>.json` of a run, or in
`resources/inputs/`. It is an input of the rule, and is newer than the products of the rule exactly
if they were made from other inputs. Only the process that makes a run writes the record, before the
jobs are planned. A dry run compares in memory, and uses a temporary file instead of each record
that it would write.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from outlier_atlas import products
from outlier_atlas.changes import changes_in_words
from outlier_atlas.files import (
    DamagedFileError,
    canonical,
    fingerprint,
    read_record,
    write_record,
)

FOLDER = "inputs"
"""Name of the folder of these records."""

CHANGE = "change"
"""Key of a random number in a record that replaces another one.

Snakemake compares checksums of newer files. If a setting is changed and reverted, a record with the
old bytes would look unchanged, although other products were made in between.
"""

MADE = "made"
"""Key of the record from which the products were made.

If a run is stopped before the rule, it has already replaced the record. The next run can then still
report the values of the products.
"""

LONG_AGO = 1
"""Time of a record that agrees with the products, in seconds since 1970."""


Content = Callable[[], Mapping[str, Any]]


class Purpose(Enum):
    """Purpose of a process that reads the Snakefile."""

    MAKE = "run jobs"
    LOOK = "show what there is to do, and write nothing"
    JOB = "run one job, whose records are there"


class Inputs:
    """The records of inputs that a process makes.

    Args:
        purpose: the purpose of the process.
        say: called with the name of each record that is out of date, and the reason.
    """

    def __init__(self, purpose: Purpose, say: Callable[[str, str], object]) -> None:
        self.purpose = purpose
        self._say = say
        self._reasons: dict[str, str] = {}
        self._reasons_if_newer: dict[str, str] = {}
        self._temporary: Path | None = None

    def record(
        self, path: Path, content: Content, with_products: bool = True, on_demand: bool = False
    ) -> str:
        """Write the record of a rule's inputs, and return the input file of the rule.

        Args:
            path: path of the record; the record of the rule's products has the same name.
            content: a function that returns the content of the record, without `CHANGE` and `MADE`.
            with_products: whether the rule writes a record of its products, which contains a digest
                of their inputs. Otherwise only the record of the inputs is compared.
            on_demand: whether an ordinary run does without the rule. Its reason is then given only
                where the rule is planned (`reason`).
        """
        if self.purpose is Purpose.JOB:
            return str(path)
        there, made = _read(path), _products(path) if with_products else None
        if there is None and made is None and self.purpose is Purpose.LOOK:
            # Nothing was made yet, and a user's files need not be read to say so.
            return str(self._instead(path, {}))
        wanted = _normal(content())
        same = there is not None and _without_change(there) == wanted
        if not with_products:
            before = there if there is None or not same else there.get(MADE)
            before = None if before is None else _without_change(before)
            file = path if same else self._written(path, there, wanted, True, before)
            if before is not None:
                reasons = self._reasons_if_newer if same else self._reasons
                reasons[str(file)] = changes_in_words(path.stem, before, wanted)
            return str(file)
        gone = products.missing(made) if made is not None else []
        made_from = None if made is None else products.made_from(made)
        stale = made is None or bool(gone) or made_from != digest(wanted)
        before = _made(there, made_from)
        # After a copy in any order, a record may be newer than the products and have the bytes that
        # Snakemake knows. Therefore a stale rule always gets another record.
        if same and not stale and made is not None and not _is_newer(path, made):
            file = path
        else:
            file = self._written(path, there, wanted, stale, before)
        if stale and made is not None:
            self._give_reason(path.stem, file, gone, before, wanted, on_demand)
        return str(file)

    def reason(self, file: str, newer: bool) -> str | None:
        """Return the reason why a rule runs; None if its record is not the reason.

        Args:
            file: the file that `record` returned.
            newer: whether the file is newer than the products of the rule.
        """
        found = self._reasons.get(file)
        return self._reasons_if_newer.get(file) if found is None and newer else found

    def is_current(self, path: Path, content: Content, outputs: Iterable[Path]) -> bool:
        """Return whether all outputs of a rule exist and are up to date."""
        there, made = _read(path), _products(path)
        if there is None or made is None or not all(output.exists() for output in outputs):
            return False
        wanted = _normal(content())
        same = _without_change(there) == wanted and products.made_from(made) == digest(wanted)
        return same and not _is_newer(path, made)

    def _written(
        self,
        path: Path,
        there: Mapping[str, Any] | None,
        wanted: dict[str, Any],
        stale: bool,
        before: Mapping[str, Any] | None,
    ) -> Path:
        """Write the record: newer than the products if they are stale, older if not."""
        if stale and there is not None:
            wanted = wanted | {CHANGE: secrets.token_hex(8)}
            if before is not None and before != _without_change(wanted):
                wanted |= {MADE: dict(before)}
        if self.purpose is Purpose.MAKE:
            write_record(path, wanted)
        else:
            path = self._instead(path, wanted)
        if not stale:
            os.utime(path, (LONG_AGO, LONG_AGO))
        return path

    def _instead(self, path: Path, content: Mapping[str, Any]) -> Path:
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="outlier-atlas-"))
            atexit.register(shutil.rmtree, self._temporary, ignore_errors=True)
        instead = self._temporary / path.relative_to(path.anchor)
        write_record(instead, content)
        return instead

    def _give_reason(
        self,
        name: str,
        file: Path,
        gone: list[Path],
        before: Mapping[str, Any] | None,
        wanted: Mapping[str, Any],
        on_demand: bool,
    ) -> None:
        """Record the reason why a rule runs again, in words, and pass it to `say`."""
        reason = changes_in_words(name, before, wanted)
        if gone:
            more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
            lost = f"{gone[0]}{more} missing"
            reason = f"{reason}; {lost}" if before != wanted else lost
        reason = reason or "the record of its outputs is damaged"
        self._reasons[str(file)] = reason
        if not on_demand:
            self._say(name, reason)


def digest(record: Mapping[str, Any]) -> str:
    """Return 32 hexadecimal digits that identify a record, without `CHANGE` and `MADE`."""
    return fingerprint(_without_change(record))[:32]


def digest_of(path: Path) -> str:
    """Return the digest of the record in a file.

    Raises:
        DamagedFileError: the file is not what was written.
    """
    return digest(read_record(path))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_record(path)
    except (OSError, DamagedFileError):
        return None


def _without_change(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in (CHANGE, MADE)}


def _made(there: Mapping[str, Any] | None, made_from: str | None) -> dict[str, Any] | None:
    """Return what the products were made from; None if no record has it.

    Args:
        there: the record of inputs, which may be newer than the products.
        made_from: the digest in the record of the products; None if there is none.
    """
    if there is None or made_from is None:
        return None if there is None else _without_change(there)
    known = [_without_change(there), there.get(MADE)]
    return next((dict(record) for record in known if record and digest(record) == made_from), None)


def _normal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content as it is read from a file: lists for tuples, strings for keys."""
    normal: dict[str, Any] = json.loads(canonical(content))
    return normal


def _products(path: Path) -> Path | None:
    """Return the record of a rule's products, by the record of its inputs; None without one."""
    record = path.parents[1] / products.FOLDER / path.name
    return record if record.exists() else None


def _is_newer(path: Path, made: Path) -> bool:
    return path.stat().st_mtime > made.stat().st_mtime
