"""Distinct draws of random controls."""

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
    """The draws of random controls.

    Attributes:
        number: number of draws; if fewer distinct controls exist, all of them are drawn.
        seed: seed of the draws. A larger `number` adds draws and changes none.
    """

    number: int
    seed: int

    def sets(self, others: Sequence[int], size: int, of: str) -> list[tuple[int, ...]]:
        """Draw distinct sets of `size` elements of `others`, each ascending.

        Args:
            others: elements to draw from.
            size: number of elements of a set.
            of: description of the target, for the log.
        """

        def draw(random: np.random.Generator) -> tuple[int, ...]:
            chosen = random.choice(others, size, replace=False)
            return tuple(sorted(int(each) for each in chosen))

        return self._distinct(draw, comb(len(others), size), of)

    def places(
        self, shape: tuple[int, int], taken: Collection[tuple[int, int]], of: str
    ) -> list[tuple[int, int]]:
        """Draw distinct places in a matrix.

        Args:
            shape: number of rows and columns.
            taken: places of targets, which are not drawn.
            of: description of the target, for the log.
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
