"""Private names of other libraries in use: an upgrade that changes one of them fails here."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.core_model_loading import LoadStateDictInfo

from outlier_atlas.compat import snakemake_internals, torch_internals, transformers_internals
from outlier_atlas.workflow import LOOKING

LIBRARY = Path(torch_internals.__file__).parents[1]


def llama(dtype=torch.float32):
    config = LlamaConfig(**tiny.SIZES)
    with torch.device("meta"):
        return transformers_internals.from_config(LlamaForCausalLM, config, dtype)


def test_views_share_the_storage_and_copies_do_not_without_memory_either():
    tensor = torch.empty(4, 4, device="meta")
    known = torch_internals.storage_id(tensor)
    assert torch_internals.storage_id(tensor.T[1:]) == known
    assert torch_internals.storage_id(tensor.clone()) != known


def test_buffers_of_a_module_itself_can_be_replaced():
    module = nn.Sequential(nn.BatchNorm1d(2))
    module.register_buffer("none", None)
    assert torch_internals.own_buffers(module) == {"none": None}
    torch_internals.own_buffers(module)["none"] = torch.ones(1)
    assert module.none == 1


def test_only_the_tensors_of_a_module_itself_are_replaced():
    module = nn.Sequential(nn.Linear(2, 2))
    module.weight = nn.Parameter(torch.ones(2))
    torch_internals.apply_to_own_tensors(module, lambda tensor: tensor.to("meta"))
    assert module.weight.device.type == "meta"
    assert module[0].weight.device.type == "cpu"


def test_hidden_children_come_back_and_names_stay():
    blocks = nn.ModuleList([nn.Linear(1, 1), nn.Identity(), nn.Linear(1, 1)])
    wanted = lambda child: isinstance(child, nn.Linear)  # noqa: E731
    with pytest.raises(KeyError), torch_internals.only_children(blocks, wanted):
        assert [name for name, _ in blocks.named_children()] == ["0", "2"]
        raise KeyError
    assert len(blocks) == 3


@pytest.mark.parametrize(
    ("operator", "name", "in_place"),
    [(torch.ops.aten.add_.Tensor, "add_", True), (torch.ops.aten.mT.default, "mT", False)],
)
def test_operators_say_their_name_and_whether_they_write(operator, name, in_place):
    assert torch_internals.operator_name(operator) == name
    assert torch_internals.is_in_place(operator) == in_place


def test_a_model_is_built_in_a_dtype_without_a_checkpoint():
    model = llama(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.config.dtype == torch.bfloat16
    assert transformers_internals.names_in_float32(model) == {}


def test_transformers_loads_files_through_the_method_that_is_overridden(tmp_path, monkeypatch):
    """The first three arguments are the model, its loaded weights, and the files."""
    tiny.llama(tmp_path)
    calls = []
    whole = inspect.getattr_static(PreTrainedModel, transformers_internals.LOAD)
    assert isinstance(whole, staticmethod)

    def load(model, state_dict, files, *settings):
        calls.append((state_dict, [Path(file).name for file in files]))
        return transformers_internals.load_files(
            PreTrainedModel, model, state_dict, files, *settings
        )

    subclass = type("Llama", (LlamaForCausalLM,), {transformers_internals.LOAD: staticmethod(load)})
    subclass.from_pretrained(tmp_path)
    assert calls == [(None, ["model.safetensors"])]


def test_ignored_keys_are_no_unexpected_ones(monkeypatch):
    for name in (transformers_internals.IGNORED_KEYS, transformers_internals.TIED_KEYS):
        assert hasattr(LlamaForCausalLM, name)
    monkeypatch.setattr(LlamaForCausalLM, transformers_internals.IGNORED_KEYS, ["old"])
    info = LoadStateDictInfo(
        missing_keys=set(), unexpected_keys={"old.weight", "new.weight"}, mismatched_keys=set(),
        error_msgs=[], conversion_errors={}, skipped_pp_keys=set(),
    )  # fmt: skip
    transformers_internals.leave_out_ignored(llama(), info)
    assert info.unexpected_keys == {"new.weight"}


OUTER = """\
import json, sys
from pathlib import Path

