"""Sites that are measured and not stored: the same tables, without their values."""

import threading

import numpy as np
import pytest
import tiny
import transformers
from pipeline import Run, config, hooked
from test_heads import FALCON

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.extraction import boundary_cleanup, summaries
from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.extraction.run import extract
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import read_record
from outlier_atlas.settings.sites import CHANNEL_SITES
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.chunks import ChunkFiles
from outlier_atlas.store.commits import CommitFile, revise, without
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.run_files import COMMITS

LONG = [5, 17, 200, 9, 33, 41, 7, 8, 9, 10, 11]
ROWS = [LONG, [40, 6], [1, 2, 3], LONG[::-1], [9, 250, 11], LONG[3:9]]  # chunks of 4 tokens
DENSE = [site for site in CHANNEL_SITES if site != "router_logits"]
ROUTED = ["attn_in", "router_logits", "mlp_in", "mlp_out", "resid_post", "expert_out"]


def a_run(model, folder, name, sites, rows=ROWS, detection=None, **extraction):
    extraction = {"sites": sites, "advanced": {"chunk_tokens": 4}} | extraction
    sections = {"run": {"name": name}, "extraction": extraction, "detection": detection or {}}
    return Run(folder, config(model, rows, folder / "data", **sections))


def tables(run):
    return {path.name: path.read_bytes() for path in sorted(run.tables.iterdir())}


@pytest.fixture(scope="module")
def stored(llama, qwen3_moe, tmp_path_factory):
    """Runs that store everything, by model: the tables to reach."""
    runs = {}
    for name, model, sites in (("llama", llama, DENSE), ("moe", qwen3_moe, ROUTED)):
        runs[name] = a_run(model, tmp_path_factory.mktemp(name), name, sites)
        runs[name].all()
    return runs


@pytest.mark.parametrize(("groups", "shards"), [(1, 1), (2, 1), (3, 4)])
@pytest.mark.parametrize(
    ("name", "sites", "store"),
    [
        ("llama", DENSE, []),
        ("llama", DENSE, ["resid_post", "mlp_hidden"]),
        ("moe", ROUTED, []),
        ("moe", ROUTED, ["expert_out"]),
    ],
)
def test_the_tables_are_those_of_a_run_that_stores_everything(
    name, sites, store, groups, shards, stored, llama, qwen3_moe, tmp_path
):
    model = {"llama": llama, "moe": qwen3_moe}[name]
    cut = {"layer_groups": groups, "sequence_shards": shards}
    run = a_run(model, tmp_path, "unstored", sites, store=store, **cut)
    run.all()
    assert tables(run) == tables(stored[name])
    assert {path.name for path in run.activations.iterdir()} & {*sites} == {*store}
    chunks = [*(run.folder / "boundaries.zarr").rglob("c/*/*")]
    assert bool(chunks) == bool(store and groups > 1)


@pytest.mark.parametrize("writes", [0, 7, 15])
def test_a_run_that_was_killed_goes_on(writes, stored, qwen3_moe, tmp_path, monkeypatch):
    cut = {"layer_groups": 2, "sequence_shards": 2}
    run = a_run(qwen3_moe, tmp_path, "killed", ROUTED, store=[], **cut)
    run.prepare()
    write, left = summaries.write, [10 * writes]

    def stop(*args):
        if not left[0]:
            raise OSError("killed")
        left[0] -= 1
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(summaries, "write", stop)
        with pytest.raises(OSError, match="killed"):
            run.extract()
    run.extract()
    run.detect()
    assert tables(run) == tables(stored["moe"])


def test_another_site_is_computed_though_the_boundaries_have_gone(llama, tmp_path):
    """Two sequence shards share a chunk, whose boundary comes back as one of them makes it anew."""
    cut = {"layer_groups": 2, "sequence_shards": 2, "store": []}
    a_run(llama, tmp_path, "run", ["attn_in", "resid_post"], **cut).all()
    more = a_run(llama, tmp_path, "run", ["attn_in", "mlp_out", "resid_post"], **cut)
    more.all()
    whole = a_run(llama, tmp_path / "whole", "run", ["attn_in", "mlp_out", "resid_post"])
    whole.all()
    assert tables(more) == tables(whole)


