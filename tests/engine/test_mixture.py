"""The arithmetic, on tensors alone."""

import math

import pytest
import torch

from trimtab.engine.mixture import (
    NEG_INF,
    decode_scalar,
    divergence,
    encode_scalar_as_logits,
    entropy,
    implausible,
    mix,
)

V = 50


def rows(*weights: list[float], log_a: float = NEG_INF) -> torch.Tensor:
    return torch.tensor([[*w, log_a, 0.0] for w in weights])


@pytest.fixture
def logits() -> torch.Tensor:
    """[members, N, V]"""
    torch.manual_seed(0)
    return 3 * torch.randn(3, 4, V)


def test_mixed_logits_are_mixed_log_probabilities(logits):
    w = rows([1, 0, 0], [0, 1, 0], [1, 0.5, -0.5], [0.3, -0.7, 2])
    z = mix(logits[0].clone(), [(1, logits[1]), (2, logits[2])], w).log_softmax(-1)
    expected = torch.einsum("mnv,nm->nv", logits.double().log_softmax(-1), w[:, :3].double()).log_softmax(-1)
    torch.testing.assert_close(z.double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(mix(logits[0].clone(), [(1, logits[1]), (2, logits[2])], w)[0], logits[0][0])


def test_an_unknown_token_is_forbidden_only_where_its_guide_has_a_say(logits):
    z = mix(logits[0].clone(), [(1, logits[1, :, :30])], rows([1, 0, 0], [1, 0.5, 0], [1, -0.5, 0], [0, 0, 1]))
    assert z[0].isfinite().all()
    assert z[3].isfinite().all()
    assert (z[1:3, 30:] == NEG_INF).all()
    assert z[1:3, :30].isfinite().all()


def test_a_padded_guide_says_nothing_of_tokens_that_the_base_lacks(logits):
    z = mix(logits[0, :, :30].clone(), [(1, logits[1])], rows(*[[1, 1, 0]] * 4))
    torch.testing.assert_close(z, logits[0, :, :30] + logits[1, :, :30])


def test_plausibility(logits):
    base = logits[0]
    p = base.softmax(-1)
    expected = p < 0.1 * p.amax(-1, keepdim=True)
    assert torch.equal(implausible(base, rows(*[[1, 0, 0]] * 4, log_a=math.log(0.1))), expected)
    assert not implausible(base, rows(*[[1, 0, 0]] * 4)).any()


def test_divergence(logits):
    w = rows([1, 0, 0], [1, 1e-4, 0], [0, 1, 0], [1, 3, -2])
    guides = [(1, logits[1]), (2, logits[2])]
    p = torch.einsum("mnv,nm->nv", logits.double(), w[:, :3].double()).log_softmax(-1)
    q = logits[0].double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(divergence(logits[0], guides, w), expected, rtol=1e-9, atol=1e-15)
    forbidding = divergence(logits[0], [(1, logits[1, :, :30])], w)
    assert forbidding.isfinite().all()


def test_entropy(logits):
    w = rows([1, 0, 0], [1, 1e-4, 0], [0, 1, 0], [1, 3, -2])
    guides = [(1, logits[1]), (2, logits[2])]
    z = torch.einsum("mnv,nm->nv", logits.double(), w[:, :3].double())
    expected = torch.distributions.Categorical(logits=z).entropy()
    torch.testing.assert_close(entropy(logits[0], guides, w), expected, rtol=1e-9, atol=1e-12)
    w[:, -2] = math.log(0.5)
    few = torch.where(logits[0] >= logits[0].amax(-1, keepdim=True) + math.log(0.5), z, NEG_INF)
    p = few.softmax(-1)
    expected = -torch.special.xlogy(p, p).sum(-1)
    torch.testing.assert_close(entropy(logits[0], guides, w), expected, rtol=1e-5, atol=1e-9)


def test_a_reading_survives_a_softmax():
    readings = torch.tensor([0.0, 1e-12, 1e-6, 1e-3, 1.0, 30.0, 1e4], dtype=torch.float64)
    logprobs = encode_scalar_as_logits(readings, V).log_softmax(-1)
    back = [decode_scalar(float(row[0]), float(row[1])) for row in logprobs]
    assert back == pytest.approx(readings.tolist(), rel=1e-5)
    assert back[0] == 0
    assert (logprobs[:, 2:] == NEG_INF).all()
