"""What a model is made of, by role: its decoder stack, and where in a block each site lies.

Roles are found in the module tree of the model, built without memory on the meta device, and in
the way of the residual stream through it (`flow`). Where a role cannot be told for sure, the site
is not offered: a wrong number is worse than none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outlier_atlas.roles.block_sites import Tap, readers_of_block, taps_of_block
from outlier_atlas.roles.causal import check_causal, without_head
from outlier_atlas.roles.layer_isolation import not_apart
from outlier_atlas.roles.lm_head import HeadParts, find_head
from outlier_atlas.roles.positions import Positions, find_positions
from outlier_atlas.roles.residual_flow import Flow
from outlier_atlas.roles.residual_trace import TOKENS, watch
from outlier_atlas.sanitize import gist
from outlier_atlas.settings.sites import EXPERT_OUT, SITES, Place, Site

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


log = logging.getLogger(__name__)

META_DTYPE = torch.bfloat16
"""In which a model is watched; some experts know no other."""


@dataclass(frozen=True)
class Architecture:
    """A decoder, described.

    Attributes:
        model_class: the class with the head, as transformers names it for this configuration.
        decoder: path of the text decoder, seen from the model with the head.
        stack: path of the decoder stack, seen from the decoder.
        layers: number of decoder layers.
        hidden_size: channels of the residual stream.
        embedding_size: channels of an embedding; where they differ, the model projects it.
        returned: for each layer, of how many values the tuple is that it returns; 0 where it
            returns none.
        taps: for each layer, its sites, in the order in which a forward pass meets them.
        boundary_dtypes: for each layer the dtype of the residual stream into it, where the model
            keeps it in another one than its weights'; None where it does not.
        one_group: why the layers cannot be divided into layer groups; None where they can.
        skipped: parts of the model that are not the text decoder, by path: they are not loaded.
        positions: tokens in a sequence at most; None where the configuration states no number.
        components: what its modules are called, to recognize what else a checkpoint has.
        readers: for each layer, by path as in its taps, the modules whose input is that of
            attention, of the MLP, or of the last projection of one of them, and the site it is.
        head: what makes logits of what the decoder makes.
        ends_apart: whether what follows the last layer reads more than that layer's output.
    """

    model_class: type[PreTrainedModel]
    decoder: str
    stack: str
    layers: int
    hidden_size: int
    embedding_size: int
    returned: tuple[int, ...]
    taps: tuple[dict[Place, Tap], ...]
    boundary_dtypes: tuple[torch.dtype | None, ...]
    one_group: str | None
    skipped: tuple[str, ...]
    positions: Positions | None
    components: frozenset[str]
    readers: tuple[dict[str, Site], ...]
    head: HeadParts
    ends_apart: bool

    def check(self, sites: Sequence[Site], layers: Sequence[int]) -> dict[str, int]:
        """The channels of each site.

        Raises:
            ValueError: a layer does not exist, a site is not found in one of the layers, or its
                number of channels differs between layers.
        """
        beyond = [layer for layer in layers if layer >= self.layers]
        if beyond:
            raise ValueError(
                f"extraction.layers: the model has no layer {beyond[0]}; it has {self.layers} "
                f"(0 to {self.layers - 1})"
            )
        return {site: self._channels(site, layers) for site in sites}

    def experts(self, layers: Sequence[int]) -> int:
        """Number of routed experts in each of the layers, all of which have `expert_out`.

        Raises:
            ValueError: it differs between layers.
        """
        numbers = {self.taps[layer][EXPERT_OUT].experts for layer in layers}
        if len(numbers) > 1:
            raise ValueError(
                f"extraction.sites: there are {' or '.join(map(str, sorted(numbers)))} experts, "
                f"depending on the layer; name layers that have the same number"
            )
        return numbers.pop()

    def check_head(self, layer_groups: int) -> None:
        """That losses can be computed behind the last of so many layer groups.

        Raises:
            ValueError: the head is not understood, or needs more than the last layer's output.
        """
        unclear = self.head.unclear
        if unclear is None and layer_groups > 1 and self.ends_apart:
            unclear = "what follows its last layer reads more than its output; take 1 layer group"
        if unclear is not None:
            raise ValueError(f"{self.model_class.__name__} gives no perplexity here: {unclear}")

    def check_length(self, tokens: int) -> None:
        """That the model has positions for a sequence of so many tokens.

        Raises:
            ValueError: it has not.
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
            "sequences of %d tokens are longer than %s was made for (%s = %d in its config.json); "
            "their values are those that it gives there",
            tokens, name, limit.key, limit.value,
        )  # fmt: skip

    def _channels(self, site: Site, layers: Sequence[int]) -> int:
        lacking = [layer for layer in layers if site not in self.taps[layer]]
        if lacking:
            everywhere = [s for s in SITES if all(s in self.taps[layer] for layer in layers)]
            having = [layer for layer in layers if site in self.taps[layer]]
            advice = f"; `layers: {having}` have {site}" if having else ""
            raise ValueError(
                f"extraction.sites: {self.model_class.__name__} has no {site} in layer {lacking[0]}"
                f" that can be told for sure; it has {', '.join(everywhere)}{advice}"
            )
        channels = {self.taps[layer][site].channels for layer in layers}
        if len(channels) > 1:
            raise ValueError(
                f"extraction.sites: {site} has {' or '.join(map(str, sorted(channels)))} channels, "
                f"depending on the layer; name layers in which it has the same number"
            )
        return channels.pop()


