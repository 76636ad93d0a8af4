"""What to do about a damaged chunk: it no longer counts, and the job that makes it runs again."""

from __future__ import annotations

from pathlib import Path

from outlier_atlas.store.arrays import ACTIVATIONS, DamagedChunkError
from outlier_atlas.store.commits import COMMITS, Commit, forget
from outlier_atlas.store.layout import Target
from outlier_atlas.store.summaries import SUMMARIES, LostSummaryError

MANIFESTS = Path("manifests") / "extraction"
"""Folder of the extraction jobs' manifests, seen from the run's folder."""


def give_up(run: Path, damage: DamagedChunkError | LostSummaryError) -> ValueError:
    """Take a damaged chunk out of the commits, and have the extraction jobs look again.

    Returns:
        The error to raise: it says what was damaged and that the same command repairs it.
    """

    def void(commit: Commit, target: Target) -> bool:
        return target == damage.target and commit.rows.chunk == damage.chunk

    forget(run / COMMITS, void)
    look_again(run)
    where = run / (SUMMARIES if damage.target.is_summary else ACTIVATIONS)
    return ValueError(f"{where}: {damage}; run again: it alone is made anew")


def look_again(run: Path) -> None:
    """Have every extraction job of a run look for what is missing, the next time it is started."""
    for manifest in (run / MANIFESTS).glob("*.json"):
        manifest.unlink()
