"""The interface of a `targets.py`, which turns the findings of a criterion into ablations."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from outlier_atlas.ablation.apply import experts_of, tap_of
from outlier_atlas.ablation.draws import Draws
from outlier_atlas.ablation.variants import SetChannel, Trial, Variant, Weight, ZeroWeight
from outlier_atlas.roles.architecture import Architecture
from outlier_atlas.settings.ablation import AblationSettings, TargetKind

if TYPE_CHECKING:
    from outlier_atlas.ablation.job import Ablation
    from outlier_atlas.ablation.streams import Streams

Candidate = TypeVar("Candidate")

Means = Callable[[str, int, int], float]
"""A function that returns the mean of a channel, given site, layer and channel."""

Devices = Callable[[], AbstractContextManager[Sequence[str]]]
"""A function that leases the devices of the stage."""


@dataclass(frozen=True)
class Channels:
    """Channels that are ablated together.

    Attributes:
        target: name of the target in the table `ablations`.
        places: sites and layers; all channels are set at each of them.
        channels: the channels, ascending.
    """

    target: str
    places: tuple[tuple[str, int], ...]
    channels: tuple[int, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """The distinct sites."""
        return tuple(dict.fromkeys(site for site, _ in self.places))

    def variant(self, channels: Sequence[int], value: Means) -> Variant:
        """Return the model with some channels set at these places.

        Args:
            channels: channels to set.
            value: a function that returns the value to set, given site, layer and channel.
        """
        return Variant(
            tuple(
                SetChannel(layer, site, channel, value(site, layer, channel))
                for site, layer in self.places
                for channel in channels
            )
        )


@dataclass(frozen=True)
class TargetContext:
    """The inputs that all targets share.

    Attributes:
        settings: the section `ablation` of the configuration.
        tables: folder of the run's tables.
        architecture: architecture of the model.
        mean: a function that returns the mean of a channel over the run's tokens.
    """

    settings: AblationSettings
    tables: Path
    architecture: Architecture
    mean: Means

    @property
    def draws(self) -> Draws:
        """The draws of random controls."""
        return Draws(self.settings.random_draws, self.settings.seed)

    def largest(
        self,
        magnitudes: Mapping[Candidate, float],
        key: Callable[[Candidate], Any] = lambda each: each,
    ) -> set[Candidate]:
        """Return the candidates with the largest magnitudes, `ablation.most` of them.

        Args:
            magnitudes: magnitude of each candidate.
            key: sort key among candidates of equal magnitude; the lowest come first.
        """
        ordered = sorted(magnitudes, key=lambda each: (-magnitudes[each], key(each)))
        return {*ordered[: self.settings.most]}

    def channel_trials(self, of: Channels, outliers: Collection[int]) -> Iterator[Trial]:
        """Yield the interventions on a set of channels, followed by random controls.

        Args:
            of: the set of channels.
            outliers: channels of all targets, which are not random controls.

        Raises:
            ValueError: a channel is not in the model, or a mean is not known.
        """
        width = self._width(of)
        for intervention in self.settings.interventions:
            value = self.mean if intervention == "mean" else _zero
            yield Trial(
                of.target, intervention, of.variant(of.channels, value), of.sites, of.channels
            )
        others = [channel for channel in range(width) if channel not in outliers]
        drawn = self.draws.sets(others, len(of.channels), f"{of.target} {of.channels}")
        for draw, channels in enumerate(drawn):
            variant = of.variant(channels, _zero)
            yield Trial(of.target, "random", variant, of.sites, channels, draw=draw)

    def _width(self, of: Channels) -> int:
        """Return the smallest number of channels of the sites.

        Raises:
            ValueError: a site does not have the channels.
        """
        width = min(tap_of(self.architecture, site, layer).channels for site, layer in of.places)
        if of.channels[-1] >= width:
            raise ValueError(
                f"ablation.channels: {' and '.join(of.sites)} has {width} channels, and no channel "
                f"{of.channels[-1]}"
            )
        return width

    def weight_trials(
        self, target: str, weight: Weight, targets: Collection[Weight]
    ) -> Iterator[Trial]:
        """Yield the trial that sets a weight to zero, followed by random controls.

        Args:
            target: name of the target in the table `ablations`.
            weight: the weight.
            targets: weights of all targets, which are not random controls.

        Raises:
            ValueError: the weight is not in the model.
        """
        same = {each for each in targets if matrix_of(each) == matrix_of(weight)}
        others = self.random_weights(weight, same, self.settings.random_draws)
        for draw, each in [(None, weight), *enumerate(others)]:
            yield Trial(
                target, "zero" if draw is None else "random", Variant((each,)),
                expert=each.expert, row=each.row, column=each.column, draw=draw,
            )  # fmt: skip

    def random_weights(
        self, weight: Weight, targets: Collection[Weight], number: int
    ) -> list[Weight]:
        """Draw random weights from the matrix of a weight.

        Args:
            weight: the weight.
            targets: weights of the matrix that are not drawn.
            number: number of weights to draw; fewer if the matrix has fewer.

        Raises:
            ValueError: the weight is not in the model.
        """
        taken = {(each.row, each.column) for each in targets}
        expert = "" if weight.expert is None else f" of expert {weight.expert}"
        of = f"the down projection{expert} of layer {weight.layer}"
        drawn = replace(self.draws, number=number).places(self._shape(weight), taken, of)
        return [replace(weight, row=row, column=column) for row, column in drawn]

    def _shape(self, weight: Weight) -> tuple[int, int]:
        """Return the number of rows and columns of the down projection of a weight.

        Raises:
            ValueError: the weight is not in the model.
        """
        out, row, column = self.architecture.hidden_size, weight.row, weight.column
        if isinstance(weight, ZeroWeight):
            into = tap_of(self.architecture, "mlp_hidden", weight.layer).channels
            if row >= out or column >= into:
                raise ValueError(
                    f"ablation.weights: the down projection of layer {weight.layer} has {out} "
                    f"rows and {into} columns, and no weight [{row}, {column}]"
                )
            return out, into
        tap = experts_of(self.architecture, weight.layer)
        into = tap.entries // out
        if weight.expert >= tap.experts or row >= out or column >= into:
            raise ValueError(
                f"ablation.expert_weights: layer {weight.layer} has {tap.experts} experts, whose "
                f"down projections have {out} rows and {into} columns, and no weight "
                f"[{weight.expert}, {row}, {column}]"
            )
        return out, into


class Target(ABC):
    """A kind of ablation target: findings of a criterion.

    All methods read the findings from the run's tables. By default they return nothing.

    Attributes:
        key: name in `ablation.targets`.
    """

    key: ClassVar[TargetKind]

    def weights(self, context: TargetContext) -> Iterable[tuple[str, Weight]]:
        """Return the weights to ablate one by one, each with the target's name in `ablations`."""
        return ()

    def known_weights(self, context: TargetContext) -> Iterable[Weight]:
        """Return all weights that are findings, which are not drawn as random controls."""
        return ()

    def channels(self, context: TargetContext) -> Iterable[Channels]:
        """Return the sets of channels to ablate.

        No channel of any set is drawn as a random control.
        """
        return ()

    def trials(self, context: TargetContext, outliers: Collection[int]) -> Iterable[Trial]:
        """Return trials that are neither single weights nor sets of channels.

        The trials include random controls.

        Args:
            context: the inputs that all targets share.
            outliers: channels of all sets of channels.
        """
        return ()

    def later_trials(
        self, context: TargetContext, ablation: Ablation, streams: Streams, devices: Devices
    ) -> Iterable[Trial]:
        """Return trials that result from a search of the held-out sequences.

        Args:
            context: the inputs that all targets share.
            ablation: the ablation job.
            streams: files of the streams of variants.
            devices: a function that leases the devices.
        """
        return ()


def matrix_of(weight: Weight) -> tuple[int, int | None]:
    """Return the layer and the expert of the matrix of a weight."""
    return weight.layer, weight.expert


def _zero(site: str, layer: int, channel: int) -> float:
    return 0.0
