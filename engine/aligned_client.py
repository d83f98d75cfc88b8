"""A vLLM engine client whose `generate()` executes a strategy, so that vLLM's own OpenAI app serves aligned answers.

The run of the HTTP request being handled is found in `current_run`. Requests of a native run go to vLLM as they came.
For the others, vLLM's sampling parameters become a `Sampling`, the strategy's chunks become vLLM's outputs, and what it
reports of its answers is recorded on the run for whoever answers the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.protocol import EngineClient
from vllm.outputs import CompletionOutput, RequestOutput, SamplingMask
from vllm.sampling_params import RequestOutputKind, SamplingParams

from trimtab.decoders.protocols import (
    LIMIT_REASONS,
    Chunk,
    Engine,
    Parts,
    Sampling,
    Tokens,
    UnsupportedSampling,
)
from trimtab.engine.detokenizer import AnswerText, Detokenizer, with_ends
from trimtab.engine.scheduling import schedule
from trimtab.engine.structured_outputs import SchemaLimits, check_structured
from trimtab.engine.table import cache_salt
from trimtab.runtime.shares import Shares
from trimtab.runtime.strategy_run import StrategyRun, current_run

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | {
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
"""What a generation config may set of the law that tokens are drawn from, at the values that change nothing."""

PENALTIES = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""Of these, what only an engine that draws the whole answer carries out."""


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
        or params.thinking_token_budget is not None
        or params.watermarking
    )
    restarts = {
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "bad_words": params.bad_words,
        "min_tokens": params.min_tokens and params.stop,  # stop strings are looked for behind so many alone
        "repetition_detection": params.repetition_detection,
        "watermarking": params.watermarking,
    }
    return Sampling(
        max_tokens=params.max_tokens or 1,
        temperature=params.temperature,
        top_k=max(params.top_k, 0),
        top_p=params.top_p,
        seed=params.seed,
        stream=params.output_kind is not RequestOutputKind.FINAL_ONLY,
        stop=stop_strings(params),
        stop_token_ids=tuple(params.stop_token_ids or ()),
        logprobs=params.logprobs is not None or params.prompt_logprobs is not None,
        engine_params=params,
        constrained=bool(constrained),
        restarts=tuple(name for name, value in restarts.items() if value),
    )


def carries_thoughts(config: VllmConfig) -> bool:
    """Whether a thinking budget goes on behind a beginning. vLLM counts the thoughts that a prompt ends with; but where
    it ends them with several tokens, its V1 runner writes them from the first one again at each draw."""
    end = config.reasoning_config and config.reasoning_config.reasoning_end_token_ids
    return bool(config.use_v2_model_runner) or not end or len(end) == 1


def stop_strings(params: SamplingParams) -> tuple[str, ...]:
    return tuple([params.stop] if isinstance(params.stop, str) else params.stop or ())


