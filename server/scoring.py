"""Rewards at work: built when the server starts, bound to a request, and asked for its scores.

Shapes: N completions, K labels.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from opentelemetry.trace import Span

from trimtab.decoders.protocols import BASE, AllAnswer, Engine, Parts, Sampling, Split, Tokens, reads_final_answer
from trimtab.decoders.shared.gather import gather_or_cancel
from trimtab.engine.activity import Activity
from trimtab.engine.aligned_client import AlignedClient
from trimtab.engine.pooling import PoolingEngine
from trimtab.engine.toy_client import ToyPooler
from trimtab.rewards import KINDS
from trimtab.rewards.protocols import Host, Question, Response, RewardError, Scorer, reads_conversation
from trimtab.rewards.turns import READINGS
from trimtab.rewards.validated import ValidatedScorer
from trimtab.runtime.contexts import Instruction
from trimtab.runtime.metered import Metered
from trimtab.runtime.strategy_run import StrategyRun, current_run
from trimtab.runtime.usage import Usage
from trimtab.server.config import Config, ConfigError, RewardConfig
from trimtab.server.config.rewards import build_reward
from trimtab.server.errors import ApiError
from trimtab.server.metrics import REWARD_ERRORS, REWARD_SECONDS
from trimtab.server.request import tracing
from trimtab.server.request.alignment import AT
from trimtab.server.request.body import Json
from trimtab.server.request.cost import reference_length
from trimtab.server.request.messages import (
    CHAT,
    Messages,
    find_unreadable,
    instruct,
    parse_messages,
    parse_tools,
    split_conversation,
)
from trimtab.server.request.plan import Plan
from trimtab.server.request.references import ReferenceScores, make_key, make_seed
from trimtab.server.request.reward_tree import Leaf, Rows, Score, ScoreSpread, Spec, evaluate, parse_spec
from trimtab.server.request.weights import load_orchestrator
from trimtab.server.wording import quote, suggest

ReadAnswer = Callable[[Tokens, Tokens], str]
"""(prompt, completion) -> the completion as the client reads it"""


MORE_TOKENS = 8
"""By which the beginning of an answer may differ within a prompt from what it is alone, in number."""


def engine_key(reward: RewardConfig) -> str | None:
    """Which engine its model runs on; rewards of one model and one set of options share it. None: it has no model."""
    return None if reward.model is None else json.dumps(reward.served(), sort_keys=True)


def build_scorers(config: Config, host: Host, poolers: Mapping[str, PoolingEngine | ToyPooler]) -> dict[str, Scorer]:
    """The config's rewards; raises ConfigError for what cannot be built."""
    scorers: dict[str, Scorer] = {}
    for name, reward in config.rewards.items():
        services: dict[str, Any] = {"host": host}
        if (key := engine_key(reward)) is not None:
            services["pooler"] = poolers[key]
        scorer = build_reward(name, reward, **services)
        for member in getattr(scorer, "members", ()):
            models = config.guides.keys() - config.contexts.keys()
            if member not in {BASE, *models}:
                raise ConfigError(suggest("guide", member, models), key=f"rewards.{name}")
        engine = services.get("pooler", host if "host" in KINDS[reward.kind].uses else None)
        active_at: Callable[[], float] = getattr(engine, "active_at", never)
        scorers[name] = ValidatedScorer(
            scorer=scorer, name=name, timeout=reward.timeout_s, on=reward.on, active_at=active_at
        )
    return scorers


def build_scoring(config: Config, client: AlignedClient, poolers: Mapping[str, PoolingEngine | ToyPooler]) -> Scoring:
    """The rewards of a server whose engines are up; the reward models' by `engine_key`."""
    host = BaseHost(
        engine=client.bind({}), tokenizer=client.renderer.tokenizer, active_at=Activity(client=client.inner)
    )
    return Scoring(config=config, scorers=build_scorers(config, host, poolers), host=host, poolers=poolers)


def never() -> float:
    """When an engine that shows nothing was last active."""
    return -math.inf


