"""Damage, on demand: everything that a run has committed, held against its records."""


# No inputs: what is damaged or stale is to be named here, not made anew.
rule verify:
    log:
        f"{RESULTS}/logs/verify.log",
    conda:
        "../../envs/model.yaml"
    threads: 2
    params:
        records=dict(
            run=RESULTS,
            model=MODEL_RECORD,
            tokens=TOKENS,
            heldout=HELDOUT_TOKENS,
            store=STORE_RECORD,
        ),
        manifests=manifests(),
        products=[file for file in everything() if f"/{products.FOLDER}/" in file]
        + [
            file
            for source in {SETTINGS.model.source, SETTINGS.dataset.source}
            for file in builtin_products(source)
        ],
    message:
        "What is committed, against its records"
    script:
        "../scripts/verify.py"
