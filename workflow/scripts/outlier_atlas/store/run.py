"""A run and its store: the one object that stages are given.

zarr is imported only by the methods that open arrays: a job that finds nothing to do ends at once.
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
    """A run: its files, its layout, and what of it counts.

    Records and tokens are read once, when they are first asked for. Every call reads the commits
    again, since other jobs append to them.

    Args:
        folder: the folder of the run.
        model_record: the record of the model.
        resources: the folder that the record of the model is relative to.
        tokens_file: the tokens; by default in the run's folder.
        tokens_record: the record of the tokens; by default in the run's folder.
        heldout_file: the held-out tokens, which other runs share; None without an ablation stage.
        heldout_record: the record of the held-out tokens.
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

    # What the run is made from.

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

    # What the store is, and what of it counts.

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
            ValueError: the record of the store is damaged, or another version of the project wrote
                it.
        """
        return Layout.from_record(self.store_description)

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """The fingerprints of the chunks, as the run is configured now."""
        return self._fingerprints(self.layout)

    def commits(self) -> Commits:
        """Read the commits that are there at this moment."""
        return Commits.load(self.commit_files)

    def arrays(self, commits: Commits | None = None) -> Arrays:
        """Open the arrays. Only rows count that are committed as the run is configured now.

        Args:
            commits: the commits that count; by default those that are there at this moment.

        Raises:
            DamagedMetadataError: the metadata of the arrays is not what was recorded.
        """
        from outlier_atlas.store.arrays import Arrays

        counted = self.fingerprints.counted(self.commits() if commits is None else commits)
        return Arrays(self, self.layout, counted)

    def committed_summaries(
        self, commits: Commits, target: Target, chunk: int, kind: type[Kind]
    ) -> list[Kind]:
        """Return the summaries that extraction has kept of a chunk, tile by tile.

        Args:
            commits: the commits that count.
            target: a site that is not stored, in a layer.
            chunk: the number of the chunk.
            kind: the class of the summaries.

        Raises:
            LostSummaryError: a summary is missing, or is not the one that was committed.
        """
        from outlier_atlas.store.summaries import committed

        return committed(self, commits, self.fingerprints, target, chunk, kind)

    # What changes the store.

    def create_arrays(self, layout: Layout, coordinates: Mapping[str, NDArray[np.int32]]) -> None:
        """Give the arrays the shape of a layout, and keep only the commits that are current.

        Args:
            layout: the layout that the store is to have.
            coordinates: `token_id`, `sequence` and `position`, each (token,).
        """
        from outlier_atlas.store.create import create

        create(self, layout, coordinates, self._fingerprints(layout))

    def commit_file(self, job: str) -> CommitFile:
        """Return the file that a job appends its commits to."""
        return CommitFile(self.commit_files / f"{job}.jsonl")

    def revise(self, revised: Callable[[Commit], Commit] = lambda commit: commit) -> int:
        """Change all commits; by default only damaged lines are removed.

        Args:
            revised: returns a commit as it is to be; a commit without targets is removed.

        Returns:
            The number of commits that stand for less than they did.
        """
        return revise(self.commit_files, revised)

    def delete_chunks(self, target: Target, chunks: Iterable[int]) -> None:
        """Delete chunks on purpose; their commits go first, so that none is without its chunk."""
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

    def clear_up(self) -> None:
        """Remove what the layout does not name, once everything is there that it names."""
        from outlier_atlas.store.clear_up import clear_up

        clear_up(self, self.layout)

    # Damage: what is damaged no longer counts, and the same command computes it again.

    def give_up(self, arrays: Arrays, damages: Sequence[DamagedChunkError]) -> ValueError:
        """Remove damaged chunks and their commits, and have the extraction jobs look again.

        Returns:
            The error to raise: what was damaged, and that the same command repairs it.
        """
        from outlier_atlas.store.repair import give_up

        return give_up(self, arrays, damages)

    def give_up_summaries(self, lost: Sequence[LostSummaryError]) -> ValueError:
        """Remove lost summaries and their commits, and have the extraction jobs look again.

        Returns:
            The error to raise: what was lost, and that the same command repairs it.
        """
        from outlier_atlas.store.repair import give_up_summaries

        return give_up_summaries(self, lost)

    def look_again(self) -> None:
        """Have every extraction job look for missing rows, the next time that it starts."""
        from outlier_atlas.store.repair import look_again

        look_again(self)

    def damaged_chunks(self, arrays: Arrays, threads: int) -> Iterator[DamagedChunkError]:
        """Compare every chunk that counts with its commits."""
        from outlier_atlas.store.repair import damaged

        return damaged(arrays, self.layout, threads)

    def lost_summaries(self, commits: Commits) -> Iterator[LostSummaryError]:
        """Compare every summary of a site that is not stored with its commits."""
        from outlier_atlas.store.repair import lost_summaries

        return lost_summaries(self, self.fingerprints, commits)

    # What `verify` asks of a run whose records may be damaged.

    def restore_metadata(self) -> list[DamagedMetadataError]:
        """Restore the metadata of the arrays from its record; remove the record if it is damaged.

        Returns:
            What was damaged.
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
        """Return the layout, from the record of the metadata where the store's is damaged.

        `layout` then returns the same, also once the damaged record is removed. None if both
        records are damaged.
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
        """Return the fingerprint of the weights, from the store's record where the model's is
        damaged; None if neither has it. `model_fingerprint` then returns the same."""
        found = _known(self.model_record) or _known(self.store_record).get("model", {})
        if "fingerprint" not in found:
            return None
        self.model_fingerprint = str(found["fingerprint"])
        return self.model_fingerprint

    def known_tokens(self) -> TokenStore | None:
        """Return the tokens; None where they or their record are missing or damaged."""
        try:
            return self.tokens
        except (OSError, DamagedFileError):
            return None

    def arrays_to_verify(self) -> Arrays:
        """Open the arrays to verify them: all commits count, those of other configurations too.

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
    """Return the contents of a record; nothing where it is missing or damaged."""
    try:
        return read_record(record)
    except (OSError, DamagedFileError):
        return {}
