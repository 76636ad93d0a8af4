"""Variants of the model: channels set to a value, weights and experts set to zero."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

from outlier_atlas.files import fingerprint


@dataclass(frozen=True, order=True)
class SetChannel:
    """An edit that sets a channel of a site and layer to a value, for all tokens."""

    layer: int
    site: str
    channel: int
    value: float


@dataclass(frozen=True, order=True)
class SetMassive:
    """An edit that sets the massive activations of a channel to a value, only at their tokens.

    The criterion for massive activations is evaluated in each held-out sequence.

    Attributes:
        layer: layer of the massive activations.
        site: site of the massive activations.
        channel: channel of the massive activations.
        set_channel: channel that is set at their tokens: the same channel, or a random one.
        first: value to set at the first position of a sequence.
        others: value to set at other positions.
        absolute: threshold of `detection.massive_activations`.
        ratio: ratio of `detection.massive_activations`.
        median: kind of median of `detection.massive_activations`.
    """

    layer: int
    site: str
    channel: int
    set_channel: int
    first: float
    others: float
    absolute: float
    ratio: float
    median: str


@dataclass(frozen=True, order=True)
class ZeroWeight:
    """An edit that sets a weight of a layer's down projection to zero.

    Attributes:
        layer: layer of the down projection.
        row: output channel.
        column: input channel.
    """

    layer: int
    row: int
    column: int

    @property
    def expert(self) -> None:
        """None, because the layer has one dense down projection."""
        return None


@dataclass(frozen=True, order=True)
class ZeroExpertWeight:
    """An edit that sets a weight of a routed expert's down projection to zero."""

    layer: int
    expert: int
    row: int
    column: int


@dataclass(frozen=True, order=True)
class ZeroExpert:
    """An edit that sets the output of a routed expert to zero, like a router weight of 0."""

    layer: int
    expert: int


Weight = ZeroWeight | ZeroExpertWeight

Edit = SetChannel | SetMassive | ZeroWeight | ZeroExpertWeight | ZeroExpert


@dataclass(frozen=True)
class Variant:
    """A variant of the model with a set of edits; without edits it is the unaltered model."""

    edits: tuple[Edit, ...] = ()

    @property
    def first_layer(self) -> int:
        """The first altered layer; 0 for the unaltered model."""
        return min((edit.layer for edit in self.edits), default=0)

    @cached_property
    def key(self) -> str:
        """A digest of the edits that does not depend on their order."""
        return fingerprint(
            sorted([type(e).__name__, sorted(asdict(e).items())] for e in self.edits)
        )


UNALTERED = Variant()


@dataclass(frozen=True)
class Later:
    """A super weight that appears once others are zero.

    Attributes:
        round: number of the search round, from 1.
        weight: the super weight.
        zero: weights that were zero in that round.
        input: largest input, as in `super_weights`, over the held-out sequences.
        output: largest output, likewise.
        share: share of the output, likewise.
    """

    round: int
    weight: Weight
    zero: tuple[Weight, ...]
    input: float
    output: float
    share: float


@dataclass(frozen=True)
class Trial:
    """A trial of the ablation stage: a row of the table `ablations`.

    Attributes:
        target: name of the target.
        intervention: `none`, `zero`, `mean` or `random`.
        variant: the variant of the model.
        sites: sites of the channels.
        channels: altered channels.
        expert: the routed expert, or the expert of the weight.
        row: row of the weight.
        column: column of the weight.
        draw: number of the random draw.
        later: the super weight of a later search.
        layers: first and last altered layer; None for the unaltered model.
    """

    target: str
    intervention: str
    variant: Variant
    sites: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()
    expert: int | None = None
    row: int | None = None
    column: int | None = None
    draw: int | None = None
    later: Later | None = None

    @property
    def layers(self) -> tuple[int, int] | None:
        if self.later:
            return self.later.weight.layer, self.later.weight.layer
        altered = [edit.layer for edit in self.variant.edits]
        return (min(altered), max(altered)) if altered else None
