"""Damaged checkpoints of each kind are refused in one line before weights are loaded."""

import json
import shutil
import struct

import pytest
import tiny
import torch
import transformers
from pipeline import Run
from refused import refused
from safetensors.torch import load_file, save_file

from outlier_atlas.checkpoint.source import fetch
from outlier_atlas.extraction.print_plan import print_plan

UP = "model.layers.1.mlp.up_proj.weight"
INDEX = "model.safetensors.index.json"


def config(**changes):
    def damage(folder):
        path = folder / "config.json"
        held = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in held.items() if v is not ...}))

    return damage


def content(name, content):
    def damage(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def cut(name, keep):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])

    return damage


def header(held, length=None):
    """Return a damage that writes a safetensors file of 64 zero bytes under a header."""
    text = held if isinstance(held, bytes) else json.dumps(held).encode()
    start = struct.pack("<Q", len(text) if length is None else length)
    return content("model.safetensors", start + text + bytes(64))


def norm(**changes):
    """Return a damage that writes the header of one tensor of 64 bytes with a wrong entry."""
    right = {"dtype": "BF16", "shape": [32], "data_offsets": [0, 64]}
    return header({"model.norm.weight": right | changes})


def weights(change):
    def damage(folder):
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def index(**entries):
    def damage(folder):
        held = json.loads((folder / INDEX).read_text())
        held["weight_map"] |= entries
        (folder / INDEX).write_text(json.dumps(held))

    return damage


def renamed(name):
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def instead(make):
    """Return a damage that replaces the weights."""

    def damage(folder):
        path = folder / "model.safetensors"
        path.unlink()
        make(path)

    return damage


def quantized(method):
    return config(quantization_config=method)


