"""Tokenization of texts. Runs with the same dataset and model share the tokens."""


# Only hub datasets need this rule.
rule fetch_dataset:
    input:
        inputs=of_dataset(fetch_dataset_inputs),
        model=of_dataset(lambda dataset: dataset.model.record),
    output:
        documents=DOCUMENTS,
        record=DOCUMENTS_RECORD,
        products=shared_products("fetch_dataset.{dataset}"),
    log:
        "resources/logs/fetch_dataset.{dataset}.log",
    wildcard_constraints:
        **CONSTRAINTS,
    localrule: True
    conda:
        "../envs/data.yaml"
    params:
        **each(of_dataset, dataset_settings, DATASETS),
        source=of_dataset(lambda dataset: dataset.title),
    message:
        "Dataset {params.source}, as much of it as the run needs"
    script:
        "../scripts/fetch_dataset.py"


rule tokenize_dataset:
    input:
        inputs=of_dataset(tokenize_dataset_inputs),
        model=of_dataset(lambda dataset: dataset.model.record),
        dataset=of_dataset(lambda dataset: dataset.files()),
        products=of_dataset(dataset_products),
    output:
        tokens=SHARED_TOKENS,
        record=SHARED_TOKENS_RECORD,
        products=shared_products("tokenize_dataset.{dataset}"),
    log:
        "resources/logs/tokenize_dataset.{dataset}.log",
    wildcard_constraints:
        **CONSTRAINTS,
    conda:
        "../envs/data.yaml"
    params:
        **each(of_dataset, dataset_settings, DATASETS),
        source=of_dataset(lambda dataset: dataset.title),
    message:
        "Tokens of {params.source}"
    script:
        "../scripts/tokenize_dataset.py"
