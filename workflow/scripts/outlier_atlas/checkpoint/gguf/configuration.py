"""Configuration of the model in a GGUF file, with every metadata key accounted for.

transformers reads the keys that it knows and ignores the others. Here each key of the architecture
is set in the configuration, or compared with the value that the configuration implies. A key for
which neither is possible is refused by name.
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
"""Tensor of the factors that the frequencies of the rotary embedding are divided by (Llama 3.1)."""

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
"""Attributes that a key sets: the first of the listed ones that the configuration class has."""

NO_NUMBERS = ("rope.scaling.finetuned", "tensor_data_layout")
"""Keys of an architecture that state the origin of a model and change no number."""

WINDOW = "attention.sliding_window"
"""Key of the width of the attention window, in tokens."""
NORMS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
"""Keys of the epsilon of the norms."""

ELSEWHERE = ("general.", "split.", "tokenizer.", "quantize.", "GGUF.")
"""Prefixes of keys that belong to no architecture.

They hold names and licenses, the entries that `file.read` has checked, the tokenizer, and how the
file was quantized.
"""


def configuration(file: GgufFile) -> PretrainedConfig:
    """Return the configuration of the model in a GGUF file.

    Raises:
        ValueError: transformers does not know the architecture, or a metadata key can neither be
            set in the configuration nor equals the value that the configuration implies.
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
        # Rebuild it: the class checks its entries, and derives some from others.
        config = AutoConfig.for_model(config.model_type, **_arguments(config))
    except Exception as error:  # each architecture raises its own types of errors
        raise ValueError(
            f"{first}: transformers cannot read a configuration of architecture "
            f"{shortened(file.architecture, 40)!r} from it ({gist(error)})"
        ) from error
    _check(config, values, file)
    return config


def _arguments(config: PretrainedConfig) -> dict[str, Any]:
    entries: dict[str, Any] = config.to_dict()
    return {key: value for key, value in entries.items() if key != "model_type"}


def _values(file: GgufFile) -> dict[str, Any]:
    """Return the values of the architecture's keys, by key without the architecture's prefix.

    Raises:
        ValueError: a key belongs to another architecture.
    """
    from gguf import MODEL_ARCH_NAMES

    prefix = f"{file.architecture}."
    # Tools add keys in their own namespaces, which no reader uses.
    namespaces = {*MODEL_ARCH_NAMES.values(), "rope", "attention", "adapter", "clip"}
    values = {}
    for key, value in file.metadata.items():
        space = key.partition(".")[0]
        if key.startswith(prefix):
            values[key.removeprefix(prefix)] = value
        elif space in namespaces and not key.startswith(ELSEWHERE):
            raise _refusal(file, key, value, "belongs to another architecture or is unknown")
    if values.get("rope.scaling.type") == "linear":
        factor = values.get("rope.scaling.factor")
        if factor in (None, 0.0, 1.0):  # scales nothing
            values["rope.scaling.type"] = "none"
    return values


def _from_all_parts(config: PretrainedConfig, file: GgufFile) -> None:
    """Set the entries that transformers derives from tensor names.

    transformers reads the first part of a split file only.
    """
    names = file.blocks
    config.tie_word_embeddings = "output.weight" not in names
    for name in ("bos", "eos", "pad"):
        key = "padding" if name == "pad" else name
        default = getattr(config, f"{name}_token_id", None)
        stated = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if name == "pad" and stated is not None and not 0 <= stated < config.vocab_size:
            stated = None  # padding is never computed
        if not (isinstance(default, list) and stated in default):
            # The default of the class is an id in another vocabulary.
            setattr(config, f"{name}_token_id", stated)
    if config.model_type == "stablelm":
        config.use_qkv_bias = any(name.endswith("attn_q.bias") for name in names)
        config.use_parallel_residual = not any("ffn_norm" in name for name in names)
    if config.model_type in ("gemma2", "gemma3_text"):
        # No key stores it. llama.cpp uses the width of a head, except for the 27 B models.
        large = config.num_hidden_layers == {"gemma2": 46}.get(config.model_type, 62)
        heads = config.num_attention_heads
        config.query_pre_attn_scalar = config.hidden_size // heads if large else config.head_dim


def _attribute(config: PretrainedConfig, key: str) -> str | None:
    # A configuration also keeps entries that its class does not use, so look at a new one.
    defaults = type(config)()
    return next((name for name in ATTRIBUTES.get(key, ()) if hasattr(defaults, name)), None)


def _set(config: PretrainedConfig, key: str, value: Any) -> None:
    attribute = _attribute(config, key)
    # A list has one number per layer: transformers reduces it for the architectures that need one.
    derived = isinstance(getattr(type(config), attribute or "", None), property)
    if attribute is not None and not derived and not isinstance(value, list):
        setattr(config, attribute, (value or None) if key == WINDOW else value)


