"""Script of rule `ablate`, which measures perplexity with outliers ablated."""

from rule_main import run


def main(job):
    from outlier_atlas.ablation.job import Ablation
    from outlier_atlas.ablation.run import ablate
    from outlier_atlas.checkpoint.source import offline
    from run_of_job import run_of

    offline()
    ablate(
        Ablation(
            settings=job.params.ablation,
            bootstrap=job.params.bootstrap,
            run=run_of(job),
            trust_remote_code=job.params.trust_remote_code,
            device=job.resources.device,
            gpus=job.resources.gpus_per_job,
            device_memory=job.resources.device_memory or None,
            threads=job.threads,
            on_new_versions=job.resources.on_new_versions,
            auto_groups=job.resources.layer_groups == "auto",
        )
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
