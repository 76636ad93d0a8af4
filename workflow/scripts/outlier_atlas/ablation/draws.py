"""Draws of random controls, no two of them equal."""

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
        number: of draws; if there are fewer different ones, all of these are drawn.
        seed: of the draws. A larger number adds draws and changes none.
    """

    number: int
    seed: int

    def sets(self, others: Sequence[int], size: int, of: str) -> list[tuple[int, ...]]:
        """Draw sets of `size` of `others`, each ascending, no set twice.

        Args:
            of: the target that they are controls of, for the log.
        """

        def draw(random: np.random.Generator) -> tuple[int, ...]:
            chosen = random.choice(others, size, replace=False)
            return tuple(sorted(int(each) for each in chosen))

        return self._distinct(draw, comb(len(others), size), of)

    def places(
        self, shape: tuple[int, int], taken: Collection[tuple[int, int]], of: str
    ) -> list[tuple[int, int]]:
        """Draw places in a matrix, no place twice.

        Args:
            shape: rows and columns.
            taken: places that are targets, and are not drawn.
            of: the target that they are controls of, for the log.
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
