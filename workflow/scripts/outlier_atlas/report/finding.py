"""A sentence of the report's first screen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A sentence, and the definition of the numbers in it.

    `striking` sorts: what was found comes before what was looked for in vain, and both before what
    was not measured.
    """

    text: str
    definition: str
    striking: float
