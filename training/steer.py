"""What a guide does to answers: the reward that they gain against the KL that they spend, beside a colder base that
spends about as much.

An answer is drawn from p_base(z) p_guide(z)^a (GenARM, arXiv 2410.08193), or from p_base (p_guide / p_base)^a for a
guide that is served as a difference. Its KL is the sum over its tokens of the whole step's,

    KL = sum_t sum_z q(z | y_<t) (log q(z | y_<t) - log p_base(z | y_<t)),                                           (1)

A guide that has learnt nothing is the base, and then the former is the base at temperature 1 / (1 + a): a guide steers
only where it gains more than such sharpening. (1) has the same mean as sum_t log q(y_t) - log p_base(y_t) and, by Rao
and Blackwell, a smaller variance.

Shapes: N answers, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch.nn.functional import pad

from trimtab.bench.intervals import half
from trimtab.training.measure import score
from trimtab.training.rendering import Renderer

ANSWER_TOKENS = 128
"""At most so many are drawn."""
TOGETHER = 16
"""Answers in one forward pass."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """What answers are drawn from: the base's logits by a temperature, and the guide's by an exponent."""

    exponent: float = 0.0
    temperature: float = 1.0
    difference: bool = False
    """The exponent is of p_guide / p_base."""

    @property
    def name(self) -> str:
        if self.exponent:
            return f"exponent {self.exponent:g}"
        return "the base" if self.temperature == 1 else f"the base at temperature {self.temperature:g}"


@dataclass(kw_only=True)
class Steering:
    """Answers of one law, one to each prompt."""

    law: Law
    kls: list[float] = field(default_factory=list)
    """[N] nats from the base"""
    rewards: list[float] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    cut: int = 0
    """Answers that were no longer drawn and had not ended."""


def list_laws(*, difference: bool) -> list[Law]:
    guided = [Law(exponent=a, difference=difference) for a in (0.5, 1.0, 2.0)]
    return [Law(), *guided, Law(temperature=0.7), Law(temperature=0.5)]


class GrowingRows:
    """The next token's logits of rows that grow by a token at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._positions = "position_ids" in inspect.signature(plain.forward).parameters
        self._cache: Any = None

    def read(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[N, V] of rows padded on the left; what was read before is not run again where the model has a cache."""
        new = ids if self._cache is None else ids[:, -1:]
        more: dict[str, Any] = {} if self._cache is None else {"past_key_values": self._cache}
        if self._positions:
            more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        output = self._model(input_ids=new, attention_mask=mask, use_cache=True, logits_to_keep=1, **more)
        self._cache = output.get("past_key_values")
        return output.logits[:, -1].double()  # type: ignore[no-any-return]


@torch.inference_mode()
def draw_answers(
    base: Any, guide: Any, prompts: Sequence[Sequence[int]], law: Law, *, ends: Set[int], most: int, seed: int
) -> list[tuple[list[int], float]]:
    """(tokens, KL in nats by (1)) of one answer to each prompt, of `most` tokens at most."""
    device = base.device
    generator = torch.Generator(device=device).manual_seed(seed)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    of_base, of_guide = GrowingRows(base), GrowingRows(guide)
    answers: list[list[int]] = [[] for _ in prompts]
    alive, kl = torch.ones(len(prompts), dtype=torch.bool, device=device), torch.zeros(len(prompts), device=device)
    kl = kl.double()
    for _ in range(most):
        logits = of_base.read(ids, mask)
        q = mix(logits, of_guide.read(ids, mask) if law.exponent else None, law)
        kl += alive * divergence(q, logits.log_softmax(-1))
        drawn = torch.multinomial(q.exp(), 1, generator=generator)
        for i in alive.nonzero()[:, 0].tolist():
            answers[i].append(int(drawn[i]))
        alive &= torch.tensor([answer[-1] not in ends for answer in answers], device=device)
        if not alive.any():
            break
        ids, mask = torch.cat([ids, drawn], 1), torch.cat([mask, torch.ones_like(drawn)], 1)
    return list(zip(answers, kl.tolist(), strict=True))


def mix(base: torch.Tensor, guide: torch.Tensor | None, law: Law) -> torch.Tensor:
    """[N, V] log q of the next token; tokens that the guide does not know are not drawn."""
    logits = base / law.temperature
    if guide is not None:
        width = base.shape[-1]
        guide = pad(guide[:, :width], (0, max(0, width - guide.shape[-1])), value=-math.inf)
        logits = logits + law.exponent * (guide - base if law.difference else guide)
    return logits.log_softmax(-1)


def divergence(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """[N] KL(q || p) in nats, of log-probabilities [N, V]."""
    return torch.where(q == -math.inf, 0.0, q.exp() * (q - p)).sum(-1)


def measure_steering(
    base: Any,
    guide: Any,
    scorer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    renderer: Renderer,
    difference: bool,
    seed: int,
    most: int = ANSWER_TOKENS,
) -> list[Steering]:
    """One answer to each prompt by each law, scored."""
    measured = []
    for law in list_laws(difference=difference):
        row = Steering(law=law)
        for begin in range(0, len(prompts), TOGETHER):
            some = prompts[begin : begin + TOGETHER]
            drawn = draw_answers(base, guide, some, law, ends=renderer.ends, most=most, seed=seed + begin)
            for prompt, (answer, kl) in zip(some, drawn, strict=True):
                row.kls.append(kl)
                row.rewards += score(scorer, [*prompt, *renderer.close(answer)])  # of the one label
                row.words.append(len(renderer.tokenizer.decode(answer, skip_special_tokens=True).split()))
                row.cut += answer[-1] not in renderer.ends
        measured.append(row)
    return measured


def interval(values: Sequence[float], comparisons: int = 1) -> tuple[float, float, float]:
    """(mean, low, high): 95 %, of all of so many comparisons together."""
    mean, reach = fmean(values), half(values, comparisons)
    return mean, mean - reach, mean + reach


def gain(row: Steering, other: Steering, comparisons: int = 1) -> tuple[float, float, float]:
    """What a reward is above another, prompt by prompt."""
    return interval([a - b for a, b in zip(row.rewards, other.rewards, strict=True)], comparisons)


def render_table(rows: Sequence[Steering]) -> list[str]:
    lines = ["| drawn from | KL from the base, nats | reward (95 %) | words | cut off |", "|---|---|---|---|---|"]
    for row in rows:
        mean, low, high = interval(row.rewards)
        lines.append(
            f"| {row.law.name} | {fmean(row.kls):.3g} | {mean:.3g} ({low:.3g} to {high:.3g}) | {fmean(row.words):.3g} "
            f"| {row.cut} of {len(row.rewards)} |"
        )
    return lines


def conclude(rows: Sequence[Steering]) -> str:
    """In words, what the table shows of the exponent that gains most, against the colder base that is nearest in KL."""
    base = next(row for row in rows if row.law == Law())
    guided = [row for row in rows if row.law.exponent]
    cold = [row for row in rows if row.law.temperature != 1]
    best = max(guided, key=lambda row: gain(row, base)[0])
    spent = fmean(best.kls)
    control = min(cold, key=lambda row: abs(math.log((fmean(row.kls) + 1e-9) / (spent + 1e-9))))
    mean, low, high = gain(best, base, len(guided))
    beyond = gain(best, control, len(guided))
    if low <= 0:
        verdict = "it is not shown that the guide raises the reward"
    elif beyond[1] <= 0:
        verdict = "it is not shown that the guide does more than a colder base"
    else:
        verdict = "the guide steers, and more than a colder base does"
    against, low_against, high_against = gain(control, base)
    return (
        f"On {len(base.rewards)} prompts {verdict}: at {best.law.name} the reward is {mean:.3g} above the base's "
        f"({low:.3g} to {high:.3g}, for {len(guided)} exponents tried) for {spent:.3g} nats, and {control.law.name} is "
        f"{against:.3g} above it ({low_against:.3g} to {high_against:.3g}) for {fmean(control.kls):.3g}. The guided "
        f"answers have {fmean(best.words):.3g} words, the base's {fmean(base.words):.3g}."
    )
