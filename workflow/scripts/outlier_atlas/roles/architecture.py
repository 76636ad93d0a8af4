"""Architecture of a model by role: its decoder stack, and where each site is in a block.

Roles are identified in the model's module tree, built without memory on the meta device, and in a
trace of the residual stream (`residual_flow`). A site that cannot be identified with certainty is
not offered: a wrong number is worse than none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outlier_atlas.roles.block_sites import Tap, readers_of_block, taps_of_block
from outlier_atlas.roles.causal import check_causal, missing_head
from outlier_atlas.roles.layer_isolation import find_dependent_layer
from outlier_atlas.roles.lm_head import HeadParts, find_head
from outlier_atlas.roles.positions import Positions, find_positions
from outlier_atlas.roles.residual_flow import Flow
from outlier_atlas.roles.residual_trace import TOKENS, trace_residual
from outlier_atlas.sanitize import gist
from outlier_atlas.settings.sites import EXPERT_OUT, SITES, Place, Site

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


log = logging.getLogger(__name__)

META_DTYPE = torch.bfloat16
"""Dtype of the traced model; some implementations of experts support no other one."""


@dataclass(frozen=True)
class Architecture:
    """Description of a decoder.

    Attributes:
        model_class: class with the head that transformers chooses for the configuration.
        decoder: path of the text decoder, relative to the model with the head.
        stack: path of the decoder stack, relative to the decoder.
        layers: number of decoder layers.
        hidden_size: channels of the residual stream.
        embedding_size: channels of an embedding; the model projects embeddings if this differs from
            `hidden_size`.
        tuple_lengths: for each layer, the length of the tuple that it returns; 0 if it returns a
            tensor.
        taps: for each layer, its taps by site, in the order of a forward pass.
        boundary_dtypes: for each layer, the dtype of the residual stream into it if it differs from
            the dtype of the weights; else None.
        one_group: reason why the layers cannot be divided into layer groups; None if they can.
        skipped: paths of the parts of the model outside of the text decoder; they are not loaded.
        positions: limit on the tokens in a sequence; None if the configuration states none.
        components: names of all modules, used to recognize other contents of a checkpoint.
        readers: for each layer, the modules that read the input of attention, of the MLP, or of the
            last projection of one of them: the site by path, relative to the decoder.
        head: modules that compute logits from the output of the decoder.
        end_reads_more: whether the part after the last layer reads more than that layer's output.
    """

    model_class: type[PreTrainedModel]
    decoder: str
    stack: str
    layers: int
    hidden_size: int
    embedding_size: int
    tuple_lengths: tuple[int, ...]
    taps: tuple[dict[Place, Tap], ...]
    boundary_dtypes: tuple[torch.dtype | None, ...]
    one_group: str | None
    skipped: tuple[str, ...]
    positions: Positions | None
    components: frozenset[str]
    readers: tuple[dict[str, Site], ...]
    head: HeadParts
    end_reads_more: bool

    def check(self, sites: Sequence[Site], layers: Sequence[int]) -> dict[str, int]:
        """Return the number of channels of each site.

        Raises:
            ValueError: a layer does not exist, a site is missing in one of the layers, or the
                number of channels of a site differs between layers.
        """
        missing = [layer for layer in layers if layer >= self.layers]
        if missing:
            raise ValueError(
                f"extraction.layers: the model has no layer {missing[0]}; it has {self.layers} "
                f"(0 to {self.layers - 1})"
            )
        return {site: self._channels(site, layers) for site in sites}

    def experts(self, layers: Sequence[int]) -> int:
        """Return the number of routed experts in layers that all have `expert_out`.

        Raises:
            ValueError: the number differs between layers.
        """
        numbers = {self.taps[layer][EXPERT_OUT].experts for layer in layers}
        if len(numbers) > 1:
            raise ValueError(
                f"extraction.sites: expert_out has {' or '.join(map(str, sorted(numbers)))} "
                f"experts, depending on the layer; choose extraction.layers with equal numbers"
            )
        return numbers.pop()

    def check_head(self, layer_groups: int) -> None:
        """Check that losses can be computed after the last of a number of layer groups.

        Raises:
            ValueError: the head is not supported, or reads more than the last layer's output.
        """
        unsupported = self.head.unsupported
        if unsupported is None and layer_groups > 1 and self.end_reads_more:
            unsupported = (
                "the part after its last layer reads more than that layer's output; set "
                "extraction.layer_groups: 1"
            )
        if unsupported is not None:
            raise ValueError(
                f"the perplexity of {self.model_class.__name__} cannot be computed: {unsupported}"
            )

    def check_length(self, tokens: int) -> None:
        """Check that the model has positions for a number of tokens in a sequence.

        Raises:
            ValueError: the model has fewer positions.
        """
        limit = self.positions
        if limit is None or tokens <= limit.tokens:
            return
        name = self.model_class.__name__
        if limit.fixed:
            raise ValueError(
                f"dataset.sequence_length = {tokens}: {name} has positions for {limit.tokens} "
                f"tokens ({limit.key} = {limit.value} in its config.json); set at most "
                f"{limit.tokens}"
            )
        log.warning(
            "sequences of %d tokens are longer than %s was trained for (%s = %d in its "
            "config.json); the values of later positions are stored as the model computes them",
            tokens, name, limit.key, limit.value,
        )  # fmt: skip

    def _channels(self, site: Site, layers: Sequence[int]) -> int:
        missing = [layer for layer in layers if site not in self.taps[layer]]
        if missing:
            everywhere = [s for s in SITES if all(s in self.taps[layer] for layer in layers)]
            layers_with_site = [layer for layer in layers if site in self.taps[layer]]
            advice = f"; `layers: {layers_with_site}` have {site}" if layers_with_site else ""
            raise ValueError(
                f"extraction.sites: {self.model_class.__name__} has no {site} in layer {missing[0]}"
                f" that can be identified; it has {', '.join(everywhere)}{advice}"
            )
        channels = {self.taps[layer][site].channels for layer in layers}
        if len(channels) > 1:
            raise ValueError(
                f"extraction.sites: {site} has {' or '.join(map(str, sorted(channels)))} channels, "
                f"depending on the layer; choose extraction.layers with equal numbers"
            )
        return channels.pop()


def describe(config: PretrainedConfig, trust_remote_code: bool = False) -> Architecture:
    """Identify the roles in the model that `config` describes; no weight is read.

    Args:
        config: configuration of the model.
        trust_remote_code: whether code of the checkpoint may run.

    Raises:
        ValueError: transformers has no text generation model for the configuration, or its decoder
            stack cannot be identified.
    """
    model = on_meta(config, trust_remote_code)
    name = type(model).__name__
    text = config.get_text_config(decoder=True)
    decoder_path, decoder = _decoder(model)
    path, stack = _decoder_stack(decoder, int(text.num_hidden_layers), name)
    hidden = int(text.hidden_size)
    flow = trace_residual(decoder, stack)
    check_causal(config, text, flow, name)
    if flow is not None and (unused := sorted({*range(len(stack))} - flow.blocks.keys())):
        raise ValueError(
            f"{name}: its layer {unused[0]} does not run without images or other input; choose "
            f"another model"
        )
    if flow is not None and any(
        block.shape != (1, TOKENS, hidden) for block in flow.blocks.values()
    ):
        raise ValueError(
            f"{name}: its layers do not pass on a residual stream of {hidden} channels a token, so "
            f"it cannot be measured; choose another model"
        )
    taps = tuple(
        {
            tap.site: tap
            for tap in taps_of_block(
                block, flow.blocks[layer] if flow else None, f"{path}.{layer}", layer, hidden
            )
        }
        for layer, block in enumerate(stack)
    )
    embedding_size = getattr(decoder.get_input_embeddings(), "embedding_dim", hidden)
    architecture = Architecture(
        model_class=type(model),
        decoder=decoder_path,
        stack=path,
        layers=len(stack),
        hidden_size=hidden,
        embedding_size=int(embedding_size),
        tuple_lengths=tuple(
            flow.blocks[layer].tuple_length if flow else 0 for layer in range(len(stack))
        ),
        taps=taps,
        boundary_dtypes=_dtypes(flow, len(stack)),
        one_group=_shared(flow, name),
        skipped=tuple(_outside_decoder(model, decoder)),
        positions=find_positions(decoder, text),
        components=frozenset(part for path, _ in model.named_modules() for part in path.split(".")),
        readers=tuple(
            readers_of_block(flow.blocks[layer], f"{path}.{layer}", taps[layer]) if flow else {}
            for layer in range(len(stack))
        ),
        end_reads_more=flow is None or flow.end_reads_more,
        # Last, because it removes the decoder from the model.
        head=missing_head(config)
        or find_head(model, decoder_path, flow.channels if flow else hidden),
    )
    if architecture.one_group is None and flow is not None and len(stack) > 1:
        # Use a new model, as a job does: some models change themselves when they first run.
        _, fresh = _decoder(on_meta(config, trust_remote_code))
        reason = find_dependent_layer(fresh, path, flow, architecture.embedding_size)
        architecture = replace(architecture, one_group=reason)
    return architecture


def _shared(flow: Flow | None, name: str) -> str | None:
    """Return why the trace does not allow layer groups; None if it does."""
    if flow is None:
        return f"the residual stream of {name} could not be traced"
    if flow.shared is not None:
        return (
            f"layer {flow.shared} of {name} reads more than the residual stream of the layer "
            f"before it"
        )
    return None


def _dtypes(flow: Flow | None, layers: int) -> tuple[torch.dtype | None, ...]:
    """Return for each layer the dtype of the residual stream into it; None for the traced dtype."""
    dtypes = [flow.blocks[layer].input.dtype if flow else None for layer in range(layers)]
    return tuple(None if dtype == META_DTYPE else dtype for dtype in dtypes)


def on_meta(config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """Build the model with its head on the meta device: with shapes, without memory.

    Raises:
        ValueError: transformers has no text generation model for the configuration.
    """
    import transformers

    failed: Exception | None = None
    model_classes: tuple[Any, ...] = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForImageTextToText,
    )
    for model_class in model_classes:
        try:
            with torch.device("meta"):
                model: PreTrainedModel = model_class.from_config(
                    config, dtype=META_DTYPE, trust_remote_code=trust_remote_code
                )
            # For some models the first class is for text only, and its weights have other names.
            if model.config.model_type == config.model_type:
                return model.eval()
        except Exception as error:  # inconsistent sizes raise errors of any type
            failed = failed or error
    if failed is None or isinstance(failed, ValueError):
        reason = "transformers has no decoder-only language model for it; choose another model"
    else:
        cause = f"{failed} is not known" if isinstance(failed, KeyError) else gist(failed)
        reason = f"its config.json describes no model that can be built ({cause})"
    raise ValueError(f"model type {config.model_type!r}: {reason}") from failed


def _decoder(model: PreTrainedModel) -> tuple[str, PreTrainedModel]:
    """Return the path of the text decoder and the decoder.

    In a model for text only, the decoder is everything but the head.
    """
    from transformers import PreTrainedModel

    inner = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m is not model]
    for decoder in (model.get_decoder(), model.base_model, *inner[:1]):
        for path, module in model.named_modules():
            if module is decoder and path:
                return path, decoder
    raise ValueError(
        f"{type(model).__name__}: its text decoder cannot be identified; choose another model"
    )


def _outside_decoder(model: nn.Module, decoder: nn.Module) -> list[str]:
    """Return the paths of modules with weights that are neither in the decoder nor contain it."""
    decoder_modules = set(decoder.modules())
    ancestors = {path for path, module in model.named_modules() if decoder in set(module.modules())}
    return [
        path
        for path, module in model.named_modules()
        if path not in ancestors
        and path.rpartition(".")[0] in ancestors
        and module not in decoder_modules
        and any(True for _ in module.parameters())
    ]


def _decoder_stack(base: nn.Module, layers: int, name: str) -> tuple[str, nn.ModuleList]:
    """Return the path of the decoder stack and the stack.

    Raises:
        ValueError: no module list has as many modules as the decoder has layers, or several have.
    """
    stacks = [
        (path, module)
        for path, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers
    ]
    if not stacks:
        raise ValueError(f"{name}: no stack of {layers} decoder layers was found")
    depth = min(path.count(".") for path, _ in stacks)
    outermost = [(path, module) for path, module in stacks if path.count(".") == depth]
    if len(outermost) > 1:
        paths = " or ".join(path for path, _ in outermost)
        raise ValueError(f"{name}: its decoder stack cannot be identified: {paths}")
    return outermost[0]
