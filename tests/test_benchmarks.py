"""The benchmarks' own logic, on a tiny shape or with few of what they try many of."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import commanded
import flips
import histories
import pytest
import torch
from pipeline import Run
from safetensors.torch import load_file

from outlier_atlas.settings.configuration import load

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """`benchmarks/gpu.py` as a module."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    spec = importlib.util.spec_from_file_location("benchmark_gpu", BENCHMARKS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = ["--device=cpu", "--layers=3", "--groups=2", "--tokens=8", "--batch=2"]
TINY = [*SMALL, "--sequences=3", "--parts=exact"]
VALUES = 3 * 3 * 8 * 3 * 64
"""Sequences x sites x tokens x layers x channels."""


def test_the_gpu_benchmark_compares_the_chain_with_the_whole_model(gpu, capsys):
    gpu.main(TINY)
    said = capsys.readouterr().out
    assert f"chain of 2 layer groups equals the whole model: {VALUES:,} values" in said
    assert said.count("of the plan") == 2
    assert "the same batch again: the same bits" in said


def test_the_gpu_benchmark_sees_a_single_bit(gpu, capsys, monkeypatch):
    read = Run.array

    def one_changed(run, site):
        values = read(run, site)
        if site == "mlp_in":
            values[1, 17, 5] += 0.25
        return values

    monkeypatch.setattr(Run, "array", one_changed)
    gpu.main(TINY)
    said = capsys.readouterr().out
    assert "DIFFERS FROM the whole model" in said
    assert "mlp_in of layer 1: by up to 0.25" in said
    assert said.count("by up to") == 1


def test_the_gpu_benchmark_measures_speed_against_the_bare_forward_pass(gpu, capsys):
    gpu.main([*SMALL, "--parts=speed", "--speed=3", "--pairs=1"])
    lines = capsys.readouterr().out
    for what in ("two sites stored", "summaries only", "a forward pass for every eight layers"):
        assert f"3 x 8 tokens, {what} / bare forward pass" in lines
    assert "GB/s" in lines
    assert "overlap of copies: measured on CUDA only" in lines


def test_overlap_is_the_length_that_two_sets_of_intervals_share(gpu):
    a, b = [(0.0, 2.0), (1.0, 3.0), (10.0, 11.0)], [(2.5, 4.0), (0.5, 1.0), (20.0, 21.0)]
    assert gpu.covered(a) == 4.0
    assert gpu.covered_twice(a, b) == 1.0
    assert gpu.covered([]) == gpu.covered_twice([], b) == 0.0


def test_its_checkpoint_has_the_shape_that_transformers_gives_it(gpu, tmp_path):
    from transformers import Qwen3MoeForCausalLM

    gpu.write_checkpoint(tmp_path, 2, gpu.TINY)
    _, info = Qwen3MoeForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert {*info["missing_keys"]} == {"lm_head.weight"}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 3, "one for what lies around the layers, and one for each"
    assert all(
        tensor.dtype == torch.bfloat16 for file in files for tensor in load_file(file).values()
    )


def test_its_large_shape_is_that_of_qwen3_30b_a3b(gpu):
    """30.5 billion parameters in 48 layers, as published; the head has as many as the embedding."""
    from transformers import Qwen3MoeConfig, Qwen3MoeModel

    with torch.device("meta"):
        model = Qwen3MoeModel(Qwen3MoeConfig(**gpu.SHAPE, num_hidden_layers=1))
    embedding = model.embed_tokens.weight.numel()
    layer = sum(weight.numel() for weight in model.layers[0].parameters())
    assert round((2 * embedding + 48 * layer) / 1e9, 1) == 30.5


def test_without_a_cuda_device_it_measures_nothing(gpu, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "visible_gpus", lambda: [])
    gpu.main([])
    assert "no CUDA device here" in capsys.readouterr().out


def test_a_flipped_bit_leaves_the_time_of_its_file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"\x00\x00\x00")
    os.utime(file, ns=(5, 7))
    assert flips.flip_bit(file, 1, 3) == b"\x00\x08\x00" == file.read_bytes()
    assert file.stat().st_mtime_ns == 7


RUN = flips.RUN


@pytest.mark.parametrize(
    ("file", "line", "named"),
    [
        (f"{RUN}/tokens.parquet", f"verify: {RUN}/tokens.parquet: damaged (its sha256)", True),
        (f"{RUN}/tokens.parquet", f"    input: {RUN}/tokens.parquet damaged", False),
        (f"{RUN}/tokens.parquet", f"{RUN}/tokens.parquet: written", False),
        (f"{RUN}/activations.zarr/q/c/1/3/0", "q, layer 1, chunk 3: damaged (crc32c)", True),
        (f"{RUN}/activations.zarr/q/c/1/3/0", "q, layer 1, chunk 13: damaged (crc32c)", False),
        (
            f"{RUN}/activations.zarr/token_loss/c/2/0",
            "token_loss, layer -1, chunk 2: damaged",
            True,
        ),
        (f"{RUN}/boundaries.zarr/into_layer_2/c/0/0", "boundary, layer 2, chunk 0: damaged", True),
        (
            f"{RUN}/summaries/k@0.5.6/layer-2/chunk-1.24-26.safetensors",
            "k, layer 2, chunk 1: its summary is lost (damaged)",
            True,
        ),
    ],
)
def test_a_line_that_names_damage_is_told_from_other_lines(file, line, named):
    assert flips.names_damage(f"before\n{line}\nafter", file) == named


