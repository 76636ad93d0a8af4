"""What the ablation stage computes and takes: what changed alone, within bounds."""

import pytest
import torch
from ablated import NOTHING, counted, made

from outlier_atlas.ablation.schedule import schedule
from outlier_atlas.ablation.streams import Streams
from outlier_atlas.extraction import layer_group
from outlier_atlas.roles.lm_head import Head
from outlier_atlas.settings.configuration import load


def test_only_what_changed_is_computed(llama, tmp_path, monkeypatch):
    """Four layer groups of one layer; a variant of layer 2 runs layers 2 and 3 alone."""
    run = made(
        llama, tmp_path, 4, targets=[], random_draws=1, interventions=["zero"],
        channels=[["resid_post", 2, 3], ["mlp_in", 3, 3]], weights=[[1, 0, 0]],
    )  # fmt: skip
    passes = counted(monkeypatch)
    run.ablate()
    # The model as it is; a weight of layer 1 and a random one; two of layer 2; two of layer 3.
    assert passes == {0: 2 * 1, 1: 2 * 3, 2: 2 * 5, 3: 2 * 7}
    left = [path.name for path in (run.folder / "ablation").rglob("*.rows")]
    assert len(left) == 7
    assert all(name.endswith("-4.rows") for name in left), "residual streams are gone"
    passes.clear()
    run.ablate()
    assert passes == {}, "nothing is done again"


def test_what_was_finished_before_a_kill_is_not_done_again(llama, tmp_path, monkeypatch):
    want = made(
        llama, tmp_path, 3, name="whole", targets=[], channels=[["resid_post", 1, 3]],
        random_draws=2, interventions=["zero"],
    )  # fmt: skip
    want.ablate()
    run = made(
        llama, tmp_path, 3, targets=[], channels=[["resid_post", 1, 3]], random_draws=2,
        interventions=["zero"],
    )  # fmt: skip
    passes = counted(monkeypatch)
    steps = 0
    write = Streams.writing

    def killed(self, place):
        nonlocal steps
        steps += 1
        if steps % 3 == 0:
            raise KeyboardInterrupt
        return write(self, place)

    monkeypatch.setattr(Streams, "writing", killed)
    for _ in range(10):
        try:
            run.ablate()
            break
        except KeyboardInterrupt:
            continue
    # A kill costs the step that it hit: it came before that step's first forward pass.
    assert passes == {0: 2 * 1, 1: 2 * 4, 2: 2 * 4}
    assert run.table("ablations") == want.table("ablations")


def test_another_target_later_runs_alone(llama, tmp_path, monkeypatch):
    run = made(llama, tmp_path, 4, channels=[["resid_post", 2, 3]], **NOTHING)
    run.ablate()
    passes = counted(monkeypatch)
    more = made(
        llama, tmp_path, 4, channels=[["resid_post", 2, 3], ["resid_post", 1, 4]],
        interventions=["zero"], **NOTHING,
    )  # fmt: skip
    more.ablate()
    # The boundary before it is gone: the model as it is runs up to there, and no further.
    assert passes == {0: 2, 1: 2, 2: 2, 3: 2}


@pytest.mark.parametrize(
    ("there", "want"),
    [
        ({}, [["u"], ["u", "a"], ["u", "a"]]),
        ({("u", 1)}, [[], ["u", "a"], ["u", "a"]]),
        ({("u", 3)}, [["u"], ["a"], ["a"]]),
        ({("u", 3), ("u", 1)}, [[], ["a"], ["a"]]),
        ({("u", 1), ("a", 2)}, [[], ["u"], ["u", "a"]]),
        ({("u", 2), ("a", 2)}, [[], [], ["u", "a"]]),
        ({("u", 2), ("a", 3)}, [[], [], ["u"]]),
        ({("u", 3), ("a", 3)}, [[], [], []]),
    ],
)
def test_schedule(there, want):
    assert schedule("u", {"u": 0, "a": 1}, 3, there) == want


def test_memory_is_bounded_by_a_sequence(llama, tmp_path, monkeypatch):
    """Whatever the number of held-out tokens: one sequence in a pass, and its rows in memory."""
    sizes = []
    read, losses = Streams.read, Head.losses

    def seen(self, place, sequence, dtype):
        rows = read(self, place, sequence, dtype)
        if dtype == torch.bfloat16:  # a residual stream, and not losses for the table
            sizes.append(len(rows))
        return rows

    def head(self, hidden, ids):
        assert hidden.shape[0] == 1
        return losses(self, hidden, ids)

    run = made(llama, tmp_path, 2, channels=[["resid_post", 0, 3]], **NOTHING)
    monkeypatch.setattr(Streams, "read", seen)
    monkeypatch.setattr(Head, "losses", head)
    run.ablate()
    assert sizes == [10, 8] * 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), r"more extraction\.layer_groups \(now 1\)"),
        (RuntimeError("MPS backend out of memory"), r"more extraction\.layer_groups \(now 1\)"),
        (MemoryError(), r"more extraction\.layer_groups \(now 1\)"),
        (RuntimeError("shapes do not fit"), "shapes do not fit"),
    ],
)
def test_out_of_memory_says_what_to_do_on_every_device(error, said, llama, tmp_path, monkeypatch):
    losses = Head.losses

    def full(self, hidden, ids):
        if hidden.is_meta:  # the plan, which comes before it
            return losses(self, hidden, ids)
        raise error

    run = made(llama, tmp_path, 1, **NOTHING)
    monkeypatch.setattr(Head, "losses", full)
    with pytest.raises((ValueError, RuntimeError), match=said):
        run.ablate()


def test_what_cannot_fit_is_refused_before_it_is_loaded(llama, tmp_path, monkeypatch):
    run = made(llama, tmp_path, 2, **NOTHING)
    section = run.settings.model_dump(mode="json") | {"execution": {"device_memory": "300MiB"}}
    run.settings = load(section, "run")
    monkeypatch.setattr(layer_group, "load_group", lambda *_: pytest.fail("a weight was read"))
    said = r"layer_groups = 2: a job takes up to 34\d.* MiB, and execution\.device_memory has 300"
    with pytest.raises(ValueError, match=said):
        run.ablate()