class RenderRequest(Protocol):
    async def __call__(self, path: str, document: Json, *, media: bool = False) -> Tokens:
        """The prompt that vLLM's app makes of a body.

        Raises ValueError for what it would refuse, and without `media` for parts that are no text.
        """
        ...


ReadChat = Callable[[str, Json], Json]
"""(path, body) -> its conversation and its tools as a chat request's `messages` and `tools`; raises ApiError"""


@dataclass(kw_only=True)
class BaseHost:
    """The served base as rewards see it."""

    engine: Engine
    tokenizer: Any
    render_request: RenderRequest | None = None
    """None until vLLM's app is there, whose renderer serves requests and rewards alike."""
    split: Split = field(default_factory=AllAnswer)
    """Of answers to no request in particular."""
    read_chat: ReadChat = lambda path, document: document
    """How the app reads the conversation of a body; by itself, as a chat request's."""
    active_at: Callable[[], float] = never
    """When the engine last did something for anybody, by `time.monotonic`."""

    async def render(self, messages: Sequence[Mapping[str, str]]) -> Tokens:
        return await self.render_body(CHAT, {"messages": [dict(message) for message in messages]})

    async def render_body(self, path: str, document: Json, *, media: bool = False) -> Tokens:
        """As `RenderRequest`."""
        assert self.render_request is not None, "there is no app yet"
        return await self.render_request(path, document, media=media)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The server's rewards, running."""

    config: Config
    scorers: Mapping[str, Scorer]
    host: Host
    poolers: Mapping[str, PoolingEngine | ToyPooler] = field(default_factory=dict)
    """By `engine_key`."""
    references: ReferenceScores = field(default_factory=ReferenceScores)
    """By this configuration's rewards: another one begins anew."""

    def __post_init__(self) -> None:
        """Raises ConfigError for an objective that names no score of its reward, an adapter of another vocabulary."""
        adapter = load_orchestrator(self.config)
        if adapter is not None and len(adapter.table_VK) < len(self.host.tokenizer):
            message = f"its table is for {len(adapter.table_VK)} tokens; the base has {len(self.host.tokenizer)}"
            raise ConfigError(message, key="auto_weights")
        for name, objective in self.config.objectives.items():
            if objective.reward is not None:
                at = f"objectives.{name}.reward"
                try:
                    spec = parse_spec(objective.reward, self.config, at=at, objectives=False)
                    self.check(spec, None, at=at)
                except ApiError as error:
                    raise ConfigError(error.message, key=at) from None

    @property
    def alive(self) -> bool:
        return all(pooler.alive for pooler in self.poolers.values())

    def with_config(self, config: Config) -> Scoring:
        """The same models under another configuration; raises ConfigError for one that they cannot serve."""
        scorers = build_scorers(config, self.host, self.poolers)
        return Scoring(config=config, scorers=scorers, host=self.host, poolers=self.poolers)

    def check(self, spec: Spec, given: Mapping[str, Any] | None, *, at: str) -> None:
        """Raises ApiError for a label that a reward does not have, or for what it would need and `given` lacks.

        None: what a request will give is not known yet.
        """
        for leaf in spec.leaves:
            scorer = self.scorers[leaf.reward]
            if leaf.label is None and len(scorer.labels) > 1:
                names = ", ".join(f"{leaf.reward}.{label}" for label in scorer.labels)
                raise ApiError(f"reward {leaf.reward!r} gives several scores; name one: {names}", param=at)
            if leaf.label is not None and leaf.label not in scorer.labels:
                raise ApiError(suggest(f"score of reward {leaf.reward!r}", leaf.label, scorer.labels), param=at)
            if missing := sorted(scorer.needs - given.keys()) if given is not None else []:
                raise ApiError(
                    f"reward {leaf.reward!r} needs {AT}.given.{missing[0]}",
                    param=f"{AT}.given.{missing[0]}",
                    code="missing_required_parameter",
                )

    def check_given(self, specs: Iterable[Spec], given: Mapping[str, Any]) -> None:
        """Raises ApiError for something in `given` that no reward would read."""
        needed = {key for spec in specs for leaf in spec.leaves for key in self.scorers[leaf.reward].needs}
        if surplus := given.keys() - needed:
            name = min(surplus)
            raise ApiError(
                f"no reward that is asked for compares answers with {AT}.given.{name}",
                param=f"{AT}.given.{name}",
                code="unsupported_pair",
            )

    def check_conversation(
        self, specs: Iterable[Spec], path: str, document: Json, *, at: str = "", written: bool = False
    ) -> None:
        """Raises ApiError for what stands in a body's conversation that a reward would have to read and cannot; `at` is
        put before its place. `written`: whether no search draws the answers, so that none has the images."""
        unreadable = next(find_unreadable(path, document), None)
        reader = next(self._find_readers(specs, written), None)
        if unreadable is None or reader is None:
            return
        place, kind = f"{at}{unreadable[0]}", quote(unreadable[1])
        message = (
            f"{place} is of type {kind}, which cannot be shown to {reader}: it reads the conversation as text; valid "
            "are texts, calls of tools and their results; any part is, beside rewards that read the answer alone"
        )
        raise ApiError(message, param=place, code="unsupported_pair")

    def _find_readers(self, specs: Iterable[Spec], written: bool) -> Iterator[str]:
        """What reads a conversation as text."""
        for spec in specs:
            for leaf in spec.leaves:
                if reads_conversation(self.scorers[leaf.reward]):
                    yield f"the reward {leaf.reward!r}"
            if written and spec.references:
                yield f"the base, with whose answers a transform of {next(spec.leaves).reward!r} compares"

    def attach(self, render_request: RenderRequest, split: Split, read_chat: ReadChat) -> None:
        """The app's renderer, which rewards use too, how it takes an answer to a chat without tools apart, and how it
        reads a conversation."""
        if isinstance(self.host, BaseHost):
            self.host.render_request, self.host.split, self.host.read_chat = render_request, split, read_chat

    def read_chat(self, path: str, document: Json) -> Json:
        """A body's conversation and tools, as a chat request has them; raises ApiError."""
        return self.host.read_chat(path, document) if isinstance(self.host, BaseHost) else document

    async def ask(self, messages: Sequence[Mapping[str, Any]]) -> Question:
        """A conversation that no request has."""
        document: Json = {"messages": [dict(message) for message in messages]}

        async def render_with(instruction: str) -> Tokens:
            return await self.host.render(instruct(CHAT, document, Instruction(instruction))["messages"])

        prompt = await self.host.render(messages)
        return Question(messages=parse_messages(document), prompt=prompt, instruct=render_with)

    def bind(
        self,
        plan: Plan,
        path: str,
        document: Json,
        usage: Usage,
        *,
        max_tokens: int,
        read: ReadAnswer,
        split: Split,
    ) -> RequestReward:
        """The reward of one request, whose answers have at most `max_tokens`; raises ApiError for what it cannot be."""
        specs = {} if plan.objective is None else {f"{AT}.reward": plan.objective}
        specs |= {f"{AT}.{key}": spec for key, spec in plan.others.items()}
        for at, spec in specs.items():
            self.check(spec, plan.given, at=at)
        self.check_given(specs.values(), plan.given)
        self.check_conversation(specs.values(), path, document)
        return RequestReward.of_document(
            path,
            document,
            scoring=self,
            specs=tuple(specs.values()),
            given=plan.given,
            usage=usage,
            max_tokens=max_tokens,
            read=read,
            split=split,
        )

    def auto_weights(self, path: str, document: Json) -> dict[str, float]:
        """The weights that the adapter chooses by the user's last words, or by a bare prompt."""
        adapter = load_orchestrator(self.config)
        assert adapter is not None
        messages = parse_messages(self.read_chat(path, document))
        turns = [message["content"] for message in messages if message["role"] == "user"]
        text = next(filter(None, reversed(turns)), turns[-1] if turns else document.get("prompt"))
        if not isinstance(text, str):
            raise ApiError("weights 'auto' need words to go by, in messages or a prompt", param=f"{AT}.weights")
        return adapter(self.host.tokenizer.encode(text, add_special_tokens=False))

    def reads(self, reward: str, prompt: int, response: int) -> int:
        """Tokens that a reward has read to score a response of so many tokens to a prompt of so many, at the most."""
        scorer = self.scorers[reward]
        return scorer.reads(prompt, response) if isinstance(scorer, ValidatedScorer) else response

    async def rows(
        self, specs: Iterable[Spec], question: Question, responses: Sequence[Response], span: Span | None = None
    ) -> dict[str, list[float]]:
        """leaf -> [N] raw scores, every reward asked once; raises RewardError."""
        leaves = {leaf.name: leaf for spec in specs for leaf in spec.leaves}
        names = sorted({leaf.reward for leaf in leaves.values()})
        scores = await gather_or_cancel(self._score(name, question, responses, span) for name in names)
        tables = dict(zip(names, scores, strict=True))

        def column(leaf: Leaf) -> list[float]:
            k = 0 if leaf.label is None else self.scorers[leaf.reward].labels.index(leaf.label)
            return [row[k] for row in tables[leaf.reward]]

        return {name: column(leaf) for name, leaf in leaves.items()}

    async def _score(
        self, name: str, question: Question, responses: Sequence[Response], span: Span | None
    ) -> list[list[float]]:
        began, scorer = time.monotonic(), self.scorers[name]
        try:
            with tracing.span_reward(name, span, len(responses)) as scores_by_label:
                rows = await scorer(question, responses)
                scores_by_label += zip(scorer.labels, zip(*rows, strict=True), strict=True) if rows else ()
                return rows
        except RewardError:
            REWARD_ERRORS.labels(name).inc()
            raise
        finally:
            REWARD_SECONDS.labels(name).observe(time.monotonic() - began)


