"""From a checkpoint to tables of its weights, and from these and activations to a run's tables."""


# Without a setting of a run: two runs of a model measure its weights once.
rule measure_weights:
    input:
        code=code("measure_weights.py"),
        model=MODEL_RECORD,
    output:
        [
            f"{WEIGHTS}/{file}"
            for file in [
                "weight_channels.parquet",
                "weights.parquet",
                "weights.csv",
                "weight_errors.parquet",
                "weight_errors.csv",
            ]
        ],
    log:
        f"resources/logs/measure_weights.{MODEL_SLUG}.log",
    conda:
        "../../envs/model.yaml"
    threads: workflow.cores
    params:
        trust_remote_code=SETTINGS.model.trust_remote_code,
    message:
        f"Weights of {literal(SETTINGS.model.source)}, in one pass over the checkpoint"
    script:
        "../scripts/measure_weights.py"


rule join_weights:
    input:
        code=code("join_weights.py"),
        weights=rules.measure_weights.output if SETTINGS.weights.measure else [],
        maxima=f"{RESULTS}/tables/channel_maxima.parquet",
    output:
        WEIGHT_TABLES,
        [table(path) for path in CSV_WEIGHT_TABLES],
        made=made("join_weights"),
    log:
        f"{RESULTS}/logs/join_weights.log",
    conda:
        "../../envs/detection.yaml"
    params:
        smoothquant=SETTINGS.detection.smoothquant.model_dump(mode="json"),
    message:
        "Weights and activations"
    script:
        "../scripts/join_weights.py"
