# SPDX-License-Identifier: GPL-2.0-or-later
"""Medians with their spread."""

import dataclasses
import math
import statistics
import typing


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median and how far the repetitions lie apart."""

    median: float
    min: float
    max: float

    @staticmethod
    def of(values: typing.Iterable[float]) -> "Spread":
        values = list(values)
        return Spread(statistics.median(values), min(values), max(values))

    def as_json(self) -> dict[str, float]:
        return {key: round(value, 3) for key, value in dataclasses.asdict(self).items()}


def ratios(numerator: typing.Sequence[float], denominator: typing.Sequence[float]) -> Spread | None:
    """Of runs that belong together: what slows a whole repetition down falls out."""
    pairs = [a / b for a, b in zip(numerator, denominator) if b > 0]
    return Spread.of(pairs) if pairs else None


def percentile(values: typing.Iterable[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def orders(things: typing.Sequence[str], repetitions: int) -> typing.Iterator[list[str]]:
    """A-B-B-A: each second repetition goes backwards, so that a slow drift hits all alike."""
    for n in range(repetitions):
        yield list(things) if n % 2 == 0 else list(reversed(things))
