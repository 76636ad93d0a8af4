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
            # Of `layer_groups: auto` none where its record is missing or damaged.
            manifests=manifests(
                (choice.read(Path(CHOICE)) or 0) if AUTO_GROUPS else LAYER_GROUPS
            ),
            datasets=[HUB_DATASET_RECORD, HELDOUT_DATASET_RECORD],
            outputs=[
                *(file for file in everything() if f"/{products.FOLDER}/" in file),
                # Left by `layer_groups: auto`, where a number is configured now.
                *([] if AUTO_GROUPS else [products_of("choose_layer_groups")]),
            ],
        ),
    message:
        "What is committed, against its records"
    script:
        "../scripts/verify.py"
