"""Rule `ablate`: perplexity of held-out tokens with outliers ablated."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.ablation.job import Ablation
    from outlier_atlas.ablation.run import ablate
    from outlier_atlas.checkpoint.source import offline

    offline()
    store = Path(job.input.store)
    ablate(
        Ablation(
            settings=job.params.ablation,
            bootstrap=job.params.bootstrap,
            run=store.parents[1],
            store_record=store,
            tokens=Path(job.input.tokens),
            heldout=Path(job.input.heldout),
            heldout_record=Path(job.input.heldout_record),
            model_record=Path(job.input.model),
            resources=Path("resources"),
            tables=Path(job.output.table).parent,
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