FETCH = {
    "config: empty": (content("config.json", ""), "config.json: not JSON (Expecting value"),
    "config: cut": (cut("config.json", 80), "config.json: not JSON ("),
    "config: not UTF-8": (content("config.json", b"\xff\xfe"), "config.json: not JSON ("),
    "config: deep": (content("config.json", "[" * 100_000), "config.json: not JSON (maximum"),
    "config: a list": (content("config.json", "[]"), "has no model_type"),
    "config: null": (content("config.json", "null"), "has no model_type"),
    "model_type: missing": (config(model_type=...), "has no model_type"),
    "model_type: a number": (config(model_type=7), "has no model_type"),
    "model_type: whisper": (config(model_type="whisper"), "'whisper' is an encoder-decoder"),
    "model_type: bart": (config(model_type="bart"), "'bart' is an encoder-decoder, not a decoder"),
    "model_type: terminal": (config(model_type="\x1b[2J"), "not a configuration that transform"),
    "architectures: a number": (config(architectures=5), "architectures is '5', and must be a"),
    "architectures: numbers": (config(architectures=[5]), "architectures is '[5]', and must be"),
    "architectures: text": (config(architectures="LlamaModel"), "and must be a list of"),
    "heads: negative": (config(num_attention_heads=-4), "num_attention_heads is -4, and must"),
    "heads: none": (config(num_key_value_heads=0), "num_key_value_heads is 0, and must be a whole"),
    "heads: uneven": (config(num_key_value_heads=3), "is 3, which does not divide num_attention_h"),
    "head_dim: none": (config(head_dim=0), "head_dim is 0, and must be a whole number above 0"),
    "intermediate_size": (config(intermediate_size=-1), "intermediate_size is -1, and must be"),
    "epsilon: NaN": (config(rms_norm_eps=float("nan")), "NaN where a number is expected"),
    "epsilon: negative": (config(rms_norm_eps=-1.0), "rms_norm_eps is -1.0, and must not be neg"),
    "adapter": (content("adapter_config.json", "{}"), "a PEFT adapter (adapter_config.json), not"),
    "index: no metadata": (
        content("model.safetensors.index.json", '{"weight_map": {}}'),
        'has no object "metadata", which transformers reads; add "metadata": {}',
    ),
    "encoder-decoder": (config(is_encoder_decoder=True), "is an encoder-decoder"),
    "layers: text": (config(num_hidden_layers="4"), "'num_hidden_layers' expected int, got str"),
    "layers: a fraction": (config(num_hidden_layers=4.5), "expected int, got float"),
    "layers: true": (config(num_hidden_layers=True), "expected int, got bool"),
    "layers: negative": (config(num_hidden_layers=-1), "num_hidden_layers is -1, and must be a w"),
    "layers: none": (config(num_hidden_layers=0), "num_hidden_layers is 0, and must be a whole"),
    "layers: absurd": (config(num_hidden_layers=10**9), "1000000000, but the checkpoint has"),
    "hidden_size: negative": (config(hidden_size=-32), "hidden_size is -32, and must be"),
    "hidden_size: zero": (config(hidden_size=0), "hidden_size is 0, and must be"),
    "hidden_size: odd": (config(hidden_size=33), "The hidden size (33) is not a multiple of"),
    "vocabulary: negative": (config(vocab_size=-1), "vocab_size is -1, and must be"),
    "epsilon: text": (config(rms_norm_eps="x"), "'rms_norm_eps' expected float, got str"),
    "rotation: incomplete": (
        config(rope_parameters={"rope_type": "yarn"}),
        "Missing required keys",
    ),
    "dtype: unknown": (config(dtype="nonsense"), "no attribute 'nonsense'"),
    "auto_map: a number": (config(auto_map=7), "auto_map is '7', and must be an object"),
    "code of another repository": (
        config(model_type="own", auto_map={"AutoConfig": "else/where--own.Own"}),
        "if you trust that code, set model.trust_remote_code: true",
    ),
    "quantized: gptq": (quantized({"quant_method": "gptq"}), "'gptq') in a way that cannot be"),
    "quantized: bitsandbytes": (
        quantized({"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "take the checkpoint that it was made from",
    ),
    "quantized: nameless": (quantized({"bits": 4}), "has no quant_method"),
    "quantized: a list": (quantized([4]), "quantization_config is '[4]', and must be an object"),
    "quantized: a word": (quantized("fp8"), "quantization_config is 'fp8', and must be an object"),
    "quantized: blocks of none": (
        quantized({"quant_method": "fp8", "weight_block_size": [0, 128]}),
        "weight_block_size '[0, 128]', which is not a pair of sizes",
    ),
    "weights: empty": (content("model.safetensors", ""), "truncated, or not a safetensors file"),
    "weights: seven bytes": (cut("model.safetensors", 7), "truncated, or not a safetensors file"),
    "weights: header cut": (cut("model.safetensors", 500), "truncated, or not a safetensors file"),
    "weights: data cut": (cut("model.safetensors", -100), "damaged safetensors file (incomplete"),
    "weights: absurd length": (header({}, 2**62), "truncated, or not a safetensors file"),
    "weights: long header": (header({}, 200 * 2**20), "truncated, or not a safetensors file"),
    "weights: half a header": (header(b'{"a": {"dtype"'), "damaged safetensors file"),
    "weights: a list": (header([]), "damaged safetensors file"),
    "weights: not UTF-8": (header(b"\xff\xfe\x00\x01"), "damaged safetensors file"),
    "weights: null": (header({"x": None}), "damaged safetensors file"),
    "weights: no dtype": (header({"x": {"shape": [1]}}), "missing field `dtype`"),
    "weights: beyond the end": (norm(data_offsets=[0, 6400]), "damaged safetensors file"),
    "weights: before the start": (norm(data_offsets=[-64, 0]), "damaged safetensors file"),
    "weights: shape and bytes": (norm(shape=[33]), "invalid shape, data type, or offset"),
    "weights: unknown dtype": (norm(dtype="XX"), "unknown variant `XX`"),
    "weights: a pickle": (
        content("model.safetensors", b"\x80\x04\x95" + bytes(200)),
        "model.safetensors: ",
    ),
    "weights: a page": (content("model.safetensors", "<!doctype html>"), "not a safetensors file"),
    "weights: a pointer": (
        content("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid x\n"),
        "a Git LFS pointer, not the weights; run `git lfs pull`",
    ),
    "weights: a folder": (instead(lambda p: p.mkdir()), "model.safetensors: Is a directory"),
    "weights: a dead link": (
        instead(lambda p: p.symlink_to("/nowhere")),
        "model.safetensors: No such file or directory",
    ),
    "weights: none": (weights(dict.clear), "but the checkpoint has only 0 tensors"),
    "weights: float8, unsaid": (
        weights(lambda w: w.update({UP: w[UP].to(torch.float8_e4m3fn)})),
        f"{UP} is stored as F8_E4M3, but its config.json",
    ),
    "weights: booleans": (weights(lambda w: w.update({UP: w[UP].bool()})), "is stored as BOOL"),
    "weights: .pth": (renamed("consolidated.00.pth"), "only pickled weights (consolidated.00.pth)"),
    "weights: .ckpt": (renamed("model.ckpt"), "only pickled weights (model.ckpt)"),
    "weights: .pkl": (renamed("model.pkl"), "which can run code when they are loaded and are"),
    "weights: .gguf": (renamed("m.gguf"), "a folder with m.gguf; set model.source to that file"),
    "weights: .h5": (renamed("tf_model.h5"), "no weights: neither"),
}

INDEXED = {
    "index: not JSON": (content(INDEX, "{"), f"{INDEX}: not a safetensors index; fetch it again"),
    "index: not UTF-8": (content(INDEX, b"\xff"), "not a safetensors index"),
    "index: deep": (content(INDEX, "[" * 100_000), "not a safetensors index"),
    "index: no map": (content(INDEX, "{}"), "not a safetensors index"),
    "index: a list": (content(INDEX, '{"weight_map": []}'), "not a safetensors index"),
    "index: an empty map": (content(INDEX, '{"weight_map": {}}'), "lists no file"),
    "index: a number": (index(x=7), "not a safetensors index"),
    "index: up and away": (index(x="../../m/model.safetensors"), "lists '../../m/model.safetenso"),
    "index: an absolute path": (index(x="/etc/passwd"), "lists '/etc/passwd', which is not a"),
    "index: the folder": (index(x="."), "lists '.', which is not a file in its folder"),
    "index: a pickle": (index(x="pytorch_model.bin"), "which is not a safetensors file"),
    "index: an escape": (index(x="\x1b[2J.safetensors"), r"lists '\x1b[2J.safetensors', which is"),
    "experts: more than there are": (
        config(num_experts_per_tok=99),
        "num_experts_per_tok is 99, but the model has 8 experts",
    ),
}

LATER = {
    "activation: unknown": ("store", config(hidden_act="nonsense"), "('nonsense' is not known)"),
    "model_type: vit": ("store", config(model_type="vit"), "no decoder-only language model for it"),
    "model_type: mamba": ("store", config(model_type="mamba"), "has no attn_in in layer 0 that ca"),
    "layers: more than there are": (
        "store",
        config(num_hidden_layers=9),
        "the checkpoint lacks weights of layers 0 to 8 (45), such as model.layers.4.input_layern",
    ),
    "hidden_size: another": (
        "store",
        config(hidden_size=64),
        "in another shape than its config.json states (38), such as model.embed_tokens.weight: [",
    ),
    "vocabulary: absurd": ("store", config(vocab_size=10**12), "not [1000000000000, 32]"),
    "a weight: missing": ("store", weights(lambda w: w.pop(UP)), f"to 3 (1), such as {UP}"),
    "a weight: another shape": (
        "store",
        weights(lambda w: w.update({UP: torch.zeros(3, 3)})),
        f"such as {UP}: [3, 3], not [64, 32]",
    ),
    "a weight: fewer axes": (
        "store",
        weights(lambda w: w.update({UP: torch.zeros(64)})),
        f"such as {UP}: [64], not [64, 32]",
    ),
    "the embedding: missing": (
        "store",
        weights(lambda w: w.pop("model.embed_tokens.weight")),
        "lacks weights of layers 0 to 3 (1), such as model.embed_tokens.weight",
    ),
    "a norm: another shape": (
        "store",
        weights(lambda w: w.update({"model.norm.weight": torch.zeros(31)})),
        "such as model.norm.weight: [31], not [32]",
    ),
    "names: of nobody": (
        "store",
        weights(lambda w: [w.update({f"x.{k}": w.pop(k)}) for k in list(w)]),
        "lacks weights of layers 0 to 3 (38), such as model.embed_tokens.weight",
    ),
}  # fmt: skip


EXPERT = "model.layers.2.mlp.experts.3.down_proj.weight"
FUSED = "model.layers.2.mlp.experts.down_proj"
EXPERTS = {
    "an expert: another shape": (
        lambda w: w.update({EXPERT: torch.zeros(32, 17)}),
        f"that do not fit together (1), such as those of {FUSED}",
    ),
    "an expert: missing": (
        lambda w: w.pop(EXPERT),
        f"such as {FUSED}: [7, 32, 16], not [8, 32, 16]",
    ),
    "all experts: another shape": (
        lambda w: w.update({n: torch.zeros(32, 17) for n in w if n.endswith("down_proj.weight")}),
        "(4), such as model.layers.0.mlp.experts.down_proj: [8, 32, 17], not [8, 32, 16]",
    ),
    "all experts: missing": (
        lambda w: [w.pop(n) for n in list(w) if ".2.mlp.experts" in n],
        f"(2), such as {FUSED}",
    ),
}


def run(tmp_path, model, **sections):
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"ids": list(range(4, 44))}))
    dataset = {"source": str(text), "input_ids_column": "ids", "sequences": 2}
    dataset["sequence_length"] = 16
    return Run(tmp_path, {"model": {"source": str(model)}, "dataset": dataset} | sections)


