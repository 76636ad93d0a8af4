"""Detection of outliers: one pass over the store computes the tables of all criteria."""


rule detect_outliers:
    input:
        inputs=of_run(detect_outliers_inputs),
        model=of_run(lambda run: run.model.record),
        store=STORE_RECORD,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        manifests=with_layer_groups(manifests),
        products=products_of("create_store"),
    output:
        TABLES,
        [table(path) for path in CSV_TABLES],
        products=products_of("detect_outliers"),
    log:
        f"{RESULTS}/logs/detect_outliers.log",
    wildcard_constraints:
        **CONSTRAINTS,
    conda:
        "../envs/detection.yaml"
    threads: 2
    params:
        **each(of_run, detect_outliers_settings, RUNS),
    message:
        "Outliers, in one pass over the store"
    script:
        "../scripts/detect_outliers.py"
