"""One extraction job as a process of its own, with no more memory than it is given.

python tests/bounded.py JOB: a JSON file with the fields of a `Job`.
"""

import dataclasses
import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

from outlier_atlas.extraction.job import Job
from outlier_atlas.store.run import Run as StoredRun

GROUPS = Path("/sys/fs/cgroup/memory")


class ControlGroup:
    """A control group (version 1) below this process's own, with a limit.

    Raises:
        OSError: from entering the block: this process may make no control group.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
        own = next((path for _, names, path in lines if names == "memory"), "")
        self._folder = GROUPS / own.lstrip("/") / f"outlier-atlas-{os.getpid()}"

    def __enter__(self) -> "ControlGroup":
        self._folder.mkdir()
        (self._folder / "memory.limit_in_bytes").write_text(str(self.size))
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.rmdir()

    def join(self) -> None:
        """Put this process into it."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))


class Limit:
    """A limit of what a process may write to, mapped files among it (`RLIMIT_DATA`)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def join(self) -> None:
        """Put this process under it."""
        resource.setrlimit(resource.RLIMIT_DATA, (self.size, self.size))


def run_job(
    job: Job, file: Path, bound: ControlGroup | Limit | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a job in a process.

    Args:
        file: where the job's fields are written for it.
        bound: that the process is put under.
    """
    run = vars(StoredRun(job.run.folder, job.run.model_record, job.run.resources))
    fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    file.write_text(json.dumps(fields | {"run": run}, default=str))
    return subprocess.run(
        [sys.executable, __file__, str(file)],
        capture_output=True, text=True, check=False, preexec_fn=bound.join if bound else None,
        # BLAS sets memory aside for every core.
        env=os.environ | {"TQDM_DISABLE": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def main(file: str) -> None:
    fields = json.loads(Path(file).read_text())
    fields["run"] = StoredRun(**{name: path and Path(path) for name, path in fields["run"].items()})
    fields["manifest"] = Path(fields["manifest"])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from outlier_atlas.extraction.run import extract

    try:
        extract(Job(**fields))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1])
