"""Due times of an open loop's requests: an endless series of seconds from the start."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator


def poisson(rate: float, rng: random.Random) -> Iterator[float]:
    """Independent callers with `rate` requests a second in all: gaps are exponential."""
    return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())


def constant(rate: float, rng: random.Random) -> Iterator[float]:
    """Evenly spaced, from 0 on."""
    return (i / rate for i in itertools.count())


ARRIVALS: dict[str, Callable[[float, random.Random], Iterator[float]]] = {"constant": constant, "poisson": poisson}
