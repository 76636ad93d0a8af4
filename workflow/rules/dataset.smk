"""From texts to tokens."""


localrules:
    fetch_dataset,


rule fetch_dataset:
    input:
        code=code("fetch_dataset.py"),
        model=MODEL_RECORD,
    output:
        documents=HUB_DOCUMENTS,
        record=HUB_DATASET_RECORD,
    log:
        f"resources/logs/fetch_dataset.{DATASET_SLUG}.log",
    conda:
        "../../envs/data.yaml"
    params:
        dataset=SETTINGS.dataset.model_dump(mode="json"),
        before=0,
        trust_remote_code=SETTINGS.model.trust_remote_code,
    message:
        f"Dataset {literal(SETTINGS.dataset.source)}, as much of it as the run needs"
    script:
        "../scripts/fetch_dataset.py"


rule tokenize_dataset:
    input:
        code=code("tokenize_dataset.py"),
        model=MODEL_RECORD,
        dataset=nameable(dataset_files()),
    output:
        tokens=TOKENS,
        record=TOKENS_RECORD,
        made=made("tokenize_dataset"),
    log:
        f"{RESULTS}/logs/tokenize_dataset.log",
    conda:
        "../../envs/data.yaml"
    params:
        dataset=SETTINGS.dataset.model_dump(mode="json"),
        before=0,
        trust_remote_code=SETTINGS.model.trust_remote_code,
        files=identities_of(SETTINGS.dataset.source, dataset_files()),
    message:
        f"Tokens of {literal(SETTINGS.dataset.source)}"
    script:
        "../scripts/tokenize_dataset.py"
