"""Models that do not predict the next token, and sequences longer than a model's positions."""

import numpy as np
import pytest
import tiny
import torch
import transformers as t
from pipeline import Run, config
from refused import assert_readable

from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.roles.architecture import describe

SMALL = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
         "num_attention_heads": 4, "pad_token_id": 0}  # fmt: skip
ENCODER = SMALL | {"max_position_embeddings": 40}
GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 40,
        "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
BIDIRECTIONAL = tiny.SIZES | {"head_dim": 8, "use_bidirectional_attention": True}


def refused(message, action):
    with pytest.raises(ValueError) as raised:
        action()
    assert message in str(raised.value)
    assert_readable(str(raised.value))


def saved(model, folder):
    model.save_pretrained(folder)
    tiny.tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (t.BertForMaskedLM(t.BertConfig(**ENCODER)), "is_decoder is False"),
        (t.RobertaForMaskedLM(t.RobertaConfig(**ENCODER)), "is_decoder is False"),
        (t.ElectraForMaskedLM(t.ElectraConfig(**ENCODER)), "is_decoder is False"),
        (
            t.Gemma3TextModel(t.Gemma3TextConfig(**BIDIRECTIONAL)),
            "use_bidirectional_attention is True",
        ),
        (
            t.XLNetLMHeadModel(t.XLNetConfig(vocab_size=320, d_model=32, n_layer=2, n_head=4)),
            "attn_type is 'bi'",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_models_whose_tokens_attend_to_later_ones_are_refused(model, why, tmp_path):
    folder = saved(model, tmp_path / "model")
    refused(
        f"{type(model).__name__} is not a causal decoder: its tokens attend to later ones ({why} "
        f"in its config.json)",
        lambda: describe(load_config(folder)),
    )


@pytest.mark.parametrize("tied", [True, False])
def test_without_a_language_model_head_there_is_no_perplexity(tied, tmp_path):
    settings = t.LlamaConfig(**tiny.SIZES, pad_token_id=0, tie_word_embeddings=tied)
    folder = saved(t.LlamaForSequenceClassification(settings), tmp_path / "model")

    def run(perplexity):
        run = Run(tmp_path, config(
            folder, [[5, 6, 7, 8]], tmp_path / "data",
            extraction={"sites": ["resid_post"], "perplexity": perplexity},
        ))  # fmt: skip
        run.prepare()
        run.extract()
        return run.array("resid_post")

    refused("names LlamaForSequenceClassification, which has no language-model", lambda: run(True))
    assert np.isfinite(run(False)).all()


LIMITED = [
    (t.GPT2Config(**GPT2), 40, "n_positions = 40"),
    (t.GPTJConfig(**GPT2, rotary_dim=4), 40, "n_positions = 40"),
    (t.CodeGenConfig(**GPT2, rotary_dim=4), 40, "n_positions = 40"),
    (t.CTRLConfig(**GPT2, dff=64), 40, "n_positions = 40"),
    (
        t.MptConfig(d_model=32, n_heads=4, n_layers=4, vocab_size=320, max_seq_len=40), 40,
        "max_seq_len = 40",
    ),
    # RoBERTa counts from behind the position of padding.
    (t.RobertaConfig(**(ENCODER | {"pad_token_id": 1}), is_decoder=True), 38,
     "max_position_embeddings = 40"),
    (t.OPTConfig(vocab_size=320, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64,
                 num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=40), 40,
     "max_position_embeddings = 40"),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "limit", "entry"), LIMITED, ids=lambda v: str(v)[:10])
def test_sequences_are_as_long_as_there_are_positions(architecture, limit, entry, tmp_path):
    folder = tiny.checkpoint(tmp_path / "model", architecture)
    whole = tiny.auto_class(architecture).from_pretrained(folder).eval()
    with torch.inference_mode():
        whole(torch.full((1, limit), 5), use_cache=False)
        with pytest.raises((IndexError, RuntimeError)):
            whole(torch.full((1, limit + 1), 5), use_cache=False)
    described = describe(load_config(folder))
    described.check_length(limit)
    refused(
        f"dataset.sequence_length = {limit + 1}: {described.model_class.__name__} has positions "
        f"for {limit} tokens ({entry} in its config.json); set at most {limit}",
        lambda: described.check_length(limit + 1),
    )


def test_rotations_go_on_beyond_what_was_trained(tmp_path, caplog):
    settings = t.LlamaConfig(**tiny.SIZES, max_position_embeddings=16)
    described = describe(load_config(tiny.checkpoint(tmp_path / "model", settings)))
    described.check_length(16)
    assert not caplog.records
    described.check_length(17)
    assert (
        "longer than LlamaForCausalLM was trained for (max_position_embeddings = 16" in caplog.text
    )


@pytest.mark.parametrize("kind", [t.OlmoConfig, t.OlmoeConfig])
def test_queries_keys_and_values_are_those_before_clipping(kind, tmp_path):
    """Clipping is in place; the store has the output of the projection."""
    more = {"num_experts": 4, "num_experts_per_tok": 2} if kind is t.OlmoeConfig else {}
    folder = tiny.checkpoint(
        tmp_path / "model", kind(**tiny.SIZES, pad_token_id=0, clip_qkv=1e-3, **more)
    )
    run = Run(tmp_path, config(
        folder, [[5, 6, 7, 8, 9, 10]], tmp_path / "data",
        extraction={"sites": ["attn_in", "q", "k", "v"], "layers": [0, 1]},
    ))  # fmt: skip
    run.prepare()
    run.extract()
    whole = tiny.auto_class(load_config(folder)).from_pretrained(folder, dtype=torch.bfloat16)
    for layer in (0, 1):
        given = torch.from_numpy(run.array("attn_in")[layer].astype(np.float32)).bfloat16()[None]
        attention = whole.model.layers[layer].self_attn
        projections = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}
        for site, projection in projections.items():
            values = projection(given)[0].float().detach().numpy()
            assert np.abs(values).max() > 1e-3
            assert np.array_equal(run.array(site)[layer].astype(np.float32), values), site
