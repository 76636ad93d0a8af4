"""Extraction of activations, with a job for each layer group and sequence shard."""


# The plan needs only the configuration of a model and the headers of its files. For a hub model
# that is not fetched, they are read over the network.
rule plan:
    input:
        models=planned_models,
    log:
        f"results/{NAME}/logs/plan.log",
    localrule: True
    conda:
        "../envs/model.yaml"
    params:
        runs=lambda wildcards: [
            dict(
                settings=run.settings.model_dump(mode="json"),
                folder=run.folder,
                model=run.model.record if run.model.is_fetched else "",
                jobs=dict(
                    at_once=extractions_at_once(run),
                    threads=extraction_threads(run),
                    cores=workflow.cores,
                    done=rules_done(run),
                ),
            )
            for run in RUNS.values()
        ],
    message:
        "Plan"
    script:
        "../scripts/plan.py"


# With `layer_groups: auto`, this checkpoint determines the number of extraction jobs.
checkpoint choose_layer_groups:
    input:
        inputs=of_run(choice_inputs),
        model=of_run(lambda run: run.model.record),
    output:
        # `update` keeps a number that was chosen from the same inputs.
        choice=update(CHOICE),
        products=products_of("choose_layer_groups"),
    log:
        f"{RESULTS}/logs/choose_layer_groups.log",
    wildcard_constraints:
        **CONSTRAINTS,
    localrule: True
    conda:
        "../envs/model.yaml"
    resources:
        jobs_at_once=of_run(extractions_at_once),
        scheduled=scheduled,
    params:
        settings=of_run(lambda run: run.settings.model_dump(mode="json")),
    message:
        "Number of layer groups, from the plan"
    script:
        "../scripts/choose_layer_groups.py"


# The store has a copy of the tokens, so that a run's folder is complete without `resources`.
rule create_store:
    input:
        inputs=with_layer_groups(store_inputs),
        model=of_run(lambda run: run.model.record),
        tokens=of_run(lambda run: run.dataset.tokens),
        tokens_record=of_run(lambda run: run.dataset.tokens_record),
        products=of_run(
            lambda run: shared_products(f"tokenize_dataset.{run.dataset.name}")
        ),
    output:
        record=STORE_RECORD,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        products=products_of("create_store"),
    log:
        f"{RESULTS}/logs/create_store.log",
    wildcard_constraints:
        **CONSTRAINTS,
    conda:
        "../envs/model.yaml"
    params:
        **each(of_run, create_store_settings, RUNS),
        extraction=with_layer_groups(extraction_settings),
    message:
        "Shape of the store, from the model's configuration"
    script:
        "../scripts/create_store.py"


MANIFEST = extraction_manifest("{group}", "{groups}", "{shard}", "{shards}")


rule extract_activations:
    input:
        inputs=of_run(extract_activations_inputs),
        model=of_run(lambda run: run.model.record),
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        store=STORE_RECORD,
        previous=previous_manifest,
    output:
        manifest=f"{RESULTS}/{MANIFEST}",
    log:
        f"{RESULTS}/logs/extract_activations.group-{{group}}-of-{{groups}}"
        f".shard-{{shard}}-of-{{shards}}.log",
    wildcard_constraints:
        **CONSTRAINTS,
    conda:
        "../envs/model.yaml"
    threads: of_run(extraction_threads)
    resources:
        **({"gpu": extraction_gpus} if ON_GPUS else {}),
        mem_mb=extraction_memory,
        batch_size=execution("batch_size"),
        device=execution("device"),
        # A separate resource, because `--resources gpu=1` lowers `gpu`.
        gpus_per_job=execution("gpus_per_job"),
        device_memory=execution("device_memory"),
        on_new_versions=execution("on_new_versions"),
        jobs_at_once=of_run(extractions_at_once),
        verify=of_all(lambda run: run.settings.extraction.verify),
        layer_groups=of_all(lambda run: run.layer_groups),
    params:
        **each(of_run, extract_activations_settings, RUNS),
    message:
        "Activations of layer group {wildcards.group}, sequence shard {wildcards.shard}"
    script:
        "../scripts/extract_activations.py"
