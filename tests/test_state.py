"""Values of a sequence do not depend on the sequences that the model ran before."""

import numpy as np
import pytest
import tiny
import torch
import transformers as t
from pipeline import Run, config, hooked

from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.roles.architecture import describe
from outlier_atlas.settings.sites import CHANNEL_SITES, TOKEN_LOSS

POSITIONS = {"max_position_embeddings": 16}
ROPE = {"rope_theta": 1e4}
LONG = {"long_factor": [4.0] * 4, "short_factor": [1.5] * 4, "original_max_position_embeddings": 16}


def dynamic(**more):
    return ROPE | {"rope_type": "dynamic", "factor": 2.0} | more


STATEFUL = {
    "dynamic": t.LlamaConfig(**tiny.SIZES, **POSITIONS, rope_parameters=dynamic()),
    "dynamic-neox": t.GPTNeoXConfig(
        **{k: v for k, v in tiny.SIZES.items() if k != "num_key_value_heads"},
        **POSITIONS, rope_parameters=dynamic(partial_rotary_factor=0.5),
    ),
    "longrope": t.Phi3Config(
        **tiny.SIZES, max_position_embeddings=64, pad_token_id=0,
        original_max_position_embeddings=16,
        rope_parameters=ROPE | LONG | {"rope_type": "longrope", "factor": 4.0},
    ),
    "layer types": t.Gemma3TextConfig(
        **tiny.SIZES, **POSITIONS, head_dim=8, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "full_attention": dynamic(), "sliding_attention": ROPE | {"rope_type": "default"},
        },
    ),
}  # fmt: skip

LENGTHS = (12, 40, 12, 30, 16, 17, 40)
GENERATOR = np.random.default_rng(0)
ROWS = [GENERATOR.integers(2, 300, length).tolist() for length in LENGTHS]


def losses_alone(model, rows):
    """Return the losses of each sequence from a model that has not run before."""
    found = []
    for row in rows:
        whole = t.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        ids = torch.tensor([row])
        with torch.inference_mode():
            logits = whole(ids, use_cache=False).logits[0, :-1].float()
        loss = -logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        found.append(np.concatenate([[np.nan], loss.numpy()]))
    return np.concatenate(found).astype(np.float32)


@pytest.mark.parametrize("kind", STATEFUL)
def test_each_sequence_is_as_a_fresh_model_gives_it(kind, tmp_path):
    model = tiny.checkpoint(tmp_path / "model", STATEFUL[kind])
    architecture = describe(load_config(model))
    assert architecture.one_group is None
    sites = [s for s in CHANNEL_SITES if all(s in taps for taps in architecture.taps)]
    assert {"q", "k", "v", "attn_out", "mlp_out", "mlp_hidden"} <= {*sites}
    want, losses = None, losses_alone(model, ROWS)
    for groups in (1, 3):
        run = Run(tmp_path, config(
            model, ROWS, tmp_path / "data", run={"name": f"in-{groups}"},
            extraction={"sites": sites, "layer_groups": groups, "perplexity": True},
            execution={"batch_size": 1},
        ))  # fmt: skip
        run.prepare()
        tokens = TokenStore.open(run.tokens)
        if want is None:  # one sequence for each model
            alone = [hooked(model, "bfloat16", tokens, sites, [range(s, s + 1)])
                     for s in range(tokens.sequences)]  # fmt: skip
            want = {site: np.concatenate([a[site] for a in alone], axis=1) for site in sites}
        run.extract()
        for site in sites:
            assert np.array_equal(run.array(site), want[site]), f"{site} in {groups} layer groups"
        assert np.array_equal(run.array(TOKEN_LOSS)[:, 0], losses, equal_nan=True)
