"""The files of a run, by name, and what the rules ask about them."""

import functools
from dataclasses import asdict

from outlier_atlas import builtin, products, tables
from outlier_atlas.criteria import tables as criteria_tables
from outlier_atlas.data import folder
from outlier_atlas.digests import Digests
from outlier_atlas.data import prepare as data_stage
from outlier_atlas.plan import scheduler_resources, choice
from outlier_atlas.checkpoint import source as model_stage
from outlier_atlas.report import figures, page
from outlier_atlas.report import compared_runs
from outlier_atlas.settings.source import gguf_parts, local_path, source_kind
from outlier_atlas.workflow import jobs_at_once, literal

RUN = SETTINGS.name
RESULTS = f"results/{RUN}"

MODEL_SLUG = model_stage.slug(SETTINGS.model)
MODEL_RECORD = f"resources/models/{MODEL_SLUG}.json"

DATASET_SLUG = data_stage.slug(SETTINGS.dataset, MODEL_SLUG)
HUB_DOCUMENTS = f"resources/datasets/{DATASET_SLUG}.jsonl"
HUB_DATASET_RECORD = f"resources/datasets/{DATASET_SLUG}.json"

# Of the model and not of a run: the next run of the same model finds them.
WEIGHTS = f"resources/weights/{MODEL_SLUG}"
MEASURED_WEIGHTS = [
    f"{WEIGHTS}/{file}"
    for file in [
        "weight_channels.parquet",
        "weights.parquet",
        "weights.csv",
        "weight_errors.parquet",
        "weight_errors.csv",
    ]
]
# Held out are the sequences after the run's own.
HELDOUT_DATASET = SETTINGS.dataset.model_copy(
    update={"sequences": SETTINGS.ablation.sequences}
)
HELDOUT_SLUG = f"heldout-{data_stage.slug(HELDOUT_DATASET, DATASET_SLUG)}"
HELDOUT_DOCUMENTS = f"resources/datasets/{HELDOUT_SLUG}.jsonl"
HELDOUT_DATASET_RECORD = f"resources/datasets/{HELDOUT_SLUG}.json"

TOKENS = f"{RESULTS}/tokens.parquet"
TOKENS_RECORD = f"{RESULTS}/manifests/tokens.json"
STORE_RECORD = f"{RESULTS}/manifests/store.json"
HELDOUT_TOKENS = f"{RESULTS}/heldout.parquet"
HELDOUT_RECORD = f"{RESULTS}/manifests/heldout.json"

LAYER_GROUPS = SETTINGS.extraction.layer_groups
AUTO_GROUPS = LAYER_GROUPS == "auto"
CHOICE = f"{RESULTS}/{choice.CHOICE}"
SEQUENCE_SHARDS = SETTINGS.extraction.sequence_shards

TABLES = [f"{RESULTS}/tables/{table.name}.parquet" for table in criteria_tables.TABLES]
WEIGHT_TABLES = [
    f"{RESULTS}/tables/{table.name}.parquet" for table in tables.WEIGHT_TABLES
]
CSV_WEIGHT_TABLES = [
    f"{RESULTS}/tables/{table.name}.csv" for table in tables.WEIGHT_TABLES
]
CSV_TABLES = [f"{RESULTS}/tables/{table.name}.csv" for table in criteria_tables.TABLES]
ABLATIONS = f"{RESULTS}/tables/{tables.ABLATIONS.name}.parquet"
ABLATIONS_CSV = f"{RESULTS}/tables/{tables.ABLATIONS.name}.csv"
FIGURES = [
    f"{RESULTS}/figures/{name}"
    for name in figures.names(SETTINGS.extraction.sites, SETTINGS.detection)
]
REPORT = f"{RESULTS}/report.html"
FINDINGS = f"{RESULTS}/findings.json"


# Nothing asks for GPUs that computes on the CPU: nor is it held up by those who do.
ON_GPUS = SETTINGS.execution.device != "cpu"


# Each rule of the run depends on these. The record of another model may be older than what was
# made before.
MODEL_SETTINGS = SETTINGS.model.model_dump(mode="json", exclude={"dtype"})


def inputs(name, script, settings, files=lambda: {}, templates=(), with_products=True):
    """The record of what a rule of the run is made from, in addition to files of other rules."""
    path = Path(f"{RESULTS}/manifests/inputs/{name}.json")
    wanted = content(script, settings | {"model": MODEL_SETTINGS}, files, templates)
    with one_line():
        return INPUTS.record(path, wanted, with_products)


