"""Tables of a model's weights, and tables of a run that combine weights and activations."""


rule measure_weights:
    input:
        inputs=of_model(measure_weights_inputs),
        model=MODEL_RECORD,
    output:
        MEASURED_WEIGHTS,
        products=shared_products("measure_weights.{model}"),
    log:
        "resources/logs/measure_weights.{model}.log",
    wildcard_constraints:
        **CONSTRAINTS,
    conda:
        "../envs/model.yaml"
    threads: all_cores
    params:
        **each(of_model, measure_weights_settings, MODELS),
        source=of_model(lambda model: model.title),
    message:
        "Weights of {params.source}, in one pass over the checkpoint"
    script:
        "../scripts/measure_weights.py"


rule join_weights:
    input:
        inputs=of_run(join_weights_inputs),
        weights=of_run(
            lambda run: (
                measured_weights(run.model) if run.settings.weights.measure else []
            )
        ),
        maxima=f"{RESULTS}/tables/channel_maxima.parquet",
        products=of_run(
            lambda run: [
                *run.products("detect_outliers"),
                *(
                    [shared_products(f"measure_weights.{run.model.name}")]
                    if run.settings.weights.measure
                    else []
                ),
            ]
        ),
    output:
        WEIGHT_TABLES,
        [table(path) for path in CSV_WEIGHT_TABLES],
        products=products_of("join_weights"),
    log:
        f"{RESULTS}/logs/join_weights.log",
    wildcard_constraints:
        **CONSTRAINTS,
    conda:
        "../envs/detection.yaml"
    params:
        **each(of_run, join_weights_settings, RUNS),
    message:
        "Weights and activations"
    script:
        "../scripts/join_weights.py"
