"""`extraction.layer_groups: auto`: the fewest that fit, chosen once, recorded and kept."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny
from flips import flip_bit
from pipeline import Run, config
from test_staleness import Project, changed, checkout, planned
from test_workflow import snakemake, write

from outlier_atlas.checkpoint.source import fetch
from outlier_atlas.devices import limits
from outlier_atlas.extraction import choice, layer_groups
from outlier_atlas.extraction.layer_groups import Machine, choose
from outlier_atlas.extraction.prepare import planned as planned_before
from outlier_atlas.extraction.prepare import planned_ablation
from outlier_atlas.extraction.print_plan import print_plan
from outlier_atlas.extraction.run import extract
from outlier_atlas.files import read_record
from outlier_atlas.plan.memory_budget import MemoryBudget

ROWS = [[5, 17, 200, 9] * 4] * 2
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
"""Layers of 7 MiB each, next to which a MiB is little."""

THREE, ALSO_THREE, TWO = "365MiB", "366MiB", "380MiB"
"""Memory of the CPU in which the run below takes so many layer groups."""

CONFIG = {
    "run": {"name": "mine"},
    "model": {"source": "../large"},
    "dataset": {"source": "../texts", "sequences": 2, "sequence_length": 16},
    "extraction": {"layer_groups": "auto", "sites": ["resid_post"]},
    "weights": {"measure": False},
    "execution": {"device": "cpu", "device_memory": THREE},
}
TARGET = "results/mine/tables/criteria.parquet"
CHOICE = f"results/mine/{choice.CHOICE}"
NUMBER = changed(CONFIG, "extraction.layer_groups", 3)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("large") / "large", **LARGE)


def automatic(model, folder, **sections):
    """A run with `auto` whose model is known, and nothing else."""
    sections["extraction"] = {"layer_groups": "auto"} | sections.get("extraction", {})
    run = Run(folder, config(model, ROWS, folder / "data", **sections))
    fetch(run.settings.model, run.resources, run.model_record)
    return run


def chosen(run, machine=Machine()):  # noqa: B008 - frozen
    choose(run.settings, run.stored, machine)
    return choice.read(run.folder / choice.CHOICE)


def test_the_fewest_that_the_plan_accepts_are_taken(llama, tmp_path):
    run = automatic(llama, tmp_path)
    made = planned_before(run.settings, run.stored)
    assert len(made.layout.layer_groups) == 1
    for name in ("cpu", "device"):
        sizes = [made.divided(count).peak(host=name == "cpu") for count in range(1, 5)]
        for memory in {size + off for size in sizes for off in (-1, 0)}:
            budget = MemoryBudget(name, memory, "execution.device_memory", None)
            number = layer_groups.fewest([(made, budget)])
            fitting = [count for count in range(1, 5) if sizes[count - 1] <= memory]
            assert number == min(fitting, default=None)


def test_of_measured_memory_a_tenth_is_left_alone_where_that_fits(llama, tmp_path):
    run = automatic(llama, tmp_path)
    made = planned_before(run.settings, run.stored)
    whole, finest = made.peak(host=False), made.divided(4).peak(host=False)
    assert layer_groups.fewest([(made, MemoryBudget("device", whole, "the device", None))]) > 1
    assert layer_groups.fewest([(made, MemoryBudget("device", 2 * whole, "the device", None))]) == 1
    assert layer_groups.fewest([(made, MemoryBudget("device", finest, "the device", None))]) == 4


def test_the_host_beside_a_device_counts(large, tmp_path):
    run = automatic(large, tmp_path)
    made = planned_before(run.settings, run.stored)
    beside = int(made.divided(2).host_needed / 0.9) + 1
    budget = MemoryBudget("device", None, "the device", beside)
    assert layer_groups.fewest([(made, budget)]) == 2


def test_the_ablation_stage_fits_as_well(large, tmp_path):
    """It runs all layers, and extraction here the first three."""
    extraction = {"layers": [0, 1, 2], "sites": ["resid_post"]}
    execution = {"device": "cpu", "device_memory": "385MiB"}
    run = automatic(large, tmp_path, extraction=extraction, execution=execution)
    assert chosen(run) == 1
    ablated = automatic(
        large, tmp_path / "ablated", extraction=extraction, execution=execution,
        ablation={"sequences": 1},
    )  # fmt: skip
    number = chosen(ablated)
    made = planned_before(ablated.settings, ablated.stored)
    made = planned_ablation(made, False, ablated.stored)
    assert made.divided(number).peak(host=True) <= 385 * 2**20 < made.peak(host=True)


def test_a_model_that_cannot_be_divided_has_one_group(llama, tmp_path):
    run = automatic(llama, tmp_path)
    made = planned_before(run.settings, run.stored)
    whole = replace(made, one_group=True)
    budget = MemoryBudget("device", made.peak(host=False) - 1, "execution.device_memory", None)
    assert layer_groups.fewest([(made, budget)])
    assert layer_groups.fewest([(whole, budget)]) is None
    assert layer_groups.fewest([(made, budget), (whole, budget)]) is None


def test_what_never_fits_is_refused_and_leaves_no_record(large, tmp_path, caplog):
    execution = {"device": "cpu", "device_memory": "340MiB", "batch_size": 2}
    run = automatic(large, tmp_path, execution=execution)
    run.folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"layer_groups = 6: a job takes .*device_memory has 340"):
        chosen(run)
    assert not (run.folder / choice.CHOICE).exists()


def test_on_machines_of_a_scheduler_memory_is_given_or_not_known(large, tmp_path):
    run = automatic(large, tmp_path, execution={"device": "cpu"})
    with pytest.raises(ValueError, match=r"layer_groups = 'auto': .* set execution\.device_memory"):
        chosen(run, Machine(scheduled=True))
    given = automatic(large, tmp_path, execution={"device": "cpu", "device_memory": "385MiB"})
    assert chosen(given, Machine(scheduled=True)) > 1
    gpu = automatic(large, tmp_path, execution={"device": "cuda", "device_memory": "10MiB"})
    assert chosen(gpu, Machine(scheduled=True)) > 2


def test_a_machine_that_tells_no_memory_is_refused(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "host_memory", lambda jobs, processes: None)
    run = automatic(llama, tmp_path, execution={"device": "cpu"})
    with pytest.raises(ValueError, match=r"nothing tells how much memory this machine has free; s"):
        chosen(run)
    assert chosen(automatic(llama, tmp_path, execution={"device_memory": "1GiB"})) == 1


def test_a_number_is_kept_whatever_memory_there_is_now(large, tmp_path, monkeypatch):
    run = automatic(large, tmp_path, execution={"device": "cpu", "device_memory": "385MiB"})
    number, record = chosen(run), run.folder / choice.CHOICE
    before = record.read_bytes()
    assert choice.keep(record, choice.inputs_of(run.settings, run.model_record))
    assert (choice.read(record), record.read_bytes()) == (number, before)
    for other in ({"extraction": {"sites": ["mlp_in"]}}, {"dataset": {"sequence_length": 32}}):
        wanted = automatic(large, tmp_path, **other)
        assert not choice.keep(record, choice.inputs_of(wanted.settings, run.model_record))
    model = read_record(run.model_record) | {"fingerprint": "another"}
    monkeypatch.setattr(choice, "read_record", lambda path: model)
    assert choice.inputs_of(run.settings, run.model_record)["model"] == "another"


def test_a_number_that_does_not_fit_here_is_refused_with_what_would(large, tmp_path):
    run = Run(tmp_path, config(large, ROWS, tmp_path / "data", extraction={"layer_groups": 2}))
    run.prepare()
    job = replace(run.job(0, 0), auto_groups=True, device_memory="380MiB")
    sentence = (
        r"extraction\.layer_groups: auto was 2 when it was chosen; .* a job takes up to .*; "
        r"extraction\.layer_groups: \d would fit, or delete .*layer_groups\.json to have the "
        r"number chosen for this machine"
    )
    with pytest.raises(ValueError, match=sentence):
        extract(job)


def test_the_plan_names_what_auto_is(large, tmp_path, capsys):
    run = automatic(large, tmp_path, execution={"device": "cpu", "device_memory": "385MiB"})
    run.folder.mkdir(parents=True)
    print_plan(run.settings, run.stored)
    first = capsys.readouterr().out
    number = chosen(run)
    assert f"extraction.layer_groups: auto takes {number} layer groups" in first
    assert f"6 layers of LlamaForCausalLM in {number} layer groups" in first
    print_plan(run.settings, run.stored)
    assert f"auto was {number} when it was chosen (" in capsys.readouterr().out


def test_the_plan_counts_chunks_that_sequences_do_not_fill(llama, tmp_path):
    extraction = {"advanced": {"chunk_tokens": 12}}
    run = automatic(llama, tmp_path, extraction=extraction, dataset={"packing": "concat"})
    assert planned_before(run.settings, run.stored).gathers


@pytest.fixture(scope="module")
def finished(large, tmp_path_factory):
    """A run with `auto` that one command has finished, as far as its tables."""
    root = tmp_path_factory.mktemp("auto")
    shutil.copytree(large, root / "large")
    (root / "texts").mkdir()
    (root / "texts" / "0.txt").write_text(" ".join(tiny.SENTENCES * 3))
    folder = root / "finished"
    folder.mkdir()
    checkout(folder)
    write(folder, CONFIG)
    assert set(planned(folder, CONFIG, target=TARGET)[0]) == {
        "fetch_model", "choose_layer_groups", "tokenize_dataset", "create_store", "detect_outliers",
    }  # fmt: skip
    assert not (folder / "results").exists(), "a dry run writes nothing"
    (folder / "output.txt").write_text(command(folder))
    return folder


def command(folder, *arguments, check=True):
    done = snakemake(
        folder,
        TARGET,
        "--configfile",
        "mine.yaml",
        "--verbose",
        *arguments,
        root=folder,
        check=check,
    )
    return done.stdout + done.stderr


def jobs(said):
    return Counter(re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", said))


def again(project, changed_config):
    write(project.folder, changed_config)
    return jobs(command(project.folder))


def test_one_command_chooses_and_goes_on_to_the_end(finished):
    said = (finished / "output.txt").read_text()
    assert "auto takes 3 layer groups: execution.device_memory has 365.0 MiB" in said
    assert jobs(said)["extract_activations"] == 3
    manifests = sorted((finished / "results/mine/manifests/extraction").iterdir())
    assert [path.name for path in manifests] == [
        f"group-{group}-of-3.shard-0-of-1.json" for group in range(3)
    ]
    assert json.loads((finished / CHOICE).read_text())["layer_groups"] == 3


def test_the_store_has_the_bytes_of_one_layer_group(finished, tmp_path):
    one = changed(changed(CONFIG, "extraction.layer_groups", 1), "execution.device_memory", None)
    for key in ("model", "dataset"):
        one = changed(one, f"{key}.source", str(finished / CONFIG[key]["source"]))
    whole = Run(tmp_path, one)
    whole.prepare()
    whole.extract()
    run = Run(finished, CONFIG)
    assert np.array_equal(run.array("resid_post"), whole.array("resid_post"))


def test_a_number_and_the_same_number_chosen_make_nothing_stale(finished):
    assert planned(finished, CONFIG, NUMBER, CONFIG, target=TARGET) == [{}, {}, {}]
    fewer = {"choose_layer_groups", "create_store", "detect_outliers"}
    other = changed(CONFIG, "execution.device_memory", TWO)
    assert set(planned(finished, other, target=TARGET)[0]) == fewer


def test_a_choice_that_comes_out_the_same_runs_nothing_else(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    assert again(project, changed(CONFIG, "execution.device_memory", ALSO_THREE)) == {
        "choose_layer_groups": 1
    }
    jobs = again(project, changed(CONFIG, "execution.device_memory", TWO))
    assert jobs == {
        "choose_layer_groups": 1, "create_store": 1, "extract_activations": 2, "detect_outliers": 1,
    }  # fmt: skip
    assert choice.read(project.folder / CHOICE) == 2
    shutil.rmtree(project.folder / ".snakemake")
    assert again(project, changed(CONFIG, "execution.device_memory", TWO)) == {}


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_a_finished_run_imports_no_torch(finished, arguments):
    write(finished, CONFIG, "auto.yaml")
    command = [sys.executable, "-X", "importtime", "-m", "snakemake", "--cores", "1", TARGET]
    done = subprocess.run(
        [*command, "--configfile", "auto.yaml", *arguments],
        cwd=finished, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Nothing to be done" in done.stdout + done.stderr
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "outlier_atlas.extraction.choice" in imported
    assert not {"torch", "transformers", "pyarrow"} & imported  # numpy: by `yte`, of Snakemake


def test_a_damaged_record_is_named_and_made_again(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    record = project.folder / CHOICE
    before = record.read_bytes()
    flip_bit(record, before.index(b"resid_post"), 0)
    damaged = record.read_bytes()
    write(project.folder, CONFIG)
    assert "choose_layer_groups" in planned(project.folder, CONFIG, target=TARGET)[0]
    assert record.read_bytes() == damaged, "a dry run leaves it"
    verified = snakemake(
        shutil.copytree(project.folder, project.folder.with_name(f"{tmp_path.name}-verified")),
        "--configfile", "mine.yaml", "--", "verify", root=project.folder, check=False,
    )  # fmt: skip
    assert f"{CHOICE}: damaged (" in verified.stdout + verified.stderr
    assert verified.returncode != 0
    said = command(project.folder)
    assert f"{CHOICE}: damaged (" in said
    assert jobs(said) == {"choose_layer_groups": 1}
    assert record.read_bytes() == before
    assert jobs(command(project.folder)) == {}


def test_a_run_that_was_refused_or_lost_its_record_goes_on(finished, tmp_path):
    project = Project(finished, tmp_path.name)
    write(project.folder, changed(CONFIG, "execution.device_memory", "340MiB"))
    before = (project.folder / CHOICE).read_bytes()
    said = command(project.folder, check=False)
    assert "choose_layer_groups: extraction.layer_groups = 6: a job takes up to" in said
    assert (project.folder / CHOICE).read_bytes() == before, "what was chosen stays"
    assert again(project, CONFIG) == {"choose_layer_groups": 1}
    (project.folder / CHOICE).unlink()
    assert again(project, CONFIG) == {"choose_layer_groups": 1}
    assert (project.folder / CHOICE).read_bytes() == before
