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

from outlier_atlas import locks, supervision, terminal
from outlier_atlas.files import sweep
from outlier_atlas.inputs import Inputs, Purpose
from outlier_atlas.settings import document
from outlier_atlas.sources import Sources
from outlier_atlas.store.version import refuse_newer
from outlier_atlas.turns import Turns
from outlier_atlas.workflow import (
    closing_words,
    one_line,
    purpose,
    wants_closing_words,
)
from snakemake.logging import logger

supervision.watch()

# A user's file inherits nothing from the demo: neither its name nor its dataset.
if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


CONFIGFILES = workflow.config_settings.configfiles or ["config/config.yaml"]
SETTINGS = document.settings([Path(file) for file in CONFIGFILES], config)

# Before any job replaces what a newer version of the project has made.
with one_line():
    refuse_newer(Path("results") / SETTINGS.name)

PURPOSE = purpose(workflow)

# One Snakemake makes a run; jobs that outlived a killed one are waited for.
if PURPOSE is Purpose.MAKE:
    with one_line():
        OWNED = locks.own(Path("results") / SETTINGS.name, logger.info)
        # What killed processes left: no other process writes in the run's folder now.
        sweep(Path("results") / SETTINGS.name, older_than=0)
        sweep(Path("resources"), older_than=24 * 3600)

INPUTS = Inputs(PURPOSE, terminal.say)
terminal.show_stages(workflow, INPUTS)
SOURCES = Sources(SCRIPTS)
# What other runs use, too: made by one of them at a time.
TURNS = Turns(Path("resources") / locks.LOCKS, SETTINGS.name, logger.info)
logger.addFilter(TURNS.ended)


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
        everything(),


# Everything that needs the network, and nothing else: for a login node.
rule fetch:
    input:
        MODEL_RECORD,
        fetched_dataset(),


onstart:
    supervision.jobs_begin(workflow.local_exec)
    TURNS.plan(
        (workflow.dag.jobid(j), j.output) for j in workflow.dag.needrun_jobs()
    )


onsuccess:
    if wants_closing_words(workflow.dag_settings.targets):
        print(closing_words(RUN))
