"""Ablation of outliers, which measures the perplexity of held-out tokens. Off by default."""


rule ablate:
    input:
        inputs=of_run(refuse_unconfigured),
        model=of_run(lambda run: run.model.record),
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        heldout=of_run(lambda run: run.heldout.tokens),
        heldout_record=of_run(lambda run: run.heldout.tokens_record),
        store=STORE_RECORD,
        tables=TABLES,
        products=of_run(
            lambda run: [
                *run.products("create_store", "detect_outliers"),
                shared_products(f"tokenize_dataset.{run.heldout.name}"),
            ]
        ),
    output:
        table=ABLATIONS,
        csv=table(ABLATIONS_CSV),
        products=products_of("ablate"),
    log:
        f"{RESULTS}/logs/ablate.log",
    wildcard_constraints:
        **CONSTRAINTS,
    conda:
        "../envs/model.yaml"
    threads: of_run(ablation_threads)
    resources:
        **({"gpu": ablation_gpus} if ON_GPUS else {}),
        mem_mb=ablation_memory,
        device=execution("device"),
        # A separate resource, because `--resources gpu=1` lowers `gpu`.
        gpus_per_job=execution("gpus_per_job"),
        device_memory=execution("device_memory"),
        on_new_versions=execution("on_new_versions"),
        layer_groups=of_all(lambda run: run.layer_groups),
    params:
        **each(of_run, ablate_settings, RUNS),
    message:
        "Perplexity of held-out tokens with outliers ablated"
    script:
        "../scripts/ablate.py"
