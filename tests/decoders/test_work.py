"""What a strategy says that it can cost, against an engine whose answers never end by themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from itertools import count

import pytest

from tests.contracts import answers
from tests.decoders.conftest import WISH
from trimtab.decoders.args import Args
from trimtab.decoders.beam import Beam
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.blockwise import Blockwise
from trimtab.decoders.dpa import Directional
from trimtab.decoders.guided import Guided
from trimtab.decoders.mbr import MinimumBayesRisk
from trimtab.decoders.particles import Particles
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Chunk, Mixture, Parts, Sampling, Strategy, Tokens
from trimtab.decoders.qalign import QAlign
from trimtab.decoders.rejection import RejectionSampling
from trimtab.decoders.report import SearchProgress
from trimtab.decoders.rps import Rps
from trimtab.decoders.speculative_rejection import SpeculativeRejection
from trimtab.decoders.transfer_q import TransferQ
from trimtab.decoders.vote import Vote
from trimtab.runtime.metered import Metered
from trimtab.runtime.usage import Usage

LONGEST = 48
PROMPT = (9, 9, 9)


class Endless:
    """Tokens 1, 2, 3 … in every answer, the k likeliest being as likely."""

    eos_ids = frozenset({0})

    def report_progress(self, progress: SearchProgress) -> None:
        """Nobody follows it."""

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        for i in range(n):
            yield Chunk(index=i, tokens=tuple(range(1, sampling.max_tokens + 1)), finish="length")

    async def greedy_top_logprobs(
        self, prompt: Tokens, *, k: int, length: int, guides: Mixture
    ) -> list[list[tuple[int, float]]]:
        return [[(token, -1.0) for token in range(1, k + 1)] for _ in range(length)]

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        return [-1.0] * len(completion)

    async def divergence(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        return [0.0] * len(completion)

    def parts(self, completion: Tokens) -> Parts:
        return Parts(answer=self.text(completion))

    def text(self, completion: Tokens) -> str:
        return " ".join(map(str, completion))

    def tokens(self, text: str) -> Tokens:
        return [int(word) for word in text.split()]

    async def render_with_instruction(self, instruction: str, *, role: str = "system") -> Tokens:
        return [*instruction.encode(), *PROMPT]


GUIDES = {"arm": 1.0}
WHOLE = frozenset[str]()
TRACE = frozenset({"trace"})
CASES: list[tuple[Strategy, frozenset[str], tuple[float, float, float]]] = [
    (Plain(), WHOLE, (1, 0, 0)),
    (Guided(guides=GUIDES), TRACE, (1, 1, 0)),
    (BestOfN(n=5), WHOLE, (1, 0, 1)),
    (BestOfN(n=4, diverse={"groups": 2, "penalty": 0.1}), WHOLE, (0.9, 0, 1)),
    (RejectionSampling(n=5), WHOLE, (1, 0, 1)),
    (BestOfN(n=4, diverse={"together": 2}), WHOLE, (1, 1, 1)),
    (Directional(direction=WISH), WHOLE, (1, 0.9, 0)),
    (Rps(direction=WISH, k=3, m=2), WHOLE, (1, 0.6, 1)),  # two of the directions are one prompt
    (Vote(n=5), WHOLE, (1, 0, 0)),
    (MinimumBayesRisk(n=5, weighting="softmax"), WHOLE, (1, 0, 1)),
    (SpeculativeRejection(n=8, decisions=(8, 16, 64)), WHOLE, (1, 0, 1)),
    (QAlign(chains=2, steps=40), WHOLE, (0.4, 0, 1)),
    (QAlign(chains=2, steps=40, guides=GUIDES, target="base"), WHOLE, (0.4, 1, 1)),
    (Args(k=3), WHOLE, (1, 0, 1)),
    (TransferQ(k=3, horizon=10, rollouts=2), WHOLE, (0.85, 0, 0.9)),
    (TransferQ(k=3, horizon=None), WHOLE, (0.9, 0, 1)),
    (TransferQ(k=3, horizon=10, block=8), WHOLE, (0.75, 0, 0.75)),
    (Blockwise(n=4, block=10), WHOLE, (1, 0, 0.9)),
    (Blockwise(n=1, block=10), WHOLE, (1, 0, 1)),
    (Particles(n=4, block=16, guides=GUIDES, target="base"), WHOLE, (1, 1, 1)),
    (Beam(n=4, width=2, block=16), WHOLE, (1, 0, 1)),
    (Beam(n=4, width=2, block=16, rounds=1), WHOLE, (1, 0, 1)),
]
"""strategy, what is asked to see, and the least share of what it says of tokens drawn, scored or read under an
instruction, and judged."""


@pytest.mark.parametrize(("strategy", "include", "shares"), CASES, ids=lambda case: repr(case)[:60])
async def test_it_costs_what_it_says_and_not_far_less(
    strategy: Strategy, include: frozenset[str], shares: tuple[float, float, float]
) -> None:
    usage, reward_tokens, values = Usage(), 0, count()

    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        nonlocal reward_tokens
        reward_tokens += sum(map(len, completions))
        return [[next(values) % 7 / 7] for _ in completions]

    engine = Metered(Endless(), usage)
    sampling = Sampling(max_tokens=LONGEST, seed=3)
    await answers(strategy(PROMPT, sampling, engine, reward, n=1, include=include), 1)
    most = strategy.work(LONGEST, n=1, include=include)
    scored = most.scored + most.instructed * (len(PROMPT) + most.instruction_bytes)
    for spent, bound, share in zip(
        (usage.sampled, usage.scored, reward_tokens),
        (most.sampled, scored, most.reward_tokens),
        shares,
        strict=True,
    ):
        assert share * bound <= spent <= bound


def test_a_step_can_end_a_block_at_its_first_token() -> None:
    """Every child may draw a whole block, and the shortest may be the one that goes on."""
    whole = Blockwise(n=4, block=16).work(LONGEST, n=1, include=WHOLE)
    steps = Blockwise(n=4, block=16, step="\n").work(LONGEST, n=1, include=WHOLE)
    assert (whole.sampled, steps.sampled) == (4 * LONGEST, 4 * 16 * LONGEST)
    rounds = Beam(n=4, width=4, block=16, step="\n", rounds=3).work(LONGEST, n=1, include=WHOLE)
    assert rounds.sampled == 4 * 16 * 3 + LONGEST


def test_candidates_side_by_side() -> None:
    cases: list[tuple[Strategy, int]] = [
        (BestOfN(n=7), 7),
        (QAlign(chains=3, steps=9), 3),
        (TransferQ(k=4, rollouts=2), 8),
        (Args(k=5), 5),
    ]
    for strategy, candidates in cases:
        assert strategy.work(LONGEST, n=1, include=WHOLE).candidates == candidates
    assert Plain().work(LONGEST, n=3, include=WHOLE).candidates == 3
    assert Guided(guides={BASE: 1.0}).work(LONGEST, n=2, include=TRACE).scored == 2 * LONGEST * 3