def shared_inputs(name, outputs, script, settings, files=lambda: {}, without=None):
    """The same of a rule whose outputs several runs use; another run may be making them."""
    path = Path(f"resources/inputs/{name}.json")
    wanted = content(script, settings, files, without=without)
    with one_line():
        if PURPOSE is Purpose.MAKE:
            there = [Path(output) for output in outputs]
            TURNS.take(name, there[0], lambda: INPUTS.is_current(path, wanted, there))
        return INPUTS.record(path, wanted)


def content(script, settings, files=lambda: {}, templates=(), without=None):
    """What the record of a rule's inputs holds, asked for where it is needed."""

    def wanted():
        code = {"code": SOURCES.digest(script, templates, without)} if script else {}
        return {"settings": settings, "files": files(), **code}

    return wanted


def products_of(name):
    """The record of what a rule of the run has made; a job checks what it reads by it."""
    return f"{RESULTS}/manifests/{products.FOLDER}/{name}.json"


def shared_products(name):
    """The same of a rule whose outputs several runs use."""
    return f"resources/{products.FOLDER}/{name}.json"


def model_files():
    """The files on this machine that a local model consists of, by their names.

    Those that exist: what is wrong with the others is the job's to say.
    """
    source = SETTINGS.model.source
    kind = source_kind(source)
    if kind in ("builtin", "hub"):
        return {}
    path = local_path(source)
    if kind == "gguf":
        return {part.name: part for part in gguf_parts(path)}
    try:
        return {file.name: file for file in model_stage.files(path)}
    except OSError:
        return {}


MODEL_DIGESTS = model_stage.digests_of(
    Path(MODEL_RECORD), Path("resources"), PURPOSE is Purpose.MAKE
)


def model_digests():
    """The contents of a local model: a replaced file is noticed, a touched one is not."""
    return MODEL_DIGESTS.of(model_files())


def planned_model():
    """The record of the model, made where need be; one of the hub is planned for without fetching
    its weights."""
    unfetched = source_kind(SETTINGS.model.source) == "hub"
    return [] if unfetched and not Path(MODEL_RECORD).exists() else MODEL_RECORD


def builtin_file(source):
    """The file of a built-in model or dataset."""
    return (
        [f"resources/{builtin.path(source)}"]
        if source_kind(source) == "builtin"
        else []
    )


def builtin_products(source):
    """The record of that file."""
    if source_kind(source) != "builtin":
        return []
    return [shared_products(package_rule(source.removeprefix("builtin:")))]


def package_rule(package):
    """The rule that fetches a built-in, with its wildcards filled in."""
    return f"fetch_package.{package}.{builtin.PACKAGES[package].file}"


@functools.cache
def package_inputs(package):
    """The record of a built-in: which file it is. Its checksum is known, whatever the code is."""
    name, known = package_rule(package), builtin.PACKAGES[package]
    outputs = [f"resources/builtin/{package}/{known.file}", shared_products(name)]
    return shared_inputs(name, outputs, None, asdict(known))


def packages_used():
    """The built-ins of the run."""
    sources = [SETTINGS.model.source, SETTINGS.dataset.source]
    return [s.removeprefix("builtin:") for s in sources if source_kind(s) == "builtin"]


def dataset_files():
    """What other rules bring of the dataset before its text is tokenized."""
    source = SETTINGS.dataset.source
    hub = source_kind(source) == "hub"
    return [HUB_DOCUMENTS, HUB_DATASET_RECORD] if hub else builtin_file(source)


@functools.cache
def local_dataset_files():
    """The files of a local dataset: a folder may have many, and is looked through once."""
    return folder.local_files(SETTINGS.dataset)


DATASET_DIGESTS = data_stage.digests_of(
    SETTINGS.dataset, Path("resources"), PURPOSE is Purpose.MAKE
)


def dataset_digests():
    """The contents of a local dataset."""
    return DATASET_DIGESTS.of(local_dataset_files())


def dataset_products(slug):
    """The records of what `dataset_files` names, or `heldout_files`."""
    source = SETTINGS.dataset.source
    hub = source_kind(source) == "hub"
    return (
        [shared_products(f"fetch_dataset.{slug}")] if hub else builtin_products(source)
    )


def fetch_dataset_inputs(slug, documents, record, settings):
    """The record of what is fetched of a hub dataset; other datasets are fetched by no rule."""
    if source_kind(SETTINGS.dataset.source) != "hub":
        return []
    name = f"fetch_dataset.{slug}"
    outputs = [documents, record, shared_products(name)]
    return shared_inputs(name, outputs, "fetch_dataset.py", settings)


def heldout_files():
    """The same for the held-out sequences: of a hub dataset, documents of their own."""
    if source_kind(SETTINGS.dataset.source) != "hub":
        return dataset_files()
    return [HELDOUT_DOCUMENTS, HELDOUT_DATASET_RECORD]


