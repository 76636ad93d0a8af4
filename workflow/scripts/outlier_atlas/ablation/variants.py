"""What is altered: channels that are set to a value, weights and experts that are set to zero."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

from outlier_atlas.files import fingerprint


@dataclass(frozen=True, order=True)
class SetChannel:
    """A site's value at a channel, set to a value in a layer for all tokens."""

    layer: int
    site: str
    channel: int
    value: float


@dataclass(frozen=True, order=True)
class SetMassive:
    """The massive activations of a channel, set to a value at their tokens and nowhere else.

    Which values are massive is decided in each held-out sequence as the model computes it.

    Attributes:
        layer, site, channel: where massive activations are looked for.
        set_channel: the channel that is set at their tokens: the same one, or one drawn at random.
        first: what it is set to at the first position of a sequence.
        others: what it is set to at other positions.
        absolute, ratio, median: the criterion, as `detection.massive_activations` has it.
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
    """A weight of a layer's down projection; row is its output channel, column its input."""

    layer: int
    row: int
    column: int

    @property
    def expert(self) -> None:
        """None: the layer has one down projection."""
        return None


@dataclass(frozen=True, order=True)
class ZeroExpertWeight:
    """A weight of a routed expert's down projection, with its row and column."""

    layer: int
    expert: int
    row: int
    column: int


@dataclass(frozen=True, order=True)
class ZeroExpert:
    """A routed expert whose output is zero, as if the router gave it no weight."""

    layer: int
    expert: int


Weight = ZeroWeight | ZeroExpertWeight

Edit = SetChannel | SetMassive | ZeroWeight | ZeroExpertWeight | ZeroExpert


@dataclass(frozen=True)
class Variant:
    """The model with all of these edits at once; the model as it is without any."""

    edits: tuple[Edit, ...] = ()

    @property
    def first_layer(self) -> int:
        """The first altered layer; 0 of the model as it is, which nothing was computed of."""
        return min((edit.layer for edit in self.edits), default=0)

    @cached_property
    def key(self) -> str:
        """Stands for its edits, in any order."""
        return fingerprint(
            sorted([type(e).__name__, sorted(asdict(e).items())] for e in self.edits)
        )


UNALTERED = Variant()


@dataclass(frozen=True)
class Later:
    """A super weight that shows once others are zero.

    Attributes:
        round: in which search, from 1.
        weight: which it is.
        zero: the weights that were zero in that search.
        input, output, share: as in `super_weights`, over the held-out sequences.
    """

    round: int
    weight: Weight
    zero: tuple[Weight, ...]
    input: float
    output: float
    share: float


@dataclass(frozen=True)
class Trial:
    """A row of the table: what was altered, why, and how.

    Attributes:
        target: kind of what was ablated.
        sites, channels: of channels.
        layers: first and last altered layer; None for the model as it is.
        expert: a routed expert, or that of a weight.
        row, column: of a weight.
        intervention: `none`, `zero`, `mean` or `random`.
        draw: number of the draw.
        later: of a super weight that shows once others are zero.
        variant: the model so altered.
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
