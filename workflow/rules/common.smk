"""The files of a run, by name, and what the rules ask about them."""

from outlier_atlas import builtin, staleness, tables
from outlier_atlas.data import folder
from outlier_atlas.data import prepare as data_stage
from outlier_atlas.extraction.planning import asked
from outlier_atlas.model import source as model_stage
from outlier_atlas.report import figures, page, sides
from outlier_atlas.settings.source import gguf_parts, local_path, source_kind
from outlier_atlas.workflow import (
    identities,
    jobs_at_once,
    literal,
    nameable,
    readable,
)

RUN = SETTINGS.name
RESULTS = f"results/{RUN}"

MODEL_SLUG = model_stage.slug(SETTINGS.model)
MODEL_RECORD = f"resources/models/{MODEL_SLUG}.json"

DATASET_SLUG = data_stage.slug(SETTINGS.dataset, MODEL_SLUG)
HUB_DOCUMENTS = f"resources/datasets/{DATASET_SLUG}.jsonl"
HUB_DATASET_RECORD = f"resources/datasets/{DATASET_SLUG}.json"

# Of the model and not of a run: the next run of the same model finds them.
WEIGHTS = f"resources/weights/{MODEL_SLUG}"
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
SEQUENCE_SHARDS = SETTINGS.extraction.sequence_shards
EXTRACTION_THREADS = SETTINGS.execution.threads or max(
    1, workflow.cores // SEQUENCE_SHARDS
)

TABLES = [f"{RESULTS}/tables/{table.name}.parquet" for table in tables.TABLES]
WEIGHT_TABLES = [
    f"{RESULTS}/tables/{table.name}.parquet" for table in tables.WEIGHT_TABLES
]
CSV_WEIGHT_TABLES = [
    f"{RESULTS}/tables/{table.name}.csv" for table in tables.WEIGHT_TABLES
]
CSV_TABLES = [f"{RESULTS}/tables/{table.name}.csv" for table in tables.TABLES]
ABLATIONS = f"{RESULTS}/tables/{tables.ABLATIONS.name}.parquet"
ABLATIONS_CSV = f"{RESULTS}/tables/{tables.ABLATIONS.name}.csv"
FIGURES = [
    f"{RESULTS}/figures/{name}"
    for name in figures.names(
        SETTINGS.extraction.sites, SETTINGS.detection.quantization_error.sites
    )
]
PAGE_PARTS = [readable(part) for part in page.PARTS]
REPORT = f"{RESULTS}/report.html"
FINDINGS = f"{RESULTS}/findings.json"


# Nothing asks for GPUs that computes on the CPU: nor is it held up by those who do.
ON_GPUS = SETTINGS.execution.device != "cpu"


def model_files():
    """The files on this machine that a model's record is made from: a replaced one is noticed.

    Of local files those that exist: what is wrong with the others is the job's to say.
    """
    source = SETTINGS.model.source
    kind = source_kind(source)
    if kind == "builtin":
        return [f"resources/{builtin.path(source)}"]
    if kind == "hub":
        return []
    path = local_path(source)
    if kind == "gguf":
        return [str(part) for part in gguf_parts(path) if part.is_file()]
    if path.is_dir():
        try:
            return [str(file) for file in model_stage.files(path)]
        except OSError:
            return []
    return [str(path)] if path.is_file() else []


def planned_model():
    """The record of the model, made where need be; one of the hub is planned for without fetching
    its weights."""
    unfetched = source_kind(SETTINGS.model.source) == "hub"
    return [] if unfetched and not Path(MODEL_RECORD).exists() else MODEL_RECORD


def dataset_files():
    """What of the dataset must be on this machine before its text is tokenized.

    Of local files those that exist: what is wrong with the others is the job's to say.
    """
    source = SETTINGS.dataset.source
    kind = source_kind(source)
    if kind == "builtin":
        return [f"resources/{builtin.path(source)}"]
    if kind == "hub":
        return [HUB_DOCUMENTS, HUB_DATASET_RECORD]
    return LOCAL_DATASET_FILES


