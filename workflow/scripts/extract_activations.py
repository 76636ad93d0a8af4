"""Script of rule `extract_activations`, which runs one layer group over one sequence shard."""

import os
from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.extraction.job import Job
    from outlier_atlas.extraction.run import extract
    from outlier_atlas.session import AHEAD
    from run_of_job import run_of

    offline()
    auto = job.resources.batch_size == "auto"
    extract(
        Job(
            run=run_of(job),
            group=int(job.wildcards.group),
            shard=int(job.wildcards.shard),
            manifest=Path(job.output.manifest),
            trust_remote_code=job.params.trust_remote_code,
            device=job.resources.device,
            gpus=job.resources.gpus_per_job,
            batch_size=1 if auto else int(job.resources.batch_size),
            auto_batch=auto,
            auto_groups=job.resources.layer_groups == "auto",
            device_memory=job.resources.device_memory or None,
            jobs=job.resources.jobs_at_once,
            threads=job.threads,
            verify=job.resources.verify,
            ahead=AHEAD in os.environ,
            on_new_versions=job.resources.on_new_versions,
        )
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