def _fill(config: PretrainedConfig, values: dict[str, Any], file: GgufFile) -> None:
    """Set the entries of missing keys to the defaults of llama.cpp.

    The defaults of the configuration class are those of some other model.

    Raises:
        ValueError: a key without a default is missing.
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
    rotated = values.get("rope.dimension_count", width)
    defaults = {
        "attention.head_count_kv": config.num_attention_heads,
        "attention.key_length": rotated if config.model_type == "llama" else width,
        WINDOW: 0,
    }
    for key, value in defaults.items():
        if key not in values:
            _set(config, key, value)
    if _rope(config):
        values.setdefault("rope.freq_base", 10000.0)
        values.setdefault("rope.dimension_count", _head_width(config))


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    """Return the parameters of the rotary embedding.

    If there are several kinds of layers, these are the parameters of full attention.
    """
    all_parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    parameters: dict[str, Any] = all_parameters.get("full_attention", all_parameters)
    return parameters


def _rotation(config: PretrainedConfig, values: dict[str, Any], file: GgufFile) -> None:
    """Set the parameters of the rotary embedding from the keys `rope.*`.

    Raises:
        ValueError: a scaling has no factor, or the tensor of factors matches no known scaling.
    """
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
    head_dim = getattr(config, "head_dim", None)
    return int(head_dim or config.hidden_size // config.num_attention_heads)


def _rotated(config: PretrainedConfig) -> int:
    """Return the number of channels of a head that are rotated."""
    share = _rope(config).get("partial_rotary_factor")
    share = getattr(config, "partial_rotary_factor", None) if share is None else share
    return int(_head_width(config) * (1.0 if share is None else share))


def _scaling_of(file: GgufFile, rope: dict[str, Any], rotated: int) -> dict[str, Any]:
    """Return the Llama 3.1 scaling whose factors are those in the file.

    Raises:
        ValueError: no such scaling has these factors.
    """
    blocks = file.blocks[ROPE_FACTORS]
    factors = Reader(file.parts[0].parent).rows(blocks, 0, blocks.rows).reshape(-1)
    if (factors == 1).all():
        return {}
    for original in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
        for low, high in ((1.0, 4.0), (1.0, 1.0)):
            scaling: dict[str, Any] = {
                "factor": float(factors.max()), "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }  # fmt: skip
            expected = llama3_factors(rope["rope_theta"], rotated, **scaling)
            # Both are float32, computed in float64 in different orders.
            if expected.shape == factors.shape and np.allclose(
                expected, factors, rtol=1e-6, atol=0
            ):
                return {"rope_type": "llama3", **scaling}
    raise ValueError(
        f"tensor {ROPE_FACTORS} has factors that no scaling of rope_type llama3 produces"
    )


def llama3_factors(
    rope_theta: float,
    rotated: int,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> NDArray[np.float32]:
    """Return the factors that Llama 3.1 divides the rotary frequencies by, (rotated / 2,).

    Long wavelengths are divided by `factor`, short ones by 1. Wavelengths between the two are
    divided by 1 over a weighted mean of 1 / factor and 1 (Llama 3.1, `rope_type: llama3` in
    transformers).
    """
    wave = 2 * math.pi * rope_theta ** (np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    turns = original_max_position_embeddings / wave
    span = high_freq_factor - low_freq_factor
    smooth = (turns - low_freq_factor) / span if span else (turns > high_freq_factor) * 1.0
    smooth = np.clip(smooth, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


_ANY = object()
"""Marker for a key that changes no number of a kind of model, so that any value is accepted."""

IMPLIED: dict[str, Callable[[Any], Any]] = {
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
    # The key changes no number without a scaling.
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
"""Value that a configuration implies for each key without an attribute of its own."""


def _check(config: PretrainedConfig, values: dict[str, Any], file: GgufFile) -> None:
    """Refuse a key whose value differs from the value that the configuration implies.

    Raises:
        ValueError: there is such a key; the message names it.
    """
    for key, value in values.items():
        if key in NO_NUMBERS:
            continue
        attribute = _attribute(config, key)
        try:
            implied = IMPLIED[key](config) if attribute is None else getattr(config, attribute)
        except KeyError:
            raise _refusal(
                file, f"{file.architecture}.{key}", value, "is a setting that is not supported"
            ) from None
        if not _equal(config, key, value, implied):
            raise _refusal(
                file, f"{file.architecture}.{key}", value, f"but transformers would use {implied!r}"
            )


def _equal(config: PretrainedConfig, key: str, value: Any, implied: Any) -> bool:
    """Return whether the value of a key equals the value that the configuration implies."""
    if implied is _ANY:
        return True
    if key == WINDOW:
        value, implied = value or None, implied or None
    if key == "rope.dimension_sections":
        value = [size for size in value if size]
    elif isinstance(value, list) and not isinstance(implied, list):
        # The file has a number per layer, the model one for all layers. Layers without attention
        # have 0 heads.
        mixed = key == "attention.head_count_kv" and hasattr(config, "layer_types")
        return {number for number in value if number or not mixed} == {implied}
    if isinstance(value, float) or isinstance(implied, float):
        # Metadata is float32, the default of a configuration is a Python float.
        return implied is not None and bool(np.float32(value) == np.float32(implied))
    return bool(value == implied)


def _refusal(file: GgufFile, key: str, value: Any, why: str) -> ValueError:
    shown = shortened(repr(value), 60)
    return ValueError(
        f"{file.parts[0]}: {key} = {shown} {why}; use the safetensors files of this model instead"
    )
