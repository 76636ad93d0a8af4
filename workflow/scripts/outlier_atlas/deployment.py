"""The use of the workflow by Snakemake: by itself or as a module, with a profile or without.

As a module the workflow gets its configuration from the outer one, and Snakemake does not find the
profile next to it. What the workflow needs of the profile is set here, or asked for in a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outlier_atlas.compat import snakemake_internals
from outlier_atlas.inputs import Purpose
from outlier_atlas.settings import document
from outlier_atlas.settings.configuration import Settings

DEFAULT_CONFIGURATION = "config/config.yaml"


def settings(workflow: Any, config: Mapping[str, Any]) -> Settings:
    """Check the configuration of the run.

    Args:
        workflow: Snakemake's own object, as the Snakefile knows it.
        config: the Snakefile's `config`.

    Raises:
        SystemExit: the configuration is wrong; the message has a line for each fault.
    """
    if not snakemake_internals.is_configured_by_another(workflow):
        files = snakemake_internals.configuration_files(workflow) or [Path(DEFAULT_CONFIGURATION)]
        config = config or snakemake_internals.given_configuration(workflow)
        return document.settings(files, config)
    name = module = snakemake_internals.module_name(workflow)
    if snakemake_internals.has_whole_configuration(workflow, config):
        name = snakemake_internals.last_configuration_file(workflow).stem
    return document.given(config, name, f"module {module}")


def refuse_prefix(workflow: Any) -> None:
    """Refuse a module whose files would be in another folder.

    Raises:
        ValueError: the module has `prefix` or `replace_prefix`.
    """
    for path in ("results/run", "resources/models"):
        moved = snakemake_internals.with_prefix(workflow, path)
        if moved != path:
            raise ValueError(
                f"module {snakemake_internals.module_name(workflow)}: `prefix` or "
                f"`replace_prefix` would move {path} to {moved}, where this workflow does not "
                f"look; leave it out, and name the run with `run.name` in its configuration"
            )


def complete(workflow: Any, purpose: Purpose, on_gpus: bool, scripts: Path) -> list[str]:
    """Set what the default profile sets, unless the command line sets it.

    Args:
        on_gpus: whether a run may compute on a GPU.

    Returns:
        Lines about what the user may want to set, each once in a process.
    """
    lines = [line for line in _completed(workflow, purpose, on_gpus, scripts) if line not in _said]
    _said.update(lines)
    return lines


_said: set[str] = set()


def _completed(workflow: Any, purpose: Purpose, on_gpus: bool, scripts: Path) -> Iterator[str]:
    if purpose is Purpose.JOB:
        return
    limited = on_gpus and snakemake_internals.set_limit(workflow, "gpu", 1)
    if limited and purpose is Purpose.MAKE and snakemake_internals.is_module(workflow):
        yield "no limit on gpu was given: one GPU job at a time; `--resources gpu=2` allows two"
    given = snakemake_internals.command_line()
    if purpose is Purpose.MAKE and given and not (given.nolock and given.rerun_incomplete):
        yield (
            f"without `nolock` and `rerun-incomplete`, Snakemake asks for --unlock and "
            f"--rerun-incomplete after a kill; `--workflow-profile "
            f"{scripts.parents[1] / 'profiles' / 'default'}` sets both"
        )
