"""The arithmetic of a mixture, on tensors alone.

    z = Σ_i w_i l_i                                          (1)  softmax(z) = softmax(Σ_i w_i log p_i): the members'
                                                                  log-normalisers are constants of the row
    allowed = {v : l_base(v) >= max l_base + log a}          (2)  contrastive decoding's plausibility mask
    KL(softmax(z) ‖ softmax(l_base))                         (3)
    H(softmax(z)) = -Σ_v p_v log p_v                         (4)

Shapes: N rows, V the base's vocabulary, V_i a member's, M members with the base first, W = M + 2 columns of a row of
the weight table: w_base, w_guide…, log a, and which of (3) and (4) the row asks for in place of its distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

NEG_INF = float("-inf")
PLAUSIBILITY, SCALAR = -2, -1
"""Columns of a row, after the weights."""

DISTRIBUTION, KL, ENTROPY = 0.0, 1.0, 2.0
"""What a row asks for in its column `SCALAR`: logits of its distribution, or one number of it."""

EPS = 1e-30
"""What zero is encoded as."""

BLOCK = 64
"""Rows whose divergence is taken at a time: its fp64 copies of V columns must not outgrow the logits themselves."""


def mix(base_NV: Tensor, guides: Iterable[tuple[int, Tensor]], rows_NW: Tensor, *, rescale: bool = True) -> Tensor:
    """[N, V] of (1) in the dtype of `rows_NW`, in place where `base_NV` has it already.

    Each guide comes with its column. A token it does not know is forbidden in the rows where it has a say.
    `rescale=False` promises that every row has w_base = 1.
    """
    z_NV = base_NV.to(rows_NW.dtype)
    if rescale:
        z_NV.mul_(rows_NW[:, :1])
    V = z_NV.shape[-1]
    for column, logits in guides:
        w_N1 = rows_NW[:, column : column + 1]
        known = min(logits.shape[-1], V)
        z_NV[:, :known].addcmul_(logits[:, :known], w_N1)  # (1)
        if known < V:
            z_NV[:, known:].masked_fill_(w_N1 != 0, NEG_INF)
    return z_NV


def implausible(base_NV: Tensor, rows_NW: Tensor) -> Tensor:
    """[N, V] bool: what (2) forbids. log a = -inf forbids nothing."""
    floor_N1 = base_NV.amax(-1, keepdim=True).float() + rows_NW[:, PLAUSIBILITY].unsqueeze(-1)
    return base_NV < floor_N1  # (2)


def divergence(base_NV: Tensor, guides: list[tuple[int, Tensor]], rows_NW: Tensor) -> Tensor:
    """[N] of (3) in nats, fp64 throughout: at 1e-6 nats the log-ratios are a thousandth of a logit."""
    blocks = [base_NV.new_empty(0, dtype=torch.float64)]
    for block in (slice(start, start + BLOCK) for start in range(0, len(base_NV), BLOCK)):
        base = base_NV[block].double()
        z = mix(base.clone(), [(column, logits[block]) for column, logits in guides], rows_NW[block].double())
        log_p, log_q = z.log_softmax(-1), base.log_softmax(-1)
        terms = (log_p.exp() * (log_p - log_q)).masked_fill_(log_p == NEG_INF, 0)
        blocks.append(terms.sum(-1))  # (3)
    return torch.cat(blocks)


def entropy(base_NV: Tensor, guides: list[tuple[int, Tensor]], rows_NW: Tensor) -> Tensor:
    """[N] of (4) in nats, over what (2) allows, fp64 throughout."""
    blocks = [base_NV.new_empty(0, dtype=torch.float64)]
    for block in (slice(start, start + BLOCK) for start in range(0, len(base_NV), BLOCK)):
        guides_here = [(column, logits[block]) for column, logits in guides]
        z = mix(base_NV[block].double(), guides_here, rows_NW[block].double())
        log_p = z.masked_fill_(implausible(base_NV[block], rows_NW[block]), NEG_INF).log_softmax(-1)
        blocks.append(-(log_p.exp() * log_p).masked_fill_(log_p == NEG_INF, 0).sum(-1))  # (4)
    return torch.cat(blocks)


def encode_scalar_as_logits(scalars_N: Tensor, V: int) -> Tensor:
    """[N, V] fp32 logits that carry one non-negative number per row past a softmax, for `decode_scalar`.

    Tokens 0 and 1 differ by log x, every other token is impossible. A logit difference survives any normalisation, and
    the log keeps the relative error the same, near 1e-5, all the way down to `EPS`.
    """
    logits_NV = scalars_N.new_full((len(scalars_N), V), NEG_INF, dtype=torch.float32)
    logits_NV[:, 0] = scalars_N.clamp_min(EPS).log()
    logits_NV[:, 1] = 0
    return logits_NV


def decode_scalar(logprob_0: float, logprob_1: float) -> float:
    """What was encoded, from the log-probs of tokens 0 and 1."""
    scalar = math.exp(logprob_0 - logprob_1)
    return scalar if scalar > 2 * EPS else 0.0
