"""Names of the files in a run's folder.

The Snakefile and the terminal import this module, so it imports no large packages. A folder with a
wildcard gives patterns, as in `RunFiles(Path("results/{run}")).report`.
"""

from __future__ import annotations

from pathlib import Path

from outlier_atlas import inputs, products
from outlier_atlas.job_metrics import FOLDER as MEASURED

STORE_RECORD = "manifests/store.json"
"""Record of the store's layout, relative to the run's folder."""

COMMITS = "manifests/commits"
"""Folder of the commit files, relative to the run's folder."""

TOKENS, TOKENS_RECORD = "tokens.parquet", "manifests/tokens.json"
"""Default files of the tokens and their record, relative to the run's folder."""


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
        """The record of the store's layout, which is the output of rule `create_store`."""
        return self.folder / STORE_RECORD

    @property
    def metadata_record(self) -> Path:
        """The record of the arrays' metadata (`store/metadata.py`)."""
        return self._manifests / "metadata.json"

    @property
    def layer_groups_record(self) -> Path:
        """The record of the number that `extraction.layer_groups: auto` chose."""
        return self._manifests / "layer_groups.json"

    @property
    def commit_files(self) -> Path:
        """The folder of the commit files, one file for each extraction job."""
        return self.folder / COMMITS

    @property
    def job_manifests(self) -> Path:
        """The folder of the manifests of finished extraction jobs."""
        return self._manifests / "extraction"

    @property
    def chunk_locks(self) -> Path:
        """The folder of the locks for chunks that several jobs write."""
        return self._manifests / "locks"

    @property
    def input_records(self) -> Path:
        """The folder of the records of rules' inputs (`inputs.py`)."""
        return self._manifests / inputs.FOLDER

    @property
    def product_records(self) -> Path:
        """The folder of the records of rules' products (`products.py`)."""
        return self._manifests / products.FOLDER

    @property
    def measured(self) -> Path:
        """The folder of the records of jobs' memory and time (`job_metrics.py`)."""
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
        """The folder of the files from which the ablation stage resumes."""
        return self.folder / "ablation"

    @property
    def report(self) -> Path:
        """The page of the report."""
        return self.folder / "report.html"

    @property
    def findings(self) -> Path:
        """The JSON file of the report's findings."""
        return self.folder / "findings.json"

    @property
    def _manifests(self) -> Path:
        return self.folder / "manifests"
