"""Script of rule `create_store`, which gives the arrays of a run their shape."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.data.tokens import copy_tokens
    from outlier_atlas.extraction.prepare import prepare_store
    from run_of_job import run_of

    offline()
    copy_tokens(
        (Path(job.input.tokens), Path(job.input.tokens_record)),
        (Path(job.output.tokens), Path(job.output.tokens_record)),
    )
    prepare_store(
        settings=job.params.extraction,
        chunk_tokens=job.params.chunk_tokens,
        dtype=job.params.dtype,
        trust_remote_code=job.params.trust_remote_code,
        run=run_of(job),
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
