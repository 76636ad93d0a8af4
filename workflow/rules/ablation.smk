"""Ablation: the perplexity of held-out tokens without the outliers. Off by default."""

FETCH_HELDOUT = dict(
    dataset=HELDOUT_DATASET.model_dump(mode="json"),
    before=SETTINGS.dataset.sequences,
    trust_remote_code=SETTINGS.model.trust_remote_code,
)


use rule fetch_dataset as fetch_heldout with:
    input:
        inputs=(
            fetch_dataset_inputs(
                HELDOUT_SLUG, HELDOUT_DOCUMENTS, HELDOUT_DATASET_RECORD, FETCH_HELDOUT
            )
            if SETTINGS.ablation.sequences
            else []
        ),
        model=MODEL_RECORD,
    output:
        documents=HELDOUT_DOCUMENTS,
        record=HELDOUT_DATASET_RECORD,
        products=shared_products(f"fetch_dataset.{HELDOUT_SLUG}"),
    log:
        f"resources/logs/fetch_dataset.{HELDOUT_SLUG}.log",
    params:
        **FETCH_HELDOUT,


use rule tokenize_dataset as tokenize_heldout with:
    input:
        inputs=(
            inputs(
                "tokenize_heldout",
                "tokenize_dataset.py",
                FETCH_HELDOUT,
                dataset_digests,
            )
            if SETTINGS.ablation.sequences
            else []
        ),
        model=MODEL_RECORD,
        dataset=heldout_files(),
        products=dataset_products(HELDOUT_SLUG),
    output:
        tokens=HELDOUT_TOKENS,
        record=HELDOUT_RECORD,
        products=products_of("tokenize_heldout"),
    log:
        f"{RESULTS}/logs/tokenize_heldout.log",
    params:
        **FETCH_HELDOUT,
    message:
        f"Held-out tokens of {literal(SETTINGS.dataset.source)}"


ABLATE = dict(
    ablation=SETTINGS.ablation.model_dump(mode="json"),
    bootstrap=SETTINGS.detection.bootstrap.model_dump(mode="json"),
    trust_remote_code=SETTINGS.model.trust_remote_code,
)


rule ablate:
    input:
        inputs=(
            inputs("ablate", "ablate.py", ABLATE)
            if SETTINGS.ablation.sequences
            else []
        ),
        model=MODEL_RECORD,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        heldout=HELDOUT_TOKENS,
        heldout_record=HELDOUT_RECORD,
        store=STORE_RECORD,
        tables=TABLES,
        products=[
            products_of(rule)
            for rule in ["detect_outliers", "tokenize_dataset", "tokenize_heldout"]
        ],
    output:
        table=ABLATIONS,
        csv=table(ABLATIONS_CSV),
        products=products_of("ablate"),
    log:
        f"{RESULTS}/logs/ablate.log",
    conda:
        "../envs/model.yaml"
    threads: ablation_threads
    resources:
        **({"gpu": SETTINGS.execution.gpus_per_job} if ON_GPUS else {}),
        mem_mb=ablation_memory,
        device=SETTINGS.execution.device,
        # Not `gpu`, which `--resources gpu=1` lowers.
        gpus_per_job=SETTINGS.execution.gpus_per_job,
        device_memory=SETTINGS.execution.device_memory or "",
        on_new_versions=SETTINGS.execution.on_new_versions,
        layer_groups=LAYER_GROUPS,
    params:
        **ABLATE,
    message:
        "Perplexity of held-out tokens with outliers ablated"
    script:
        "../scripts/ablate.py"
