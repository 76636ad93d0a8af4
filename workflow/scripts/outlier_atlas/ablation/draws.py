"""Random controls: as many draws as are asked for, all of them different."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import comb
from typing import TypeVar

import numpy as np

log = logging.getLogger(__name__)

Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Draws:
    """Draws of random controls.

    Attributes:
        number: how many there are, where there are as many different ones.
        seed: of the draws. Draw n is the same however many there are.
    """

    number: int
    seed: int

    def sets(self, others: Sequence[int], size: int, of: str) -> list[tuple[int, ...]]:
        """Sets of so many of `others`, each ascending, no set twice.

        Args:
            of: what they are controls of, for the log.
        """

        def draw(random: np.random.Generator) -> tuple[int, ...]:
            chosen = random.choice(others, size, replace=False)
            return tuple(sorted(int(each) for each in chosen))

        return self._distinct(draw, comb(len(others), size), of)

    def places(
        self, shape: tuple[int, int], taken: Collection[tuple[int, int]], of: str
    ) -> list[tuple[int, int]]:
        """Places in a matrix, none of them taken, none twice.

        Args:
            shape: rows and columns.
            taken: places that are targets themselves.
        """

        def draw(random: np.random.Generator) -> tuple[int, int]:
            while True:
                place = int(random.integers(shape[0])), int(random.integers(shape[1]))
                if place not in taken:
                    return place

        return self._distinct(draw, shape[0] * shape[1] - len({*taken}), of)

    def _distinct(
        self, draw: Callable[[np.random.Generator], Drawn], different: int, of: str
    ) -> list[Drawn]:
        number = min(self.number, different)
        if number < self.number:
            log.warning(
                "ablation.random_draws = %d: there are %d different random controls of %s, and "
                "all of them are taken", self.number, number, of,
            )  # fmt: skip
        drawn: list[Drawn] = []
        for index in range(number):
            random = np.random.default_rng([self.seed, index])
            each = draw(random)
            while each in drawn:
                each = draw(random)
            drawn.append(each)
        return drawn
