"""Ablation: each variant equals an edit of the whole model, and only what changed is computed."""

import shutil

import numpy as np
import pytest
import tiny
import torch
import transformers as t
from pipeline import Run, config
from planted import ROWS as MARKED_ROWS
from planted import super_weight
from safetensors.torch import load_file
from test_report import rendered

from outlier_atlas.ablation.run import Ablation
from outlier_atlas.ablation.schedule import schedule
from outlier_atlas.ablation.streams import Streams
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.extraction import loading
from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.model.head import Head
from outlier_atlas.model.source import load_config
from outlier_atlas.settings.configuration import load

ROWS = [
    [5, 17, 200, 9, 33, 41, 7, 250, 11, 19],
    [40, 6, 6, 90, 280, 14, 8, 77, 120, 64],
    [12, 99, 31, 7, 7, 201, 18, 44, 250, 3],
    [8, 15, 16, 23, 42, 108, 4, 100],
]
HELDOUT = ROWS[2:]
NOTHING = {"targets": [], "random_draws": 0}

# Where a llama has its sites: the module, and whether it is what goes in or what comes out.
PLACES = {
    "resid_pre": ("", "in"), "attn_in": ("self_attn", "in"), "q": ("self_attn.q_proj", "out"),
    "k": ("self_attn.k_proj", "out"), "v": ("self_attn.v_proj", "out"),
    "attn_hidden": ("self_attn.o_proj", "in"), "attn_out": ("self_attn", "out"),
    "mlp_in": ("mlp", "in"), "mlp_hidden": ("mlp.down_proj", "in"), "mlp_out": ("mlp", "out"),
    "resid_post": ("", "out"),
}  # fmt: skip


def whole(model):
    return tiny.auto_class(load_config(model)).from_pretrained(model, dtype=torch.bfloat16).eval()


def loss(loaded, rows=HELDOUT):
    """Mean over the tokens of whole sequences, from all logits at once."""
    losses = []
    with torch.inference_mode():
        for row in rows:
            logits = loaded(torch.tensor([row]), use_cache=False).logits[0].float()
            own = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(row[1:])[:, None])
            losses.append(-own[:, 0])
    return torch.cat(losses).double().mean().item()


