"""The configuration that a GGUF file describes, every key of its metadata accounted for.

transformers makes a configuration of the keys that it knows and passes over the others. Here each
key of the architecture is set in the configuration, or compared with what the configuration means
without it; a key that can be neither is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.checkpoint.gguf.file import GgufFile, Reader
from outlier_atlas.sanitize import gist, shortened

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROPE_FACTORS = "rope_freqs.weight"
"""What Llama 3.1 and its kin divide the frequencies of the rotation by."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers",),
    "context_length": ("max_position_embeddings", "seq_length"),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": (
        "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps",
    ),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_experts", "num_local_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "full_attention_interval": ("full_attention_interval",),
    "shortconv.l_cache": ("conv_L_cache",),
    "ssm.conv_kernel": ("linear_conv_kernel_dim", "conv_kernel"),
    "ssm.state_size": ("linear_key_head_dim", "state_size"),
    "ssm.group_count": ("linear_num_key_heads",),
    "ssm.time_step_rank": ("linear_num_value_heads", "time_step_rank"),
}  # fmt: skip
"""Attributes of a configuration that a key sets: the first of them that the configuration has."""

NO_NUMBERS = ("rope.scaling.finetuned", "tensor_data_layout")
"""Keys of an architecture that say where a model comes from, and change no number."""

WINDOW = "attention.sliding_window"
NORMS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")

ELSEWHERE = ("general.", "split.", "tokenizer.", "quantize.", "GGUF.")
"""Keys that are no architecture's: names and licenses, what `read` has checked, what the tokenizer
is made of, and how the file was quantized."""


def configuration(file: GgufFile) -> PretrainedConfig:
    """The configuration of the model in a GGUF file.

    Raises:
        ValueError: transformers does not know the architecture, or a key of the metadata is
            neither taken over nor equal to what the configuration means.
    """
    from transformers import AutoConfig

    first = file.parts[0]
    try:
        config = AutoConfig.from_pretrained(
            first.parent, gguf_file=first.name, local_files_only=True
        )
        _from_all_parts(config, file)
        values = _values(file)
        for key, value in values.items():
            _set(config, key, value)
        _fill(config, values, file)
        _rotation(config, values, file)
        # Once more, so that it is checked, and what follows from an attribute follows.
        config = AutoConfig.for_model(config.model_type, **_arguments(config))
    except Exception as error:  # every architecture checks its configuration in its own way
        raise ValueError(
            f"{first}: transformers cannot read a configuration of architecture "
            f"{shortened(file.architecture, 40)!r} from it ({gist(error)})"
        ) from error
    _check(config, values, file)
    return config


def _arguments(config: PretrainedConfig) -> dict[str, Any]:
    held: dict[str, Any] = config.to_dict()
    return {key: value for key, value in held.items() if key != "model_type"}


def _values(file: GgufFile) -> dict[str, Any]:
    """Values of the architecture's keys, without its name before them."""
    from gguf import MODEL_ARCH_NAMES

    own = f"{file.architecture}."
    # Tools add keys in namespaces of their own, which no reader uses.
    known = {*MODEL_ARCH_NAMES.values(), "rope", "attention", "adapter", "clip"}
    values = {}
    for key, value in file.metadata.items():
        space = key.partition(".")[0]
        if key.startswith(own):
            values[key.removeprefix(own)] = value
        elif space in known and not key.startswith(ELSEWHERE):
            raise _refusal(file, key, value, "is of another architecture, or of no kind known here")
    if values.get("rope.scaling.type") == "linear":
        factor = values.get("rope.scaling.factor")
        if factor in (None, 0.0, 1.0):  # which scales nothing
            values["rope.scaling.type"] = "none"
    return values


def _from_all_parts(config: PretrainedConfig, file: GgufFile) -> None:
    """Set what transformers tells from the names of tensors, of which it knows the first part's."""
    names = file.blocks
    config.tie_word_embeddings = "output.weight" not in names
    for name in ("bos", "eos", "pad"):
        key = "padding" if name == "pad" else name
        held, said = (
            getattr(config, f"{name}_token_id", None),
            file.metadata.get(f"tokenizer.ggml.{key}_token_id"),
        )
        if name == "pad" and said is not None and not 0 <= said < config.vocab_size:
            said = None  # padding is never computed
        if not (isinstance(held, list) and said in held):
            setattr(config, f"{name}_token_id", said)  # those of a class are of another vocabulary
    if config.model_type == "stablelm":
        config.use_qkv_bias = any(name.endswith("attn_q.bias") for name in names)
        config.use_parallel_residual = not any("ffn_norm" in name for name in names)
    if config.model_type in ("gemma2", "gemma3_text"):
        # No key has it. llama.cpp takes the width of a head, but for the models of 27 B.
        large = config.num_hidden_layers == {"gemma2": 46}.get(config.model_type, 62)
        heads = config.num_attention_heads
        config.query_pre_attn_scalar = config.hidden_size // heads if large else config.head_dim


