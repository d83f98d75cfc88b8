"""A vLLM engine client whose `generate()` carries out a strategy, so that vLLM's own OpenAI app serves aligned answers.

The strategy of the HTTP request being handled is found in a context variable. Requests without one go to vLLM as they
came. For the others, vLLM's sampling parameters become a `Sampling`, the strategy's chunks become vLLM's outputs, and
what the strategy tells of its answers is kept on the `Run` for whoever answers the request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from types import AsyncGeneratorType
from typing import Any

from opentelemetry.trace import Span
from vllm.engine.protocol import EngineClient
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from trimtab.decoders.protocols import LIMIT_REASONS, Chunk, Engine, LimitReached, Reward, Sampling, Strategy, Tokens
from trimtab.engine.table import salted
from trimtab.runtime.metered import Meter, Metered, Render
from trimtab.runtime.shares import Shares, Turn, turn
from trimtab.runtime.traced import Traced


@dataclass(kw_only=True)
class Run:
    """A strategy at work for one HTTP request, and what it has spent and told so far."""

    strategy: Strategy
    reward: Reward
    include: frozenset[str] = frozenset()
    check_sampling: Callable[[Sampling], None] = lambda sampling: None
    """Raises ValueError for sampling that the strategy's way to draw would not carry out."""
    meter: Meter = field(default_factory=Meter)
    render: Render | None = None
    span: Span | None = None
    """The request's, under which its calls of the engine are; None where nothing is traced."""
    instead: Strategy | None = None
    """What answers where the strategy fails before its first token with one of `forgiven`."""
    forgiven: tuple[type[Exception], ...] = ()
    failed: Exception | None = None
    """What ended the strategy, and the request too where nothing answered instead."""
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    """choice -> what the strategy told of it"""
    answers: dict[int, list[int]] = field(default_factory=dict)
    """choice -> its tokens so far"""
    choices: int = 0
    """Answers begun, over all the request's prompts."""
    streams: list[AsyncGenerator[RequestOutput, None]] = field(default_factory=list)

    async def close(self) -> None:
        """End what still runs: a server whose client leaves while it sends drops generators without closing them."""
        for stream in self.streams:
            if isinstance(stream, AsyncGeneratorType) and not stream.ag_running:  # one that runs is being cancelled
                await stream.aclose()

    async def carry_out(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, *, n: int
    ) -> AsyncGenerator[Chunk, None]:
        """The strategy's chunks; `failed` says what went wrong, whoever gets to see the exception.

        Raises LimitReached where every answer was cut before its first token: vLLM streams no such answer.
        """
        begun = False
        empty: list[Chunk] = []
        try:
            self.check_sampling(sampling)
            async with aclosing(
                self.strategy(prompt, sampling, engine, self.reward, n=n, include=self.include)
            ) as chunks:
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
            self.failed = error
            if begun or self.instead is None or not isinstance(error, self.forgiven):
                raise
        async with aclosing(self.instead(prompt, sampling, engine, self.reward, n=n, include=frozenset())) as chunks:
            async for chunk in chunks:
                yield chunk


running: ContextVar[Run | None] = ContextVar("running", default=None)


def as_sampling(params: SamplingParams) -> Sampling:
    """What a strategy may look into; the rest travels as `engine_params`."""
    constrained = (
        params.min_p
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1
        or params.logit_bias
        or params.allowed_token_ids
        or params.bad_words
        or params.min_tokens
        or params.ignore_eos
        or params.structured_outputs
        or params.thinking_token_budget
        or params.watermarking
    )
    return Sampling(
        max_tokens=params.max_tokens or 1,
        temperature=params.temperature,
        top_k=max(params.top_k, 0),
        top_p=params.top_p,
        seed=params.seed,
        stream=params.output_kind is not RequestOutputKind.FINAL_ONLY,
        stop=stops(params),
        logprobs=params.logprobs is not None or params.prompt_logprobs is not None,
        engine_params=params,
        constrained=bool(constrained),
    )


def stops(params: SamplingParams) -> tuple[str, ...]:
    return tuple([params.stop] if isinstance(params.stop, str) else params.stop or ())