def set_channel(loaded, site, layer, channel, value):
    """The same with a hook on a whole llama, in place and without anything of the project."""
    path, side = PLACES[site]
    module = loaded.get_submodule(f"model.layers.{layer}.{path}".rstrip("."))

    def change(tensor):
        changed = tensor.clone()
        changed[:, :, channel] = value
        return changed

    def before(_, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    def after(_, args, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    if side == "in":
        module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        module.register_forward_hook(after)


def stage(run):
    """The ablation stage of a run, as `Run.ablate` makes it."""
    return Ablation(
        run.settings.ablation.model_dump(mode="json"), run.folder, run.store_record, run.tokens,
        run.folder / "heldout.parquet", run.model_record, run.resources, run.tables, device="cpu",
    )  # fmt: skip


def made(model, tmp_path, groups=1, name="run", extraction=None, detection=None, **ablation):
    data = config(
        model, ROWS, tmp_path / "data", run={"name": name}, dataset={"sequences": 2},
        extraction={"sites": ["resid_post"], "layer_groups": groups} | (extraction or {}),
        detection=detection or {}, ablation={"sequences": 2} | ablation,
    )  # fmt: skip
    run = Run(tmp_path, data)
    run.all()
    return run


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_unaltered_chain_is_the_whole_model(llama, qwen3_moe, groups, tmp_path):
    for model in (llama, qwen3_moe):
        run = made(model, tmp_path / model.name, groups, **NOTHING)
        run.ablate()
        (row,) = run.table("ablations")
        assert row["loss"] == loss(whole(model))
        assert row["perplexity"] == np.exp(row["loss"])
        assert (row["target"], row["intervention"], row["ratio"]) == ("none", "none", 1.0)
        assert row["tokens"] == 9 + 7


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_channels_set_to_zero_and_to_their_mean_are_hooks_on_the_whole_model(
    llama, groups, tmp_path
):
    places = [
        [site, layer, 3] for site in PLACES for layer in ((0, 3) if "resid" in site else (2,))
    ]
    run = made(
        llama, tmp_path, groups, extraction={"sites": list(PLACES)},
        channels=[*places, ["mlp_in", "all", 7]], **NOTHING,
    )  # fmt: skip
    run.ablate()
    rows = run.table("ablations")[1:]
    assert len(rows) == 2 * (len(places) + 1)
    for index, row in enumerate(rows):
        site, layer, channel = [*places, ["mlp_in", "all", 7]][index // 2]
        loaded = whole(llama)
        for each in range(4) if layer == "all" else [layer]:
            mean = run.array(site)[each, :, channel].astype(np.float64).mean()
            value = 0.0 if row["intervention"] == "zero" else mean
            set_channel(loaded, site, each, channel, value)
        assert row["loss"] == loss(loaded), (site, layer, row["intervention"])
        assert (row["target"], row["site"], row["channels"]) == ("channel", site, str(channel))
    assert [row["intervention"] for row in rows[:2]] == ["zero", "mean"]
    assert (rows[-1]["first_layer"], rows[-1]["last_layer"]) == (0, 3)
    assert len({row["loss"] for row in rows}) > len(rows) // 2, "they do change the loss"


def test_means_of_sites_that_are_not_stored_come_from_their_summaries(llama, tmp_path):
    channels = [[site, layer, 3] for site in ("mlp_in", "resid_post") for layer in (0, 3)]
    runs = [
        made(
            llama, tmp_path, 2, name=name, channels=channels, interventions=["mean"],
            extraction={"sites": ["mlp_in", "resid_post"], "store": store, "sequence_shards": 2,
                        "advanced": {"chunk_tokens": 4}}, **NOTHING,
        )
        for name, store in (("stored", ["mlp_in", "resid_post"]), ("summarized", []))
    ]  # fmt: skip
    for run in runs:
        run.ablate()
    stored, summarized = (stage(run).means for run in runs)
    for site, layer, channel in channels:
        x = runs[0].array(site)[layer, :, channel].astype(np.float64)
        # Sums of float64 in another order.
        assert stored(site, layer, channel) == pytest.approx(x.mean(), rel=1e-13)
        assert summarized(site, layer, channel) == pytest.approx(x.mean(), rel=1e-13)
    # As float32, in which a channel is set, they are the same.
    losses = [[row["loss"] for row in run.table("ablations")] for run in runs]
    assert losses[0] == losses[1]


def test_a_mean_comes_from_a_summary_of_a_lower_floor(llama, tmp_path):
    """Which serves for the higher one that is asked for now, and is not made again."""
    target = {"channels": [["resid_post", 2, 3]], "interventions": ["mean"]} | NOTHING
    losses = []
    for advanced in ({"massive_floor": 8.0}, {}):
        extraction = {"store": [], "advanced": advanced}
        run = made(llama, tmp_path, 2, extraction=extraction, **target)
        run.ablate()
        losses.append(run.table("ablations")[1]["loss"])
        assert len([*run.folder.glob("summaries/*")]) == 1
    assert losses[0] == losses[1]


def test_a_lost_summary_is_made_anew(llama, tmp_path):
    run = made(
        llama, tmp_path, 2, channels=[["resid_post", 2, 3]], extraction={"store": []}, **NOTHING
    )
    (path,) = (run.folder / "summaries").glob("resid_post@*/layer-2/*")
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    with pytest.raises(ValueError, match=r"resid_post, layer 2, chunk 0: .* run again"):
        run.ablate()
    run.extract()
    assert path.read_bytes() == before
    run.ablate()


@pytest.mark.parametrize("architecture", [
    t.LlamaConfig(**tiny.SIZES),
    t.GPT2Config(vocab_size=320, n_embd=32, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=1),
], ids=lambda c: c.model_type)  # fmt: skip
def test_a_weight_set_to_zero_is_that_of_the_whole_model(architecture, tmp_path):
    """Row and column are output and input channel, also where a matrix is stored transposed."""
    model = tiny.checkpoint(tmp_path / "model", architecture)
    gpt2 = architecture.model_type == "gpt2"
    run = made(model, tmp_path, 2, weights=[[2, 5, 40], [0, 31, 63]], targets=[], random_draws=2)
    run.ablate()
    rows = run.table("ablations")
    assert [row["target"] for row in rows] == ["none", *["weight"] * 6]
    assert [row["intervention"] for row in rows[1:4]] == ["zero", "random", "random"]
    path = "transformer.h.{}.mlp.c_proj" if gpt2 else "model.layers.{}.mlp.down_proj"
    for row in rows[1:]:
        loaded = whole(model)
        weight = loaded.get_submodule(path.format(row["first_layer"])).weight
        with torch.no_grad():
            index = (row["row"], row["column"])
            weight[index[::-1] if gpt2 else index] = 0
        assert row["loss"] == loss(loaded)


def planted(folder):
    """A llama with one weight of layer 1 that carries far more than all others."""
    tiny.llama(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][9, 21] = 60
    weights["model.layers.1.mlp.up_proj.weight"][21] += 0.5
    tiny.save_weights(folder, weights)
    return folder


def test_a_planted_super_weight_matters_more_than_random_ones(tmp_path):
    model = planted(tmp_path / "model")
    run = made(
        model, tmp_path, 2, weights=[[1, 9, 21]], channels=[["resid_post", 1, 9]], targets=[],
        random_draws=4, interventions=["zero"],
    )  # fmt: skip
    run.ablate()
    effect = {}
    for row in run.table("ablations"):
        effect.setdefault((row["target"], row["intervention"]), []).append(
            abs(np.log(row["ratio"]))
        )
    for target in ("weight", "channel"):
        assert min(effect[target, "zero"]) > 2 * max(effect[target, "random"])


def test_a_super_weight_that_the_run_found_is_taken_away(tmp_path):
    """And the largest weights of other layers, which are none, are not."""
    model, weight = super_weight(tmp_path / "model")
    data = config(
        model, [*MARKED_ROWS, *MARKED_ROWS], tmp_path / "data", dataset={"sequences": 2},
        extraction={"sites": ["mlp_hidden", "mlp_out"]},
        ablation={"sequences": 2, "random_draws": 0, "targets": ["super_weights"]},
    )  # fmt: skip
    run = Run(tmp_path, data)
    run.all()
    run.ablate()
    (row,) = (r for r in run.table("ablations") if r["target"] != "none")
    assert len(run.table("super_weights")) > 1
    assert row["target"] == "super_weight"
    found = (row["first_layer"], row["row"], row["column"])
    assert found == (weight.layer, weight.output, weight.input)


def test_findings_of_the_run_are_taken_away(llama, tmp_path):
    detection = {
        "llm_int8": {"threshold": 2.7, "sites": ["attn_in"]},
        "massive_activations": {"absolute": 0.02, "ratio": 3.5},
    }
    run = made(
        llama, tmp_path, 2, extraction={"sites": ["attn_in", "resid_post"]}, detection=detection,
        most=2, random_draws=2,
    )  # fmt: skip
    run.ablate()
    rows = run.table("ablations")
    features = sorted(r["channel"] for r in run.table("llm_int8_features") if r["outlier_feature"])
    together = [row for row in rows if row["target"] == "outlier_features"]
    assert 0 < len(features) < 16
    assert [row["intervention"] for row in together] == ["zero", "mean", "random", "random"]
    assert together[0]["channels"] == " ".join(map(str, features))
    assert {(row["site"], row["first_layer"], row["last_layer"]) for row in together} == {
        ("attn_in", 0, 3)
    }
    massive = [row for row in rows if row["target"] == "massive_channel"]
    found = run.table("massive_channels")
    assert len(massive) == 2 * 4
    outliers = {*features, *(int(row["channels"]) for row in massive if row["draw"] is None)}
    for row in massive:
        own = [r["layer"] for r in found if str(r["channel"]) == row["channels"]]
        assert row["draw"] is not None or row["first_layer"] == row["last_layer"] == min(own)
    for row in [*together, *massive]:
        drawn = {int(channel) for channel in row["channels"].split()}
        assert row["draw"] is None or not drawn & outliers
    assert len({row["channels"] for row in together}) == 3, "another draw each time"
    loaded = whole(llama)
    for layer in range(4):
        for channel in features:
            set_channel(loaded, "attn_in", layer, channel, 0)
    assert together[0]["loss"] == loss(loaded)
    before = [dict(row) for row in rows]
    run.ablate()
    assert run.table("ablations") == before


def test_held_out_are_the_sequences_after_the_runs_own(llama, tmp_path):
    run = made(llama, tmp_path, **NOTHING)
    run.ablate()
    heldout = TokenStore.open(run.folder / "heldout.parquet")
    assert [heldout.sequence(i).tolist() for i in range(heldout.sequences)] == HELDOUT
    run.settings = load(
        run.settings.model_dump(mode="json", exclude={"ablation"}) | {"ablation": {"sequences": 3}},
        "run",
    )
    with pytest.raises(ValueError, match=r"dataset.sequences = 2 and ablation.sequences = 3"):
        run.ablate()


def test_held_out_tokens_go_on_in_the_document_that_the_run_ends_in(llama, tmp_path):
    """A long document is tokenized as far as the run's own sequences and those after them reach."""
    (tmp_path / "text.txt").write_text(" ".join(tiny.SENTENCES * 40))
    text = {"source": str(tmp_path / "text.txt"), "packing": "concat", "sequence_length": 8}
    taken = {}
    for sequences in (20, 22):
        data = config(llama, ROWS, tmp_path / "data", ablation={"sequences": 2} | NOTHING)
        data["dataset"] = text | {"sequences": sequences}
        run = Run(tmp_path / str(sequences), data)
        run.all()
        run.ablate()
        taken[sequences] = [
            [store.sequence(i).tolist() for i in range(store.sequences)]
            for store in map(TokenStore.open, (run.tokens, run.folder / "heldout.parquet"))
        ]
    assert taken[20][1] == taken[22][0][20:]


def counted(monkeypatch):
    """(layers, how many forward passes) as they are made."""
    passes = {}
    directly = LayerGroup.run_directly

    def run(self, batch, keep, altered):
        assert len(batch) == 1, "one sequence at a time"
        first = int(self._first_path.rsplit(".", 1)[1])
        passes[first] = passes.get(first, 0) + 1
        return directly(self, batch, keep, altered)

    monkeypatch.setattr(LayerGroup, "run_directly", run)
    return passes


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
    left = [path.name for path in (run.folder / "ablation").rglob("*.npy")]
    assert len(left) == 7
    assert all(name.endswith("-4.npy") for name in left), "residual streams are gone"
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

    def killed(self, place, width):
        nonlocal steps
        steps += 1
        if steps % 3 == 0:
            raise KeyboardInterrupt
        return write(self, place, width)

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

    def seen(self, place, start, stop, dtype):
        if dtype == torch.bfloat16:  # a residual stream, and not losses for the table
            sizes.append(stop - start)
        return read(self, place, start, stop, dtype)

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
    monkeypatch.setattr(loading, "load_group", lambda *_: pytest.fail("a weight was read"))
    said = r"layer_groups = 2: a job takes up to 34\d.* MiB, and execution\.device_memory has 300"
    with pytest.raises(ValueError, match=said):
        run.ablate()


@pytest.mark.parametrize(
    ("ablation", "said"),
    [
        ({"channels": [["resid_post", 4, 3]]}, "the model has no layer 4; it has 4"),
        ({"channels": [["resid_post", 1, 32]]}, "resid_post has 32 channels, and no channel 32"),
        ({"weights": [[1, 32, 0]]}, "has 32 rows and 64 columns, and no weight"),
        ({"channels": [["mlp_in", 1, 3]]}, r"the mean of mlp_in in layer 1 is not known.*measured"),
    ],
)
def test_what_cannot_be_taken_away_is_said_in_a_sentence(llama, ablation, said, tmp_path):
    run = made(llama, tmp_path, **NOTHING, **ablation)
    with pytest.raises(ValueError, match=said):
        run.ablate()


@pytest.mark.parametrize("architecture", [
    t.Qwen3MoeConfig(
        **tiny.SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    t.GptOssConfig(
        **tiny.SIZES | {"intermediate_size": 32}, head_dim=8, num_local_experts=4,
        num_experts_per_tok=2,
    ),
], ids=lambda c: c.model_type)  # fmt: skip
def test_a_weight_of_an_expert_set_to_zero_is_that_of_the_whole_model(architecture, tmp_path):
    """Experts are as wide as the residual stream: shapes do not say what is row and column."""
    model = tiny.checkpoint(tmp_path / "model", architecture)
    run = made(
        model, tmp_path, 2, expert_weights=[[1, 2, 5, 30], [3, 0, 31, 0]], targets=[],
        random_draws=2,
    )  # fmt: skip
    run.ablate()
    rows = run.table("ablations")
    assert [row["target"] for row in rows] == ["none", *["expert_weight"] * 6]
    assert [row["intervention"] for row in rows[1:4]] == ["zero", "random", "random"]
    assert [row["expert"] for row in rows] == [None, 2, 2, 2, 0, 0, 0]
    assert rows[1]["row"] == 5
    for row in rows[1:]:
        loaded = whole(model)
        experts = loaded.get_submodule(f"model.layers.{row['first_layer']}.mlp.experts")
        place = (row["row"], row["column"])
        with torch.no_grad():
            turned = architecture.model_type == "gpt_oss"
            experts.down_proj[(row["expert"], *(place[::-1] if turned else place))] = 0
        assert row["loss"] == loss(loaded)
    assert len({row["loss"] for row in rows}) > 2, "they do change the loss"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ([0, 8, 0, 0], r"layer 0 has 8 experts, whose .* 32 rows and 16 columns.*\[8, 0, 0\]"),
        ([0, 0, 32, 0], r"no weight \[0, 32, 0\]"),
        ([0, 0, 0, 16], r"no weight \[0, 0, 16\]"),
        ([4, 0, 0, 0], r"has no routed experts in layer 4"),
    ],
)
def test_an_experts_weight_that_there_is_not_is_said(qwen3_moe, place, said, tmp_path):
    run = made(qwen3_moe, tmp_path, **NOTHING, expert_weights=[place])
    with pytest.raises(ValueError, match=said):
        run.ablate()


def test_a_dense_model_has_no_experts_to_take_a_weight_of(llama, tmp_path):
    run = made(llama, tmp_path, **NOTHING, expert_weights=[[0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no routed experts in layer 0"):
        run.ablate()


def test_a_mixture_has_no_down_projection_to_take_a_weight_of(qwen3_moe, tmp_path):
    run = made(qwen3_moe, tmp_path, **NOTHING, weights=[[0, 1, 1]])
    with pytest.raises(ValueError, match="has no mlp_hidden in layer 0 that can be told for sure"):
        run.ablate()


def test_other_tokens_or_another_model_leave_nothing_of_before(llama, tmp_path):
    run = made(llama, tmp_path, **NOTHING)
    run.ablate()
    (before,) = (run.folder / "ablation").iterdir()
    rows = run.folder.parents[1] / "data" / "rows.jsonl"
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([*lines[:2], *lines[:1:-1]]))
    run.ablate()
    (after,) = (run.folder / "ablation").iterdir()
    assert before != after


def test_the_report_shows_the_table_and_random_draws_as_a_range(llama, tmp_path):
    run = made(llama, tmp_path, 2, channels=[["resid_post", 1, 3]], targets=[], random_draws=3)
    run.ablate()
    html, _ = rendered(run)
    assert "Taken away" not in html
    shutil.rmtree(run.figures)
    html, _ = rendered(run, ablations=True)
    assert "channel 3 of resid_post, layer 1" in html
    assert "3 random draws of as many" in html
