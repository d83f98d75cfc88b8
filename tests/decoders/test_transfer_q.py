"""Transfer Q* and ARGS on the toy: their laws against the closed form, and what they leave out or keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import START, divergence, surprise, tilted, total_variation
from trimtab.decoders.args import Args
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Chunk, Mixture, Reward, Sampling, Strategy, Tokens
from trimtab.decoders.shared.candidates import warp
from trimtab.decoders.shared.tokenwise import Tokenwise
from trimtab.decoders.transfer_q import TransferQ
from trimtab.runtime.toy_engine import Next, Prefix, ToyEngine, ToyModel

BETA = 0.5
ARM = {"arm": 1.0}
Value = Callable[[Prefix], float]


class Quota(ToyEngine):
    """Draws its n answers in exact proportion to their probabilities, as nearly as n allows."""

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        begun = self._response(prompt)
        law = self.model.next(guides)
        limit = len(begun) + sampling.max_tokens

        def going(y: Prefix) -> dict[Prefix, float]:
            if self.model.ended(y) or len(y) == limit:
                return {y: 1.0}
            p = warp(law(y), sampling)
            return {
                rest: q * float(p[i])
                for i, z in enumerate(self.model.vocab)
                for rest, q in going((*y, z)).items()
                if p[i] > 0
            }

        found = going(begun)
        counts = {y: int(n * p) for y, p in found.items()}
        for y in sorted(found, key=lambda y: counts[y] - n * found[y])[: n - sum(counts.values())]:
            counts[y] += 1
        drawn = [y for y, count in counts.items() for _ in range(count)]
        for index, y in enumerate(drawn):
            finish = "length" if y[-1] != self.model.eos else "stop"
            yield Chunk(index=index, tokens=y[len(begun) :], finish=finish)


def rewarding(*tables: Value) -> Reward:
    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[table(tuple(y)) for table in tables] for y in completions]

    return reward


def other(y: Prefix) -> float:
    """A score of any beginning, unlike the toy's reward."""
    return float(np.sin(sum((7 + i) * (t + 1) for i, t in enumerate(y))))


def searched(toy: ToyModel, q: Value, alpha: float, guides: Mixture | None = None) -> Next:
    """The next token's law by the formula, all tokens being candidates."""
    pi = toy.next({BASE: 1.0, **(guides or {})})

    def tilted_step(s: Prefix) -> np.ndarray:
        z = pi(s) + np.array([q((*s, t)) for t in toy.vocab]) / alpha
        return np.asarray(z - np.logaddexp.reduce(z))

    return tilted_step


def expected(toy: ToyModel, mixture: Mixture, of: Callable[[dict[Prefix, float]], float]) -> Value:
    """A statistic of the answers that the mixture makes of a beginning."""
    law = toy.next(mixture)
    return lambda s: of(dict(toy.sequences(law, s)))


async def traced(strategy: Strategy, engine: ToyEngine, reward: Reward, seed: int, temperature: float = 1.0) -> dict:
    sampling = Sampling(max_tokens=engine.model.max_tokens, seed=seed, temperature=temperature)
    tokens: list[int] = []
    report: dict = {}
    async with aclosing(strategy([START], sampling, engine, reward, n=1, include=frozenset({"trace"}))) as chunks:
        async for chunk in chunks:
            tokens += chunk.tokens
            report |= chunk.report
    return {**report, "answer": tuple(tokens)}


CASES = [
    (TransferQ(k=3, alpha=BETA, rollouts=2_000, horizon=None, baseline=ARM), "mean"),
    (TransferQ(k=3, alpha=BETA, rollouts=2_000, horizon=None, value="soft"), "soft"),
    (TransferQ(k=3, alpha=BETA, beta=0.8, rollouts=2_000, horizon=None, value="soft", baseline=ARM), "soft"),
    (TransferQ(k=3, alpha=0.7, beta=BETA, rollouts=2_000, horizon=None, value="transfer", baseline=ARM,
               baseline_reward="other"), "transfer"),
    (TransferQ(k=3, alpha=BETA, rollouts=2_000, horizon=None, baseline=ARM, guides={"arm": 0.5}), "mean"),
]  # fmt: skip