def damaged(original, damage, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(original, folder)
    damage(folder)
    return folder


@pytest.mark.parametrize("name", [*FETCH, *INDEXED])
def test_what_is_damaged_is_refused_before_anything_else(name, llama, qwen3_moe, tmp_path):
    damage, sentence = (FETCH | INDEXED)[name]
    folder = damaged(llama if name in FETCH else qwen3_moe, damage, tmp_path)
    made = run(tmp_path, folder)
    said = refused(lambda: fetch(made.settings.model, made.resources, made.model_record), tmp_path)
    assert sentence in said
    assert "model" in said


@pytest.mark.parametrize("name", LATER)
def test_what_does_not_fit_together_is_refused_with_nothing_committed(name, llama, tmp_path):
    stage, damage, sentence = LATER[name]
    made = run(tmp_path, damaged(llama, damage, tmp_path))
    if stage == "store":
        said = refused(made.prepare, tmp_path / "results" / "run" / "activations.zarr")
        assert not made.store_record.exists()
    else:
        made.prepare()
        said = refused(made.extract, made.folder)
    assert sentence in said


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_that_lie_apart_are_held_as_they_are_put_together(name, tmp_path):
    model = tiny.qwen3_moe(tmp_path / "model")
    (model / INDEX).unlink()
    held = {}
    for path in model.glob("*.safetensors"):
        held |= load_file(path)
        path.unlink()
    EXPERTS[name][0](held)
    save_file(held, model / "model.safetensors", metadata={"format": "pt"})
    made = run(tmp_path, model)
    said = refused(made.prepare, tmp_path / "results" / "run" / "activations.zarr")
    assert EXPERTS[name][1] in said


def test_the_plan_refuses_what_the_headers_show(llama, tmp_path):
    made = run(tmp_path, damaged(llama, weights(lambda w: w.pop(UP)), tmp_path))
    fetch(made.settings.model, made.resources, made.model_record)
    with pytest.raises(ValueError, match=f"lacks weights of layers 0 to 3 .1., such as {UP}"):
        print_plan(made.settings, made.stored)


@pytest.mark.parametrize("perplexity", [False, True])
def test_only_what_runs_has_to_be_there(perplexity, tmp_path):
    """Layers above the measured ones may be missing, and so may the head without losses."""
    model = tiny.llama(tmp_path / "model", tie_word_embeddings=False)
    lacking = "lm_head" if perplexity else "model.layers.3"
    weights(lambda w: [w.pop(n) for n in list(w) if n.startswith((lacking, "lm_head"))])(model)
    made = run(tmp_path, model, extraction={"layers": [0, 2], "perplexity": perplexity})
    if perplexity:
        said = refused(made.prepare, tmp_path / "results" / "run" / "activations.zarr")
        assert "the checkpoint lacks weights of layers 0 to 3 (1), such as lm_head.weight" in said
    else:
        made.prepare()


@pytest.mark.parametrize(
    ("extraction", "sentence"),
    [
        ({"layers": [0, 7]}, "extraction.layers: the model has no layer 7; it has 4 (0 to 3)"),
        ({"layer_groups": 5}, "extraction.layer_groups = 5: above the 4 layers that run; take at"),
        ({"sites": ["expert_out"]}, "LlamaForCausalLM has no expert_out in layer 0"),
        ({"sites": ["router_logits"]}, "has no router_logits in layer 0 that can be ident"),
    ],
)
def test_what_the_model_has_not_is_named(extraction, sentence, llama, tmp_path):
    made = run(tmp_path, llama, extraction=extraction)
    assert sentence in refused(made.prepare, tmp_path / "results" / "run" / "activations.zarr")
    assert not made.store_record.exists()


def test_more_tokens_than_learned_positions_are_refused(tmp_path):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 8, "vocab_size": 320}
    sizes |= {"bos_token_id": 0, "eos_token_id": 1}
    tiny.checkpoint(tmp_path / "model", transformers.GPT2Config(**sizes))
    made = run(tmp_path, tmp_path / "model")
    said = refused(made.prepare, tmp_path / "results" / "run" / "activations.zarr")
    assert "dataset.sequence_length = 16: GPT2LMHeadModel has positions for 8 tok" in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not a GGUF file"),
        (b"GGML" + bytes(99), "not a GGUF file"),
        (b"GGUF", "damaged GGUF file"),
        (b"GGUF" + bytes(20), "damaged GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "damaged GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "damaged GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.architecture is missing"),
    ],
    ids=["empty", "another", "cut", "half a header", "absurd", "a later version", "nothing in it"],
)
def test_a_damaged_gguf_file_leaves_nothing_behind(content, sentence, tmp_path):
    (tmp_path / "m.gguf").write_bytes(content)
    made = run(tmp_path, tmp_path / "m.gguf")
    said = refused(lambda: fetch(made.settings.model, made.resources, made.model_record), tmp_path)
    assert sentence in said
