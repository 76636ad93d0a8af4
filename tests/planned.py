"""The jobs of a run as Snakemake plans them, with all that it hands to their scripts, as JSON.

python tests/planned.py FOLDER: plans `mine.yaml` there, writes `jobs.json`.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked

ROOT = Path(__file__).parents[1]


class Named(list[Any]):
    """A list some of whose parts have names, as Snakemake's `input`, `output` and `params`."""

    def __init__(self, parts: list[Any], names: dict[str, Any]) -> None:
        super().__init__(parts)
        self._named = names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._named:
            raise AttributeError(name)
        return self._named[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self._named.get(name, default)


def jobs(folder: Path) -> dict[str, SimpleNamespace]:
    """The planned jobs in an order in which they can run, by rule, and where it has several, by
    the name of their log."""
    planned = json.loads((folder / "jobs.json").read_text())
    count = Counter(job["rule"] for job in planned)
    return {
        job["rule"] if count[job["rule"]] == 1 else _name(Path(job["log"][0][0])): _job(job)
        for job in planned
    }


def _name(log: Path) -> str:
    """Return `extract_activations.group-0.shard-1`, `tokenize_dataset.heldout` and the like."""
    rule = log.stem.partition(".")[0]
    if rule in ("fetch_dataset", "tokenize_dataset"):
        return rule + (".heldout" if ".heldout-" in log.stem else "")
    return re.sub(r"-of-\d+", "", log.stem)


def plan(folder: Path) -> None:
    """Write `jobs.json`."""
    subprocess.run([forked.python(), __file__, str(folder)], check=True, capture_output=True)


def _job(job: dict[str, Any]) -> SimpleNamespace:
    lists = {name: Named(*job[name]) for name in LISTS}
    named = {name: job[name] for name in ("rule", "script", "threads")}
    return SimpleNamespace(**named, **lists)


LISTS = ("input", "output", "params", "wildcards", "resources", "log")


def _plain(named: Any) -> tuple[list[Any], dict[str, Any]]:
    """The parts of one of Snakemake's lists, and those that have a name; files as text."""
    return [_text(part) for part in named], {name: _text(part) for name, part in named.items()}


def _text(part: Any) -> Any:
    if isinstance(part, str):
        return str(part)
    return [_text(each) for each in part] if isinstance(part, list | tuple) else part


def main(folder: Path) -> None:
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        Quietness,
        ResourceSettings,
    )

    # No dry run, which leaves no records of inputs; nothing is run all the same.
    output = OutputSettings(quiet={Quietness.ALL})
    with SnakemakeApi(output) as api, redirect_stdout(StringIO()):
        workflow = api.workflow(
            # More than any job asks for: with fewer GPUs a job gets no more than there are.
            resource_settings=ResourceSettings(cores=2, resources={"gpu": 8}),
            config_settings=ConfigSettings(configfiles=[folder / "mine.yaml"]),
            snakefile=ROOT / "Snakefile",
            workdir=folder,
        )
        targets = {"all", "fetch", "verify"}
        workflow.dag(DAGSettings(forceall=True, targets=targets)).printd3dag()
        dag = workflow._workflow.dag
        ordered = [
            job
            for level in dag.toposorted()
            for job in sorted(level, key=lambda job: list(job.log))
        ]
        # What makes nothing looks at what all others have made.
        ordered.sort(key=lambda job: not job.output)
        # In its folder: some resources look into files.
        planned = [
            {"rule": job.rule.name, "script": Path(job.rule.script).stem, "threads": job.threads}
            | {name: _plain(getattr(job, name)) for name in LISTS}
            for job in ordered
            if job.log
        ]
    (folder / "jobs.json").write_text(json.dumps(planned))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
