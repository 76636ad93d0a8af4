"""Terminal output of a run: reasons of stages, progress, findings and errors.

`StageHandler` implements Snakemake's interface of logger plugins. Snakemake loads a plugin only if
it is installed as a separate package and named by an option or a profile. It fails if a profile
names a missing plugin. Therefore the Snakefile replaces Snakemake's handler by this one. A clone
needs no installation, and the output is the same in a module, with a user's profile and on a
cluster. Plugins that print (`snakemake-logger-plugin-rich`) and options for more of Snakemake's
output have priority.
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
"""Output settings that keep Snakemake's own output."""


def say(rule: str, reason: str) -> None:
    """Log the reason why a rule runs.

    `StageHandler` shows the reason with the plan; other handlers show it immediately.
    """
    logging.getLogger("snakemake.logging").info(f"{rule}: {reason}", extra={REASON: True})


def show_stages(workflow: Any, inputs: Inputs) -> None:
    """Show stages instead of Snakemake's own output, if this process plans jobs.

    Args:
        workflow: the workflow object of Snakemake.
        inputs: the input records of this process, which know the reasons why rules run.
    """
    logger = logging.getLogger("snakemake.logging")
    settings = output_settings(workflow)
    if inputs.purpose is not Purpose.MAKE and not settings.dryrun:
        return
    shown = next((h for h in logger.handlers if h.name == NAME), None)
    if shown is not None:  # added by another module of the same workflow
        shown.add_reasons(inputs.reason)  # type: ignore[attr-defined]
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