@dataclass(kw_only=True)
class RequestReward:
    """A `decoders.protocols.Reward` for one HTTP request. Its [N, K] scores explain the first of their row's."""

    scoring: Scoring
    specs: tuple[Spec, ...]
    """[K]"""
    path: str
    document: Json
    """The request's body."""
    messages: Messages
    """Up to the answer; none of a bare prompt."""
    prefix: str = ""
    """The answer's beginning, where the request has one continued: what rewards read begins with it."""
    tools: tuple[Mapping[str, Any], ...] = ()
    given: Mapping[str, Any]
    usage: Usage
    max_tokens: int
    """Of the longest answer, which reference answers may be as long as, in powers of two."""
    read: ReadAnswer | None = None
    """As the request has it; None: as an answer to no request in particular."""
    split: Split = field(default_factory=AllAnswer)
    """Likewise."""
    span: Span | None = None
    """The request's; None where nothing is traced."""
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READINGS))
    spreads: dict[tuple[tuple[int, ...], str], ScoreSpread] = field(default_factory=dict)
    """By prompt and leaf."""

    @classmethod
    def of_document(cls, path: str, document: Json, **fields: Any) -> RequestReward:
        """For the conversation of a request's body; raises ApiError for one whose answer no reward could tell from
        it."""
        if not fields["specs"]:
            return cls(path=path, document=document, messages=(), **fields)
        chat = fields["scoring"].read_chat(path, document)
        messages, prefix = split_conversation(path, document, chat)
        tools = parse_tools(chat)
        return cls(path=path, document=document, messages=messages, prefix=prefix, tools=tools, **fields)

    async def __call__(self, prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        engine, read = self.scoring.host.engine, self.read
        texts = [engine.text(tokens) if read is None else read(prompt, tokens) for tokens in completions]
        responses = [self._response(prompt, text, tokens) for text, tokens in zip(texts, completions, strict=True)]
        return await self.score(prompt, responses)

    def encode(self, prompt: Tokens, text: str, *, finished: bool = True) -> Response:
        """A response that a client wrote, as a search would have it: with its end of sequence if it is finished."""
        host = self.scoring.host
        tokens = host.engine.tokens(text)
        return self._response(prompt, text, [*tokens, *([end_token(host)] if finished else ())])

    async def score(self, prompt: Tokens, responses: Sequence[Response]) -> list[list[float]]:
        """[N, K]; raises RewardError, and ValueError for what the request is at fault for."""
        if not self.specs:
            return [[] for _ in responses]
        question, responses = self._question(prompt, responses)
        references = await self._references(question, prompt) if self.reference_count else {}
        self.usage.scored += self._count_reads(responses)
        rows = await self.scoring.rows(self.specs, question, responses, self.span)
        self._observe(prompt, responses, rows)
        breakdowns = [evaluate(spec, rows, references) for spec in self.specs]
        explanations = [breakdowns[0].explain(i) for i in range(len(responses))]
        values = zip(*(breakdown.values for breakdown in breakdowns), strict=True)
        return [[Score(value, why) for value in row] for row, why in zip(values, explanations, strict=True)]

    @property
    def reads_final_answer(self) -> bool:
        """Whether one of its rewards goes by what an answer comes to; under a model that thinks, each does: a cut
        completion may have no answer."""
        if self.split.thinks and self.specs:
            return True
        leaves = (leaf for spec in self.specs for leaf in spec.leaves)
        return any(reads_final_answer(self.scoring.scorers[leaf.reward]) for leaf in leaves)

    @property
    def warnings(self) -> list[str]:
        """Of rewards that told no answer from another."""
        return [text for (_, name), spread in self.spreads.items() if (text := spread.warn(name))]

    def _observe(self, prompt: Tokens, responses: Sequence[Response], rows: Rows) -> None:
        """What `warnings` go by."""
        for name, scores in rows.items():
            spread = self.spreads.setdefault((tuple(prompt), name), ScoreSpread())
            for response, score in zip(responses, scores, strict=True):
                spread.add(response.text, score)

    @property
    def reference_count(self) -> int:
        """How many reference answers the transforms ask for."""
        return max((spec.references for spec in self.specs), default=0)

    def _response(self, prompt: Tokens, text: str, tokens: Tokens) -> Response:
        """What rewards read of a completion of this text and these tokens."""
        return take_apart(text, tokens, self.split(prompt, text, tokens), self.scoring.host)

    def _decode(self, prompt: Tokens) -> str:
        """What a prompt says, or a part of one."""
        text: str = self.scoring.host.tokenizer.decode(list(prompt), skip_special_tokens=True)
        return text

    def _count_reads(self, responses: Sequence[Response]) -> int:
        """Tokens of the responses, once for each reward but those that record what they read."""
        scorers = [self.scoring.scorers[name] for name in {leaf.reward for s in self.specs for leaf in s.leaves}]
        return sum(
            len(response.read(getattr(scorer, "on", "answer")).tokens)
            for scorer in scorers
            if not getattr(scorer, "records", False)
            for response in responses
        )

    def _record(self, tokens: int) -> None:
        self.usage.scored += tokens

    def _question(self, prompt: Tokens, responses: Sequence[Response]) -> tuple[Question, list[Response]]:
        """What the responses answer, and what rewards read of each: the whole answer, its beginning included."""
        context, begun = split_prompt(prompt, self.prefix, self.scoring.host)
        messages = self.messages or ({"role": "user", "content": self._decode(context)},)
        document = self.document if self.messages else {"messages": list(messages)}
        path = self.path if self.messages else CHAT

        async def render_with(instruction: str) -> Tokens:
            host = self.scoring.host
            assert isinstance(host, BaseHost)
            tokens = await host.render_body(path, instruct(path, document, Instruction(instruction)))
            return split_prompt(tokens, self.prefix, self.scoring.host)[0]

        question = Question(
            messages=messages,
            prompt=context,
            tools=self.tools,
            given=self.given,
            instruct=render_with,
            turns=self.turns,
            record=self._record,
        )
        if not self.prefix:
            return question, list(responses)
        completions = [response.whole or response for response in responses]
        return question, [self._response(context, self.prefix + c.text, [*begun, *c.tokens]) for c in completions]

    async def _references(self, question: Question, prompt: Tokens) -> Rows:
        """leaf -> [M] scores of the frozen base's own answers to the question, to their end or to the request's length,
        whatever else the request says: with the request's adapter and its images, which the engine that draws has."""
        leaves = sorted({leaf.name for spec in self.specs for leaf in spec.leaves})
        n, length = self.reference_count, reference_length(self.max_tokens)
        conversation = [*question.messages, *question.tools, self.prefix, self.document.get("tool_choice")]
        begun = list(prompt)
        specs, scoring = self.specs, self.scoring
        run = current_run.get() or StrategyRun()

        async def draw(usage: Usage) -> Rows:
            engine = Metered(run.engine or scoring.host.engine, usage)
            sampling = Sampling(max_tokens=length, seed=make_seed(begun, length), stream=False)
            drawn: dict[int, list[int]] = {i: [] for i in range(n)}
            async with aclosing(engine.generate(begun, sampling, n=n, guides={BASE: 1.0})) as chunks:
                async for chunk in chunks:
                    drawn[chunk.index] += chunk.tokens
            responses = [self._response(begun, engine.text(tokens), tokens) for tokens in drawn.values()]
            usage.scored += self._count_reads(responses)
            _, responses = self._question(begun, responses)

            def record(tokens: int) -> None:
                usage.scored += tokens

            apart = replace(question, turns=asyncio.Semaphore(READINGS), record=record)
            return await scoring.rows(specs, apart, responses)

        key = make_key(begun, conversation, dict(self.given), leaves, n, length, run.source)
        return await scoring.references.get(key, draw, self.usage)


def split_prompt(prompt: Tokens, prefix: str, host: Host) -> tuple[Tokens, Tokens]:
    """A prompt up to where its answer begins, and the tokens of the answer's beginning.

    Raises ValueError where no end of the prompt reads as that beginning.
    """
    if not prefix.strip():
        return prompt, ()
    if (place := find_end(prompt, prefix, host)) is None:
        raise ValueError("the chat template does not end with the message that is continued, so rewards cannot read it")
    return prompt[:place], prompt[place:]


def find_end(tokens: Tokens, text: str, host: Host) -> int | None:
    """Where the end begins that reads as this text, or else as this text but for spaces around it; None: nowhere."""
    alone = len(host.engine.tokens(text))
    places = [len(tokens) - alone - more for more in sorted(range(-MORE_TOKENS, MORE_TOKENS + 1), key=abs)]
    ends: dict[int, str] = {
        place: host.tokenizer.decode(list(tokens[place:]), skip_special_tokens=True)
        for place in places
        if 0 <= place < len(tokens)
    }
    exact = (place for place, end in ends.items() if end == text)
    return next(exact, next((place for place, end in ends.items() if end.strip() == text.strip()), None))


def take_apart(text: str, tokens: Tokens, parts: Parts, host: Host) -> Response:
    """A completion of this text and these tokens as rewards read it. The answer's tokens are those that were drawn
    where an end of them reads as the answer, and else the base's own for its text."""
    if parts == Parts(answer=text):
        return Response(text=text, tokens=tokens)
    answer, whole = parts.answer, Response(text=text, tokens=tokens)
    place = find_end(tokens, answer, host) if answer.strip() else None
    if place is None:
        ending = tokens[-1:] if tokens and tokens[-1] in host.engine.eos_ids else ()
        drawn: Tokens = [*host.engine.tokens(answer), *ending]
    else:
        drawn = tokens[place:]
    return Response(text=answer, tokens=drawn, calls=parts.calls, thoughts=parts.thoughts, whole=whole)


def end_token(host: Host) -> int:
    """The base's end of a response: its tokenizer's, or the first of those that its generation config lists."""
    ends = host.engine.eos_ids
    token: int | None = getattr(host.tokenizer, "eos_token_id", None)
    return token if token in ends else min(ends)
