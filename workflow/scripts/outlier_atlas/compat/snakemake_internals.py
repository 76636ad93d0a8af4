"""Names of Snakemake that are not public, each with the reason why it is used.

Public are the language of Snakefiles, `snakemake.logging.logger`, and the interfaces of Snakemake's
plugins; a Snakefile's `workflow` is documented only in part. `tests/test_compat.py` fails at an
upgrade that changes one of the names below. `rules/source.smk` has a few more: it finds this
library in a repository, and cannot import it before.

Snakemake is imported by the functions that need it: environments of jobs may be without it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the process is for


def command_line() -> Any:
    """Return the options of the command line; None if Snakemake was called as a library.

    Snakemake reads the Snakefile before it tells the workflow what it will do with it.
    """
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "args_to_api":
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else frame.f_locals.get("args")


def is_job(workflow: Any) -> bool:
    """Return whether Snakemake started this process for a job of another process."""
    return not workflow.is_main_process


def output_settings(workflow: Any) -> Any:
    """Return what the interface of logger plugins calls `OutputSettingsLoggerInterface`.

    Snakemake passes the settings only to plugins that are installed.
    """
    return workflow.output_settings


def targets(workflow: Any) -> Iterable[str]:
    """Return the targets of the command line, which hooks such as `onsuccess` are not told."""
    wanted: Iterable[str] = workflow.dag_settings.targets
    return wanted


def wants_everything(workflow: Any) -> bool:
    """Return whether the command line names no files or rules to make or to leave out."""
    settings = workflow.dag_settings
    chosen = {*settings.targets} - {"all"}
    return not (chosen or settings.until or settings.omit_from)


def runs_jobs_here(workflow: Any) -> bool:
    """Return whether jobs run on this machine; no public setting says which executor runs."""
    return bool(workflow.local_exec)


def is_scheduled(workflow: Any) -> bool:
    """Return whether a scheduler starts the jobs, in its own processes or from this one."""
    return bool(workflow.remote_exec or not workflow.local_exec)


# Configuration and modules


def configuration_files(workflow: Any) -> list[Path]:
    """Return the files of `--configfile`; `config` no longer tells which file a value is from."""
    return [Path(file) for file in workflow.config_settings.configfiles or ()]


def last_configuration_file(workflow: Any) -> Path:
    """Return the last file of `--configfile`, or of `configfile:` if there is none."""
    return Path((configuration_files(workflow) or workflow.configfiles)[-1])


def given_configuration(workflow: Any) -> Mapping[str, Any]:
    """Return the configuration of the command line, which a module without `config:` lacks."""
    given: Mapping[str, Any] = workflow.config_settings.overwrite_config
    return given


def is_module(workflow: Any) -> bool:
    """Return whether the Snakefile that is being read is a module of another workflow."""
    return not workflow.modifier.is_main_snakefile()


def module_name(workflow: Any) -> str:
    """Return the name of the module that is being read; a module is not told its own name."""
    return str(workflow.modifier.namespace)


def is_configured_by_another(workflow: Any) -> bool:
    """Return whether the Snakefile is a module with `config:`."""
    return is_module(workflow) and bool(workflow.modifier.skip_configfile)


def has_whole_configuration(workflow: Any, config: Mapping[str, Any]) -> bool:
    """Return whether a module's `config` is the configuration of the workflow that uses it.

    `config: config` in the outer Snakefile then stands for the configuration files.
    """
    outer = workflow.modifier.parent_modifier
    whole = outer.is_main_snakefile() and outer.globals["config"] is config
    return bool(whole and workflow.configfiles)


def with_prefix(workflow: Any, path: str) -> str:
    """Return where `prefix` or `replace_prefix` of a module moves a path."""
    return str(workflow.modifier.path_modifier.replace_prefix(path))


def set_default_target(workflow: Any, rule: str) -> None:
    """Make a rule the default target if there is none; an `include` resets the default target."""
    target = workflow.default_target or workflow.modifier.modify_rulename(rule)
    workflow.default_target = target


# Resources and reasons to rerun


def limit_of(workflow: Any, resource: str) -> int | None:
    """Return the value of `--resources`; None without a limit. Functions of rules do not get it."""
    limit = workflow.global_resources.get(resource)
    value = None if limit is None else limit.value
    return value if isinstance(value, int) else None


def set_limit(workflow: Any, resource: str, value: int) -> bool:
    """Set a limit as `--resources` does, unless there is one; return whether it was set.

    A Snakefile cannot set one otherwise, and a module does not get the profile next to it.
    """
    if resource in workflow.global_resources:
        return False
    workflow.global_resources[resource] = value
    return True


def ignore_script_times(folder: Path) -> None:
    """Make Snakemake ignore the modification times of the scripts in a folder.

    Its rerun trigger `code` compares them with the times of a rule's outputs, and would run
    everything again in a fresh checkout. Only a profile or an option can switch the trigger off.
    """
    from snakemake import jobs

    time_of = jobs.get_script_mtime

    def ignored(path: str) -> float:
        return 0.0 if Path(path).resolve().is_relative_to(folder.resolve()) else time_of(path)

    jobs.get_script_mtime = ignored


# Work that Snakemake repeats for each job


def look_at_scripts_once() -> None:
    """Make Snakemake look once for the script of a rule, not again for each of its jobs.

    Before it runs jobs, it reads the script of each to see whether it can, a tenth of the time of a
    plan of thousands of jobs. A name with wildcards or parameters is another script for each job.
    """
    from snakemake import dag

    look = dag.ScriptProcessor.process_job

    def once(self: Any, job: Any) -> None:
        script = str(getattr(job.rule, self.script_type) or "")
        seen: set[tuple[str, str]] = self.__dict__.setdefault("_seen", set())
        key = str(job.rule.basedir), script
        if key not in seen:
            look(self, job)
        if "{" not in script:
            seen.add(key)

    dag.ScriptProcessor.process_job = once


def list_first_jobs(workflow: Any, folder: Path) -> None:
    """Make a dry run prepare the text of the first job only of each rule in a folder.

    The text has message, threads and resources. A handler that shows no jobs drops it, but it takes
    a quarter of the time of a plan of thousands of jobs. A fault of a rule still shows.

    Args:
        workflow: the workflow, whose jobs are planned.
        folder: folder of the files with the rules.
    """
    executor = workflow.scheduler._executor
    listed, show, known = set(), executor.run_job_pre, folder.resolve()

    def first(job: Any) -> None:
        if not job.is_group() and job.rule in listed:
            return
        show(job)
        if not job.is_group() and Path(str(job.rule.basedir)).resolve().is_relative_to(known):
            listed.add(job.rule)

    executor.run_job_pre = first


# The graph of jobs, for which the interface of logger plugins has no names


def graph(workflow: Any) -> Any:
    """Return Snakemake's graph of jobs, which the functions below take."""
    return workflow.dag