def describe(config: PretrainedConfig, trust_remote_code: bool = False) -> Architecture:
    """Find the roles in the model that `config` describes; no weight is read.

    Raises:
        ValueError: transformers has no text generation model for it, or its decoder stack cannot
            be told for sure.
    """
    model = on_meta(config, trust_remote_code)
    name = type(model).__name__
    text = config.get_text_config(decoder=True)
    where, decoder = _decoder(model)
    path, stack = _decoder_stack(decoder, int(text.num_hidden_layers), name)
    hidden = int(text.hidden_size)
    flow = watch(decoder, stack)
    check_causal(config, text, flow, name)
    if flow is not None and (idle := sorted({*range(len(stack))} - flow.blocks.keys())):
        raise ValueError(f"{name}: without images or other input its layer {idle[0]} does not run")
    if flow is not None and any(
        block.shape != (1, TOKENS, hidden) for block in flow.blocks.values()
    ):
        raise ValueError(
            f"{name}: what its layers hand on is not a residual stream of {hidden} channels a token"
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
    embedded = getattr(decoder.get_input_embeddings(), "embedding_dim", hidden)
    found = Architecture(
        model_class=type(model),
        decoder=where,
        stack=path,
        layers=len(stack),
        hidden_size=hidden,
        embedding_size=int(embedded),
        returned=tuple(flow.blocks[layer].returned if flow else 0 for layer in range(len(stack))),
        taps=taps,
        boundary_dtypes=_dtypes(flow, len(stack)),
        one_group=_shared(flow, name),
        skipped=tuple(_beside(model, decoder)),
        positions=find_positions(decoder, text),
        components=frozenset(part for path, _ in model.named_modules() for part in path.split(".")),
        readers=tuple(
            readers_of_block(flow.blocks[layer], f"{path}.{layer}", taps[layer]) if flow else {}
            for layer in range(len(stack))
        ),
        ends_apart=flow is None or flow.ends_apart,
        # After the rest: it takes the decoder out of the model.
        head=without_head(config) or find_head(model, where, flow.channels if flow else hidden),
    )
    if found.one_group is None and flow is not None and len(stack) > 1:
        # A fresh model, as a job has it: some models change themselves when they first run.
        _, fresh = _decoder(on_meta(config, trust_remote_code))
        found = replace(found, one_group=not_apart(fresh, path, flow, found.embedding_size))
    return found


def _shared(flow: Flow | None, name: str) -> str | None:
    if flow is None:
        return f"the way of the residual stream through {name} could not be followed"
    if flow.shared is not None:
        return (
            f"layer {flow.shared} of {name} reads more than the residual stream of the layer "
            f"before it"
        )
    return None


def _dtypes(flow: Flow | None, layers: int) -> tuple[torch.dtype | None, ...]:
    given = [flow.blocks[layer].given.dtype if flow else None for layer in range(layers)]
    return tuple(None if dtype == META_DTYPE else dtype for dtype in given)


def on_meta(config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The whole model with its head, with shapes and without weights.

    Raises:
        ValueError: transformers has no text generation model for the configuration.
    """
    import transformers

    failed: Exception | None = None
    kinds: tuple[Any, ...] = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForImageTextToText,
    )
    for kind in kinds:
        try:
            with torch.device("meta"):
                model: PreTrainedModel = kind.from_config(
                    config, dtype=META_DTYPE, trust_remote_code=trust_remote_code
                )
            # Of some the first class is for the text alone, whose weights have other names.
            if model.config.model_type == config.model_type:
                return model.eval()
        except Exception as error:  # sizes that do not fit fail where they are first used
            failed = failed or error
    if failed is None or isinstance(failed, ValueError):
        said = "transformers has no decoder-only language model for it"
    else:
        known = f"{failed} is not known" if isinstance(failed, KeyError) else gist(failed)
        said = f"its config.json describes no model that can be built ({known})"
    raise ValueError(f"model type {config.model_type!r}: {said}") from failed


def _decoder(model: PreTrainedModel) -> tuple[str, PreTrainedModel]:
    """The text decoder and its path; of a model for text alone, all but the head."""
    from transformers import PreTrainedModel

    inner = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m is not model]
    for decoder in (model.get_decoder(), model.base_model, *inner[:1]):
        for path, module in model.named_modules():
            if module is decoder and path:
                return path, decoder
    raise ValueError(f"{type(model).__name__}: its text decoder cannot be told for sure")


def _beside(model: nn.Module, decoder: nn.Module) -> list[str]:
    """Paths of the modules with weights that are neither the decoder nor on the way to it."""
    inside = set(decoder.modules())
    way = {path for path, module in model.named_modules() if decoder in set(module.modules())}
    return [
        path
        for path, module in model.named_modules()
        if path not in way
        and path.rpartition(".")[0] in way
        and module not in inside
        and any(True for _ in module.parameters())
    ]


def _decoder_stack(base: nn.Module, layers: int, name: str) -> tuple[str, nn.ModuleList]:
    stacks = [
        (path, module)
        for path, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers
    ]
    if not stacks:
        raise ValueError(f"{name}: no stack of {layers} decoder layers was found in it")
    depth = min(path.count(".") for path, _ in stacks)
    outermost = [(path, module) for path, module in stacks if path.count(".") == depth]
    if len(outermost) > 1:
        paths = " or ".join(path for path, _ in outermost)
        raise ValueError(f"{name}: its decoder stack cannot be told for sure: {paths}")
    return outermost[0]