class AlignedClient:
    """Everything but `generate` is the inner client's.

    `bind(context)` gives the engine for one request; context is vLLM's keyword arguments of `generate` (adapter, trace
    headers …), the request's run, the prompt's cache salt, and the prompt itself where it is more than tokens.
    `shares` are kept where vLLM schedules by priority.
    """

    def __init__(
        self, inner: EngineClient, bind: Callable[[Mapping[str, Any]], Engine], shares: Shares | None = None
    ) -> None:
        self.inner = inner
        self.bind = bind
        self.shares = shares
        self.schema_limits = SchemaLimits()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def ping(self) -> None:
        """Returns between two steps of the engine; raises EngineDeadError."""
        await self.inner.is_sleeping()

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **context: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        # Not itself a generator: the context variable is read in the handler's context, not the consumer's.
        check_structured(sampling_params, self.schema_limits)
        run = current_run.get() or StrategyRun()
        run.settle(len(prompt.get("prompt_token_ids") or ()), sampling_params.max_tokens or 1)
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
        if prompt.get("type") not in ("token", "multimodal") or "encoder_prompt_token_ids" in prompt:
            raise ValueError(f"alignment works on prompts of tokens; this one is of type {prompt.get('type')!r}")
        tokens: Sequence[int] = prompt["prompt_token_ids"]
        n, prompt_length = params.n, 0
        detokenizer = Detokenizer(self.inner.renderer.tokenizer, with_ends(params, self.inner))
        run.read = detokenizer.text
        bound = {**context, "cache_salt": prompt.get("cache_salt"), "run": run, "prompt": tokens}
        if prompt["type"] == "multimodal":
            bound["rendered"] = prompt
        run.engine, run.source = self.bind(bound), read_source(prompt, context)
        engine = run.instrument(run.engine, tokens)
        begin = partial(detokenizer.begin, tokens)
        texts = [begin() for _ in range(n)]
        delta = params.output_kind == RequestOutputKind.DELTA
        finished = 0
        answers: dict[int, RequestOutput] = {}
        run.usage.prompt += len(tokens)
        relax = partial(self._leave_out_defaults, run)
        async with aclosing(run.execute(tokens, self._as_sampling(params), engine, n=n, relax=relax)) as chunks:
            async for chunk in chunks:
                choice = first + chunk.index
                run.record(choice, with_texts(with_parts(chunk, partial(run.parts, tokens)), begin))
                if chunk.finish is not None and run.split.thinks:
                    warn_of_thoughts(run, choice, run.parts(tokens, run.answers[choice]))
                finished += chunk.finish is not None
                stride = (params.stream_interval or 1) if delta else None
                for piece in as_outputs(chunk, tokens, texts[chunk.index], stride=stride):
                    if not prompt_length:  # an instruction makes it longer, and the response's usage counts that
                        prompt_length = len(piece.prompt_token_ids)
                        run.usage.prompt += prompt_length - len(tokens)
                    piece.request_id = request_id
                    piece.finished = finished == n and piece.outputs[0].finish_reason is not None
                    if delta:
                        yield piece
                        await asyncio.sleep(0)  # an answer that was chosen comes at once, and others are served too
                    elif chunk.index in answers:
                        answers[chunk.index].add(piece, aggregate=True)
                    else:
                        answers[chunk.index] = piece
        if answers:
            whole = next(iter(answers.values()))
            whole.outputs = [answers[i].outputs[0] for i in sorted(answers)]
            whole.finished = finished == n
            yield whole

    @cached_property
    def _defaults(self) -> dict[str, str]:
        """Sampling parameter -> what sets it where a request does not."""
        config = self.inner.model_config
        file = "generation_config.json" if config.generation_config == "auto" else "engine.generation_config"
        overrides = config.override_generation_config
        return {
            name: "engine.override_generation_config" if name in overrides else file
            for name in config.get_diff_sampling_param()
        }

    def _leave_out_defaults(
        self, run: StrategyRun, sampling: Sampling, refusal: UnsupportedSampling
    ) -> Sampling | None:
        """The sampling without those defaults that the strategy does not carry out; None where it has none of them."""
        params = copy(sampling.engine_params)
        names = [
            name
            for name in (NEUTRAL if refusal.inexact else PENALTIES)
            if name in (refusal.names or NEUTRAL)
            and name in self._defaults.keys() - run.written
            and getattr(params, name) != NEUTRAL[name]
        ]
        for name in names:
            why = f"a default of {self._defaults[name]} that the request does not name: {refusal}"
            run.warnings.append(f"{name}={getattr(params, name):g} is left out, {why}")
            setattr(params, name, NEUTRAL[name])
        return self._as_sampling(params) if names else None

    def _as_sampling(self, params: SamplingParams) -> Sampling:
        sampling = as_sampling(params)
        if params.thinking_token_budget is None or carries_thoughts(self.inner.vllm_config):
            return sampling
        return replace(sampling, restarts=(*sampling.restarts, "thinking_token_budget"))


EngineClient.register(AlignedClient)