class AlignedClient:
    """Everything but `generate` is the inner client's.

    `bind(context)` gives the engine for one request; context is vLLM's keyword arguments of `generate` (adapter, trace
    headers …), the request's turn and the prompt's cache salt. `shares` are kept where vLLM schedules by priority.
    """

    def __init__(
        self, inner: EngineClient, bind: Callable[[Mapping[str, Any]], Engine], shares: Shares | None = None
    ) -> None:
        self.inner = inner
        self.bind = bind
        self.shares = shares

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **context: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        # Not itself a generator: the context variable is read in the handler's context, not the consumer's.
        run, own = running.get(), turn.get() or Turn()
        if run is None:
            if prompt.get("cache_salt"):
                prompt = {**prompt, "cache_salt": salted(prompt["cache_salt"])}
            generate = partial(self.inner.generate, prompt, sampling_params, request_id)
            own.prompt += len(prompt.get("prompt_token_ids") or ())
            return own.through(generate, sampling_params, shown=True, **context)
        first = run.choices
        run.choices += sampling_params.n
        stream = self._aligned(run, first, prompt, sampling_params, request_id, own, context)
        run.streams.append(stream)
        return stream

    async def _aligned(
        self,
        run: Run,
        first: int,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        own: Turn,
        context: Mapping[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        """`first` is the response's index of this prompt's first answer."""
        if prompt.get("type") != "token":
            raise ValueError(f"alignment works on text prompts; this one is of type {prompt.get('type')!r}")
        tokens: Sequence[int] = prompt["prompt_token_ids"]
        n = params.n
        own.prompt += len(tokens)
        context = {**context, "cache_salt": prompt.get("cache_salt"), "turn": own}
        engine: Engine = Metered(self.bind(context), run.meter, run.render)
        if run.span is not None:
            engine = Traced(engine, run.span)
        texts = [Text(self.inner.renderer.tokenizer, params) for _ in range(n)]
        ended, told = 0, False
        answers: dict[int, RequestOutput] = {}
        async with aclosing(run.carry_out(tokens, as_sampling(params), engine, n=n)) as chunks:
            async for chunk in chunks:
                own.show(len(chunk.tokens))
                run.answers.setdefault(first + chunk.index, []).extend(chunk.tokens)
                if chunk.report:
                    run.reports.setdefault(first + chunk.index, {}).update(chunk.report)
                ended += chunk.finish is not None
                piece = as_output(chunk, tokens, texts[chunk.index])
                if not told:  # an instruction of the strategy's makes it longer, and the usage tells of that one
                    own.prompt, told = own.prompt + len(piece.prompt_token_ids) - len(tokens), True
                piece.request_id, piece.finished = request_id, ended == n
                if params.output_kind == RequestOutputKind.DELTA:
                    yield piece
                elif chunk.index in answers:
                    answers[chunk.index].add(piece, aggregate=True)
                else:
                    answers[chunk.index] = piece
        if answers:
            whole = next(iter(answers.values()))
            whole.outputs = [answers[i].outputs[0] for i in sorted(answers)]
            whole.finished = ended == n
            yield whole


EngineClient.register(AlignedClient)


def as_output(chunk: Chunk, prompt: Sequence[int], text: Text) -> RequestOutput:
    """A chunk as vLLM's output: the engine's own where it has one, else its tokens and their text."""
    if chunk.engine_output is not None:
        output: RequestOutput = copy(chunk.engine_output)
        [completion] = output.outputs
        output.outputs = [copy(completion)]
        output.outputs[0].index = chunk.index
        output.outputs[0].finish_reason = finish_reason(chunk)
        return output
    shown = text.next(chunk.tokens, last=chunk.finish is not None)
    return RequestOutput(
        request_id="",
        prompt=None,
        prompt_token_ids=list(prompt),
        prompt_logprobs=None,
        outputs=[
            CompletionOutput(
                index=chunk.index,
                text=shown,
                token_ids=list(chunk.tokens),
                cumulative_logprob=None,
                logprobs=None if chunk.tokens else [],
                finish_reason=finish_reason(chunk),
                stop_reason=text.stopped if chunk.finish == "stop" else None,
            )
        ],
        finished=False,
        num_cached_tokens=0,
    )


def finish_reason(chunk: Chunk) -> str | None:
    return "length" if chunk.finish in LIMIT_REASONS else chunk.finish


class Text:
    """The text of one answer as its tokens arrive, up to a stop string or token.

    An unfinished character waits for its other bytes, and what may be the beginning of a stop string for its end.
    """

    def __init__(self, tokenizer: Any, params: SamplingParams) -> None:
        self.tokenizer = tokenizer
        self.params = params
        self.tokens: list[int] = []
        self.shown = 0
        self.stopped: str | int | None = None
        """What ended it, if not its end of sequence."""

    def next(self, tokens: Sequence[int], *, last: bool) -> str:
        self.tokens += tokens
        text = self._ended(self._decoded(self.tokens))
        if not last:
            if text.endswith("\ufffd"):
                return ""
            text = text[: max(0, len(text) - max((len(stop) - 1 for stop in stops(self.params)), default=0))]
        fresh = text[self.shown :]
        self.shown = max(self.shown, len(text))
        return fresh

    def _decoded(self, tokens: Sequence[int]) -> str:
        end = tokens[-1] if tokens else None
        if end in (self.params.stop_token_ids or ()):
            self.stopped = end
            tokens = tokens if self.params.include_stop_str_in_output else tokens[:-1]
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=self.params.skip_special_tokens)
        return text

    def _ended(self, text: str) -> str:
        found = [(at, stop) for stop in stops(self.params) if (at := text.find(stop)) >= 0]
        if not found:
            return text
        at, stop = min(found)
        self.stopped = stop
        return text[: at + len(stop)] if self.params.include_stop_str_in_output else text[:at]
