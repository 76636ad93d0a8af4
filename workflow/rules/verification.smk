"""Verification: compares everything that the runs have left with its records."""


def records(run):
    """Where the records of a run lie."""
    auto = run.layer_groups == "auto"
    groups = choice.read(Path(run.path(choice.CHOICE))) if auto else run.layer_groups
    detected, ablated = run.products("detect_outliers", "ablate")
    return dict(
        run=run.folder,
        model=run.model.record,
        tokens=run.path("tokens.parquet"),
        tokens_inputs=f"resources/{INPUTS_FOLDER}/tokenize_dataset.{run.dataset.name}.json",
        heldout=run.heldout.tokens if run.ablates else None,
        store=run.path("manifests/store.json"),
        detected=detected,
        ablated=ablated,
        # Of `layer_groups: auto` none where its record is missing or damaged.
        manifests=manifests(run, groups or 0),
        datasets=[
            file
            for dataset in run.datasets
            for file in [dataset.documents_record, dataset.tokens_record]
        ],
        outputs=[
            *everything(run),
            *(
                shared_products(f"{name}.{dataset.name}")
                for dataset in run.datasets
                for name in ["fetch_dataset", "tokenize_dataset"]
            ),
            # Left by `layer_groups: auto`, where a number is configured now.
            *([] if auto else run.products("choose_layer_groups")),
        ],
    )


# No inputs: what is damaged or stale is named here, and made again by the ordinary command.
rule verify:
    log:
        f"results/{NAME}/logs/verify.log",
    localrule: True
    conda:
        "../envs/model.yaml"
    threads: 2
    params:
        runs=lambda wildcards: [records(run) for run in RUNS.values()],
    message:
        "What is committed, against its records"
    script:
        "../scripts/verify.py"
