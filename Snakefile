"""Outlier Atlas: where the outliers of a language model are.

snakemake --cores all --resources gpu=2                 the demo, config/config.yaml
snakemake --cores all --configfile mine.yaml            a run of your own
snakemake --cores 1 fetch                               only what needs the network
snakemake --cores 1 plan                                what the run takes, before it takes it
"""

import sys
from pathlib import Path

SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))

from outlier_atlas.settings import configuration
from outlier_atlas.workflow import Sources, closing_words, readable, wants_closing_words

# A user's file inherits nothing from the demo: neither its name nor its dataset.
if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


# Of several files the last one names the run: it is the one that varies.
CONFIGFILE = Path(["config/config.yaml", *workflow.config_settings.configfiles][-1])
try:
    SETTINGS = configuration.load(config, default_name=CONFIGFILE.stem)
except ValueError as error:
    sys.exit(
        "\n".join(
            f"{readable(CONFIGFILE)}: {fault}" for fault in str(error).splitlines()
        )
    )

# A rule's script and the library modules behind it, as inputs of the rule.
code = Sources(SCRIPTS).of


include: "workflow/rules/common.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/dataset.smk"
include: "workflow/rules/extraction.smk"
include: "workflow/rules/detection.smk"
include: "workflow/rules/weights.smk"
include: "workflow/rules/report.smk"


wildcard_constraints:
    group=r"\d+",
    shard=r"\d+",


localrules:
    all,
    fetch,
    plan,


rule all:
    default_target: True
    input:
        REPORT,


# Everything that needs the network, and nothing else: for a login node.
rule fetch:
    input:
        MODEL_RECORD,
        fetched_dataset(),


onsuccess:
    if wants_closing_words(workflow.dag_settings.targets):
        print(closing_words(RUN))
