"""`decoders.protocols.Engine` over vLLM."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
from vllm.engine.protocol import EngineClient
from vllm.inputs.engine import tokens_input
from vllm.logprobs import Logprob
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from trimtab.decoders.protocols import Chunk, Mixture, Parts, Sampling, Tokens, is_base_alone
from trimtab.decoders.report import SearchProgress
from trimtab.engine import gangs
from trimtab.engine.detokenizer import decode_answer, encode_answer
from trimtab.engine.gangs import Adapter
from trimtab.engine.mixing import Mixer, Mixing
from trimtab.engine.mixture import ENTROPY, KL, decode_scalar
from trimtab.engine.plugin import FIELD
from trimtab.engine.scheduling import schedule
from trimtab.engine.structured_outputs import BEGUN
from trimtab.engine.table import KEY, cache_salt, guides_of
from trimtab.runtime.strategy_run import StrategyRun, current_run

MASKS = ("structured_outputs", "allowed_token_ids", "bad_words", "min_tokens")
"""Sampling parameters that forbid tokens, as plausibility does."""


Mixed = Callable[..., Awaitable[Mixing]]
"""A mixture, as `Mixer.mix` without its prompt."""


@dataclass(frozen=True, kw_only=True)
class VLLMEngine:
    """One request's view of a running engine, whose arguments came from `engine.members.engine_args`."""

    client: EngineClient
    name: str = "trimtab"
    """What the ids of its requests begin with."""
    cache_salt: str | None = None
    run: StrategyRun | None = None
    """The request's; None: of whichever request is being handled, as for rewards that ask the base."""
    prompt: tuple[int, ...] = ()
    """The request's own: contexts take its place."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """Guides that are LoRA adapters of the base."""
    rendered: Mapping[str, Any] | None = None
    """The request's prompt as vLLM rendered it, where it has more than tokens: whatever is drawn goes on from it."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """What `EngineClient.generate` takes beside prompt and sampling: lora_request, trace_headers …"""

    @property
    def guides(self) -> tuple[str, ...]:
        """Those that are models of their own."""
        return self._mixer.columns

    @property
    def _run_of(self) -> StrategyRun:
        return self.run or current_run.get() or StrategyRun()

    @property
    def _served(self) -> Mapping[str, Any]:
        served: Mapping[str, Any] = getattr(self.client.model_config.hf_config, FIELD)
        return served

    def for_request(
        self,
        name: str,
        *,
        cache_salt: str | None = None,
        run: StrategyRun | None = None,
        prompt: Tokens = (),
        rendered: Mapping[str, Any] | None = None,
        **context: Any,
    ) -> VLLMEngine:
        return replace(
            self, name=name, cache_salt=cache_salt, run=run, prompt=tuple(prompt), rendered=rendered, context=context
        )

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        """`Sampling.engine_params` is a SamplingParams or None; a chunk's output is its answer's RequestOutput."""
        template = sampling.engine_params if sampling.engine_params is not None else SamplingParams()
        for key in (KEY, BEGUN, gangs.KEY):
            if key in (template.extra_args or {}):
                raise ValueError(f"extra_args.{key} is reserved: name guides instead")
        masks = [name for name in MASKS if getattr(template, name)]
        if sampling.plausibility and masks:
            raise ValueError(f"plausibility cannot be combined with {masks[0]}: together they may leave no token")
        apart = n > 1 and not sampling.stream
        mixed = partial(self._mixer.mix, guides=guides, plausibility=sampling.plausibility)
        mixing = await mixed(prompt, length=sampling.max_tokens)
        length = min(sampling.max_tokens, mixing.room)
        stop = [template.stop] if isinstance(template.stop, str) else list(template.stop or ())
        step = sampling.step if sampling.step not in stop else ""
        params = msgspec.structs.replace(
            template,
            n=1 if apart else n,
            max_tokens=length,
            min_tokens=min(max(template.min_tokens - sampling.begun, 0), length),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            stop=[*stop, step] if step else stop,
            seed=None if sampling.seed is None else sampling.seed % 2**62,  # -1 would mean none, and n children add n
            output_kind=RequestOutputKind.DELTA if sampling.stream else RequestOutputKind.FINAL_ONLY,
            extra_args={
                **(template.extra_args or {}),
                **mixing.extra_args,
                BEGUN: sampling.begun.to_bytes(4),
            },
        )
        if sampling.measured and params.logprobs is None:
            params.logprobs = 0  # of the token drawn
        drawn: dict[int, list[int]] = {i: [] for i in range(n)}
        measured = sampling.measured
        run = self._apart(prompt, params, mixing, n) if apart else self._run(prompt, params, mixing)
        async with aclosing(run) as outputs:
            async for output in outputs:
                for piece in output.outputs:
                    native = copy(output)
                    native.outputs = [piece]
                    finish = "step" if step and piece.stop_reason == step else piece.finish_reason
                    chunk = Chunk(index=piece.index, tokens=tuple(piece.token_ids), finish=finish, engine_output=native)
                    if measured:
                        chunk = await self._measured(chunk, [*prompt, *drawn[piece.index]], mixed)
                        drawn[piece.index] += piece.token_ids
                    yield chunk

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokenizer's and the generation config's."""
        listed = self.client.input_processor.generation_config_fields.get("eos_token_id")  # read once, by vLLM
        ids = listed if isinstance(listed, list) else [listed]
        return frozenset(token for token in (*ids, self.client.renderer.get_eos_token_id()) if token is not None)

    async def greedy_top_logprobs(
        self, prompt: Tokens, *, k: int, length: int, guides: Mixture
    ) -> list[list[tuple[int, float]]]:
        """vLLM's `max_logprobs` bounds k."""
        mixing = await self._mixer.mix(prompt, guides=guides, length=length)
        params = SamplingParams(
            max_tokens=min(length, mixing.room),
            temperature=0.0,
            logprobs=k,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=dict(mixing.extra_args),
            skip_clone=True,
        )
        async with aclosing(self._run(prompt, params, mixing)) as outputs:
            output = [output async for output in outputs][-1]
        [greedy] = output.outputs
        return [
            sorted(
                ((token, logprob.logprob) for token, logprob in logprobs.items()),
                key=lambda pair: (-pair[1], pair[0] != drawn),
            )[:k]
            for drawn, logprobs in zip(greedy.token_ids, greedy.logprobs, strict=True)
        ]

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        """Each token's own log-probability, in fp32. Costs a prefill of prompt and completion: no prefix-cache hits."""
        mixed = partial(self._mixer.mix, guides=guides)
        steps = await self._read(prompt, completion, mixed, logprobs=0, allowed_token_ids=list(completion[-1:]))
        impossible = Logprob(-math.inf)  # a last token that the mixture forbids cannot be sampled, so it is not listed
        return [logprobs.get(token, impossible).logprob for logprobs, token in zip(steps, completion, strict=True)]

    async def divergence(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        """Computed by the worker in fp64 from the members' logits, read back within a relative error of 1e-5.

        The worker answers with logits of two tokens whose difference is the logarithm of the divergence, and vLLM's
        own log-probabilities carry it here: the worker keeps no state, and tensor parallelism, chunked prefill and
        both model runners need no thought. The base is no distance from itself, whether a worker could say so or not.
        """
        self._mixer.check(guides)
        if is_base_alone(guides):
            return [0.0] * len(completion)
        return await self._read_scalars(prompt, completion, partial(self._mixer.mix, guides=guides, scalar=KL))

    def text(self, completion: Tokens) -> str:
        """As an answer to no request in particular: what is a request's own is in `StrategyRun.read`."""
        return decode_answer(self.client.renderer.tokenizer, completion, sorted(self.eos_ids))

    def decode(self, completion: Tokens) -> str:
        return self.text(completion)

    def parts(self, completion: Tokens) -> Parts:
        """What is a request's is in `StrategyRun.split`."""
        return Parts(answer=self.text(completion))

    def tokens(self, text: str) -> Tokens:
        return encode_answer(self.client.renderer.tokenizer, text)

    async def render_with_instruction(self, instruction: str, *, role: str = "system") -> Tokens:
        """Only a request has messages: see `Metered`."""
        raise ValueError("what instructs the model needs a chat request")

    def report_progress(self, progress: SearchProgress) -> None:
        """Nobody follows an engine by itself: see `Metered`."""

    async def _measured(self, chunk: Chunk, before: Tokens, mixed: Mixed) -> Chunk:
        """The chunk with its tokens' log-probs, as vLLM gives them, and the entropies that they were drawn from.

        An entropy is no log-probability, so it is read as a divergence is, by a pass of its own.
        """
        [output] = chunk.engine_output.outputs
        logprobs = [step[token].logprob for step, token in zip(output.logprobs, chunk.tokens, strict=True)]
        entropies = await self._read_scalars(before, chunk.tokens, partial(mixed, scalar=ENTROPY))
        return replace(chunk, logprobs=tuple(logprobs), entropies=tuple(entropies))

    async def _read_scalars(self, prompt: Tokens, completion: Tokens, mixed: Mixed) -> list[float]:
        """[T] the number that is asked for, of the next token before each of the completion's."""
        steps = await self._read(prompt, completion, mixed, logprobs=2)
        return [decode_scalar(logprobs[0].logprob, logprobs[1].logprob) for logprobs in steps]

    async def _read(
        self, prompt: Tokens, completion: Tokens, mixed: Mixed, logprobs: int, **more: Any
    ) -> list[Mapping[int, Logprob]]:
        """[T] log-probabilities at each of the completion's tokens.

        All but the last are read as the prompt's, the last as the one sampled: a completion that fills the context
        leaves no room for one token more.
        """
        if not prompt:
            raise ValueError("prompt is empty: the first token of a completion has no distribution without one")
        if not completion:
            return []
        before = [*prompt, *completion[:-1]]
        mixing = await mixed(before, scored=len(completion))
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=logprobs,
            prompt_logprobs=logprobs if completion[1:] else None,  # without, the prefix cache serves the prompt
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=dict(mixing.extra_args),
            skip_clone=True,
            **more,
        )
        async with aclosing(self._run(before, params, mixing)) as outputs:
            output = [output async for output in outputs][-1]
        return [*(output.prompt_logprobs or ())[len(prompt) :], output.outputs[0].logprobs[0]]

    async def _apart(
        self, prompt: Tokens, params: SamplingParams, mixing: Mixing, n: int
    ) -> AsyncGenerator[RequestOutput, None]:
        """n answers as n requests, each given when it has ended: one request with n answers waits for the last.

        Seeds are those of vLLM's own n answers, so the answers are too.
        """

        async def one(i: int) -> RequestOutput:
            seeded = params if params.seed is None else msgspec.structs.replace(params, seed=params.seed + i)
            async with aclosing(self._run(prompt, seeded, mixing)) as outputs:
                output = [output async for output in outputs][-1]
            output.outputs[0].index = i
            return output

        tasks = [asyncio.create_task(one(i)) for i in range(n)]
        try:
            for ended in asyncio.as_completed(tasks):
                yield await ended
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, prompt: Tokens, params: SamplingParams, mixing: Mixing) -> AsyncGenerator[RequestOutput, None]:
        request = f"{self.name}-{uuid4().hex[:16]}"
        salt = cache_salt(self.cache_salt, [self.guides[i] for i in guides_of(params.extra_args[KEY])])
        generate = partial(self.client.generate, self._input(prompt, salt), params, request)
        outputs = schedule(self._run_of, generate, params, rows=mixing.rows, **self.context)
        ended = False
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    ended = output.finished
                    yield output
        finally:
            if not ended:  # a task cancelled between registering the request and sending it would leave it registered
                await self.client.abort(request)

    def _input(self, prompt: Tokens, salt: str | None) -> Mapping[str, Any]:
        """The prompt as `EngineClient.generate` takes it: with what the request's own has beside tokens."""
        inputs: Mapping[str, Any] = tokens_input(list(prompt), cache_salt=salt)
        if self.rendered is None:
            return inputs
        start = self.rendered["prompt_token_ids"]
        if list(prompt[: len(start)]) != list(start):
            raise ValueError("messages that are not all text can be continued, but not put into another prompt")
        media = {key: self.rendered[key] for key in ("mm_kwargs", "mm_hashes", "mm_placeholders")}
        return {**inputs, **media, "type": self.rendered["type"]}

    @property
    def _mixer(self) -> Mixer:
        return Mixer(
            client=self.client,
            served=self._served,
            adapters=self.adapters,
            run=self._run_of,
            start=self.prompt,
            lora=self.context.get("lora_request"),
            salt=self.cache_salt,
            media=self.rendered is not None,
        )
