"""A person's preference weights from a few of their choices: Bayesian Bradley-Terry over the objectives' rewards.

    P(a preferred to b | w) = sigmoid(w . (r(a) - r(b))),    w ~ N(m, s^2 I)                                         (1)
    w | choices ~ N(w*, H^-1),  w* the posterior's mode, H the Hessian of its negative logarithm there               (2)
    I(a, b) = h(E sigmoid(w . d)) - E h(sigmoid(w . d)),  d = r(a) - r(b),  h the entropy of a coin                  (3)

PAL (arXiv 2406.08469) and VPL (arXiv 2408.10075) learn a latent space for this; here the objectives are known, a person
is a point w in their space, and the covariance states the uncertainty about it. The negative logarithm of (1) is convex
in w, (2) is Laplace's approximation, and (3), the information that an answer gives about w (BALD, arXiv 1112.5745),
chooses the pair to ask about. The direction of w is the preference, |w| its decidedness. Shapes: K objectives,
N choices, M pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

MAX_STEPS = 100
"""Of Newton's method, which needs about ten."""
DRAWS = 8192
"""Samples of (2) that stand for the law of directions."""
QUADRATURE_NODES = np.linspace(-8, 8, 401)
QUADRATURE_WEIGHTS = np.exp(-(QUADRATURE_NODES**2) / 2) / np.exp(-(QUADRATURE_NODES**2) / 2).sum()
"""E f(x), x ~ N(0, 1), is sum_i WEIGHTS_i f(NODES_i): the trapezoidal rule, since a sigmoid over
margins of dozens is steep."""
PAIRS_PER_BATCH = 4096
"""Bounds the memory of `Person.information`."""


def sigmoid(z: Vector) -> Vector:
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))


@dataclass(frozen=True, kw_only=True)
class Person:
    """The normal posterior of a person's w."""

    mean: Vector
    """[K]"""
    covariance: Vector
    """[K, K]"""

    @property
    def direction(self) -> Vector | None:
        """[K] the mean as a unit vector; None for a mean of 0."""
        length = float(np.linalg.norm(self.mean))
        return None if length < 1e-9 else np.asarray(self.mean / length)

    def draw_directions(self) -> Vector:
        """[DRAWS, K] unit vectors, the same ones in every call."""
        w_DK = np.random.default_rng(0).multivariate_normal(self.mean, self.covariance, size=DRAWS, method="eigh")
        return np.asarray(w_DK / np.maximum(np.linalg.norm(w_DK, axis=1, keepdims=True), 1e-300))

    def probability(self, differences_MK: Vector) -> Vector:
        """[M] of the first of two answers being preferred, averaged over w; their rewards differ by `differences`."""
        return np.asarray(self._expectation(sigmoid(self._margins(differences_MK))))

    def information(self, differences_MK: Vector) -> Vector:
        """[M] nats about w that the choice between two answers gives, (3)."""
        informations = [np.zeros(0)]
        for start in range(0, len(differences_MK), PAIRS_PER_BATCH):
            p_MQ = sigmoid(self._margins(differences_MK[start : start + PAIRS_PER_BATCH]))
            informations.append(entropy(self._expectation(p_MQ)) - self._expectation(entropy(p_MQ)))
        return np.maximum(np.concatenate(informations), 0.0)

    def _margins(self, differences_MK: Vector) -> Vector:
        """[M, Q] values of w . d at the Q quadrature nodes."""
        mean_M = differences_MK @ self.mean
        spread_M = np.sqrt(np.maximum(np.einsum("mk,kl,ml->m", differences_MK, self.covariance, differences_MK), 0))
        return np.asarray(mean_M[:, None] + spread_M[:, None] * QUADRATURE_NODES)

    @staticmethod
    def _expectation(values_MQ: Vector) -> Vector:
        return np.asarray(values_MQ @ QUADRATURE_WEIGHTS)


def entropy(p: Vector) -> Vector:
    """Of a coin, in nats."""
    q = np.clip(p, 1e-300, 1 - 1e-16)
    return np.asarray(-q * np.log(q) - (1 - q) * np.log1p(-q))


def infer_person(differences_NK: Vector, counts_N: Sequence[float], *, mean_K: Sequence[float], std: float) -> Person:
    """The person after N choices, (2); `differences` are r(chosen) - r(rejected), `counts` a choice's weight."""
    d, n, m = np.asarray(differences_NK).reshape(-1, len(mean_K)), np.asarray(counts_N), np.asarray(mean_K)
    precision = np.eye(len(m)) / std**2

    def loss(w: Vector) -> float:
        return float(n @ np.logaddexp(0, -(d @ w)) + (w - m) @ precision @ (w - m) / 2)

    def hessian(w: Vector) -> Vector:
        p = sigmoid(d @ w)
        return np.asarray((d * (n * p * (1 - p))[:, None]).T @ d + precision)

    w = m.astype(np.float64)
    for _ in range(MAX_STEPS):
        gradient = -(n * sigmoid(-(d @ w))) @ d + precision @ (w - m)
        step = np.linalg.solve(hessian(w), gradient)
        size = 1.0
        while loss(w - size * step) > loss(w) and size > 1e-12:
            size /= 2
        w = w - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    return Person(mean=w, covariance=np.asarray(np.linalg.inv(hessian(w))))


def choices_from_ratings(ratings: Sequence[float]) -> list[tuple[int, int, float]]:
    """(better, worse, count) for all pairs with different ratings; the counts of n different ratings sum to n - 1."""
    n = len(ratings)
    return [(i, j, 2 / n) for i in range(n) for j in range(n) if ratings[i] > ratings[j]]
