"""What the terminal shows of a run: why stages run, their progress, their findings and errors.

`StageHandler` is written against Snakemake's interface of logger plugins. Snakemake finds a plugin
only where it is installed as a package of its own and named by an option or a profile, and fails
where a profile names one that is missing. So the Snakefile puts this handler in the place of
Snakemake's own: a clone needs no installation, and a module, a profile of the user's and a cluster
show the same. Plugins that print (`snakemake-logger-plugin-rich`) and options that ask for more of
Snakemake's own output have priority.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from outlier_atlas.compat.snakemake_internals import DEFAULT_HANDLER, output_settings
from outlier_atlas.console import QUIET, STAGES
from outlier_atlas.inputs import Inputs, Purpose
from outlier_atlas.terminal.names import NAME, REASON

MORE = ("verbose", "printshellcmds", "debug_dag", "show_failed_logs")
"""Settings with which Snakemake's own output is shown."""


def say(rule: str, reason: str) -> None:
    """Log why a rule runs: `StageHandler` shows it with the plan, other handlers show it now."""
    logging.getLogger("snakemake.logging").info(f"{rule}: {reason}", extra={REASON: True})


def show_stages(workflow: Any, inputs: Inputs) -> None:
    """Show stages in place of Snakemake's own output, where jobs are planned.

    Args:
        workflow: Snakemake's own object, as the Snakefile knows it.
        inputs: the records of this process, which say why rules run.
    """
    logger = logging.getLogger("snakemake.logging")
    settings = output_settings(workflow)
    if inputs.purpose is not Purpose.MAKE and not settings.dryrun:
        return
    shown = next((h for h in logger.handlers if h.name == NAME), None)
    if shown is not None:  # by another module of the same workflow
        shown.also_known(inputs.reason)  # type: ignore[attr-defined]
        return
    default = next((h for h in logger.handlers if h.name == DEFAULT_HANDLER), None)
    if default is None or any(getattr(settings, name) for name in MORE):
        os.environ.pop(STAGES, None)
        return
    from outlier_atlas.terminal.handler import StageHandler

    handler = StageHandler(settings, workflow, inputs.reason, default)
    logger.removeHandler(default)
    logger.addHandler(handler)
    if not settings.dryrun:
        quiet = {choice.name for choice in settings.quiet or ()} & {"ALL", "RULES"}
        os.environ[STAGES] = QUIET if quiet else "1"
