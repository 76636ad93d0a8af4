"""Outlier Atlas, run from its own folder. The workflow is workflow/Snakefile."""


include: "workflow/Snakefile"


# An include leaves the default target as it was.
workflow.default_target = workflow.default_target or workflow.modifier.modify_rulename(
    "all"
)