def test_histories_are_the_same_for_the_same_seed_and_change_something_at_each_step():
    steps = histories.history(3, 1, 10)
    assert steps == histories.history(3, 1, 10) != histories.history(4, 1, 10)
    assert [step.index for step in steps] == [-1, *range(10, 20)]
    assert all(step.changed for step in steps)
    for step in steps:
        load(step.config, "mine")


def test_histories_take_each_value_of_each_key():
    steps = [step for number in range(20) for step in histories.history(3, number, 10)]
    for key, values in histories.SPACE.items():
        assert {str(step.choice[key]) for step in steps} == {*map(str, values)}, key


def test_a_state_differs_where_a_file_does_and_not_where_a_reason_is_given(tmp_path):
    fresh, run = tmp_path / "fresh", tmp_path / "run"
    files = {
        "tables/weights.csv": (b"1", b"2"),
        "manifests/layer_groups.json": (None, b"of `auto`, which is not configured now"),
        "tables/extra.csv": (None, b"left over"),
        "findings.json": (b"{}", None),
        "boundaries.zarr/into_layer_1/c/0/0": (b"not needed", None),
        "logs/ablate.log": (b"at noon", b"at night"),
        "tokens.parquet": (b"the same", b"the same"),
    }
    for name, contents in files.items():
        for folder, content in zip((fresh, run), contents, strict=True):
            if content is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
    wrong = histories.differences(fresh, run)
    assert wrong == ["left over tables/extra.csv", "tables/weights.csv", "no findings.json"]


def test_a_folder_is_made_equal_to_another_one_times_included(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder, names in ((source, ("same", "changed", "a/new")), (target, ("same", "b/old"))):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("text")
            os.utime(folder / name, ns=(1, 1))
    (target / "changed").write_text("other")
    commanded.sync(source, target)
    left = {str(path.relative_to(target)) for path in target.rglob("*")}
    assert left == {"same", "changed", "a", "a/new"}
    assert (target / "changed").read_text() == "text"
    assert (target / "changed").stat().st_mtime_ns == 1


@pytest.mark.slow
def test_a_flipped_bit_is_named_and_the_run_comes_to_be_what_it_was(tmp_path, monkeypatch):
    small = {"sites": ["resid_post"], "layer_groups": 1, "sequence_shards": 1}
    monkeypatch.setitem(flips.CONFIG, "extraction", flips.CONFIG["extraction"] | small)
    monkeypatch.setitem(flips.CONFIG, "ablation", {"sequences": 0})
    finished = flips.Finished(tmp_path, changes=())
    assert "others" not in finished.files(), "every file is of a known kind"
    flip = flips.Flip(0, "tokens", f"{RUN}/tokens.parquet", 500, 2, flips.WAYS[1], "")
    outcome = finished.outcome(flip)
    assert outcome.name == "named", outcome


@pytest.mark.slow
def test_a_history_ends_as_a_fresh_run_does(tmp_path, monkeypatch):
    """One step, in which one key has another value."""
    for key in {*histories.SPACE} - {"report.rows", "model.source"}:
        monkeypatch.setitem(histories.SPACE, key, histories.SPACE[key][:1])
    monkeypatch.setitem(histories.SPACE, "model.source", ["./model", "./model"])
    monkeypatch.setattr(histories, "_events", lambda chance: iter(()))
    (state,) = histories.states(tmp_path, 0, [0], 1, 1)
    assert state.step.changed == ("report.rows",)
    assert state.faults == []


def test_the_ratio_of_each_pair_and_its_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    paired = importlib.import_module("paired")
    order = []
    ours = iter([3.0, 2.0, 9.0])
    other = iter([1.0, 2.0, 3.0])

    def side(name, seconds):
        order.append(name)
        return next(seconds)

    result = paired.measure(
        "name", lambda: side("ours", ours), lambda: side("other", other), goal=1.5, pairs=3
    )
    assert order == ["other", "ours", "ours", "other", "other", "ours"]
    assert result.ratios == [3.0, 1.0, 3.0]
    line = capsys.readouterr().out
    for part in ("goal 1.50", "3.000 (1.000 to 3.000) MISSED", "2.00 to 9.00 s over 1.00"):
        assert part in line


def test_planning_is_compared_with_a_snakefile_that_has_as_many_jobs(tmp_path, monkeypatch):
    """Eight jobs of other stages, and the target."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    planning = importlib.import_module("planning")
    (tmp_path / "Snakefile").write_text(planning.snakefile())
    command = planning.Command(["--dry-run", "--config", "groups=2", "shards=3"], tmp_path)
    assert command() > 0
    assert re.search(r"total +15\b", (tmp_path / "output.txt").read_text())
    assert command.cpu[0] > 0
    assert command.megabytes[0] > 10