def as_outputs(
    chunk: Chunk, prompt: Sequence[int], text: AnswerText, *, stride: int | None = None
) -> Iterator[RequestOutput]:
    """A chunk as vLLM's outputs of `stride` tokens each, or as one: the engine's own where it has one, read by `text`.

    vLLM's tool parsers lose calls of which several tokens come at once, so a stream has to come as the engine's does.
    """
    whole = chunk.engine_output
    bare = CompletionOutput(index=chunk.index, text="", token_ids=[], cumulative_logprob=None, logprobs=None)
    [completion] = [bare] if whole is None else whole.outputs
    count = len(chunk.tokens)
    for start in range(0, count, stride or count) if count else (0,):
        end = min(start + (stride or count), count)
        last = end == count
        piece = copy(completion)
        piece.index, piece.token_ids = chunk.index, list(chunk.tokens[start:end])
        piece.text = text.next(piece.token_ids, last=last and chunk.finish is not None)
        if completion.logprobs is not None:
            piece.logprobs = completion.logprobs[start:end]
        elif not count:
            piece.logprobs = []
        if completion.sampling_mask is not None:
            piece.sampling_mask = SamplingMask(completion.sampling_mask.token_ids[start:end])
        piece.finish_reason = finish_reason(chunk) if last else None
        stop_reason = text.stop_reason if chunk.finish == "stop" else None
        piece.stop_reason = (completion.stop_reason or stop_reason) if last else None
        if whole is None:
            output = RequestOutput("", None, list(prompt), None, [piece], False, num_cached_tokens=0)
        else:
            output = copy(whole)
            output.outputs, output.finished = [piece], False
            output.prompt_logprobs = whole.prompt_logprobs if start == 0 else None
        yield output


def read_source(prompt: Mapping[str, Any], context: Mapping[str, Any]) -> tuple[str, ...]:
    """`StrategyRun.source`: the adapter's name and place, and the digests of what is no text."""
    adapter = context.get("lora_request")
    names = () if adapter is None else (adapter.lora_name, adapter.lora_path)
    return (*names, *(digest for digests in (prompt.get("mm_hashes") or {}).values() for digest in digests))


def with_parts(chunk: Chunk, read: Callable[[Tokens], Parts]) -> Chunk:
    """The chunk whose report shows what its candidates hold."""
    if "candidates" not in chunk.report:
        return chunk
    shown = [{**candidate, **describe(read(candidate["tokens"]))} for candidate in chunk.report["candidates"]]
    return replace(chunk, report={**chunk.report, "candidates": shown})


def with_texts(chunk: Chunk, begin: Callable[[], AnswerText]) -> Chunk:
    """The chunk whose trace shows what tokens read as, where it names tokens: `texts` beside `tokens`.

    Those of an answer follow each other, and together are its text; those of a decision stand for each other.
    """
    trace = chunk.report.get("trace")
    if isinstance(trace, Mapping) and "tokens" in trace:
        text, count = begin(), len(trace["tokens"])
        texts = [text.next([token], last=i + 1 == count) for i, token in enumerate(trace["tokens"])]
        return replace(chunk, report={**chunk.report, "trace": {**trace, "texts": texts}})
    if isinstance(trace, Sequence) and any("tokens" in decision for decision in trace):
        named = {token: begin().next([token], last=True) for decision in trace for token in decision["tokens"]}
        shown = [{**decision, "texts": [named[token] for token in decision["tokens"]]} for decision in trace]
        return replace(chunk, report={**chunk.report, "trace": shown})
    return chunk


def warn_of_thoughts(run: StrategyRun, choice: int, parts: Parts) -> None:
    """Of an answer that ended before it began."""
    if parts.without_answer:
        run.warnings.append(f"choice {choice} ended amid its thoughts: its answer is empty")


def describe(parts: Parts) -> dict[str, Any]:
    """A completion as a report shows it."""
    shown: dict[str, Any] = {"text": parts.answer}
    if parts.thoughts:
        shown["thoughts"] = parts.thoughts
    if parts.calls:
        shown["tool_calls"] = [{"name": call.name, "arguments": call.arguments} for call in parts.calls]
    return shown


def finish_reason(chunk: Chunk) -> str | None:
    return "length" if chunk.finish in LIMIT_REASONS else chunk.finish
