"""The names of the files in a run's folder, in one place.

Light to import: the Snakefile and the terminal use it, too. A folder with a wildcard in it gives
patterns: `RunFiles(Path("results/{run}")).report`.
"""

from __future__ import annotations

from pathlib import Path

from outlier_atlas import inputs, products
from outlier_atlas.job_metrics import FOLDER as MEASURED

STORE_RECORD = "manifests/store.json"
"""The record of the store's layout, seen from the run's folder."""

COMMITS = "manifests/commits"
"""The folder of the commit files, seen from the run's folder."""

TOKENS, TOKENS_RECORD = "tokens.parquet", "manifests/tokens.json"
"""The tokens and their record, seen from the run's folder, unless a rule names other files."""


class RunFiles:
    """The files of a run, by name.

    Attributes:
        folder: the folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_store_record(cls, record: Path) -> RunFiles:
        """Return the files of the run that a store's record belongs to."""
        return cls(record.parents[1])

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.folder.name

    @property
    def activations(self) -> Path:
        """The Zarr group of the stored sites."""
        return self.folder / "activations.zarr"

    @property
    def boundaries(self) -> Path:
        """The Zarr group of the residual streams between layer groups."""
        return self.folder / "boundaries.zarr"

    @property
    def summaries(self) -> Path:
        """The folder of the summaries."""
        return self.folder / "summaries"

    @property
    def store_record(self) -> Path:
        """The record of the store's layout: what rule `create_store` makes."""
        return self.folder / STORE_RECORD

    @property
    def metadata_record(self) -> Path:
        """The record of the arrays' metadata (`store/metadata.py`)."""
        return self._manifests / "metadata.json"

    @property
    def layer_groups_record(self) -> Path:
        """The record of what `extraction.layer_groups: auto` is."""
        return self._manifests / "layer_groups.json"

    @property
    def commit_files(self) -> Path:
        """The folder of the commit files, one file for each extraction job."""
        return self.folder / COMMITS

    @property
    def job_manifests(self) -> Path:
        """The folder of the manifests that extraction jobs leave."""
        return self._manifests / "extraction"

    @property
    def chunk_locks(self) -> Path:
        """The folder of the locks of chunks that several jobs write."""
        return self._manifests / "locks"

    @property
    def input_records(self) -> Path:
        """The folder of the records of what rules are made from (`inputs.py`)."""
        return self._manifests / inputs.FOLDER

    @property
    def product_records(self) -> Path:
        """The folder of the records of what rules have made (`products.py`)."""
        return self._manifests / products.FOLDER

    @property
    def measured(self) -> Path:
        """The folder of the records of what jobs took (`job_metrics.py`)."""
        return self.folder / MEASURED

    @property
    def tables(self) -> Path:
        """The folder of the tables."""
        return self.folder / "tables"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.folder / "figures"

    @property
    def ablation(self) -> Path:
        """The folder of what the ablation stage keeps to resume."""
        return self.folder / "ablation"

    @property
    def report(self) -> Path:
        """The page of the report."""
        return self.folder / "report.html"

    @property
    def findings(self) -> Path:
        """The findings of the report as JSON."""
        return self.folder / "findings.json"

    @property
    def _manifests(self) -> Path:
        return self.folder / "manifests"
