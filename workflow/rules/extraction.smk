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


# `layer_groups: auto`: how many extraction jobs there are is known once this has run.
if AUTO_GROUPS:

    checkpoint choose_layer_groups:
        input:
            inputs=lambda wildcards: choice_inputs(),
            model=MODEL_RECORD,
        output:
            # `update`: a number that was chosen from the same is kept.
            choice=update(CHOICE),
            products=products_of("choose_layer_groups"),
        log:
            f"{RESULTS}/logs/choose_layer_groups.log",
        localrule: True
        conda:
            "../envs/model.yaml"
        resources:
            jobs_at_once=extractions_at_once,
            scheduled=scheduled,
        params:
            settings=SETTINGS.model_dump(mode="json"),
        message:
            "Number of layer groups, from the plan"
        script:
            "../scripts/choose_layer_groups.py"


CREATE_STORE = dict(
    chunk_tokens=SETTINGS.chunk_tokens,
    dtype=SETTINGS.model.dtype,
    trust_remote_code=SETTINGS.model.trust_remote_code,
)
EXTRACT_ACTIVATIONS = dict(trust_remote_code=SETTINGS.model.trust_remote_code)


rule create_store:
    input:
        inputs=with_layer_groups(store_inputs),
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
        extraction=with_layer_groups(extraction_settings),
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


# With `layer_groups: auto` the number of layer groups is a wildcard.
OF_GROUPS = "{groups}" if AUTO_GROUPS else LAYER_GROUPS
EXTRACTION_LOG = "-of-{groups}" if AUTO_GROUPS else ""


rule extract_activations:
    input:
        inputs=EXTRACTION_INPUTS,
        model=MODEL_RECORD,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        store=STORE_RECORD,
        previous=previous_manifest,
    output:
        manifest=manifest("{group}", "{shard}", OF_GROUPS),
    log:
        f"{RESULTS}/logs/extract_activations.group-{{group}}{EXTRACTION_LOG}.shard-{{shard}}.log",
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
        layer_groups=LAYER_GROUPS,
    params:
        **EXTRACT_ACTIVATIONS,
    message:
        "Activations of layer group {wildcards.group}, sequence shard {wildcards.shard}"
    script:
        "../scripts/extract_activations.py"
