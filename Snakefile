"""Outlier Atlas: where the outliers of a language model are.

snakemake --cores all --resources gpu=2                 the demo, config/config.yaml
snakemake --cores all --configfile mine.yaml            a run of your own
snakemake --cores 1 fetch                               only what needs the network
snakemake --cores 1 plan                                what the run takes, before it takes it
snakemake --cores 2 verify                              whether all that is committed is undamaged
"""

import sys
from pathlib import Path

SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))

from outlier_atlas import locks, supervision
from outlier_atlas.settings import document
from outlier_atlas.store.version import refuse_newer
from outlier_atlas.workflow import (
    Sources,
    closing_words,
    short_errors,
    wants_closing_words,
)
from snakemake.logging import logger

supervision.watch()
logger.addFilter(short_errors(SCRIPTS))

# A user's file inherits nothing from the demo: neither its name nor its dataset.
if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


CONFIGFILES = workflow.config_settings.configfiles or ["config/config.yaml"]
SETTINGS = document.settings([Path(file) for file in CONFIGFILES], config)

# Before any job replaces what a newer version of the project has made.
try:
    refuse_newer(Path("results") / SETTINGS.name)
except ValueError as error:
    sys.exit(str(error))

# One Snakemake makes a run; jobs that outlived a killed one are waited for, and its locks dropped.
# `--lint` makes none: it alone has no variables of the environment checked.
if (
    workflow.is_main_process
    and workflow.check_envvars
    and not workflow.output_settings.dryrun
):
    try:
        OWNED = locks.own(
            Path("results") / SETTINGS.name, lambda said: print(said, file=sys.stderr)
        )
        locks.drop_stale_locks(Path("results") / SETTINGS.name)
    except ValueError as error:
        sys.exit(str(error))

# A rule's script and the library modules behind it, as inputs of the rule.
code = Sources(SCRIPTS).of


include: "workflow/rules/common.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/dataset.smk"
include: "workflow/rules/extraction.smk"
include: "workflow/rules/detection.smk"
include: "workflow/rules/weights.smk"
include: "workflow/rules/ablation.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/verification.smk"


wildcard_constraints:
    group=r"\d+",
    shard=r"\d+",


localrules:
    all,
    fetch,
    plan,
    verify,


rule all:
    default_target: True
    input:
        REPORT,
        # By name: what lacks in between is not seen while the report is there, and `verify` and
        # detection take away what is damaged.
        MODEL_RECORD,
        TOKENS,
        TOKENS_RECORD,
        STORE_RECORD,
        manifests(),
        of_ablation(),
        [made(rule) for rule in STAGES],


# Everything that needs the network, and nothing else: for a login node.
rule fetch:
    input:
        MODEL_RECORD,
        fetched_dataset(),


onstart:
    supervision.jobs_begin(workflow.local_exec)


onsuccess:
    if wants_closing_words(workflow.dag_settings.targets):
        print(closing_words(RUN))
