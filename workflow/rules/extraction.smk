"""From tokens to activations: a job per layer group and sequence shard, chained by boundaries."""


# What the run takes: from the model's configuration and the headers of its files, of a model of the
# hub over the network where it is not fetched.
rule plan:
    input:
        model=planned_model(),
    log:
        f"{RESULTS}/logs/plan.log",
    localrule: True
    conda:
        "../envs/model.yaml"
    resources:
        jobs_at_once=extractions_at_once,
    params:
        settings=SETTINGS.model_dump(mode="json"),
    message:
        "Plan"
    script:
        "../scripts/plan.py"


CREATE_STORE = dict(
    extraction=SETTINGS.extraction.model_dump(mode="json", exclude={"verify"}),
    chunk_tokens=SETTINGS.chunk_tokens,
    dtype=SETTINGS.model.dtype,
    trust_remote_code=SETTINGS.model.trust_remote_code,
)
EXTRACT_ACTIVATIONS = dict(trust_remote_code=SETTINGS.model.trust_remote_code)


rule create_store:
    input:
        inputs=inputs("create_store", "create_store.py", CREATE_STORE),
        model=MODEL_RECORD,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
    output:
        record=STORE_RECORD,
        products=products_of("create_store"),
    log:
        f"{RESULTS}/logs/create_store.log",
    conda:
        "../envs/model.yaml"
    params:
        **CREATE_STORE,
    message:
        "Shape of the store, from the model's configuration"
    script:
        "../scripts/create_store.py"


# A job that runs again looks at what is committed, and computes what is missing: without a record
# of its products, it runs again whenever the record of its inputs is another one.
EXTRACTION_INPUTS = inputs(
    "extract_activations",
    "extract_activations.py",
    EXTRACT_ACTIVATIONS,
    with_products=False,
)


rule extract_activations:
    input:
        inputs=EXTRACTION_INPUTS,
        model=MODEL_RECORD,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        store=STORE_RECORD,
        previous=previous_manifest,
    output:
        manifest=manifest("{group}", "{shard}"),
    log:
        f"{RESULTS}/logs/extract_activations.group-{{group}}.shard-{{shard}}.log",
    conda:
        "../envs/model.yaml"
    threads: extraction_threads
    resources:
        **({"gpu": extraction_gpus} if ON_GPUS else {}),
        mem_mb=extraction_memory,
        # What makes nothing stale travels as resources, which Snakemake does not compare.
        batch_size=SETTINGS.execution.batch_size,
        device=SETTINGS.execution.device,
        # Not `gpu`, which `--resources gpu=1` lowers.
        gpus_per_job=SETTINGS.execution.gpus_per_job,
        device_memory=SETTINGS.execution.device_memory or "",
        jobs_at_once=extractions_at_once,
        verify=SETTINGS.extraction.verify,
        on_new_versions=SETTINGS.execution.on_new_versions,
    params:
        **EXTRACT_ACTIVATIONS,
    message:
        "Activations of layer group {wildcards.group}, sequence shard {wildcards.shard}"
    script:
        "../scripts/extract_activations.py"
