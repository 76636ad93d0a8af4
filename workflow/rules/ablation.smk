"""What follows if an outlier is taken away: perplexity of held-out tokens. Off by default."""


localrules:
    fetch_heldout,


use rule fetch_dataset as fetch_heldout with:
    output:
        documents=HELDOUT_DOCUMENTS,
        record=HELDOUT_DATASET_RECORD,
    log:
        f"resources/logs/fetch_dataset.{HELDOUT_SLUG}.log",
    params:
        dataset=HELDOUT_DATASET.model_dump(mode="json"),
        before=SETTINGS.dataset.sequences,
        trust_remote_code=SETTINGS.model.trust_remote_code,


use rule tokenize_dataset as tokenize_heldout with:
    input:
        code=code("tokenize_dataset.py"),
        model=MODEL_RECORD,
        dataset=nameable(heldout_files()),
    output:
        tokens=HELDOUT_TOKENS,
        record=HELDOUT_RECORD,
        made=made("tokenize_heldout"),
    log:
        f"{RESULTS}/logs/tokenize_heldout.log",
    params:
        dataset=HELDOUT_DATASET.model_dump(mode="json"),
        before=SETTINGS.dataset.sequences,
        trust_remote_code=SETTINGS.model.trust_remote_code,
        files=identities_of(SETTINGS.dataset.source, dataset_files()),
    message:
        f"Held-out tokens of {literal(SETTINGS.dataset.source)}"


rule ablate:
    input:
        code=code("ablate.py"),
        model=MODEL_RECORD,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        heldout=HELDOUT_TOKENS,
        heldout_record=HELDOUT_RECORD,
        store=STORE_RECORD,
        tables=TABLES,
    output:
        table=ABLATIONS,
        csv=table(ABLATIONS_CSV),
        made=made("ablate"),
    log:
        f"{RESULTS}/logs/ablate.log",
    conda:
        "../../envs/model.yaml"
    threads: SETTINGS.execution.threads or workflow.cores
    resources:
        **({"gpu": SETTINGS.execution.gpus_per_job} if ON_GPUS else {}),
        mem_mb=ablation_memory,
        device=SETTINGS.execution.device,
        # Not `gpu`, which `--resources gpu=1` lowers.
        gpus_per_job=SETTINGS.execution.gpus_per_job,
        device_memory=SETTINGS.execution.device_memory or "",
        on_new_versions=SETTINGS.execution.on_new_versions,
    params:
        ablation=SETTINGS.ablation.model_dump(mode="json"),
        bootstrap=SETTINGS.detection.bootstrap.model_dump(mode="json"),
        trust_remote_code=SETTINGS.model.trust_remote_code,
    message:
        "Perplexity of held-out tokens, with outliers taken away"
    script:
        "../scripts/ablate.py"
