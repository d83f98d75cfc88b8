"""Laws that every engine and every strategy obeys, whatever is behind it. A specimen is what they are tried on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import pytest

from trimtab.decoders.guided import Guided
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Chunk, Engine, Reward, Sampling, Strategy, Tokens
from trimtab.runtime.metered import Meter, Metered


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """An engine and what the laws need to know of it."""

    engine: Engine
    prompts: tuple[Tokens, ...]
    """At least three, of different lengths where the engine allows."""
    guides: tuple[str, ...]
    """At least one guide's name."""
    reward: Reward
    """[N, 1]; not the same for all answers."""
    live: Callable[[], Awaitable[int]]
    """How many generations run right now."""
    sampling: Sampling
    tolerance: float
    """On log-probs, in nats."""


async def answers(chunks: AsyncIterator[Chunk], n: int) -> list[tuple[int, ...]]:
    """The n answers whole; each must end exactly once, after its last token."""
    tokens: list[tuple[int, ...]] = [()] * n
    ended: set[int] = set()
    async for chunk in chunks:
        assert chunk.index not in ended, "a piece after the end"
        tokens[chunk.index] += chunk.tokens
        if chunk.finish is not None:
            ended.add(chunk.index)
    assert sorted(ended) == list(range(n))
    return tokens


async def run(
    strategy: Strategy, s: Specimen, prompt: Tokens, *, seed: int, n: int = 1, include: frozenset[str] = frozenset()
) -> list[tuple[int, ...]]:
    return await answers(strategy(prompt, replace(s.sampling, seed=seed), s.engine, s.reward, n=n, include=include), n)


def pulled(s: Specimen) -> Guided:
    return Guided(guides={g: 0.5 + i for i, g in enumerate(s.guides)})


# --- engines ---------------------------------------------------------------------------------------------------------


async def answers_fit(s: Specimen) -> None:
    for n in (1, 3):
        for answer in await run(Plain(), s, s.prompts[0], seed=1, n=n):
            assert 0 < len(answer) <= s.sampling.max_tokens


async def whole_answers_are_the_same(s: Specimen) -> None:
    """Asked for whole, answers come as one chunk each and are those that come piece by piece."""
    sampling = replace(s.sampling, seed=11)
    pieces = await answers(s.engine.generate(s.prompts[0], sampling, n=4, guides={BASE: 1.0}), 4)
    whole = replace(sampling, stream=False)
    chunks = [chunk async for chunk in s.engine.generate(s.prompts[0], whole, n=4, guides={BASE: 1.0})]
    assert {chunk.index: chunk.tokens for chunk in chunks} == dict(enumerate(pieces))
    assert all(chunk.finish for chunk in chunks)


async def zero_exponents_are_the_base(s: Specimen) -> None:
    neutral = Guided(guides=dict.fromkeys(s.guides, 0.0))
    for seed, prompt in enumerate(s.prompts):
        assert await run(neutral, s, prompt, seed=seed) == await run(Plain(), s, prompt, seed=seed)


async def one_hot_is_the_guide(s: Specimen) -> None:
    [answer] = await run(pulled(s), s, s.prompts[0], seed=2)
    guide = s.guides[0]
    alone = await s.engine.score(s.prompts[0], answer, guides={guide: 1.0})
    mixed = await s.engine.score(s.prompts[0], answer, guides={BASE: 0.0, guide: 1.0})
    assert mixed == pytest.approx(alone, abs=s.tolerance)


async def order_of_members_is_nothing(s: Specimen) -> None:
    mixture = dict(pulled(s).mixture)
    [answer] = await run(pulled(s), s, s.prompts[0], seed=3)
    forth = await s.engine.score(s.prompts[0], answer, guides=mixture)
    back = await s.engine.score(s.prompts[0], answer, guides=dict(reversed(mixture.items())))
    assert forth == pytest.approx(back, abs=s.tolerance)


async def the_normaliser_is_the_prefix_s(s: Specimen) -> None:
    """log Z of the first step, from the members' and the mixture's scores, is the same whatever token follows."""
    mixture = pulled(s).mixture
    firsts = {answer[0] for seed in range(8) for answer in await run(Plain(), s, s.prompts[0], seed=seed)}
    log_z = []
    for first in sorted(firsts):
        members = [(await s.engine.score(s.prompts[0], [first], guides={m: 1.0}))[0] * w for m, w in mixture.items()]
        log_z.append(sum(members) - (await s.engine.score(s.prompts[0], [first], guides=mixture))[0])
    assert len(log_z) > 1
    assert log_z == pytest.approx([log_z[0]] * len(log_z), abs=3 * s.tolerance)