def planned_outputs(graph: Any) -> Iterator[tuple[int, Iterable[str]]]:
    """Yield the number and the outputs of each job that will run."""
    return ((number_of(graph, job), job.output) for job in graph.needrun_jobs())


def planned_rules(graph: Any) -> Iterator[str]:
    """Yield the name of the rule of each job that will run."""
    return (job.rule.name for job in graph.needrun_jobs())


def ordered_jobs(graph: Any) -> Iterator[Any]:
    """Yield the jobs that will run, a job behind those that it depends on."""
    for level in graph.toposorted(set(graph.needrun_jobs())):
        yield from (job for job in sorted(level, key=str) if not job.is_norun)


def number_of(graph: Any, job: Any) -> int:
    """Return the number of a job in log records; `job.jobid` has it only once the job begins."""
    return int(graph.jobid(job))


def rules_before(graph: Any, job: Any) -> set[str]:
    """Return the names of the rules whose jobs run before a job and make its inputs."""
    return {other.rule.name for other in graph.dependencies[job] if graph.needrun(other)}


@dataclass(frozen=True)
class Reason:
    """Why a job runs; log records have it only as text.

    Attributes:
        forced: whether the command line asks for it.
        incomplete: whether an earlier run left outputs incomplete.
        missing: outputs that are missing.
        updated: inputs that are newer than the outputs.
        after: whether inputs are made again.
        without_files: whether the job has no outputs.
        text: Snakemake's own words.
    """

    forced: bool
    incomplete: bool
    missing: frozenset[str]
    updated: frozenset[str]
    after: bool
    without_files: bool
    text: str


def reason_of(graph: Any, job: Any) -> Reason:
    """Return why a job runs."""
    reason = graph.reason(job)
    return Reason(
        forced=bool(reason.forced),
        incomplete=bool(reason.incomplete_output),
        missing=frozenset(map(str, reason.missing_output)),
        updated=frozenset(map(str, reason.updated_input)),
        after=bool(reason.updated_input_run),
        without_files=bool(reason.nooutput or reason.noio),
        text=str(reason),
    )


def rule_message(job: Any) -> str | None:
    """Return the message of a job's rule, with its wildcards not filled in."""
    message: str | None = job.rule.message
    return message


def script_of(job: Any) -> str:
    """Return the path of the script of a job's rule; empty if it has none."""
    return str(job.rule.script or "")


def wildcards_of(job: Any) -> Mapping[str, str]:
    """Return the values of a job's wildcards."""
    values: Mapping[str, str] = job.wildcards_dict
    return values


# The log


DEFAULT_HANDLER = "DefaultStreamHandler"
"""Name of the handler that writes to the terminal, which a handler of ours replaces."""
