"""Rule `create_store`: gives the run's arrays their shape."""

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.extraction.prepare import prepare_store
    from run_of_job import run_of

    offline()
    prepare_store(
        settings=job.params.extraction,
        chunk_tokens=job.params.chunk_tokens,
        dtype=job.params.dtype,
        trust_remote_code=job.params.trust_remote_code,
        run=run_of(job),
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