def _attribute(config: PretrainedConfig, key: str) -> str | None:
    # A configuration keeps what its class has no use for as an attribute of its own.
    own = type(config)()
    return next((name for name in ATTRIBUTES.get(key, ()) if hasattr(own, name)), None)


def _set(config: PretrainedConfig, key: str, value: Any) -> None:
    attribute = _attribute(config, key)
    # Lists have a number for each layer: transformers knows of which architectures it takes one.
    derived = isinstance(getattr(type(config), attribute or "", None), property)
    if attribute is not None and not derived and not isinstance(value, list):
        setattr(config, attribute, (value or None) if key == WINDOW else value)


def _fill(config: PretrainedConfig, values: dict[str, Any], file: GgufFile) -> None:
    """Set what a key that is not there means, as llama.cpp has it.

    The defaults of the configuration's class are those of some other model.

    Raises:
        ValueError: a key is missing that has no default.
    """
    needed = ["block_count", "context_length", "embedding_length", "attention.head_count"]
    if any("_exps." in name for name in file.blocks):
        needed += ["expert_count", "expert_used_count"]
    if any(name.endswith((".ffn_up.weight", ".ffn_gate.weight")) for name in file.blocks):
        needed.append("feed_forward_length")
    if config.model_type in ("gemma2", "gemma3_text", "gpt_oss", "phi3"):
        needed.append(WINDOW)
    norms = [key for key in NORMS if _attribute(config, key) is not None]
    needed += norms[:1] if not any(key in values for key in NORMS) else []
    missing = [key for key in needed if key not in values]
    if missing:
        raise ValueError(f"{file.architecture}.{missing[0]} is missing in its metadata")
    width = config.hidden_size // config.num_attention_heads
    of_llama = values.get("rope.dimension_count", width)
    defaults = {
        "attention.head_count_kv": config.num_attention_heads,
        "attention.key_length": of_llama if config.model_type == "llama" else width,
        WINDOW: 0,
    }
    for key, value in defaults.items():
        if key not in values:
            _set(config, key, value)
    if _rope(config):
        values.setdefault("rope.freq_base", 10000.0)
        values.setdefault("rope.dimension_count", _head_width(config))


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    """The rotation's parameters; of several kinds of layers those of full attention."""
    whole: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    part: dict[str, Any] = whole.get("full_attention", whole)
    return part


