"""QAlign (arXiv 2504.03790; QUEST's suffix proposal): Markov chains over whole answers, drawn towards the reward.

Their law becomes

    pi_beta(y) ~ pi(y) exp(r(x, y) / beta)                                                                           (1)

However long they run, they draw from (1) and no more, where best of N goes on maximising what is only a proxy.
A step keeps a beginning of the answer and draws the rest anew from the proposal q:

    i ~ Uniform{0 .. |y| - 1},   y'_{<i} = y_{<i},   y'_{>=i} ~ q(. | x, y_{<i})                                     (2)
    accepted with probability min(1, exp[(r(y') - r(y)) / beta + log|y| - log|y'| + c(y') - c(y)])                   (3)

|y| counts the end of sequence. The ratio of lengths is that of the chances to draw i; where q is pi all else cancels.
Drawn under `guides`, q is their mixture, and `target` says what (1) tilts: the mixture itself (c = 0), or the base, and
c(y) = sum_t [log p_base(y_t | x, y_<t) - log q(y_t | x, y_<t)]. Both are exact. `max_tokens` bounds the whole
answer, so that a cut-off one can be drawn from wherever a step begins; the authors bound each suffix and are not exact.

Under a verifier any answer that ended by itself counts for more than any cut at `max_tokens`: a step from a cut one to
one that ended is accepted and never one back, and once a chain has come to one that ended, the cut ones before count
for nothing. The law is then (1) over the answers that end.

`chains` run side by side and never wait for one another. A rejected step counts its state once more. What is answered,
from the states after the first `burn_in` steps of each chain, every `thin`-th:

| `answer`   | is                                                                                      |
|------------|-----------------------------------------------------------------------------------------|
| mbr        | the state most like the others: ROUGE-1, each state as often as it was visited           |
| vote       | a state that gives the answer most visited                                               |
| last       | the last state of a chain: asymptotically a draw from (1)                                |
| max_reward | the best state visited, which is best of N again                                         |

Chains run `steps` steps, or until they agree: `until` names the split R-hat or the effective sample size that is enough
of the rewards, looked at as every chain passes a growing length; what faster chains have visited beyond it is dropped,
so that the answer does not depend on how fast each was.

Best so far: the same, of the states that the chains have visited.
Under top-k, top-p or another temperature pi is the law so warped, and under a stop string the law of answers ended
there, wherever in the answer it begins; the response's warnings say so.
Cost: about half an answer drawn and one scored per step and chain.
Neutral value: steps = 0 is plain sampling, token for token, for `last`.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from trimtab.decoders.protocols import (
    LIMIT_REASONS,
    UNFINISHED,
    Chunk,
    Engine,
    LimitReached,
    Parts,
    Reward,
    Sampling,
    Tokens,
    Work,
    base_alone,
    is_base_alone,
    reads_final_answer,
)
from trimtab.decoders.report import Report, SearchProgress
from trimtab.decoders.shared.answers import count_votes, make_reader
from trimtab.decoders.shared.candidates import (
    Beta,
    Guides,
    Target,
    Vector,
    VoteBy,
    check_target,
    correction,
    derive_seed,
    make_generator,
    score_all,
    silence_unfinished,
    stop_position,
    warn_of_warped_law,
)
from trimtab.decoders.shared.convergence import FLOOR, StopRule, has_converged, measure_mixing
from trimtab.decoders.shared.gather import join_or_cancel
from trimtab.decoders.shared.similarity import f1, split_words

STREAM = 2504_03790


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """An answer that a chain has stood at."""

    tokens: tuple[int, ...]
    finish: str
    reward: float = math.nan
    correction: float = 0.0
    """c(y) of (3), over the whole answer: what comes before i is the same for y and y'."""

    @property
    def scored(self) -> bool:
        return not math.isnan(self.reward)

    @property
    def value(self) -> float | None:
        return self.reward if self.scored else None