def fetched_dataset():
    """What of the dataset `fetch` has to bring."""
    if source_kind(SETTINGS.dataset.source) == "local":
        return []
    return [*dataset_files(), *(heldout_files() if SETTINGS.ablation.sequences else [])]


def compared():
    """The contents of what the report shows of another run."""
    if not SETTINGS.report.compare:
        return {}
    other = Path("results") / SETTINGS.report.compare
    return Digests().of({file: other / file for file in compared_runs.FILES})


def refuse_incomparable(wildcards):
    """No file: refuses a run that is not there; asked only where the report is wanted."""
    if SETTINGS.report.compare:
        # Snakemake would list all files of the other run, and not say what to do.
        with one_line():
            compared_runs.refuse_missing(Path("results") / SETTINGS.report.compare)
    return []


def ablations():
    """The table of the ablation stage, where it is configured."""
    return [ABLATIONS] if SETTINGS.ablation.sequences else []


def everything():
    """What a run leaves at last: the records of all that its rules have made.

    A file that such a record lists, and that is missing, is seen without being named here
    (`Inputs.record`).
    """
    names = ["tokenize_dataset", "create_store", "detect_outliers", "join_weights"]
    names += ["draw_figures", "render_report"]
    if SETTINGS.ablation.sequences:
        names += ["tokenize_heldout", "ablate"]
    shared = [f"fetch_model.{MODEL_SLUG}"]
    if SETTINGS.weights.measure:
        shared += [f"measure_weights.{MODEL_SLUG}"]
    if AUTO_GROUPS:
        names += ["choose_layer_groups"]
    return [*map(shared_products, shared), *map(products_of, names)]


def manifest(group, shard, groups):
    """The record that an extraction job leaves when all of its part is committed."""
    part = f"group-{group}-of-{groups}.shard-{shard}-of-{SEQUENCE_SHARDS}"
    return f"{RESULTS}/manifests/extraction/{part}.json"


def previous_manifest(wildcards):
    """The layer group before: it leaves the residual stream at the boundary."""
    group, groups = int(wildcards.group), wildcards.get("groups", LAYER_GROUPS)
    return [manifest(group - 1, wildcards.shard, groups)] if group else []


def manifests(groups):
    """The manifests of all extraction jobs."""
    return [
        manifest(g, s, groups) for g in range(groups) for s in range(SEQUENCE_SHARDS)
    ]


def scheduled(wildcards):
    """Whether a scheduler starts the jobs, as 0 or 1."""
    return int(bool(workflow.remote_exec or not workflow.local_exec))


# Functions, because Snakemake knows no number of cores where it only shows something.
def all_cores(wildcards):
    """The cores that Snakemake was given."""
    return workflow.cores


def ablation_threads(wildcards):
    """The threads of the ablation job."""
    return SETTINGS.execution.threads or workflow.cores


def extraction_threads(wildcards):
    """The threads of an extraction job: all that work at a time share the cores."""
    return SETTINGS.execution.threads or max(1, workflow.cores // SEQUENCE_SHARDS)


def extractions_at_once(wildcards):
    """Extraction jobs that are at work on one machine at a time; a scheduler's are each alone."""
    if scheduled(wildcards):
        return 1
    gpus = workflow.global_resources.get("gpu") if ON_GPUS else None
    return jobs_at_once(
        SEQUENCE_SHARDS,
        workflow.cores,
        extraction_threads(wildcards),
        None if gpus is None else gpus.value,
        SETTINGS.execution.gpus_per_job,
    )


def extraction_gpus(wildcards, input):
    """GPUs of an extraction job."""
    return scheduler_resources.gpus(Path(input.store), int(wildcards.group), SETTINGS)


def extraction_memory(wildcards, input, attempt):
    """Megabytes of the host that an extraction job asks a scheduler for."""
    return scheduler_resources.memory_mb(
        Path(input.store), int(wildcards.group), SETTINGS, attempt
    )


def ablation_memory(wildcards, input, attempt):
    """The same of the ablation job, which has the layer groups one after the other."""
    return scheduler_resources.most_memory_mb(Path(input.store), SETTINGS, attempt)


def table(path):
    """A table as Snakemake's own report shows it."""
    name = Path(path).stem
    caption = f"../report/tables/{name}.rst"
    return report(path, caption=caption, category="Tables", labels={"table": name})


def figure(path):
    """A figure as Snakemake's own report shows it; of its four files the light SVG."""
    site, kind = Path(path).stem.split("-", 1)
    if not path.endswith(f"-{kind}.svg") or kind not in figures.KINDS:
        return path
    labels = {"site": site, "figure": kind}
    return report(
        path, caption=f"../report/{kind}.rst", category="Figures", labels=labels
    )