def local_dataset_files():
    """The files of a local dataset; none where something is wrong with them."""
    if source_kind(SETTINGS.dataset.source) != "local":
        return []
    try:
        return [str(file) for file in folder.find(SETTINGS.dataset).files]
    except (ValueError, OSError):
        return []


# A folder may have many files: it is looked through once.
LOCAL_DATASET_FILES = local_dataset_files()


def identities_of(source, files):
    """The identities of a user's own files; what a rule brings is not there yet when it is asked."""
    return [] if source_kind(source) in ("builtin", "hub") else identities(files)


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


def compared(wildcards):
    """What the report shows of another run; asked only where the report is wanted."""
    if not SETTINGS.report.compare:
        return []
    folder = Path("results") / SETTINGS.report.compare
    try:
        sides.refuse_missing(folder)
    except ValueError as error:
        # Snakemake would list all files of the other run, and not say what to do.
        sys.exit(str(error))
    return [str(folder / file) for file in sides.FILES]


def ablations():
    """The table of the ablation stage, where it is configured."""
    return [ABLATIONS] if SETTINGS.ablation.sequences else []


# Rules that every run has, and that settings of the run run again.
STAGES = [
    "tokenize_dataset",
    "create_store",
    "detect_outliers",
    "join_weights",
    "draw_figures",
    "render_report",
]


def made(rule):
    """A file that is there once a rule has run with the settings of now.

    Snakemake's own memory of them is in .snakemake, which may have been deleted, or be of a
    checkout that is not the only one to make this run.
    """
    return f"{RESULTS}/manifests/made/{rule}.{staleness.digest(rule, SETTINGS)}"


def of_ablation():
    """What the ablation stage leaves beside its table, where it is configured."""
    if not SETTINGS.ablation.sequences:
        return []
    return [HELDOUT_TOKENS, HELDOUT_RECORD, made("tokenize_heldout"), made("ablate")]


def manifest(group, shard):
    """The record that an extraction job leaves when all of its part is committed."""
    part = f"group-{group}-of-{LAYER_GROUPS}.shard-{shard}-of-{SEQUENCE_SHARDS}"
    return f"{RESULTS}/manifests/extraction/{part}.json"


def previous_manifest(wildcards):
    """The layer group before: it leaves the residual stream at the boundary."""
    group = int(wildcards.group)
    return [manifest(group - 1, wildcards.shard)] if group else []


def manifests():
    """The manifests of all extraction jobs."""
    return [manifest(g, s) for g in range(LAYER_GROUPS) for s in range(SEQUENCE_SHARDS)]


def extractions_at_once(wildcards):
    """Extraction jobs that are at work on one machine at a time; a scheduler's are each alone."""
    if workflow.remote_exec or not workflow.local_exec:
        return 1
    gpus = workflow.global_resources.get("gpu") if ON_GPUS else None
    return jobs_at_once(
        SEQUENCE_SHARDS,
        workflow.cores,
        EXTRACTION_THREADS,
        None if gpus is None else gpus.value,
        SETTINGS.execution.gpus_per_job,
    )


def extraction_gpus(wildcards, input):
    """GPUs of an extraction job."""
    return asked.gpus(Path(input.store), int(wildcards.group), SETTINGS)


def extraction_memory(wildcards, input, attempt):
    """Megabytes of the host that an extraction job asks a scheduler for."""
    return asked.memory_mb(Path(input.store), int(wildcards.group), SETTINGS, attempt)


def ablation_memory(wildcards, input, attempt):
    """The same of the ablation job, which has the layer groups one after the other."""
    store = Path(input.store)
    groups = range(LAYER_GROUPS)
    return max(asked.memory_mb(store, group, SETTINGS, attempt) for group in groups)


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
