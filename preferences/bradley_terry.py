"""A person's preference weights from a few of their choices: Bayesian Bradley-Terry over the objectives' rewards.

    P(a preferred to b | w) = sigmoid(w . (r(a) - r(b))),    w ~ N(m, s^2 I)                                         (1)
    w | choices ~ N(w*, H^-1),  w* the posterior's mode, H the Hessian of its negative logarithm there               (2)
    I(a, b) = h(E sigmoid(w . d)) - E h(sigmoid(w . d)),  d = r(a) - r(b),  h the entropy of a coin                  (3)

What PAL (arXiv 2406.08469) and VPL (arXiv 2408.10075) learn a latent space for, where the objectives are known: a
person is a point w, and what is not known of it is told. (1) is convex in w, (2) is Laplace's approximation, and (3),
what an answer would tell of w (BALD, arXiv 1112.5745), chooses the pair to ask about. |w| says how decided a person is;
what they want is its direction. Shapes: K objectives, N choices, M pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

STEPS = 100
"""Of Newton's method, which takes about ten."""
DRAWS = 8192
"""From (2), to tell of directions."""
NODES = np.linspace(-8, 8, 401)
WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()
"""E f(x), x ~ N(0, 1), is sum_i WEIGHTS_i f(NODES_i): the trapezoidal rule, for margins of dozens are steep."""
PAIRS = 4096
"""Looked at together."""


def sigmoid(z: Vector) -> Vector:
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))


@dataclass(frozen=True, kw_only=True)
class Person:
    """What is known of a person's w: a normal law."""

    mean: Vector
    """[K]"""
    covariance: Vector
    """[K, K]"""

    @property
    def direction(self) -> Vector | None:
        """[K] the mean as a unit vector; None where nothing speaks for one."""
        length = float(np.linalg.norm(self.mean))
        return None if length < 1e-9 else np.asarray(self.mean / length)

    def directions(self) -> Vector:
        """[DRAWS, K] unit vectors, the same ones each time."""
        drawn = np.random.default_rng(0).multivariate_normal(self.mean, self.covariance, size=DRAWS, method="eigh")
        return np.asarray(drawn / np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-300))

    def probability(self, differences_MK: Vector) -> Vector:
        """[M] that of two answers whose rewards differ by this the first is preferred, over what w may be."""
        return np.asarray(self._expected(sigmoid(self._margins(differences_MK))))

    def information(self, differences_MK: Vector) -> Vector:
        """[M] nats that the choice between two answers would tell of w, (3)."""
        found = [np.zeros(0)]
        for start in range(0, len(differences_MK), PAIRS):
            p_MQ = sigmoid(self._margins(differences_MK[start : start + PAIRS]))
            found.append(entropy(self._expected(p_MQ)) - self._expected(entropy(p_MQ)))
        return np.maximum(np.concatenate(found), 0.0)

    def _margins(self, differences_MK: Vector) -> Vector:
        """[M, nodes] values of w . d."""
        mean_M = differences_MK @ self.mean
        spread_M = np.sqrt(np.maximum(np.einsum("mk,kl,ml->m", differences_MK, self.covariance, differences_MK), 0))
        return np.asarray(mean_M[:, None] + spread_M[:, None] * NODES)

    @staticmethod
    def _expected(values_MQ: Vector) -> Vector:
        return np.asarray(values_MQ @ WEIGHTS)


def entropy(p: Vector) -> Vector:
    """Of a coin, in nats."""
    q = np.clip(p, 1e-300, 1 - 1e-16)
    return np.asarray(-q * np.log(q) - (1 - q) * np.log1p(-q))


def inferred(differences_NK: Vector, counts_N: Sequence[float], *, mean_K: Sequence[float], std: float) -> Person:
    """The person after N choices, (2); `differences` are r(chosen) - r(rejected), `counts` what a choice weighs."""
    d, n, m = np.asarray(differences_NK).reshape(-1, len(mean_K)), np.asarray(counts_N), np.asarray(mean_K)
    precision = np.eye(len(m)) / std**2

    def loss(w: Vector) -> float:
        return float(n @ np.logaddexp(0, -(d @ w)) + (w - m) @ precision @ (w - m) / 2)

    def hessian(w: Vector) -> Vector:
        p = sigmoid(d @ w)
        return np.asarray((d * (n * p * (1 - p))[:, None]).T @ d + precision)

    w = m.astype(np.float64)
    for _ in range(STEPS):
        gradient = -(n * sigmoid(-(d @ w))) @ d + precision @ (w - m)
        step = np.linalg.solve(hessian(w), gradient)
        size = 1.0
        while loss(w - size * step) > loss(w) and size > 1e-12:
            size /= 2
        w = w - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    return Person(mean=w, covariance=np.asarray(np.linalg.inv(hessian(w))))


def compared(ratings: Sequence[float]) -> list[tuple[int, int, float]]:
    """(better, worse, count) of rated answers: all pairs that differ, n ratings counting as n - 1 choices together."""
    n = len(ratings)
    return [(i, j, 2 / n) for i in range(n) for j in range(n) if ratings[i] > ratings[j]]