@pytest.mark.parametrize(("strategy", "value"), CASES, ids=repr)
async def test_each_decision_is_the_formula_s(
    toy: ToyModel, reward: dict[Prefix, float], strategy: TransferQ, value: str
) -> None:
    """Q of each candidate and the law that a token is drawn from, at every prefix that 4 answers lead through."""
    beta = strategy.beta or strategy.alpha

    def q(law: dict[Prefix, float]) -> float:
        if value == "mean":
            return sum(p * reward[y] for y, p in law.items())
        if value == "soft":
            return beta * float(np.log(sum(p * np.exp(reward[y] / beta) for y, p in law.items())))
        w = {y: p * np.exp((reward[y] - other(y)) / beta) for y, p in law.items()}
        return sum(w[y] * reward[y] for y in law) / sum(w.values())

    exact = expected(toy, strategy.baseline, q)
    law = searched(toy, exact, strategy.alpha, strategy.guides)
    scores = rewarding(reward.__getitem__, other) if value == "transfer" else rewarding(reward.__getitem__)
    seen = set()
    for seed in range(4):
        found = await traced(strategy, Quota(toy, start=START), scores, seed)
        for decision in found["trace"]:
            s = found["answer"][: decision["position"]]
            seen.add(s)
            assert decision["values"] == pytest.approx([exact((*s, t)) for t in decision["tokens"]], abs=2e-2)
            p = dict(zip(decision["tokens"], decision["probabilities"], strict=True))
            assert [p[t] for t in toy.vocab] == pytest.approx(np.exp(law(s)).tolist(), abs=2e-2)
    assert len(seen) > 5


@pytest.mark.parametrize(
    ("name", "tv", "mean", "kl"),
    [("Q of pi*", 0.254, 0.937, 1.672), ("Q of pi", 0.298, 0.295, 0.440), ("soft value of pi", 0.0, 0.623, 0.876)],
)
def test_only_the_soft_value_reaches_the_target(
    toy: ToyModel, reward: dict[Prefix, float], name: str, tv: float, mean: float, kl: float
) -> None:
    """The known gaps at beta = 0.5, even with exact values; E r and KL of the target itself are the last row's."""
    base = dict(toy.sequences(toy.next({BASE: 1.0})))
    target = tilted(base, reward, BETA)

    def conditional(law: dict[Prefix, float], s: Prefix) -> dict[Prefix, float]:
        whole = {y: p for y, p in law.items() if y[: len(s)] == s}
        return {y: p / sum(whole.values()) for y, p in whole.items()}

    def value(s: Prefix) -> float:
        if name == "soft value of pi":
            return BETA * float(np.log(sum(p * np.exp(reward[y] / BETA) for y, p in conditional(base, s).items())))
        law = conditional(target if name == "Q of pi*" else base, s)
        return sum(p * reward[y] for y, p in law.items())

    law = dict(toy.sequences(searched(toy, value, BETA)))
    assert total_variation(law, target) == pytest.approx(tv, abs=1e-3)
    assert sum(p * reward[y] for y, p in law.items()) == pytest.approx(mean, abs=1e-3)
    assert divergence(law, base) == pytest.approx(kl, abs=1e-3)


async def test_answers_follow_the_law_of_the_decisions(toy: ToyModel) -> None:
    """1200 answers of ARGS over a reward of beginnings, against the product of the formula's steps; 5 sigma.

    So does the divergence that each tells: it is right on average.
    """
    law, base = dict(toy.sequences(searched(toy, other, 1 / 1.5))), dict(toy.sequences(toy.next({BASE: 1.0})))
    engine = ToyEngine(toy, start=START)
    found = [await traced(Args(k=3, weight=1.5), engine, rewarding(other), seed) for seed in range(1200)]
    drawn, kl = [one["answer"] for one in found], [one["kl_exact"] for one in found]
    assert surprise(drawn, law) < 5
    assert surprise(drawn, base) > 5
    assert abs(np.mean(kl) - divergence(law, base)) < 5 * np.std(kl) / np.sqrt(len(kl))