@dataclass(kw_only=True)
class Chain:
    """What one chain has visited, its first draw included, and what it was offered."""

    states: list[State] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)
    unread: int = 0
    """How many of its states, the first ones, count for nothing once another counts."""
    cut: State | None = None
    """The first draw, if a budget or deadline came before its reward."""

    def up_to(self, length: int) -> Chain:
        """Its first `length` states."""
        return replace(self, states=self.states[:length], accepted=self.accepted[: length - 1])

    def without_unread(self) -> Chain:
        """Its states that count for nothing as if they had no reward."""
        unread = [replace(state, reward=math.nan) for state in self.states[: self.unread]]
        return replace(self, states=[*unread, *self.states[self.unread :]])

    def begins(self, burn_in: int) -> int:
        """From which state on it counts."""
        return max(burn_in, self.unread)


@dataclass(frozen=True, kw_only=True)
class QAlign:
    """Markov chains whose answers are drawn from the model tilted by exp(reward / beta)."""

    beta: Beta = 1.0
    steps: Annotated[int, Field(ge=0, le=100_000, description="steps of each chain")] = 32
    chains: Annotated[int, Field(ge=1, le=1024, description="chains side by side")] = 4
    burn_in: Annotated[int, Field(ge=0, le=100_000, description="first states of each chain that do not count")] = 0
    thin: Annotated[int, Field(ge=1, le=100_000, description="every which state counts after them")] = 1
    until: Annotated[
        StopRule | None,
        Field(description="stop sooner: {r_hat, effective_sample_size, floor}, once what is named is reached"),
    ] = None
    answer: Annotated[
        Literal["mbr", "vote", "last", "max_reward"], Field(description="what is answered from the states that count")
    ] = "mbr"
    extractor: VoteBy = "number"
    target: Target = "proposal"
    guides: Guides = field(default_factory=base_alone)

    def __post_init__(self) -> None:
        make_reader(self.extractor)
        if self.burn_in > self.steps:
            raise ValueError(f"burn_in={self.burn_in} leaves nothing of steps={self.steps}")
        if self.until is not None and not self.until.keys() - {"floor"}:
            raise ValueError("until names neither r_hat nor effective_sample_size")

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_target(self.target, sampling)
        if self.answer == "last" and n > self.chains:
            raise ValueError(f"n={n} answers cannot be the last of params.chains={self.chains}")
        chains = await self._chains(prompt, sampling, engine, reward)
        chosen = await self._answers(chains, engine, n)
        shared: Report = {**diagnose(chains, self.burn_in), **describe_history(chains, include)}
        if warnings := warn_of_warped_law(sampling):
            shared["warnings"] = warnings
        place = {tokens: i for i, tokens in enumerate(index_states(chains))}
        for i, state in enumerate(chosen):
            report: Report = {"value": state.value, **shared} if i == 0 else {"value": state.value}
            if state.tokens in place:
                report["candidate"] = place[state.tokens]
            yield Chunk(index=i, tokens=state.tokens, finish=state.finish, report=report)

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        draws = self.chains * (self.steps + 1)
        most = draws * max_tokens
        corrected = 2 * most if self.target == "base" and not is_base_alone(self.guides) else 0
        return Work(
            candidates=self.chains,
            draws=draws,
            sampled=most,
            scored=corrected,
            reward_tokens=most,
            mixtures={"": self.guides},
            terms={"candidates": "chains", "draws": "chains * (steps + 1)"},
        )

    async def _chains(self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward) -> list[Chain]:
        """The chains, run to their end, or to the length at which they were found to agree."""
        chains = [Chain() for _ in range(self.chains)]
        tasks: list[asyncio.Task[None]] = []
        looked, enough = 0, 0
        visited, best, merit = 0, State(tokens=(), finish=""), (False, -math.inf)

        def report() -> None:
            most = self.chains * (self.steps + 1)
            tokens = best.tokens if best.scored else None
            engine.report_progress(SearchProgress(stage="step", done=visited, of=most, best=tokens, value=best.value))

        def count_visit(chain: Chain) -> None:
            """Of the last of its states."""
            nonlocal visited, best, merit
            visited += 1
            state, since = chain.states[-1], len(chain.states) - 1 - self.burn_in
            its_merit = (len(chain.states) > chain.unread, state.reward)
            if since >= 0 and since % self.thin == 0 and its_merit > merit:
                best, merit = state, its_merit
            report()
            look()

        def look() -> None:
            """Ends the chains if they agree, at 1, 1.25, 1.25^2 … times the floor."""
            nonlocal looked, enough
            if self.until is None:
                return
            floor = self.until.get("floor", FLOOR)
            shortest = min(len(c.states) - c.begins(self.burn_in) for c in chains)
            while not enough and shortest >= (length := max(floor, looked + 1, looked * 5 // 4)):
                looked = length
                rewards = np.array([[s.reward for s in c.states[c.begins(self.burn_in) :][:length]] for c in chains])
                if has_converged(rewards, self.until):
                    enough = length
                    for task in tasks:
                        task.cancel()

        report()
        async with join_or_cancel() as group:
            for c, chain in enumerate(chains):
                tasks.append(group.create_task(self._run(chain, c, prompt, sampling, engine, reward, count_visit)))
        if enough:
            chains = [c.up_to(c.begins(self.burn_in) + enough) for c in chains]
        read = any(len(c.states) > c.unread for c in chains)
        chains = [c.without_unread() for c in chains] if read else chains
        best = max(self._counted(chains), key=lambda s: s.reward, default=best)  # of equals the first of the chains'
        report()
        return chains

    async def _run(
        self,
        chain: Chain,
        c: int,
        prompt: Tokens,
        sampling: Sampling,
        engine: Engine,
        reward: Reward,
        count_visit: Callable[[Chain], None],
    ) -> None:
        """Takes the chain's steps, and calls `count_visit` after each."""
        rng = make_generator(sampling.seed, STREAM + c)
        ends_count = reads_final_answer(reward)

        async def drawn(prefix: Tokens, seed: int | None) -> State:
            """(2), and its reward unless a budget or deadline came first, or the context had no room for a token."""
            left = sampling.max_tokens - len(prefix)
            suffix = replace(sampling, max_tokens=left, stream=False, seed=seed, begun=len(prefix))
            tokens, finish = list(prefix), ""
            async with aclosing(engine.generate([*prompt, *prefix], suffix, n=1, guides=self.guides)) as chunks:
                async for chunk in chunks:
                    tokens += chunk.tokens
                    finish = chunk.finish or finish
            if (end := stop_position(tokens, len(prefix), sampling.stop, engine)) is not None:
                tokens, finish = tokens[:end], "stop"
            state = State(tokens=tuple(tokens), finish=finish)
            if finish in LIMIT_REASONS or not tokens:
                return state
            try:
                [score] = await score_all(reward, prompt, [tokens])
                moved = await correction(prompt, tokens, engine, target=self.target, guides=self.guides)
            except LimitReached:
                return state
            return replace(state, reward=score, correction=moved)

        y = await drawn((), sampling.seed if c == 0 else derive_seed(sampling.seed, c, 0))
        if not y.scored:
            chain.cut = y
            return

        def visit(y: State) -> None:
            chain.states.append(y)
            chain.unread += ends_count and y.finish == "length"
            count_visit(chain)

        visit(y)
        for t in range(1, self.steps + 1):
            i, u = int(rng.integers(len(y.tokens))), rng.random()
            proposed = await drawn(y.tokens[:i], derive_seed(sampling.seed, c, t))
            if not proposed.scored:
                return
            ends = (y.finish == "length") - (proposed.finish == "length") if ends_count else 0
            log_ratio = (
                (proposed.reward - y.reward) / self.beta
                + math.log(len(y.tokens) / len(proposed.tokens))
                + proposed.correction
                - y.correction
            )
            accepted = ends > 0 if ends else math.log(u) < log_ratio if u > 0 else True  # (3)
            y = proposed if accepted else y
            chain.accepted.append(accepted)
            visit(y)

    def _counted(self, chains: Sequence[Chain]) -> list[State]:
        """The states that count, as often as they were visited."""
        return [s for c in chains for s in c.states[self.burn_in :: self.thin] if s.scored]

    async def _answers(self, chains: Sequence[Chain], engine: Engine, n: int) -> list[State]:
        """n states, best first by `answer`, each of another text if there are so many."""
        last = sorted((c.states[-1] for c in chains if c.states), key=lambda s: not s.scored)
        counted = self._counted(chains)
        visits = Counter(s.tokens for s in counted)
        states = list({s.tokens: s for s in counted}.values())
        if self.answer == "last" or not states:
            order = last
        elif self.answer == "max_reward":
            order = sorted(states, key=lambda s: -s.reward)
        else:
            completions = [engine.parts(s.tokens) for s in states]
            weight = np.array([visits[s.tokens] for s in states], dtype=np.float64)
            cut = [s.finish in UNFINISHED for s in states]
            ranks = await asyncio.to_thread(self._ranks, completions, cut, weight)
            order = [states[i] for i in ranks]
        unscored = sorted((c.cut for c in chains if c.cut), key=lambda s: s.finish in LIMIT_REASONS)
        order = [*order, *last, *(s for s in unscored if s.tokens or s.finish not in LIMIT_REASONS)]
        if not order:
            raise LimitReached(unscored[0].finish)
        distinct = order if self.answer == "last" else list({s.tokens: s for s in order}.values())
        return [distinct[i] if i < len(distinct) else order[0] for i in range(n)]

    def _ranks(self, completions: Sequence[Parts], cut: Sequence[bool], weight: Vector) -> list[int]:
        """States, best first, by similarity to the others or by votes; ties stay in the order visited."""
        if self.answer == "mbr":
            similarity = f1([split_words(parts.text) for parts in completions])
            np.fill_diagonal(similarity, 1.0)  # a state is like itself however often it was visited
            merit = np.round(similarity @ weight, 12)
        else:
            merit = np.array(count_votes(silence_unfinished(completions, cut), weight, self.extractor))
        return [int(i) for i in np.argsort(-merit, kind="stable")]


def diagnose(chains: Sequence[Chain], burn_in: int) -> Report:
    """Of all chains: steps, acceptance and lengths; of the rewards after `burn_in` split R-hat and effective size."""
    accepted = [a for c in chains for a in c.accepted]
    lengths = [len(s.tokens) for c in chains for s in c.states]
    report: Report = {"chains": len(chains), "steps": len(accepted)}
    visited = {s.tokens: s.finish for c in chains for s in [*c.states, *([c.cut] if c.cut else [])]}
    report["unfinished"] = sum(finish in UNFINISHED for finish in visited.values())
    if accepted:
        report["acceptance_rate"] = sum(accepted) / len(accepted)
        taken = [len(s.tokens) for c in chains for s, a in zip(c.states[1:], c.accepted, strict=True) if a]
        report["accepted_length"] = quantiles(taken) if taken else None
    if lengths:
        report["length"] = quantiles(lengths)
    counted = [[s for s in c.states[burn_in:] if s.scored] for c in chains]
    shortest = min(map(len, counted))
    if shortest >= 4:
        rewards = np.array([[s.reward for s in states[-shortest:]] for states in counted])
        report["r_hat"], report["effective_sample_size"] = measure_mixing(rewards)
    return report


def index_states(chains: Sequence[Chain]) -> dict[tuple[int, ...], State]:
    """The different states that the chains visited, by their tokens, in the order of `candidates`."""
    return {s.tokens: s for c in chains for s in c.states}


def describe_history(chains: Sequence[Chain], include: frozenset[str]) -> Report:
    """What of the chains' ways was asked for: each of them, and the states that they visited."""
    states = index_states(chains)
    report: Report = {}
    if "trace" in include:
        place = {tokens: i for i, tokens in enumerate(states)}
        report["trace"] = [
            {
                "reward": [s.value for s in c.states],
                "length": [len(s.tokens) for s in c.states],
                "accepted": c.accepted,
                "candidate": [place[s.tokens] for s in c.states],
            }
            for c in chains
        ]
    if "candidates" in include:
        visits = Counter(s.tokens for c in chains for s in c.states)
        report["candidates"] = [
            {"index": i, "tokens": tokens, "finish_reason": s.finish, "value": s.value, "visits": visits[tokens]}
            for i, (tokens, s) in enumerate(states.items())
        ]
    return report


def quantiles(lengths: Sequence[int]) -> dict[str, float]:
    """Tokens: mean, 10 %, 50 % and 90 % of them at most so long."""
    p10, p50, p90 = np.percentile(lengths, [10, 50, 90], method="inverted_cdf").tolist()
    return {"mean": sum(lengths) / len(lengths), "p10": p10, "p50": p50, "p90": p90}
