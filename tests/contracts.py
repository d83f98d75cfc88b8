"""Laws that every engine and every strategy obeys, whatever is behind it. A specimen is what they are tried on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.waiting import PATIENCE, set_forward, until
from trimtab.decoders import STRATEGIES, example_request
from trimtab.decoders.guided import Guided
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import (
    BASE,
    Chunk,
    Engine,
    LimitReached,
    Mixture,
    Reward,
    Sampling,
    Strategy,
    Tokens,
    is_base_alone,
    member_alone,
)
from trimtab.decoders.report import Report, SearchProgress
from trimtab.preferences.preference_direction import PreferenceDirection
from trimtab.runtime.metered import Metered
from trimtab.runtime.strategy_run import StrategyRun
from trimtab.runtime.usage import Usage


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
    direction: PreferenceDirection
    """For strategies that take a direction: over objectives that the guides pull towards."""
    stopping: Callable[[str], Sampling]
    """`sampling` with a stop string."""
    ending_at: Callable[[int], Sampling]
    """`sampling` with a stop token."""


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
    alone = await s.engine.score(s.prompts[0], answer, guides=member_alone(guide))
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
        members = [
            (await s.engine.score(s.prompts[0], [first], guides=member_alone(m)))[0] * w for m, w in mixture.items()
        ]
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


async def an_empty_mixture_is_refused(s: Specimen) -> None:
    [answer] = await run(Plain(), s, s.prompts[0], seed=5)
    for mixture in ({}, {BASE: 0.0}, {BASE: 0.0, s.guides[0]: 0.0}):
        with pytest.raises(ValueError, match="guides: "):
            await answers(s.engine.generate(s.prompts[0], s.sampling, n=1, guides=mixture), 1)
        with pytest.raises(ValueError, match="guides: "):
            await s.engine.greedy_top_logprobs(s.prompts[0], k=1, length=1, guides=mixture)
        for read in (s.engine.score, s.engine.divergence):
            with pytest.raises(ValueError, match="guides: "):
                await read(s.prompts[0], answer, guides=mixture)
    assert await s.live() == 0


async def a_base_that_is_not_named_counts_once(s: Specimen) -> None:
    [answer] = await run(Plain(), s, s.prompts[0], seed=6)
    short = await s.engine.score(s.prompts[0], answer, guides={s.guides[0]: 0.5})
    assert short == await s.engine.score(s.prompts[0], answer, guides={BASE: 1.0, s.guides[0]: 0.5})
    assert short != pytest.approx(await s.engine.score(s.prompts[0], answer, guides=member_alone(s.guides[0])), abs=0.1)


async def uncertainty_is_told_on_request(s: Specimen) -> None:
    """Log-probs are those of the mixture, untempered; the entropy of a distribution over few tokens is its own."""
    mixture = {BASE: 1.0, s.guides[0]: 0.7}
    for stream in (True, False):
        sampling = replace(s.sampling, seed=3, temperature=0.8, measured=True, stream=stream)
        chunks = [c async for c in s.engine.generate(s.prompts[1], sampling, n=2, guides=mixture)]
        for i in range(2):
            one = [c for c in chunks if c.index == i]
            tokens = [t for c in one for t in c.tokens]
            logprobs = [x for c in one for x in c.logprobs or ()]
            entropies = [x for c in one for x in c.entropies or ()]
            scores = await s.engine.score(s.prompts[1], tokens, guides=mixture)
            assert logprobs == pytest.approx(scores, abs=s.tolerance)
            assert len(entropies) == len(tokens)
            steps = [
                (await s.engine.greedy_top_logprobs([*s.prompts[1], *tokens[:t]], k=10, length=1, guides=mixture))[0]
                for t in range(len(tokens))
            ]
            for entropy, step in zip(entropies, steps, strict=True):
                top = [lp for _, lp in step]
                partial, rest = -sum(math.exp(lp) * lp for lp in top), 1 - sum(map(math.exp, top))
                # Tokens left out are each less likely than the least likely shown.
                assert entropy >= partial - rest * top[-1] - 10 * s.tolerance
                if rest < s.tolerance:
                    assert entropy == pytest.approx(partial, abs=100 * s.tolerance)
    silent = [c async for c in s.engine.generate(s.prompts[1], s.sampling, n=1, guides=mixture)]
    assert all(c.logprobs is None and c.entropies is None for c in silent)


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
    an_empty_mixture_is_refused,
    a_base_that_is_not_named_counts_once,
    uncertainty_is_told_on_request,
    text_is_read_back,
]


# --- strategies ------------------------------------------------------------------------------------------------------


async def a_seed_is_an_answer(s: Specimen, strategy: Strategy) -> None:
    once = await run(strategy, s, s.prompts[0], seed=7, n=2)
    again = await run(strategy, s, s.prompts[0], seed=7, n=2)
    assert once == again
    for seed in range(8, 16):
        if await run(strategy, s, s.prompts[0], seed=seed, n=2) != once:
            return
    raise AssertionError("the seed changes nothing")


async def company_changes_nothing(s: Specimen, strategy: Strategy) -> None:
    alone = [await run(strategy, s, prompt, seed=i, n=2) for i, prompt in enumerate(s.prompts)]
    batch = await asyncio.gather(*(run(strategy, s, prompt, seed=i, n=2) for i, prompt in enumerate(s.prompts)))
    assert list(batch) == alone


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
        assert await s.live() == 0


async def a_cancelled_caller_leaves_nothing(s: Specimen, strategy: Strategy) -> None:
    for turns in (1, 5, 50):
        task = asyncio.create_task(run(strategy, s, s.prompts[0], seed=6, n=3))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await s.live() == 0, turns


async def what_it_costs_is_bounded(s: Specimen, strategy: Strategy) -> None:
    """Tokens drawn, scored and judged, each against what the strategy says of them; and somewhere drawing is real."""
    for n, include in ((1, frozenset()), (2, frozenset({"trace", "candidates", "rewards"}))):
        for seed in range(4):
            usage, reward_tokens = Usage(), 0

            async def counted(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
                nonlocal reward_tokens
                reward_tokens += sum(map(len, completions))
                return await s.reward(prompt, completions)

            sampling = replace(s.sampling, seed=seed)
            await answers(strategy(s.prompts[0], sampling, Metered(s.engine, usage), counted, n=n, include=include), n)
            most = strategy.work(sampling.max_tokens, n=n, include=include)
            assert 0 < usage.sampled <= most.sampled
            instructed = most.instructed * (len(s.prompts[0]) + most.instruction_bytes)
            assert usage.scored <= most.scored + instructed
            assert reward_tokens <= most.reward_tokens
            assert most.candidates >= n


STRATEGY_LAWS = [
    what_it_costs_is_bounded,
    a_seed_is_an_answer,
    company_changes_nothing,
    an_early_close_leaves_nothing,
    a_cancelled_caller_leaves_nothing,
]


# --- rows of the table: what a row says of its strategy is so --------------------------------------------------------


def build(name: str, s: Specimen, *, neutral: bool = False) -> Strategy:
    """The row's example, or its neutral values, as a server would build it."""
    return build_with(name, s, example_request(name, s.guides, neutral=neutral))


