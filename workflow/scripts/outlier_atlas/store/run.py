"""A run and its store, as one object for all stages.

zarr is imported only in methods that open arrays, so a job without missing rows ends quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.files import DamagedFileError, read_record
from outlier_atlas.store import metadata
from outlier_atlas.store.commits import Commit, CommitFile, Commits, Rows, revise, without
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import Layout, Target
from outlier_atlas.store.metadata import DamagedMetadataError
from outlier_atlas.store.run_files import TOKENS, TOKENS_RECORD, RunFiles

if TYPE_CHECKING:
    from outlier_atlas.store.arrays import Arrays
    from outlier_atlas.store.summaries import Kind, LostSummaryError
    from outlier_atlas.store.target_chunks import DamagedChunkError


class Run(RunFiles):
    """A run with its files, its layout and its commits.

    Records and tokens are read once, when they are first needed. Commits are read at every call,
    because other jobs append to them.

    Args:
        folder: folder of the run.
        model_record: record of the model.
        resources: folder that paths in the record of the model are relative to.
        tokens_file: file of the tokens; by default in the run's folder.
        tokens_record: record of the tokens; by default in the run's folder.
        heldout_file: file of the held-out tokens, which runs share; None without an ablation stage.
        heldout_record: record of the held-out tokens.
    """

    def __init__(
        self,
        folder: Path,
        model_record: Path,
        resources: Path,
        tokens_file: Path | None = None,
        tokens_record: Path | None = None,
        heldout_file: Path | None = None,
        heldout_record: Path | None = None,
    ) -> None:
        super().__init__(folder)
        self.model_record = model_record
        self.resources = resources
        self.tokens_file = tokens_file or folder / TOKENS
        self.tokens_record = tokens_record or folder / TOKENS_RECORD
        self.heldout_file = heldout_file
        self.heldout_record = heldout_record

    # Inputs of the run.

    @cached_property
    def model(self) -> dict[str, Any]:
        """The contents of the record of the model.

        Raises:
            DamagedFileError: the record is damaged.
        """
        return read_record(self.model_record)

    @cached_property
    def model_fingerprint(self) -> str:
        """The fingerprint of the weights."""
        return str(self.model["fingerprint"])

    @cached_property
    def tokens(self) -> TokenStore:
        """The tokens.

        Raises:
            DamagedFileError: the tokens or their record are missing or damaged.
        """
        return TokenStore.recorded(self.tokens_file, self.tokens_record)

    @cached_property
    def tokens_description(self) -> dict[str, Any]:
        """The contents of the record of the tokens.

        Raises:
            DamagedFileError: the record is damaged.
        """
        return read_record(self.tokens_record)

    @cached_property
    def heldout(self) -> TokenStore:
        """The held-out tokens.

        Raises:
            DamagedFileError: the tokens or their record are missing or damaged.
        """
        assert self.heldout_file and self.heldout_record, "the rule names the held-out tokens"
        return TokenStore.recorded(self.heldout_file, self.heldout_record)

    # Layout and commits of the store.

    @cached_property
    def store_description(self) -> dict[str, Any]:
        """The contents of the record of the store: layout, versions, model and settings.

        Raises:
            DamagedFileError: the record is damaged.
        """
        return read_record(self.store_record)

    @cached_property
    def layout(self) -> Layout:
        """The layout of the store.

        Raises:
            ValueError: the record of the store is damaged or of another version of the project.
        """
        return Layout.from_record(self.store_description)

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """The fingerprints of the chunks in the current configuration."""
        return self._fingerprints(self.layout)

    def commits(self) -> Commits:
        """Read the current commits."""
        return Commits.load(self.commit_files)

    def arrays(self, commits: Commits | None = None) -> Arrays:
        """Open the arrays, of which only rows of the current configuration count.

        Args:
            commits: the commits that count; by default the current commits.

        Raises:
            DamagedMetadataError: the metadata of the arrays differs from its record.
        """
        from outlier_atlas.store.arrays import Arrays

        counted = self.fingerprints.counted(self.commits() if commits is None else commits)
        return Arrays(self, self.layout, counted)

    def committed_summaries(
        self, commits: Commits, target: Target, chunk: int, kind: type[Kind]
    ) -> list[Kind]:
        """Return the summaries of a chunk that extraction has written, tile by tile.

        Args:
            commits: the commits that count.
            target: target of a site that is not stored.
            chunk: index of the chunk.
            kind: class of the summaries.

        Raises:
            LostSummaryError: a summary is missing, or differs from its commit.
        """
        from outlier_atlas.store.summaries import committed

        return committed(self, commits, self.fingerprints, target, chunk, kind)

    # Changes of the store.

    def create_arrays(self, layout: Layout, coordinates: Mapping[str, NDArray[np.int32]]) -> None:
        """Give the arrays the shape of a layout, and keep only current commits.

        Args:
            layout: the new layout of the store.
            coordinates: `token_id`, `sequence` and `position`, each (token,).
        """
        from outlier_atlas.store.create import create

        create(self, layout, coordinates, self._fingerprints(layout))

    def commit_file(self, job: str) -> CommitFile:
        """Return the file to which a job appends its commits."""
        return CommitFile(self.commit_files / f"{job}.jsonl")

    def revise(self, revised: Callable[[Commit], Commit] = lambda commit: commit) -> int:
        """Change all commits; by default, remove only damaged lines.

        Args:
            revised: a function that returns the changed commit; commits without targets are
                removed.

        Returns:
            The number of commits that lost rows or targets.
        """
        return revise(self.commit_files, revised)

    def delete_chunks(self, target: Target, chunks: Iterable[int]) -> None:
        """Delete chunks; their commits are removed first, so every commit has its chunk."""
        from outlier_atlas.store.arrays import Arrays

        gone = frozenset(chunks)

        def revised(commit: Commit) -> Commit:
            if commit.rows.chunk not in gone:
                return commit
            return without(commit, lambda committed: committed == target)

        self.revise(revised)
        arrays = Arrays(self, self.layout)
        for chunk in sorted(gone):
            arrays.chunks.remove(target, chunk)

    def put_shards_in_order(self, places: Iterable[tuple[Target, Iterable[int]]]) -> None:
        """Make the bytes of shards independent of the order in which jobs wrote their chunks.

        Args:
            places: targets with chunks whose shards are put in order.

        Raises:
            ValueError: the index of a shard is damaged; the same command repairs it.
        """
        from outlier_atlas.store.arrays import Arrays
        from outlier_atlas.store.target_chunks import DamagedChunkError

        arrays = Arrays(self, self.layout)
        for target, chunks in places:
            try:
                arrays.chunks.put_in_order(target, chunks)
            except DamagedChunkError as damage:
                raise self.give_up(arrays, [damage]) from damage

    def clear_up(self) -> None:
        """Remove all data that the layout does not name, once the run is complete."""
        from outlier_atlas.store.clear_up import clear_up

        clear_up(self, self.layout)

    # Damaged data no longer counts, and the same command recomputes it.

    def give_up(self, arrays: Arrays, damages: Sequence[DamagedChunkError]) -> ValueError:
        """Remove damaged chunks and their commits, and make the extraction jobs check again.

        Returns:
            The error to raise. It names the damage, and says that the same command repairs it.
        """
        from outlier_atlas.store.repair import give_up

        return give_up(self, arrays, damages)

    def give_up_summaries(self, lost: Sequence[LostSummaryError]) -> ValueError:
        """Remove lost summaries and their commits, and make the extraction jobs check again.

        Returns:
            The error to raise. It names the loss, and says that the same command repairs it.
        """
        from outlier_atlas.store.repair import give_up_summaries

        return give_up_summaries(self, lost)

    def look_again(self) -> None:
        """Make every extraction job check for missing rows at its next start."""
        from outlier_atlas.store.repair import look_again

        look_again(self)

    def damaged_chunks(self, arrays: Arrays, threads: int) -> Iterator[DamagedChunkError]:
        """Compare every counting chunk with its commits, and return each damage."""
        from outlier_atlas.store.repair import damaged

        return damaged(arrays, self.layout, threads)

    def lost_summaries(self, commits: Commits) -> Iterator[LostSummaryError]:
        """Compare summaries of sites that are not stored with their commits; return lost ones."""
        from outlier_atlas.store.repair import lost_summaries

        return lost_summaries(self, self.fingerprints, commits)

    # Methods for `verify`, which must work with damaged records.

    def restore_metadata(self) -> list[DamagedMetadataError]:
        """Restore the metadata of the arrays from its record; remove the record if it is damaged.

        Returns:
            The damage.
        """
        try:
            return metadata.restore(self)
        except DamagedMetadataError as damage:
            metadata.remove(self)
            return [damage]

    def summary_files(self) -> Iterator[tuple[Path, Target, Rows]]:
        """Return the files of all summaries, each with its target and its rows."""
        from outlier_atlas.store.summaries import files

        return files(self)

    def known_layout(self) -> Layout | None:
        """Return the layout; None if it cannot be read.

        If the record of the store is damaged, the layout comes from the record of the metadata.
        `layout` then returns the same, also after the damaged record is removed.
        """
        try:
            described = self.store_description
        except (OSError, DamagedFileError):
            try:
                described = metadata.read(self)["layout"]
            except (DamagedFileError, KeyError):
                return None
        self.layout = Layout.from_record(described)
        return self.layout

    def known_model_fingerprint(self) -> str | None:
        """Return the fingerprint of the weights; None if it cannot be read.

        If the record of the model is damaged, the fingerprint comes from the record of the store.
        `model_fingerprint` then returns the same.
        """
        known = _known(self.model_record) or _known(self.store_record).get("model", {})
        if "fingerprint" not in known:
            return None
        self.model_fingerprint = str(known["fingerprint"])
        return self.model_fingerprint

    def known_tokens(self) -> TokenStore | None:
        """Return the tokens; None if they or their record are missing or damaged."""
        try:
            return self.tokens
        except (OSError, DamagedFileError):
            return None

    def arrays_to_verify(self) -> Arrays:
        """Open the arrays for verification, in which commits of all configurations count.

        Raises:
            DamagedMetadataError: zarr cannot read the metadata.
        """
        from outlier_atlas.store.arrays import Arrays

        return Arrays(self, self.layout, self.commits().of, recorded=False)

    def _fingerprints(self, layout: Layout) -> Fingerprints:
        tokens = self.tokens
        return Fingerprints(
            layout, tokens.token_ids, tokens.sequence_starts, self.model_fingerprint
        )


def _known(record: Path) -> dict[str, Any]:
    """Return the contents of a record; empty if it is missing or damaged."""
    try:
        return read_record(record)
    except (OSError, DamagedFileError):
        return {}
