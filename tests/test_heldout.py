"""Held-out tokens: of the dataset, after the run's own."""

import pytest
import tiny
from ablated import HELDOUT, NOTHING, ROWS, made
from pipeline import Run, config

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.settings.configuration import load


def test_held_out_are_the_sequences_after_the_runs_own(llama, tmp_path):
    run = made(llama, tmp_path, **NOTHING)
    run.ablate()
    heldout = TokenStore.open(run.heldout)
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
            for store in map(TokenStore.open, (run.tokens, run.heldout))
        ]
    assert taken[20][1] == taken[22][0][20:]
