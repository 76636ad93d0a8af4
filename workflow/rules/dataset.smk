"""From texts to tokens."""

FETCH_DATASET = dict(
    dataset=SETTINGS.dataset.model_dump(mode="json"),
    before=0,
    trust_remote_code=SETTINGS.model.trust_remote_code,
)


rule fetch_dataset:
    input:
        inputs=fetch_dataset_inputs(
            DATASET_SLUG, HUB_DOCUMENTS, HUB_DATASET_RECORD, FETCH_DATASET
        ),
        model=MODEL_RECORD,
    output:
        documents=HUB_DOCUMENTS,
        record=HUB_DATASET_RECORD,
        products=shared_products(f"fetch_dataset.{DATASET_SLUG}"),
    log:
        f"resources/logs/fetch_dataset.{DATASET_SLUG}.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    params:
        **FETCH_DATASET,
    message:
        f"Dataset {literal(SETTINGS.dataset.source)}, as much of it as the run needs"
    script:
        "../scripts/fetch_dataset.py"


rule tokenize_dataset:
    input:
        inputs=inputs(
            "tokenize_dataset", "tokenize_dataset.py", FETCH_DATASET, dataset_digests
        ),
        model=MODEL_RECORD,
        dataset=dataset_files(),
        products=dataset_products(DATASET_SLUG),
    output:
        tokens=TOKENS,
        record=TOKENS_RECORD,
        products=products_of("tokenize_dataset"),
    log:
        f"{RESULTS}/logs/tokenize_dataset.log",
    conda:
        "../envs/data.yaml"
    params:
        **FETCH_DATASET,
    message:
        f"Tokens of {literal(SETTINGS.dataset.source)}"
    script:
        "../scripts/tokenize_dataset.py"