sys.path.insert(0, config["scripts"])
from outlier_atlas.compat import snakemake_internals as internals
from snakemake.logging import logger

internals.set_limit(workflow, "gpu", 1)
TOLD = {
    "job": internals.is_job(workflow),
    "dryrun": internals.output_settings(workflow).dryrun,
    "command line": internals.command_line().forcerun,
    "module": internals.is_module(workflow),
    "files": [file.name for file in internals.configuration_files(workflow)],
    "last": internals.last_configuration_file(workflow).name,
    "given": internals.given_configuration(workflow)["given"],
    "limits": [internals.limit_of(workflow, name) for name in ("gpu", "mine", "other")],
    "set again": internals.set_limit(workflow, "gpu", 2),
    "handler": [internals.DEFAULT_HANDLER in {h.name for h in logger.handlers}],
}

def at_event(record):
    if getattr(record, "event", None) == "run_info":
        graph = internals.graph(workflow)
        outputs = {n: [*map(str, o)] for n, o in internals.planned_outputs(graph)}
        TOLD["here"] = internals.runs_jobs_here(workflow), internals.is_scheduled(workflow)
        TOLD["targets"] = [*internals.targets(workflow)]
        TOLD["jobs"] = {
            job.rule.name: {
                "output": outputs[internals.number_of(graph, job)],
                "message": internals.rule_message(job),
                "script": Path(internals.script_of(job)).name,
                "wildcards": dict(internals.wildcards_of(job)),
                "before": [*internals.rules_before(graph, job)],
                "reason": vars(internals.reason_of(graph, job)),
            }
            for job in internals.ordered_jobs(graph)
        }
        Path("told.json").write_text(json.dumps(TOLD, default=sorted))
    return True

logger.addFilter(at_event)

module inner:
    snakefile: "inner.smk"
    config: config
    prefix: "moved"

use rule * from inner as inner_*

rule last:
    input: "a.txt", "old.txt"
    output: "last.txt"
    script: "last.py"

rule some:
    output: "{name}.txt"
    message: "Some {wildcards.name}"
    shell: "touch {output}"

internals.set_default_target(workflow, "last")
"""

INNER = """\
from pathlib import Path
from outlier_atlas.compat import snakemake_internals as internals

Path("inner.json").write_text(json.dumps({
    "module": internals.is_module(workflow),
    "name": internals.module_name(workflow),
    "configured": internals.is_configured_by_another(workflow),
    "whole": internals.has_whole_configuration(workflow, config),
    "prefix": internals.with_prefix(workflow, "results/run"),
}))