def test_a_lost_summary_is_made_anew(stored, qwen3_moe, tmp_path):
    run = a_run(qwen3_moe, tmp_path, "lost", ROUTED, store=[], layer_groups=2, sequence_shards=2)
    run.all()
    for number, site in enumerate(("mlp_out", "expert_out")):
        path = sorted((run.folder / "summaries").glob(f"{site}@*/layer-3/*"))[2 + number]
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{site}, layer 3.*lost .*damaged.* run again"):
            run.detect()
        run.extract()
        run.detect()
        assert tables(run) == tables(stored["moe"])


@pytest.mark.parametrize("before", [{"sequence_shards": 2}, {"sequence_shards": 6}])
def test_other_sequence_shards_leave_summaries_alone(before, llama, tmp_path, monkeypatch):
    sites = ["attn_in", "resid_post"]
    a_run(llama, tmp_path, "run", sites, store=[], **before).all()
    run = a_run(llama, tmp_path, "run", sites, store=[], sequence_shards=3)
    monkeypatch.setattr(summaries, "write", None)
    run.all()
    assert run.table("layer_magnitudes")


def test_more_sequences_leave_alone_what_is_stored(llama, tmp_path):
    """Summaries of a chunk that they share are written anew, in pieces."""
    sites = ["attn_in", "mlp_out", "resid_post"]
    a_run(llama, tmp_path, "run", sites, ROWS[:2], store=["resid_post"]).all()
    run = a_run(llama, tmp_path, "run", sites, store=["resid_post"])
    run.all()
    whole = a_run(llama, tmp_path / "whole", "run", sites)
    whole.all()
    assert tables(run) == tables(whole)


@pytest.fixture
def reads(monkeypatch):
    """The chunks of sites that are read from the store."""
    seen = []
    read = Arrays.read

    def counted(self, target, start, stop):
        seen.append((target.array, target.layer, start))
        return read(self, target, start, stop)

    monkeypatch.setattr(Arrays, "read", counted)
    return seen


def again(run, tmp_path, **detection):
    other = Run(tmp_path, {**run.settings.model_dump(), "detection": detection})
    other.folder, other.store_record, other.tokens = run.folder, run.store_record, run.tokens
    other.model_record = run.model_record
    return other


