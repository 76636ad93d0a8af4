"""From activations to tables: one pass over the store for all criteria."""


rule detect_outliers:
    input:
        code=code("detect_outliers.py"),
        model=MODEL_RECORD,
        store=STORE_RECORD,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        manifests=manifests(),
    output:
        TABLES,
        [table(path) for path in CSV_TABLES],
        made=made("detect_outliers"),
    log:
        f"{RESULTS}/logs/detect_outliers.log",
    conda:
        "../../envs/detection.yaml"
    threads: 2
    params:
        detection=SETTINGS.detection.model_dump(mode="json", exclude={"smoothquant"}),
        trust_remote_code=SETTINGS.model.trust_remote_code,
    message:
        "Outliers, in one pass over the store"
    script:
        "../scripts/detect_outliers.py"
