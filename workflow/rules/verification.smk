"""Verification: compares everything that a run has left with its records."""


# No inputs: what is damaged or stale is named here, and made again by the ordinary command.
rule verify:
    log:
        f"{RESULTS}/logs/verify.log",
    localrule: True
    conda:
        "../envs/model.yaml"
    threads: 2
    params:
        records=dict(
            run=RESULTS,
            model=MODEL_RECORD,
            tokens=TOKENS,
            heldout=HELDOUT_TOKENS,
            store=STORE_RECORD,
            detected=products_of("detect_outliers"),
            ablated=products_of("ablate"),
        ),
        lists=dict(
            manifests=manifests(),
            datasets=[HUB_DATASET_RECORD, HELDOUT_DATASET_RECORD],
            outputs=[file for file in everything() if f"/{products.FOLDER}/" in file],
        ),
    message:
        "What is committed, against its records"
    script:
        "../scripts/verify.py"
