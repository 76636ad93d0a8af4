"""Removal of data that a finished run does not need."""

from __future__ import annotations

import shutil

from outlier_atlas.store import metadata
from outlier_atlas.store.array_shapes import shapes
from outlier_atlas.store.commits import revise, without
from outlier_atlas.store.current_commits import is_stored
from outlier_atlas.store.groups import Groups
from outlier_atlas.store.layout import Layout, Target
from outlier_atlas.store.move_chunks import ASIDE, folder_of
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.store.summaries import remove_superseded


def clear_up(run: RunFiles, layout: Layout) -> None:
    """Remove all data that a layout does not name, once the run is complete.

    Until then the data stays, so reverting a change of the configuration recomputes nothing.
    """
    named, targets = set(shapes(layout)), set(layout.targets())

    def gone(target: Target) -> bool:
        return layout.superseded(target) or (is_stored(target) and target not in targets)

    revise(run.commit_files, lambda commit: without(commit, gone))
    remove_superseded(run, layout)
    groups = Groups(run, mode="r+")
    arrays = groups.arrays()
    unnamed = arrays.keys() - named
    metadata.forget(run, [folder_of(arrays[name]) for name in unnamed])
    groups.remove(unnamed)
    for array in arrays.values():
        shutil.rmtree(folder_of(array) / ASIDE, ignore_errors=True)
