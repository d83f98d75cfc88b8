"""One HTTP request at the engine: the strategy that answers it, what that may spend and has spent, and what came of it.

The context variable `current_run` holds it while the request is being handled. Every request has one; the run of a
request that the engine answers by itself has no strategy, and is `native`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from types import AsyncGeneratorType
from typing import Any

from opentelemetry.trace import Span

from trimtab.decoders.protocols import (
    LIMIT_REASONS,
    AllAnswer,
    Chunk,
    Engine,
    LimitReached,
    Parts,
    Reward,
    Sampling,
    Split,
    Strategy,
    Tokens,
    UnsupportedSampling,
    no_reward,
)
from trimtab.decoders.report import Report, drop_nonfinite
from trimtab.runtime.contexts import RequestContexts
from trimtab.runtime.metered import Metered, MeteredReward, Read
from trimtab.runtime.progress import RequestProgress
from trimtab.runtime.shares import RequestShare
from trimtab.runtime.traced import Traced
from trimtab.runtime.usage import Usage

Relax = Callable[[Sampling, UnsupportedSampling], Sampling | None]


@dataclass(kw_only=True)
class StrategyRun:
    strategy: Strategy | None = None
    reward: Reward = no_reward
    include: frozenset[str] = frozenset()
    """What the client wants to see beside the answers."""
    check_sampling: Callable[[Sampling], None] = lambda sampling: None
    """Raises ValueError for sampling that the strategy's way to draw would not carry out."""
    written: frozenset[str] = frozenset()
    """The request's fields that have a value: what else a sampling has are defaults."""
    contexts: RequestContexts = field(default_factory=RequestContexts)
    """What its answers may be drawn under, beside its own prompt."""
    read: Callable[..., str] | None = None
    """(prompt, completion, cut) -> the completion as the client reads it; None until the engine client knows how."""
    split: Split = field(default_factory=AllAnswer)
    """What the request's completions hold, as the client gets it."""
    engine: Engine | None = None
    """What draws for it, uncounted; None until an engine client has the request."""
    source: tuple[str, ...] = ()
    """What its answers depend on beside tokens: its adapter, its images."""
    span: Span | None = None
    """The request's, under which its calls of the engine are; None where nothing is traced."""
    progress: RequestProgress | None = None
    """How far it is; None: nobody asks."""
    fallback: Strategy | None = None
    """What answers where the strategy fails before its first token with one of `recoverable_errors`."""
    recoverable_errors: tuple[type[Exception], ...] = ()
    usage: Usage = field(default_factory=Usage)
    settle: Callable[[int, int], None] = lambda prompt, longest: None
    """Called as each of its prompts is known: with the tokens of that, and of the longest answer to it."""
    share: RequestShare = field(default_factory=RequestShare)

    failure: Exception | None = None
    """What ended the strategy, and the request too unless the fallback answered it."""
    degraded: bool = False
    """Whether the fallback answers in the strategy's place."""
    warnings: list[str] = field(default_factory=list)
    """Of the request as a whole, in words for the client."""
    reports: dict[int, Report] = field(default_factory=dict)
    """choice -> what the strategy reports of it"""
    answers: dict[int, list[int]] = field(default_factory=dict)
    """choice -> its tokens so far"""
    choices: int = 0
    """Answers begun, over all the request's prompts."""
    prompts: list[Tokens] = field(default_factory=list)
    """Those that an engine has been instrumented for, in turn."""
    streams: list[AsyncGenerator[Any, None]] = field(default_factory=list)

    @property
    def native(self) -> bool:
        """Whether the engine answers by itself: no strategy, and nothing to bound or to report."""
        return self.strategy is None

    def begin(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The stream, which `close` ends."""
        self.streams.append(stream)
        return stream

    async def close(self) -> None:
        """End what still runs: a server whose client leaves while it sends drops generators without closing them."""
        for stream in self.streams:
            if isinstance(stream, AsyncGeneratorType) and not stream.ag_running:  # one that runs is being cancelled
                await stream.aclose()

    def instrument(self, engine: Engine, prompt: Tokens = ()) -> Engine:
        """The engine, whose work counts as this request's and is traced under its span, for answers to this prompt."""
        read: Read | None = None if self.read is None else partial(self.read, prompt)
        split = None if read is None else partial(self.split, prompt)
        follow = None if self.progress is None else partial(self.progress.record, len(self.prompts))
        self.prompts.append(prompt)
        rows = self.contexts.count_rows
        metered = Metered(engine, self.usage, self.contexts.render, read, split, follow, rows)
        return metered if self.span is None else Traced(metered, self.span)

    def record(self, choice: int, chunk: Chunk) -> None:
        """A piece of the answer that the client gets as `choice`."""
        self.usage.record_visible(len(chunk.tokens))
        self.answers.setdefault(choice, []).extend(chunk.tokens)
        if chunk.report:
            self.reports.setdefault(choice, Report()).update(drop_nonfinite(chunk.report))

    def text(self, prompt: Tokens, completion: Tokens) -> str:
        """An answer to this prompt as the client reads it, once an engine client has the request."""
        assert self.read is not None, "nothing is drawn yet"
        return self.read(prompt, completion)

    def parts(self, prompt: Tokens, completion: Tokens) -> Parts:
        """`text` apart."""
        return self.split(prompt, self.text(prompt, completion), completion)

    async def execute(
        self,
        prompt: Tokens,
        sampling: Sampling,
        engine: Engine,
        *,
        n: int,
        relax: Relax = lambda sampling, refusal: None,
    ) -> AsyncGenerator[Chunk, None]:
        """The strategy's chunks; `failure` holds what went wrong, whoever gets to see the exception.

        `relax` makes of a sampling that the strategy does not carry out one without what nobody asked for, if it can.
        Raises LimitReached where every answer was cut before its first token: vLLM streams no such answer.
        """
        assert self.strategy is not None, "the engine answers by itself"
        begun = False
        empty: list[Chunk] = []
        try:
            async with aclosing(self._answer(prompt, sampling, engine, n, relax)) as chunks:
                async for chunk in chunks:
                    if not begun and chunk.finish in LIMIT_REASONS and not chunk.tokens:
                        empty.append(chunk)
                        continue
                    begun = True
                    yield chunk
            if empty and not begun:
                raise LimitReached(empty[0].finish)
            for chunk in empty:
                yield chunk
            return
        except Exception as error:
            self.failure = error
            if begun or self.fallback is None or not isinstance(error, self.recoverable_errors):
                raise
        self.degraded = True
        several = self.choices > n  # prompts, of which others may be answered by the strategy
        answers = self.fallback(prompt, sampling, engine, self.reward, n=n, include=frozenset())
        async with aclosing(answers) as chunks:
            async for chunk in chunks:
                yield replace(chunk, report={"degraded": True}) if several and chunk.finish else chunk

    async def _answer(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, n: int, relax: Relax
    ) -> AsyncGenerator[Chunk, None]:
        assert self.strategy is not None
        while True:
            try:
                self.check_sampling(sampling)
                reward = MeteredReward(self.reward, self.usage)
                answers = self.strategy(prompt, sampling, engine, reward, n=n, include=self.include)
                async with aclosing(answers) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except UnsupportedSampling as refusal:
                if (relaxed := relax(sampling, refusal)) is None:
                    raise
                sampling = relaxed


current_run: ContextVar[StrategyRun | None] = ContextVar("current_run", default=None)
"""None outside of a request, as when a server starts."""