async def test_rollouts_end_at_the_horizon(toy: ToyModel) -> None:
    """What is scored is each candidate and at most `horizon` tokens behind it, none behind an end of sequence."""
    asked: list[Prefix] = []

    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        asked.extend(map(tuple, completions))
        return [[0.0] for _ in completions]

    found = await traced(TransferQ(k=3, rollouts=2, horizon=1), ToyEngine(toy, start=START), reward, seed=3)
    assert asked.pop() == found["answer"], "what came of it is told"
    sizes = Counter(len(y) for y in asked)
    assert sizes[1] == 1, "the end of sequence, scored once"
    assert sizes[2] == 4 + 1 * (len(found["answer"]) > 1)
    assert max(sizes) <= min(len(found["answer"]) + 1, toy.max_tokens)
    assert all(toy.eos not in y[:-1] for y in asked)


NEUTRAL: list[Strategy] = [Args(k=3, weight=0.0), TransferQ(k=3, alpha=1e9, rollouts=1)]


@pytest.mark.parametrize("strategy", NEUTRAL, ids=repr)
async def test_a_reward_that_does_not_matter_leaves_the_base(toy: ToyModel, strategy: Strategy) -> None:
    law = toy.next({BASE: 1.0})
    for seed in range(5):
        found = await traced(strategy, ToyEngine(toy, start=START), rewarding(other), seed)
        for decision in found["trace"]:
            s = found["answer"][: decision["position"]]
            p = dict(zip(decision["tokens"], decision["probabilities"], strict=True))
            assert [p[t] for t in toy.vocab] == pytest.approx(np.exp(law(s)).tolist(), abs=1e-6)


@pytest.mark.parametrize(
    "strategy", [Args(k=1), TransferQ(k=1), Args(k=3, min_p=1.0), TransferQ(k=3, min_p=1.0)], ids=repr
)
async def test_one_candidate_is_greedy_decoding(specimen: Specimen, strategy: Strategy) -> None:
    greedy = replace(specimen, sampling=replace(specimen.sampling, temperature=0.0))
    assert await run(strategy, specimen, (START,), seed=0) == await run(Plain(), greedy, (START,), seed=0)


async def test_temperature_0_takes_the_best(toy: ToyModel) -> None:
    found = await traced(Args(k=3), ToyEngine(toy, start=START), rewarding(other), 0, temperature=0.0)
    answer: Prefix = ()
    while not toy.ended(answer):
        step = searched(toy, other, 1.0)(answer)
        answer = (*answer, toy.vocab[int(np.argmax(step))])
    assert found["answer"] == answer


async def test_certain_positions_are_looked_at_ahead_and_cost_nothing_else(toy: ToyModel) -> None:
    """The same decisions as with the candidates read one position at a time."""

    class Short(ToyEngine):
        async def greedy_top_logprobs(self, prompt: Tokens, *, k: int, length: int, guides: Mixture) -> list:
            return await super().greedy_top_logprobs(prompt, k=k, length=1, guides=guides)

    decisions = tokens = 0
    for seed in range(40):
        strategy = Args(k=3, min_p=0.6)
        long = await traced(strategy, ToyEngine(toy, start=START), rewarding(other), seed)
        assert long == await traced(strategy, Short(toy, start=START), rewarding(other), seed)
        decisions, tokens = decisions + long["decisions"], tokens + len(long["answer"])
        for decision in long["trace"]:
            assert min(decision["logprobs"]) >= max(decision["logprobs"]) + np.log(0.6)
    assert 0 < decisions < tokens


