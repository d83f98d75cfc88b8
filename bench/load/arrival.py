"""When an open loop's requests are due: seconds from the start, without end."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator


def poisson(rate: float, rng: random.Random) -> Iterator[float]:
    """Independent callers, `rate` a second between them: gaps are exponential."""
    return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())


def constant(rate: float, rng: random.Random) -> Iterator[float]:
    """Evenly spaced, the first at once."""
    return (i / rate for i in itertools.count())


ARRIVALS: dict[str, Callable[[float, random.Random], Iterator[float]]] = {"constant": constant, "poisson": poisson}