def _rotation(config: PretrainedConfig, values: dict[str, Any], file: GgufFile) -> None:
    rope = _rope(config)
    if "rope.freq_base" in values and rope:
        rope["rope_theta"] = values["rope.freq_base"]
    kind = values.get("rope.scaling.type", "none")
    factor = values.get("rope.scaling.factor")
    if kind == "linear" and factor not in (None, 0.0, 1.0):
        rope |= {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and not factor:
        raise ValueError("rope.scaling.type is 'yarn', and rope.scaling.factor is missing")
    if kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": factor}
        if "rope.scaling.original_context_length" in values:
            original = values["rope.scaling.original_context_length"]
            rope["original_max_position_embeddings"] = original
        for name in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{name}" in values:
                rope[name] = values[f"rope.scaling.yarn_{name}"]
    rotated = values.get("rope.dimension_count")
    if rotated is not None and rotated != _rotated(config):
        rope["partial_rotary_factor"] = rotated / _head_width(config)
        if hasattr(config, "partial_rotary_factor"):
            config.partial_rotary_factor = rope["partial_rotary_factor"]
    if ROPE_FACTORS in file.blocks:
        rope |= _scaling_of(file, rope, _rotated(config))


def _head_width(config: PretrainedConfig) -> int:
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def _rotated(config: PretrainedConfig) -> int:
    """Channels of a head that are rotated."""
    share = _rope(config).get("partial_rotary_factor")
    share = getattr(config, "partial_rotary_factor", None) if share is None else share
    return int(_head_width(config) * (1.0 if share is None else share))


def _scaling_of(file: GgufFile, rope: dict[str, Any], rotated: int) -> dict[str, Any]:
    """The scaling of Llama 3.1 that gives the factors in the file.

    Raises:
        ValueError: none does.
    """
    blocks = file.blocks[ROPE_FACTORS]
    found = Reader(file.parts[0].parent).rows(blocks, 0, blocks.rows).reshape(-1)
    if (found == 1).all():
        return {}
    for original in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
        for low, high in ((1.0, 4.0), (1.0, 1.0)):
            scaling: dict[str, Any] = {
                "factor": float(found.max()), "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }  # fmt: skip
            made = llama3_factors(rope["rope_theta"], rotated, **scaling)
            # Both are float32, of a computation in float64 whose order differs.
            if made.shape == found.shape and np.allclose(made, found, rtol=1e-6, atol=0):
                return {"rope_type": "llama3", **scaling}
    raise ValueError(
        f"tensor {ROPE_FACTORS} holds factors that no scaling of the kind llama3 gives"
    )


def llama3_factors(
    rope_theta: float,
    rotated: int,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> NDArray[np.float32]:
    """What Llama 3.1 divides the frequencies of its rotation by, (rotated / 2,).

    Long wavelengths are divided by `factor`, short ones by 1; between the two by 1 over a weighted
    mean of 1 / factor and 1 (Llama 3.1 as transformers has it, `rope_type: llama3`).
    """
    wave = 2 * math.pi * rope_theta ** (np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    turns = original_max_position_embeddings / wave
    span = high_freq_factor - low_freq_factor
    smooth = (turns - low_freq_factor) / span if span else (turns > high_freq_factor) * 1.0
    smooth = np.clip(smooth, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


_ANY = object()
"""What a configuration means by a key that changes no number of its kind of model."""

MEANINGS: dict[str, Callable[[Any], Any]] = {
    "context_length": lambda config: _ANY,
    "feed_forward_length": lambda config: 4 * config.hidden_size,
    "attention.head_count_kv": lambda config: config.num_attention_heads,
    "attention.key_length": _head_width,
    "attention.value_length": lambda config: getattr(config, "v_head_dim", _head_width(config)),
    "attention.causal": lambda config: True,
    "attention.scale": lambda config: float(
        getattr(
            config,
            "attention_multiplier",
            (getattr(config, "query_pre_attn_scalar", None) or _head_width(config)) ** -0.5,
        )
    ),
    "rope.dimension_count": _rotated,
    "rope.freq_base": lambda config: _rope(config).get("rope_theta"),
    "rope.freq_base_swa": lambda config: (
        (config.rope_parameters or {}).get("sliding_attention", {}).get("rope_theta")
    ),
    "rope.scaling.type": lambda config: {"default": "none", "llama3": "none"}.get(
        _rope(config).get("rope_type", "default"), _rope(config).get("rope_type")
    ),
    "rope.scaling.factor": lambda config: _rope(config).get("factor", 1.0),
    # Without a scaling it means nothing.
    "rope.scaling.original_context_length": lambda config: _rope(config).get(
        "original_max_position_embeddings", _ANY
    ),
    "rope.scaling.yarn_beta_fast": lambda config: _rope(config).get("beta_fast", 32.0),
    "rope.scaling.yarn_beta_slow": lambda config: _rope(config).get("beta_slow", 1.0),
    "rope.dimension_sections": lambda config: _rope(config).get("mrope_section"),
    "expert_gating_func": lambda config: {"softmax": 1, "sigmoid": 2}.get(
        getattr(config, "scoring_func", "softmax")
    ),
    "expert_feed_forward_length": lambda config: config.intermediate_size,
    "expert_count": lambda config: 0,
    "expert_used_count": lambda config: 0,
    "attention.sliding_window": lambda config: 0,
    "ssm.inner_size": lambda config: (
        config.linear_num_value_heads * config.linear_value_head_dim
        if hasattr(config, "linear_num_value_heads")
        else config.intermediate_size
    ),
    "nextn_predict_layers": lambda config: 0,
    "logit_scale": lambda config: 1.0,
    "residual_scale": lambda config: 1.0,
    "embedding_scale": lambda config: 1.0,
}
"""What a configuration means by keys for which it has no attribute of its own."""


def _check(config: PretrainedConfig, values: dict[str, Any], file: GgufFile) -> None:
    """Refuse a key whose value is not what the configuration means."""
    for key, value in values.items():
        if key in NO_NUMBERS:
            continue
        attribute = _attribute(config, key)
        try:
            meant = MEANINGS[key](config) if attribute is None else getattr(config, attribute)
        except KeyError:
            raise _refusal(
                file, f"{file.architecture}.{key}", value, "changes numbers in a way not known here"
            ) from None
        if not _equal(config, key, value, meant):
            raise _refusal(
                file, f"{file.architecture}.{key}", value, f"and transformers would take {meant!r}"
            )


def _equal(config: PretrainedConfig, key: str, value: Any, meant: Any) -> bool:
    if meant is _ANY:
        return True
    if key == WINDOW:
        value, meant = value or None, meant or None
    if key == "rope.dimension_sections":
        value = [size for size in value if size]
    elif isinstance(value, list) and not isinstance(meant, list):
        # A number for each layer: the model has one for all. Layers without attention have 0 heads.
        mixed = key == "attention.head_count_kv" and hasattr(config, "layer_types")
        return {number for number in value if number or not mixed} == {meant}
    if isinstance(value, float) or isinstance(meant, float):
        # Metadata is float32, a configuration's default is not.
        return meant is not None and bool(np.float32(value) == np.float32(meant))
    return bool(value == meant)


def _refusal(file: GgufFile, key: str, value: Any, why: str) -> ValueError:
    said = shortened(repr(value), 60)
    return ValueError(
        f"{file.parts[0]}: {key} = {said} {why}; take the safetensors files of this model instead"
    )