class Counting(ToyEngine):
    drawn = 0

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        async for chunk in super().generate(prompt, sampling, n=n, guides=guides):
            self.drawn += len(chunk.tokens)
            yield chunk


async def test_a_greedy_rollout_is_kept_and_changes_nothing(toy: ToyModel) -> None:
    saved = 0
    for seed in range(20):
        kept, anew = Counting(toy, start=START), Counting(toy, start=START)
        strategy = TransferQ(k=3, rollout_temperature=0.0, horizon=3)
        found = await traced(strategy, kept, rewarding(other), seed)
        for decision in found["trace"]:
            s = found["answer"][: decision["position"]]
            for token, value in zip(decision["tokens"], decision["values"], strict=True):
                y = (*s, token)
                if not toy.ended(y):
                    greedy = Sampling(max_tokens=3, temperature=0.0)
                    drawn = [c.tokens async for c in anew.generate([START, *y], greedy, n=1, guides={BASE: 1.0})]
                    y += tuple(t for tokens in drawn for t in tokens)
                assert value == other(y)
        saved += anew.drawn - kept.drawn
    assert saved > 0


async def test_blocks_are_drawn_behind_their_candidates(toy: ToyModel) -> None:
    """With a block as long as an answer, one decision: the best of k whole answers, one behind each first token."""
    for seed in range(10):
        found = await traced(
            TransferQ(k=3, block=5, horizon=0), ToyEngine(toy, start=START), rewarding(other), seed, temperature=0.0
        )
        assert found["decisions"] == 1
        [decision] = found["trace"]
        assert found["answer"][0] == decision["tokens"][decision["chosen"]]
        assert decision["values"][decision["chosen"]] == other(found["answer"])
        assert toy.ended(found["answer"])


def test_two_rewards_and_their_weights() -> None:
    strategy = TransferQ(value="transfer", baseline_reward="other", rollouts=2, alpha=1.0, beta=2.0)
    assert strategy.q([[1.0, 1.0], [3.0, 3.0]]) == pytest.approx(2.0)
    assert strategy.q([[-1.0, 3.0], [1.0, 1.0]]) == pytest.approx((-np.exp(-2) + 1) / (np.exp(-2) + 1))
    assert TransferQ(rollouts=2).q([[1.0], [2.0]]) == 1.5
    assert TransferQ(value="soft", alpha=1e-3).q([[1.0], [2.0]]) == pytest.approx(2.0, abs=1e-3)
    with pytest.raises(ValueError, match="2 rewards"):
        TransferQ().q([[1.0, 2.0]])


def test_greedy_rollouts_are_one() -> None:
    with pytest.raises(ValueError, match="rollouts above 1"):
        TransferQ(rollouts=2, rollout_temperature=0.0)


@pytest.mark.parametrize(
    "params", [{"value": "transfer", "rollouts": 2}, {"baseline_reward": "x"},
               {"value": "transfer", "baseline_reward": "x", "rollouts": 1}]
)  # fmt: skip
def test_transfer_needs_two_rewards_and_two_rollouts(params: dict) -> None:
    with pytest.raises(ValueError, match="transfer"):
        TransferQ(**params)


def test_the_law_of_a_decision_has_the_request_s_sampling() -> None:
    async def nothing(i: int, at: int, beginnings: Sequence[Prefix]) -> list[float]:
        return []

    search = Tokenwise(worth=nothing, k=3, alpha=0.5)
    candidates = [(4, np.log(0.5)), (5, np.log(0.25)), (6, np.log(0.125))]
    p = search.law(candidates, [0.0, 0.5, 0.5], Sampling(max_tokens=1, temperature=0.5, top_k=2))
    weights = np.array([0.25 * np.e, 0.5]) ** 2
    assert p == pytest.approx([weights[1] / weights.sum(), weights[0] / weights.sum(), 0.0])
