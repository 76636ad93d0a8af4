"""How many jobs of each rule Snakemake would run, for many configurations in one process.

python tests/planned_jobs.py CONFIGURATION...: in a folder with a Snakefile; prints a line of JSON
for each. Starting Snakemake for each takes ten times as long.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from snakemake.api import SnakemakeApi
from snakemake.settings.enums import Quietness, RerunTrigger
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

# As in profiles/default.
TRIGGERS = frozenset(RerunTrigger[n] for n in ("MTIME", "PARAMS", "INPUT", "SOFTWARE_ENV"))


def planned(configuration: Path) -> Counter[str]:
    with SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            ResourceSettings(cores=2),
            ConfigSettings(configfiles=[configuration]),
            snakefile=Path("Snakefile"),
        )
        workflow.dag(DAGSettings(rerun_triggers=TRIGGERS)).execute_workflow(executor="dryrun")
        jobs = workflow._workflow.dag.needrun_jobs(exclude_finished=False)
        return Counter(job.rule.name for job in jobs if job.rule.name != "all")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(planned(Path(name))))
