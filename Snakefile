"""Outlier Atlas, run from its own folder. The workflow is workflow/Snakefile."""


include: "workflow/Snakefile"


snakemake_internals.set_default_target(workflow, "all")
