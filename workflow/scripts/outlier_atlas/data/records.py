"""Records of a run's token stores, by their paths; imports nothing heavy, for the Snakefile."""

from __future__ import annotations

from pathlib import Path

RECORD = Path("manifests") / "tokens.json"
"""The record of the run's tokens, seen from the run's folder."""