def build_with(name: str, s: Specimen, request: Mapping[str, Any]) -> Strategy:
    row = STRATEGIES[name]
    supplied: dict[str, Any] = {}
    if row.takes:
        searches = "reward" in row.takes and "direction" not in row.takes
        supplied["guides"] = {**({BASE: 1.0} if searches else {}), **request.get("guides", {})}
    if "direction" in row.takes:
        supplied["direction"] = s.direction
    return row.build(request.get("params", {}), **supplied)


class Recording:
    """An engine that remembers how its tokens were drawn."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.samplings: list[Sampling] = []
        self.prompts: list[list[int]] = []
        self.mixtures: list[Mixture] = []
        self.progress: list[SearchProgress] = []

    def report_progress(self, progress: SearchProgress) -> None:
        self.progress.append(progress)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture) -> AsyncGenerator[Chunk, None]:
        self.samplings.append(sampling)
        self.prompts.append(list(prompt))
        self.mixtures.append(guides)
        return self.engine.generate(prompt, sampling, n=n, guides=guides)

    async def greedy_top_logprobs(self, prompt: Tokens, *, k: int, length: int, guides: Mixture) -> Any:
        self.mixtures.append(guides)
        return await self.engine.greedy_top_logprobs(prompt, k=k, length=length, guides=guides)


async def no_guides_are_the_base(s: Specimen, name: str) -> None:
    """A strategy that can do without guides draws with the base alone, and nothing else is named."""
    row = STRATEGIES[name]
    needs = [field.alias or key for key, field in row.parameters.model_fields.items() if field.is_required()]
    example = example_request(name, s.guides).get("params", {})
    if "reward" not in row.takes:  # guides are what it is for
        return
    params = {key: value for key, value in example.items() if key in needs or isinstance(value, int | float | list)}
    engine = Recording(s.engine)
    await run(build_with(name, s, {"params": params}), replace(s, engine=engine), s.prompts[0], seed=1)
    assert engine.mixtures
    assert all(is_base_alone(mixture) for mixture in engine.mixtures)


async def neutral_values_are_plain(s: Specimen, name: str) -> None:
    row = STRATEGIES[name]
    if row.neutral is None:
        return
    neutral = build(name, s, neutral=True)
    for seed, prompt in enumerate(s.prompts):
        for temperature in (0.0,) if row.neutral_when == "greedy" else (0.0, 1.0):
            at = replace(s, sampling=replace(s.sampling, temperature=temperature))
            assert await run(neutral, at, prompt, seed=seed) == await run(Plain(), at, prompt, seed=seed)


async def a_stop_string_ends_the_answer(s: Specimen, name: str) -> None:
    """Wherever in the answer it stands, also across the pieces that a strategy draws."""
    strategy, ended = build(name, s), 0
    for temperature, prompt in (*((0.0, prompt) for prompt in s.prompts), (1.0, s.prompts[0])):
        at = replace(s, sampling=replace(s.sampling, temperature=temperature))
        [answer] = await run(strategy, at, prompt, seed=1)
        for t in range(max(len(answer) - 2, 0)):
            stop = s.engine.text(answer[t : t + 2])
            if len(stop) < 2 or "\ufffd" in stop:  # part of a character has no text yet
                continue
            sampling = replace(s.stopping(stop), temperature=temperature)
            [cut] = await run(strategy, replace(s, sampling=sampling), prompt, seed=1)
            assert stop not in s.engine.text(cut[:-1]), "tokens behind a stop string"
            ended += stop in s.engine.text(cut)
    assert ended, "no answer met a stop string"


async def a_stop_token_ends_the_answer(s: Specimen, name: str) -> None:
    strategy, ended = build(name, s), 0
    for seed, temperature in ((0, 0.0), (1, 1.0), (2, 1.0), (3, 1.0)):
        at = replace(s, sampling=replace(s.sampling, temperature=temperature))
        [answer] = await run(strategy, at, s.prompts[0], seed=seed)
        for token in {*answer[:-1]}:
            at = replace(s, sampling=replace(s.ending_at(token), temperature=temperature))
            [cut] = await run(strategy, at, s.prompts[0], seed=seed)
            assert token not in cut[:-1], "tokens behind a stop token"
            ended += cut[-1] == token
    assert ended, "no answer met a stop token"


async def a_value_is_of_the_tokens_shown(s: Specimen, name: str) -> None:
    """Whatever ended the answer, and wherever: what is ranked is what is shown."""
    compared = 0
    [whole] = await run(Plain(), s, s.prompts[0], seed=3)
    stops = [stop for t in range(len(whole) - 1) if "\ufffd" not in (stop := s.engine.text(whole[t : t + 2])) and stop]
    for stop in ["", *stops]:
        sampling = replace(s.stopping(stop) if stop else s.sampling, seed=1)
        tokens: dict[int, tuple[int, ...]] = {}
        values: dict[int, float | None] = {}
        async with aclosing(build(name, s)(s.prompts[0], sampling, s.engine, s.reward, n=2, include=frozenset())) as c:
            async for chunk in c:
                tokens[chunk.index] = tokens.get(chunk.index, ()) + chunk.tokens
                values |= {chunk.index: chunk.report["value"]} if "value" in chunk.report else {}
        for i, value in values.items():
            if value is not None:
                [[score]] = await s.reward(s.prompts[0], [tokens[i]])
                assert value == pytest.approx(score, abs=s.tolerance)
                compared += 1
    assert compared or "reward" not in STRATEGIES[name].takes or STRATEGIES[name].reward_optional


async def sampling_is_honoured_or_refused(s: Specimen, name: str) -> None:
    """Log-probs, penalties and grammars reach every token of the answer, or the row refuses them by name."""
    row, params = STRATEGIES[name], s.sampling.engine_params
    changes: dict[str, Any] = {"logprobs": True, "constrained": True, "restarts": ("presence_penalty",)}
    refused = {"stream": (), "whole": (), "pieces": ("logprobs", "restarts"), "readings": changes}[row.draws]
    for change, value in changes.items():
        sampling = replace(s.sampling, **{change: value})
        if change in refused:
            with pytest.raises(ValueError, match=name):
                row.check_sampling(name, sampling)
            continue
        row.check_sampling(name, sampling)
        engine = Recording(s.engine)
        seeded = replace(sampling, seed=1)
        async with aclosing(build(name, s)(s.prompts[0], seeded, engine, s.reward, n=1, include=frozenset())) as chunks:
            pieces = [chunk async for chunk in chunks if chunk.tokens]
        assert engine.samplings
        if (
            params is not None and row.draws != "pieces"
        ):  # an engine with outputs of its own, which alone hold what the client asked for
            assert all(chunk.engine_output is not None for chunk in pieces)
        for drawn in engine.samplings:
            assert (drawn.logprobs, drawn.constrained) == (sampling.logprobs, sampling.constrained)
            assert drawn.engine_params is params


async def what_an_answer_has_already_is_said(s: Specimen, name: str) -> None:
    """Whatever of a prompt is no prompt but the answer so far: a grammar has read it, and penalties count it."""
    engine, prompt = Recording(s.engine), list(s.prompts[1])
    sampling = replace(s.sampling, seed=1)
    example = example_request(name, s.guides)
    short = {"block": 1, "decisions": [1]}  # so that the shortest answer has several pieces
    params = {key: short.get(key, value) for key, value in example.get("params", {}).items()}
    strategy = build_with(name, s, {**example, "params": params})
    async with aclosing(strategy(prompt, sampling, engine, s.reward, n=2, include=frozenset())) as chunks:
        async for _ in chunks:
            pass
    assert engine.samplings or STRATEGIES[name].draws == "readings"
    for at, drawn in zip(engine.prompts, engine.samplings, strict=True):
        assert drawn.begun == (len(at) - len(prompt) if at[: len(prompt)] == prompt else 0)
    if STRATEGIES[name].draws == "pieces":
        assert any(drawn.begun for drawn in engine.samplings)


async def a_budget_leaves_the_best_so_far(s: Specimen, name: str) -> None:
    """Whatever the budget, what has been drawn is not thrown away: with a third of the work there is an answer."""
    strategy = build(name, s)
    most = strategy.work(s.sampling.max_tokens, n=1, include=frozenset()).sampled
    for budget in (1, 2, most // 3, most // 2):
        usage = Usage(max_sampled_tokens=max(budget, 1))
        at = replace(s, engine=Metered(s.engine, usage))
        try:
            [answer] = await run(strategy, at, s.prompts[0], seed=2)
        except LimitReached:
            answer = ()
        assert answer or budget < most // 3, "a third of the work, and no answer"
    assert await s.live() == 0


LATER = 2 * PATIENCE
"""Seconds: by that time all that comes at all has come, on any machine."""


async def a_deadline_is_kept(s: Specimen, name: str) -> None:
    """Whatever never comes, a reward or what the engine is asked: by then there is an answer, or LimitReached.

    Answers that had ended are in hand, so that where a reward alone hangs a pool has an answer.
    """

    async def are_others_drawn() -> bool:
        return STRATEGIES[name].draws != "whole" or not await s.live()

    async def hang(*args: Any, **more: Any) -> Any:
        await until(are_others_drawn)
        forward(LATER)
        await asyncio.Event().wait()

    calls = ("reward", "greedy_top_logprobs", "score", "divergence", "render_with_instruction")
    with set_forward() as forward:
        for call in calls:
            engine = Hanging(s.engine, call, hang)
            loop, tasks = asyncio.get_running_loop(), asyncio.all_tasks()
            deadline = loop.time() + LATER
            strategy_run = StrategyRun(
                strategy=build(name, s),
                reward=hang if call == "reward" else s.reward,
                include=STRATEGIES[name].shows - {"rewards"},
                usage=Usage(deadline=deadline),
            )
            sampling = replace(s.sampling, seed=1)
            chunks: list[Chunk] = []
            try:
                answering = strategy_run.execute(s.prompts[0], sampling, strategy_run.instrument(engine), n=1)
                async with asyncio.timeout_at(deadline + PATIENCE), aclosing(answering) as stream:
                    chunks = [chunk async for chunk in stream]
            except LimitReached as reached:
                reason = str(reached)
            else:
                reason = "" if any(chunk.tokens for chunk in chunks) else "an empty answer"
            assert reason in ("", "deadline")
            if call == "reward" and STRATEGIES[name].draws == "whole":
                assert chunks, "a pool had answers in hand"
                assert chunks[-1].report.get("value") is None
            assert loop.time() < deadline or strategy_run.usage.limit == "deadline"
            assert await s.live() == 0
            assert asyncio.all_tasks() == tasks


class Hanging:
    """An engine of whose calls one never comes back."""

    def __init__(self, engine: Engine, call: str, hang: Callable[..., Awaitable[Any]]) -> None:
        self.engine = engine
        setattr(self, call, hang)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


async def no_two_draws_share_a_seed(s: Specimen, name: str) -> None:
    """Draws with one seed would be one draw."""
    engine = Recording(s.engine)
    await run(build(name, s), replace(s, engine=engine), s.prompts[0], seed=1, n=2)
    seeds = [sampling.seed for sampling in engine.samplings]
    assert None not in seeds
    assert len(set(seeds)) == len(seeds)


async def what_streams_comes_in_pieces(s: Specimen, name: str) -> None:
    if not STRATEGIES[name].streams:
        return
    for seed in range(8):
        chunks = build(name, s)(
            s.prompts[0], replace(s.sampling, seed=seed), s.engine, s.reward, n=1, include=frozenset()
        )
        async with aclosing(chunks):
            if len([chunk async for chunk in chunks if chunk.tokens]) > 1:
                return
    raise AssertionError("every answer came whole")


async def a_report_has_the_keys_of_reports(s: Specimen, name: str) -> None:
    include = STRATEGIES[name].shows
    chunks = build(name, s)(s.prompts[0], replace(s.sampling, seed=4), s.engine, s.reward, n=1, include=include)
    async with aclosing(chunks):
        reports = [chunk.report async for chunk in chunks]
    assert all(report.keys() <= Report.__annotations__.keys() for report in reports)


async def a_search_says_how_far_it_is(s: Specimen, name: str) -> None:
    """Whatever sends nothing until it has chosen; and what it answers is the same whether anybody listens."""
    if STRATEGIES[name].streams:
        return
    strategy = build(name, s)
    for seed, prompt in enumerate(s.prompts):
        engine = Recording(s.engine)
        heard = await run(strategy, replace(s, engine=engine), prompt, seed=seed, n=2)
        assert heard == await run(strategy, s, prompt, seed=seed, n=2)
        await check_progress(s, engine.progress, prompt)


async def check_progress(s: Specimen, reported: Sequence[SearchProgress], prompt: Tokens) -> None:
    """Counts that only rise, from nothing to something, and best ones with the rewards that they have."""
    assert len(set(reported)) > 1
    assert reported[0].done == 0
    assert reported[0].best is None
    done: dict[str, int] = {}
    for progress in reported:
        assert done.get(progress.stage, 0) <= progress.done <= progress.of
        done[progress.stage] = progress.done
        assert (progress.best is None) == (progress.value is None)
        if progress.best is not None:
            [[reward]] = await s.reward(prompt, [progress.best])
            assert progress.value == pytest.approx(reward)
    assert done[reported[-1].stage] > 0


TABLE_LAWS = [
    no_guides_are_the_base,
    neutral_values_are_plain,
    a_stop_string_ends_the_answer,
    a_stop_token_ends_the_answer,
    a_value_is_of_the_tokens_shown,
    sampling_is_honoured_or_refused,
    what_an_answer_has_already_is_said,
    a_budget_leaves_the_best_so_far,
    a_deadline_is_kept,
    no_two_draws_share_a_seed,
    what_streams_comes_in_pieces,
    a_report_has_the_keys_of_reports,
    a_search_says_how_far_it_is,
]
