"""From activations to tables: one pass over the store for all criteria."""

DETECT_OUTLIERS = dict(
    detection=SETTINGS.detection.model_dump(mode="json", exclude={"smoothquant"}),
    trust_remote_code=SETTINGS.model.trust_remote_code,
)


rule detect_outliers:
    input:
        inputs=inputs("detect_outliers", "detect_outliers.py", DETECT_OUTLIERS),
        model=MODEL_RECORD,
        store=STORE_RECORD,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        manifests=with_layer_groups(manifests),
        products=products_of("tokenize_dataset"),
    output:
        TABLES,
        [table(path) for path in CSV_TABLES],
        products=products_of("detect_outliers"),
    log:
        f"{RESULTS}/logs/detect_outliers.log",
    conda:
        "../envs/detection.yaml"
    threads: 2
    params:
        **DETECT_OUTLIERS,
    message:
        "Outliers, in one pass over the store"
    script:
        "../scripts/detect_outliers.py"
