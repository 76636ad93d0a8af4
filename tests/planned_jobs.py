"""How many jobs of each rule Snakemake would run, for many configurations in one process.

python tests/planned_jobs.py CONFIGURATION... [--target=FILE]: in a folder with a Snakefile; prints
a line of JSON for each. Starting Snakemake for each takes ten times as long.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from snakemake.api import SnakemakeApi
from snakemake.settings.enums import Quietness, RerunTrigger
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

# As in profiles/default.
TRIGGERS = frozenset(RerunTrigger[n] for n in ("MTIME", "SOFTWARE_ENV"))


def planned(configuration: Path, targets: set[str]) -> Counter[str]:
    with SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            ResourceSettings(cores=2),
            ConfigSettings(configfiles=[configuration]),
            snakefile=Path("Snakefile"),
        )
        settings = DAGSettings(targets=targets, rerun_triggers=TRIGGERS)
        workflow.dag(settings).execute_workflow(executor="dryrun")
        jobs = workflow._workflow.dag.needrun_jobs(exclude_finished=False)
        return Counter(job.rule.name for job in jobs if job.rule.name != "all")


if __name__ == "__main__":
    named = {arg.removeprefix("--target=") for arg in sys.argv[1:] if arg.startswith("--target=")}
    for name in sys.argv[1:]:
        if not name.startswith("--target="):
            print(json.dumps(planned(Path(name), named)))