rule b:
    output: "b.txt"
    shell: "touch {output}"
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a Snakefile and its module learn from Snakemake, in a dry run."""
    folder = tmp_path_factory.mktemp("snakemake")
    (folder / "Snakefile").write_text(OUTER)
    (folder / "inner.smk").write_text(f"import json\n{INNER}")
    for name in ("last.txt", "last.py", "old.txt"):
        (folder / name).touch()
    (folder / "mine.yaml").write_text(json.dumps({"scripts": str(LIBRARY.parent)}))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--quiet", "all"]
    command += ["--configfile", "mine.yaml", "--config", "given=7", "--resources", "mine=3"]
    done = subprocess.run(
        [*command, "--forcerun", "last"], cwd=folder, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    names = ("told", "inner")
    return [json.loads((folder / f"{name}.json").read_text()) for name in names]


def test_a_snakefile_learns_what_its_process_is_for(told):
    outer, _ = told
    assert outer.pop("jobs")
    assert outer == {
        "job": False, "dryrun": True, "command line": ["last"], "module": False,
        "files": ["mine.yaml"], "last": "mine.yaml", "given": 7, "limits": [1, 3, None],
        "set again": False, "handler": [True], "here": [True, False], "targets": [],
    }  # fmt: skip


def test_a_module_learns_its_name_its_configuration_and_its_prefix(told):
    assert told[1] == {
        "module": True, "name": "inner", "configured": True, "whole": True,
        "prefix": "moved/results/run",
    }  # fmt: skip


def test_the_jobs_of_the_graph_are_known_with_their_reasons(told):
    jobs = told[0]["jobs"]
    assert list(jobs) == ["some", "last"], "the default target, and what it needs"
    last, some = jobs["last"], jobs["some"]
    assert (last["output"], last["script"], last["before"]) == (["last.txt"], "last.py", ["some"])
    assert (some["output"], some["message"]) == (["a.txt"], "Some {wildcards.name}")
    assert (some["wildcards"], some["script"], some["before"]) == ({"name": "a"}, "", [])
    none = {"incomplete": False, "updated": [], "without_files": False}
    texts = [job["reason"].pop("text") for job in (last, some)]
    assert last["reason"] == none | {"forced": True, "missing": [], "after": True}
    assert some["reason"] == none | {"forced": False, "missing": ["a.txt"], "after": False}
    assert all("a.txt" in text or "Forced" in text for text in texts)


def test_times_of_scripts_are_taken_through_the_function_that_is_replaced(tmp_path, monkeypatch):
    from snakemake import jobs

    monkeypatch.setattr(jobs, "get_script_mtime", jobs.get_script_mtime)
    uses = [
        code for _, code in inspect.getmembers(jobs.Job, inspect.isfunction)
        if "get_script_mtime" in code.__code__.co_names
    ]  # fmt: skip
    assert uses
    (tmp_path / "ours").mkdir()
    for path in (ours := tmp_path / "ours" / "a.py", other := tmp_path / "a.py"):
        path.touch()
    snakemake_internals.ignore_script_times(tmp_path / "ours")
    assert jobs.get_script_mtime(str(ours)) == 0
    assert jobs.get_script_mtime(str(other)) > 0


def test_options_of_the_command_line_have_the_names_that_are_looked_at():
    from snakemake.cli import get_argument_parser

    known = {action.dest for action in get_argument_parser()._actions}
    assert {*LOOKING, "report_after_run", "nolock", "rerun_incomplete"} <= known


def test_files_of_a_repository_tell_their_commit():
    """`rules/source.smk` uses these names itself."""
    from snakemake.sourcecache import HostingProviderFile, LocalGitFile

    for kind in (HostingProviderFile, LocalGitFile):
        assert isinstance(inspect.getattr_static(kind, "ref"), property)
    assert "hosted_repo" in vars(HostingProviderFile)
    file = LocalGitFile("folder", "workflow/Snakefile", ref="main")
    assert (file.repo_path, file.path) == ("folder", "workflow/Snakefile")


def test_names_of_snakemake_that_are_not_public_are_used_in_one_place():
    names = (
        "args_to_api", "config_settings", "configfiles", "dag", "dag_settings", "default_target",
        "dependencies", "get_script_mtime", "global_resources", "is_main_process", "is_norun",
        "local_exec", "modifier", "needrun", "needrun_jobs", "output_settings", "overwrite_config",
        "remote_exec", "skip_configfile", "toposorted", "wildcards_dict",
    )  # fmt: skip
    private = re.compile(rf"\.({'|'.join(names)})\b|DefaultStreamHandler|args_to_api")
    workflow = LIBRARY.parents[1]
    rules = [workflow.parent / "Snakefile", workflow / "Snakefile", *workflow.rglob("*.smk")]
    for path in (*LIBRARY.rglob("*.py"), *rules):
        if path.parent.name != "compat":
            found = private.search(path.read_text())
            assert not found, f"{path}: {found[0]}"


def test_private_names_of_torch_and_transformers_are_used_in_one_place():
    private = re.compile(
        r"torch[\w.]*\._[a-z]\w*|(?<!self)\._(cdata|buffers|modules|apply|schema|from_config|get_dtype_plan|"
        r"load_pretrained_model|adjust_missing\w*|tied_weights_keys|keys_to_ignore\w*)\b"
    )
    for path in LIBRARY.rglob("*.py"):
        if path.parent.name != "compat":
            assert not private.search(path.read_text()), path
