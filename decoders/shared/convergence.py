"""Whether Markov chains have run long enough: split R-hat and the effective sample size of what they visited."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # of typing, pydantic takes it only from Python 3.12 on

from trimtab.decoders.shared.candidates import Vector, bound

FLOOR = 16
"""States per chain, at least, before chains can be found to agree."""


class StopRule(TypedDict, total=False):
    """When chains have run long enough; of several conditions all must hold."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]

    r_hat: Annotated[float, Field(gt=1, le=1e6, description="largest split R-hat")]
    effective_sample_size: Annotated[float, Field(gt=0, le=1e9, description="smallest, over all chains")]
    floor: Annotated[
        int, Field(ge=4, le=100_000, description="states per chain, after burn_in, before which they go on; 16")
    ]


def has_converged(rewards_CT: Vector, until: StopRule) -> bool:
    r_hat, size = measure_mixing(rewards_CT)
    within = "r_hat" not in until or (r_hat is not None and r_hat <= until["r_hat"])
    return within and size >= until.get("effective_sample_size", 0)


def measure_mixing(traces_CT: Vector) -> tuple[float | None, float]:
    """Split R-hat and the effective sample size of C chains of T values (Gelman et al., BDA 3, 11.4 and 11.5).

    Autocorrelations are summed up to the first negative sum of a pair (Geyer). No R-hat where nothing varies.
    """
    traces_CT = bound(traces_CT)
    traces_CT = traces_CT / max(np.abs(traces_CT).max(), np.finfo(float).tiny)  # neither figure hangs on the unit
    half = traces_CT.shape[1] // 2
    split = np.concatenate([traces_CT[:, :half], traces_CT[:, -half:]])
    m, n = split.shape
    within, between = split.var(axis=1, ddof=1).mean(), n * split.mean(axis=1).var(ddof=1)
    if within == 0:
        return None, float(m * n) if between == 0 else float(m)
    total = (n - 1) / n * within + between / n
    centred = split - split.mean(axis=1, keepdims=True)
    rho = []
    for lag in range(1, n):
        covariance = (centred[:, lag:] * centred[:, :-lag]).sum(axis=1).mean() / n
        rho.append(1 - (within - covariance) / total)
    tau = 1.0
    for pair in range(0, len(rho) - 1, 2):
        if rho[pair] + rho[pair + 1] < 0:
            break
        tau += 2 * (rho[pair] + rho[pair + 1])
    return float(np.sqrt(total / within)), float(min(m * n / max(tau, 1e-9), m * n))