async def divergence_is_from_the_base(s: Specimen) -> None:
    [answer] = await run(pulled(s), s, s.prompts[0], seed=4)
    same = await s.engine.divergence(s.prompts[0], answer, guides={BASE: 1.0})
    away = await s.engine.divergence(s.prompts[0], answer, guides=pulled(s).mixture)
    assert same == pytest.approx([0.0] * len(answer), abs=s.tolerance)
    assert all(kl > -s.tolerance for kl in away)
    assert sum(away) > 10 * s.tolerance


async def unknown_members_are_named(s: Specimen) -> None:
    with pytest.raises(ValueError, match="nobody"):
        await s.engine.score(s.prompts[0], [1], guides={"nobody": 1.0})
    with pytest.raises(ValueError, match="nobody"):
        await answers(s.engine.generate(s.prompts[0], s.sampling, n=1, guides={BASE: 1.0, "nobody": 1.0}), 1)


async def text_is_read_back(s: Specimen) -> None:
    [answer] = await run(Plain(), s, s.prompts[0], seed=4)
    text = s.engine.text(answer)
    assert text
    assert s.engine.text(s.engine.tokens(text)) == text
    assert not s.engine.eos_ids & set(s.engine.tokens(text))


ENGINE_LAWS = [
    answers_fit,
    whole_answers_are_the_same,
    zero_exponents_are_the_base,
    one_hot_is_the_guide,
    order_of_members_is_nothing,
    the_normaliser_is_the_prefix_s,
    divergence_is_from_the_base,
    unknown_members_are_named,
    text_is_read_back,
]


# --- strategies ------------------------------------------------------------------------------------------------------


async def a_seed_is_an_answer(s: Specimen, strategy: Strategy) -> None:
    once = await run(strategy, s, s.prompts[0], seed=7, n=2)
    again = await run(strategy, s, s.prompts[0], seed=7, n=2)
    others = [await run(strategy, s, s.prompts[0], seed=seed, n=2) for seed in range(8, 16)]
    assert once == again
    assert any(other != once for other in others), "the seed changes nothing"


async def company_changes_nothing(s: Specimen, strategy: Strategy) -> None:
    alone = [await run(strategy, s, prompt, seed=i, n=2) for i, prompt in enumerate(s.prompts)]
    batch = await asyncio.gather(*(run(strategy, s, prompt, seed=i, n=2) for i, prompt in enumerate(s.prompts)))
    assert list(batch) == alone


async def _quiet(s: Specimen) -> int:
    """What still runs after at most one second."""
    for _ in range(50):
        if not await s.live():
            return 0
        await asyncio.sleep(0.02)
    return await s.live()


async def an_early_close_leaves_nothing(s: Specimen, strategy: Strategy) -> None:
    for stop_after in (1, 2, 3):
        seen = 0
        async with aclosing(
            strategy(s.prompts[0], replace(s.sampling, seed=5), s.engine, s.reward, n=3, include=frozenset())
        ) as chunks:
            async for _ in chunks:
                seen += 1
                if seen == stop_after:
                    break
        assert await _quiet(s) == 0


async def a_cancelled_caller_leaves_nothing(s: Specimen, strategy: Strategy) -> None:
    task = asyncio.create_task(run(strategy, s, s.prompts[0], seed=6, n=3))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await _quiet(s) == 0


async def what_it_costs_is_bounded(s: Specimen, strategy: Strategy) -> None:
    """Tokens drawn, scored and judged, each against what the strategy says of them; and somewhere drawing is real."""
    for n, include in ((1, frozenset()), (2, frozenset({"trace", "candidates", "rewards"}))):
        for seed in range(4):
            meter, reward_tokens = Meter(), 0

            async def counted(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
                nonlocal reward_tokens
                reward_tokens += sum(map(len, completions))
                return await s.reward(prompt, completions)

            sampling = replace(s.sampling, seed=seed)
            await answers(strategy(s.prompts[0], sampling, Metered(s.engine, meter), counted, n=n, include=include), n)
            most = strategy.work(sampling.max_tokens, n=n, include=include)
            assert 0 < meter.sampled <= most.sampled
            assert meter.scored <= most.scored
            assert reward_tokens <= most.reward_tokens
            assert most.candidates >= n


STRATEGY_LAWS = [
    what_it_costs_is_bounded,
    a_seed_is_an_answer,
    company_changes_nothing,
    an_early_close_leaves_nothing,
    a_cancelled_caller_leaves_nothing,
]
