"""How Snakemake uses the workflow: by itself or as a module of another one, with which profile.

As a module the workflow gets its configuration from the outer one, and the profile next to it is
not found. What it needs of the profile is set here, or asked for in a line. Attributes of
Snakemake's objects that its documentation does not promise are used here and in `workflow.options`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outlier_atlas.inputs import Purpose
from outlier_atlas.settings import document
from outlier_atlas.settings.configuration import Settings
from outlier_atlas.workflow import options

DEFAULT_CONFIGURATION = "config/config.yaml"


def settings(workflow: Any, config: Mapping[str, Any]) -> Settings:
    """Check the configuration of the run.

    Args:
        workflow: Snakemake's own object, as the Snakefile knows it.
        config: the Snakefile's `config`.

    Raises:
        SystemExit: the configuration is wrong; the message has a line for each fault.
    """
    modifier, files = workflow.modifier, workflow.config_settings.configfiles
    if not _configured_by_another(modifier):
        # Snakemake gives a module without `config:` nothing of what the command line says.
        config = config or workflow.config_settings.overwrite_config
        return document.settings([Path(f) for f in files or [DEFAULT_CONFIGURATION]], config)
    name, outer = modifier.namespace, modifier.parent_modifier
    whole = outer.is_main_snakefile() and outer.globals["config"] is config
    if whole and workflow.configfiles:
        # So the name of the file stands for the configuration.
        name = Path((files or workflow.configfiles)[-1]).stem
    return document.given(config, name, f"module {modifier.namespace}")


def refuse_prefix(workflow: Any) -> None:
    """Refuse a module whose files are to lie elsewhere.

    Raises:
        ValueError: the module has `prefix` or `replace_prefix`.
    """
    for path in ("results/run", "resources/models"):
        moved = workflow.modifier.path_modifier.replace_prefix(path)
        if moved != path:
            raise ValueError(
                f"module {workflow.modifier.namespace}: `prefix` or `replace_prefix` would move "
                f"{path} to {moved}, where this workflow does not look; leave it out, and name the "
                f"run with `run.name` in its configuration"
            )


def ignore_times(scripts: Path) -> None:
    """Let Snakemake ignore the times of the scripts in a folder.

    Its trigger `code`, which is on by default, compares them with the times of a rule's outputs: a
    fresh checkout would run everything again. The records of the rules' inputs know what the code
    says (`inputs.py`).
    """
    from snakemake import jobs

    time_of = jobs.get_script_mtime

    def unchanged(path: str) -> float:
        return 0.0 if Path(path).resolve().is_relative_to(scripts.resolve()) else time_of(path)

    jobs.get_script_mtime = unchanged


def complete(workflow: Any, purpose: Purpose, on_gpus: bool, scripts: Path) -> list[str]:
    """Set what the profile would, where the command line has set nothing.

    Args:
        on_gpus: whether a run may compute on a GPU.

    Returns:
        A line for each thing that the user may want to set, once in a process.
    """
    lines = [line for line in _completed(workflow, purpose, on_gpus, scripts) if line not in _said]
    _said.update(lines)
    return lines


_said: set[str] = set()


def _completed(workflow: Any, purpose: Purpose, on_gpus: bool, scripts: Path) -> Iterator[str]:
    if purpose is Purpose.JOB:
        return
    if on_gpus and "gpu" not in workflow.global_resources:
        workflow.global_resources["gpu"] = 1
        if purpose is Purpose.MAKE and not workflow.modifier.is_main_snakefile():
            yield "no limit on gpu was given: one GPU job at a time; `--resources gpu=2` allows two"
    given = options()
    if purpose is Purpose.MAKE and given and not (given.nolock and given.rerun_incomplete):
        yield (
            f"without `nolock` and `rerun-incomplete`, Snakemake asks for --unlock and "
            f"--rerun-incomplete after a kill; `--workflow-profile "
            f"{scripts.parents[1] / 'profiles' / 'default'}` sets both"
        )


def _configured_by_another(modifier: Any) -> bool:
    """Whether the Snakefile is a module with `config:`."""
    return bool(not modifier.is_main_snakefile() and modifier.skip_configfile)
