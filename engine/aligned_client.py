"""A vLLM engine client whose `generate()` executes a strategy, so that vLLM's own OpenAI app serves aligned answers.

The run of the HTTP request being handled is found in `current_run`. Requests of a native run go to vLLM as they came.
For the others, vLLM's sampling parameters become a `Sampling`, the strategy's chunks become vLLM's outputs, and what it
reports of its answers is recorded on the run for whoever answers the request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from copy import copy
from functools import partial
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from trimtab.decoders.protocols import LIMIT_REASONS, Chunk, Engine, Sampling
from trimtab.engine.scheduling import schedule
from trimtab.engine.table import cache_salt
from trimtab.runtime.shares import Shares
from trimtab.runtime.strategy_run import StrategyRun, current_run


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
        stop=stop_strings(params),
        logprobs=params.logprobs is not None or params.prompt_logprobs is not None,
        engine_params=params,
        constrained=bool(constrained),
    )


def stop_strings(params: SamplingParams) -> tuple[str, ...]:
    return tuple([params.stop] if isinstance(params.stop, str) else params.stop or ())


class AlignedClient:
    """Everything but `generate` is the inner client's.

    `bind(context)` gives the engine for one request; context is vLLM's keyword arguments of `generate` (adapter, trace
    headers …), the request's run and the prompt's cache salt. `shares` are kept where vLLM schedules by priority.
    """

    def __init__(
        self, inner: EngineClient, bind: Callable[[Mapping[str, Any]], Engine], shares: Shares | None = None
    ) -> None:
        self.inner = inner
        self.bind = bind
        self.shares = shares

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def ping(self) -> None:
        """Returns between two steps of the engine; raises EngineDeadError."""
        await self.inner.is_sleeping()

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **context: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        # Not itself a generator: the context variable is read in the handler's context, not the consumer's.
        run = current_run.get() or StrategyRun()
        if run.native:
            if prompt.get("cache_salt"):
                prompt = {**prompt, "cache_salt": cache_salt(prompt["cache_salt"])}
            generate = partial(self.inner.generate, prompt, sampling_params, request_id)
            run.usage.prompt += len(prompt.get("prompt_token_ids") or ())
            return schedule(run, generate, sampling_params, visible=True, **context)
        first = run.choices
        run.choices += sampling_params.n
        return run.begin(self._execute(run, first, prompt, sampling_params, request_id, context))

    async def _execute(
        self,
        run: StrategyRun,
        first: int,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        context: Mapping[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        """`first` is the response's index of this prompt's first answer."""
        if prompt.get("type") != "token":
            raise ValueError(f"alignment works on text prompts; this one is of type {prompt.get('type')!r}")
        tokens: Sequence[int] = prompt["prompt_token_ids"]
        n, prompt_length = params.n, 0
        engine = run.instrument(self.bind({**context, "cache_salt": prompt.get("cache_salt"), "run": run}))
        detokenizers = [IncrementalDetokenizer(self.inner.renderer.tokenizer, params) for _ in range(n)]
        finished = 0
        answers: dict[int, RequestOutput] = {}
        run.usage.prompt += len(tokens)
        async with aclosing(run.execute(tokens, as_sampling(params), engine, n=n)) as chunks:
            async for chunk in chunks:
                run.record(first + chunk.index, chunk)
                finished += chunk.finish is not None
                piece = as_output(chunk, tokens, detokenizers[chunk.index])
                if not prompt_length:  # a strategy's instruction makes it longer, and the response's usage counts that
                    prompt_length = len(piece.prompt_token_ids)
                    run.usage.prompt += prompt_length - len(tokens)
                piece.request_id, piece.finished = request_id, finished == n
                if params.output_kind == RequestOutputKind.DELTA:
                    yield piece
                elif chunk.index in answers:
                    answers[chunk.index].add(piece, aggregate=True)
                else:
                    answers[chunk.index] = piece
        if answers:
            whole = next(iter(answers.values()))
            whole.outputs = [answers[i].outputs[0] for i in sorted(answers)]
            whole.finished = finished == n
            yield whole


EngineClient.register(AlignedClient)


def as_output(chunk: Chunk, prompt: Sequence[int], detokenizer: IncrementalDetokenizer) -> RequestOutput:
    """A chunk as vLLM's output: the engine's own where it has one, else its tokens and their text."""
    if chunk.engine_output is not None:
        output: RequestOutput = copy(chunk.engine_output)
        [completion] = output.outputs
        output.outputs = [copy(completion)]
        output.outputs[0].index = chunk.index
        output.outputs[0].finish_reason = finish_reason(chunk)
        return output
    text = detokenizer.next(chunk.tokens, last=chunk.finish is not None)
    return RequestOutput(
        request_id="",
        prompt=None,
        prompt_token_ids=list(prompt),
        prompt_logprobs=None,
        outputs=[
            CompletionOutput(
                index=chunk.index,
                text=text,
                token_ids=list(chunk.tokens),
                cumulative_logprob=None,
                logprobs=None if chunk.tokens else [],
                finish_reason=finish_reason(chunk),
                stop_reason=detokenizer.stop_reason if chunk.finish == "stop" else None,
            )
        ],
        finished=False,
        num_cached_tokens=0,
    )


def finish_reason(chunk: Chunk) -> str | None:
    return "length" if chunk.finish in LIMIT_REASONS else chunk.finish


class IncrementalDetokenizer:
    """The text of one answer as its tokens arrive, up to a stop string or token.

    An unfinished character waits for its other bytes, and what may be the beginning of a stop string for its end.
    """

    def __init__(self, tokenizer: Any, params: SamplingParams) -> None:
        self.tokenizer = tokenizer
        self.params = params
        self.tokens: list[int] = []
        self.sent = 0
        """Characters."""
        self.stop_reason: str | int | None = None
        """The stop string or token that ended it, if it was not its end of sequence."""

    def next(self, tokens: Sequence[int], *, last: bool) -> str:
        """The text that these add."""
        self.tokens += tokens
        text = self._cut(self._decode(self.tokens))
        if not last:
            if text.endswith("\ufffd"):
                return ""
            text = text[: max(0, len(text) - max((len(stop) - 1 for stop in stop_strings(self.params)), default=0))]
        fresh = text[self.sent :]
        self.sent = max(self.sent, len(text))
        return fresh

    def _decode(self, tokens: Sequence[int]) -> str:
        end = tokens[-1] if tokens else None
        if end in (self.params.stop_token_ids or ()):
            self.stop_reason = end
            tokens = tokens if self.params.include_stop_str_in_output else tokens[:-1]
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=self.params.skip_special_tokens)
        return text

    def _cut(self, text: str) -> str:
        """The text up to the stop string that comes first."""
        places = [(at, stop) for stop in stop_strings(self.params) if (at := text.find(stop)) >= 0]
        if not places:
            return text
        at, stop = min(places)
        self.stop_reason = stop
        return text[: at + len(stop)] if self.params.include_stop_str_in_output else text[:at]
