"""From a checkpoint to tables of its weights, and from these and activations to a run's tables."""

# Without a setting of a run: two runs of a model measure its weights once.
MEASURE_WEIGHTS = dict(trust_remote_code=SETTINGS.model.trust_remote_code)


rule measure_weights:
    input:
        inputs=(
            shared_inputs(
                f"measure_weights.{MODEL_SLUG}",
                [*MEASURED_WEIGHTS, shared_products(f"measure_weights.{MODEL_SLUG}")],
                "measure_weights.py",
                MEASURE_WEIGHTS,
            )
            if SETTINGS.weights.measure
            else []
        ),
        model=MODEL_RECORD,
    output:
        MEASURED_WEIGHTS,
        products=shared_products(f"measure_weights.{MODEL_SLUG}"),
    log:
        f"resources/logs/measure_weights.{MODEL_SLUG}.log",
    conda:
        "../envs/model.yaml"
    threads: all_cores
    params:
        **MEASURE_WEIGHTS,
    message:
        f"Weights of {literal(SETTINGS.model.source)}, in one pass over the checkpoint"
    script:
        "../scripts/measure_weights.py"


JOIN_WEIGHTS = dict(
    smoothquant=SETTINGS.detection.smoothquant.model_dump(mode="json"),
)


rule join_weights:
    input:
        inputs=inputs(
            "join_weights",
            "join_weights.py",
            JOIN_WEIGHTS | {"measured": SETTINGS.weights.measure},
        ),
        weights=MEASURED_WEIGHTS if SETTINGS.weights.measure else [],
        maxima=f"{RESULTS}/tables/channel_maxima.parquet",
        products=[
            products_of("detect_outliers"),
            *(
                [shared_products(f"measure_weights.{MODEL_SLUG}")]
                if SETTINGS.weights.measure
                else []
            ),
        ],
    output:
        WEIGHT_TABLES,
        [table(path) for path in CSV_WEIGHT_TABLES],
        products=products_of("join_weights"),
    log:
        f"{RESULTS}/logs/join_weights.log",
    conda:
        "../envs/detection.yaml"
    params:
        **JOIN_WEIGHTS,
    message:
        "Weights and activations"
    script:
        "../scripts/join_weights.py"