def test_another_threshold_reads_no_values_down_to_the_floor(llama, tmp_path, reads):
    run = a_run(llama, tmp_path, "run", ["attn_in", "mlp_in", "resid_post"])
    run.all()
    chunks = -(-sum(map(len, ROWS)) // 4)
    assert len(reads) == len({*reads}) == 3 * 4 * chunks, "each chunk once"
    reads.clear()
    again(run, tmp_path / "a", llm_int8={"threshold": 4.0}).detect()
    again(run, tmp_path / "b", massive_activations={"absolute": 64.0, "ratio": 2.0}).detect()
    again(run, tmp_path / "c", token_norms={"top": 3}, bootstrap={"resamples": 40}).detect()
    assert not reads
    lower = again(run, tmp_path / "d", llm_int8={"threshold": 0.5})
    lower.detect()
    assert {site for site, *_ in reads} == {"attn_in", "mlp_in"}
    assert len(reads) == 2 * 4 * chunks
    outliers = np.abs(run.array("attn_in")) >= 0.5, np.abs(run.array("mlp_in")) >= 0.5
    rows = lower.table("llm_int8_features")
    assert sum(row["outlier_values"] for row in rows) == sum(o.sum() for o in outliers) > 0
    reads.clear()
    again(run, tmp_path / "e", llm_int8={"threshold": 0.75}).detect()
    assert not reads, "summaries with a lower floor are kept"


def test_below_the_floor_an_unstored_site_says_so_before_anything_runs(llama, tmp_path):
    asked = {"store": ["mlp_in"], "detection": {"llm_int8": {"threshold": 3.0}}}
    with pytest.raises(ValueError, match=r"down to 3 at attn_in.* from 4: raise .*outlier_floor"):
        a_run(llama, tmp_path, "run", ["attn_in", "mlp_in"], **asked)
    lower = {"chunk_tokens": 4, "outlier_floor": 3.0}
    run = a_run(llama, tmp_path, "run", ["attn_in", "mlp_in"], advanced=lower, **asked)
    run.all()
    assert run.table("layer_magnitudes")


def test_tokens_cannot_be_left_out_of_what_is_not_stored(llama, tmp_path):
    exclude = {"exclude": {"token_ids": [9]}}
    with pytest.raises(ValueError, match=r"detection\.exclude: .* attn_in, .*extraction\.store"):
        a_run(llama, tmp_path, "run", ["attn_in"], store=[], detection=exclude)


def test_what_a_model_overwrites_in_place_is_copied_before(tmp_path, monkeypatch):
    """Falcon adds attention's output to the tensor that its MLP returned, in place.

    The writer's threads look at a tensor only once the forward pass of its batch has ended, so
    whatever they see of a tensor that was not copied has been overwritten.
    """
    ended = threading.Event()
    run_batch, take, write = LayerGroup.run, summaries.SummaryWriter.take, Arrays.write

    def run_and_tell(self, batch, keep):
        ended.clear()
        try:
            run_batch(self, batch, keep)
        finally:
            ended.set()

    def late(function):
        def called(*args):
            assert ended.wait(60)
            return function(*args)

        return called

    monkeypatch.setattr(LayerGroup, "run", run_and_tell)
    monkeypatch.setattr(summaries.SummaryWriter, "take", late(take))
    monkeypatch.setattr(Arrays, "write", late(write))
    model = tiny.checkpoint(tmp_path / "model", transformers.FalconConfig(**FALCON))
    runs = {}
    for name, store in ("stored", "all"), ("unstored", []):
        runs[name] = a_run(model, tmp_path, name, ["mlp_out"], [LONG], store=store)
        runs[name].all()
    tokens = TokenStore.open(runs["stored"].tokens)
    seen = hooked(model, "bfloat16", tokens, ["mlp_out"], [range(1)])
    assert np.array_equal(runs["stored"].array("mlp_out"), seen["mlp_out"])
    assert tables(runs["unstored"]) == tables(runs["stored"])


SITES = ["attn_in", "resid_post"]


@pytest.fixture(scope="module")
def small(llama, tmp_path_factory):
    """A run that stores everything, the arrays and tables to reach."""
    run = a_run(llama, tmp_path_factory.mktemp("small"), "run", SITES)
    run.all()
    return run


def boundaries(run):
    return [path for path in (run.folder / "boundaries.zarr").rglob("c/*/*") if path.is_file()]


@pytest.mark.parametrize("shards", [1, 4])
def test_boundaries_that_were_read_are_computed_again_by_the_command_that_needs_them(
    shards, small, llama, tmp_path
):
    """Chunks that sequence shards share are among them; no error says that they are damaged."""

    def changed(**extraction):
        cut = {"layer_groups": 3, "sequence_shards": shards} | extraction
        run = a_run(llama, tmp_path, "run", SITES, **cut)
        run.all()
        assert tables(run) == tables(small)
        return run

    assert not boundaries(changed(store=[]))
    stored = changed(store="all")
    assert np.array_equal(stored.array("attn_in"), small.array("attn_in"))
    assert boundaries(stored)
    assert not boundaries(changed(store=[]))
    lower = {"chunk_tokens": 4, "outlier_floor": 2.0}
    assert not boundaries(changed(store=[], advanced=lower))
    assert not boundaries(changed(store=[], advanced=lower, layer_groups=2))
    changed(store=SITES).verify()


def test_boundaries_that_an_older_version_deleted_are_computed_again(small, llama, tmp_path):
    """Their commits are still there."""
    cut = {"layer_groups": 3, "sequence_shards": 2}
    a_run(llama, tmp_path, "run", SITES, store=["attn_in"], **cut).all()
    run = a_run(llama, tmp_path, "run", SITES, store="all", **cut)
    for path in boundaries(run):
        path.unlink()
    run.all()
    assert tables(run) == tables(small)


def test_a_summary_of_the_last_layer_group_is_computed_again_at_once(small, llama, tmp_path):
    cut = {"layer_groups": 3, "sequence_shards": 2}
    run = a_run(llama, tmp_path, "run", SITES, store=[], **cut)
    run.all()
    next((run.folder / "summaries").glob("resid_post@*/layer-3/chunk-1.*")).unlink()
    with pytest.raises(ValueError, match="its summary is lost"):
        run.detect()
    run.extract()
    assert not boundaries(run)
    run.detect()
    assert tables(run) == tables(small)


def test_at_most_two_boundaries_are_on_the_disk(llama, tmp_path, monkeypatch):
    run = a_run(llama, tmp_path, "run", SITES, store=[], layer_groups=4)
    run.prepare()
    most, write = [], ChunkFiles.write

    def counted(self, *args):
        written = write(self, *args)
        most.append(len({path.parents[2] for path in boundaries(run)}))
        return written

    monkeypatch.setattr(ChunkFiles, "write", counted)
    run.extract()
    assert max(most) == 2


@pytest.mark.parametrize("at", ["revise", "remove", "append"])
def test_a_kill_while_boundaries_go_loses_nothing(at, small, llama, tmp_path, monkeypatch):
    """Between the commits, which go first, and the files."""
    cut = {"layer_groups": 3, "sequence_shards": 2, "store": []}
    run = a_run(llama, tmp_path, "run", SITES, **cut)
    run.prepare()
    of = {"revise": (boundary_cleanup, "revise"), "remove": (ChunkFiles, "remove"),
          "append": (CommitFile, "append")}[at]  # fmt: skip
    act, calls = getattr(*of), []

    def killed_after(*args):
        calls.append(act(*args))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return calls[-1]

    with monkeypatch.context() as patch:
        patch.setattr(*of, killed_after)
        with pytest.raises(KeyboardInterrupt):
            run.extract()
    run.extract()
    assert not boundaries(run)
    run.detect()
    assert tables(run) == tables(small)
    run.verify()


def test_a_boundary_that_another_shard_has_yet_to_read_stays(llama, tmp_path):
    """Of a chunk that both have committed: a sequence that reaches into it is read again."""
    cut = {"layer_groups": 2, "sequence_shards": 2, "store": []}
    whole = a_run(llama, tmp_path / "whole", "run", SITES, [LONG[:6], LONG], **cut)
    whole.all()
    run = a_run(llama, tmp_path, "run", SITES, [LONG[:6], LONG], **cut)
    run.prepare()
    for group, shard in ((0, 0), (0, 1), (1, 1)):
        extract(run.job(group, shard))
    first = run.job(1, 1)
    work = Work(
        Layout.from_record(read_record(run.store_record)), TokenStore.open(run.tokens),
        read_record(run.model_record)["fingerprint"], 1, 1,
    )  # fmt: skip
    shared, after = work.rows[0].chunk, work.rows[1]
    assert work.rows[0].start % 4, "a chunk that both shards share"

    def forget(commit):
        return without(commit, lambda target: target.layer > 1 and commit.rows == after)

    revise(run.folder / COMMITS, forget)
    extract(run.job(0, 1))
    extract(run.job(1, 0))
    assert (run.folder / f"boundaries.zarr/into_layer_2/c/{shared}/0").exists()
    extract(first)
    assert not boundaries(run)
    run.detect()
    assert tables(run) == tables(whole)


@pytest.mark.parametrize(("before", "after"), [(8, 4), (4, 8), (4, 6)])
def test_summaries_of_chunks_of_another_size_do_not_count(before, after, llama, tmp_path):
    """They would be counted in other chunks, or cut sequences elsewhere."""
    for size in (before, after):
        run = a_run(llama, tmp_path, "run", SITES, store=[], advanced={"chunk_tokens": size})
        run.all()
    whole = a_run(
        llama, tmp_path / "whole", "run", SITES, store=[], advanced={"chunk_tokens": after}
    )
    whole.all()
    assert tables(run) == tables(whole)
