"""What a strategy asks of its engine, as spans of OpenTelemetry: one a call, under the request's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import Span

from trimtab.decoders.protocols import Chunk, Engine, Mixture, Parts, Sampling, Tokens
from trimtab.decoders.report import SearchProgress

tracer = trace.get_tracer("trimtab")


@dataclass(frozen=True, slots=True)
class Traced:
    """An engine whose calls are spans; names, counts and weights go into them, no tokens and no text."""

    engine: Engine
    parent: Span

    @contextmanager
    def span(self, call: str, prompt: Tokens, guides: Mixture, **counts: int) -> Iterator[Span]:
        attributes: dict[str, int | float] = {"trimtab.prompt_tokens": len(prompt)}
        attributes |= {f"trimtab.{key}": value for key, value in counts.items()}
        attributes |= {f"trimtab.guide.{member}": weight for member, weight in guides.items()}
        context = trace.set_span_in_context(self.parent)
        span = tracer.start_span(f"engine {call}", context=context, attributes=attributes)
        try:
            yield span
        finally:
            span.end()

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        drawn = 0
        with self.span("generate", prompt, guides, n=n, max_tokens=sampling.max_tokens) as span:
            try:
                async with aclosing(self.engine.generate(prompt, sampling, n=n, guides=guides)) as chunks:
                    async for chunk in chunks:
                        drawn += len(chunk.tokens)
                        yield chunk
            finally:
                span.set_attribute("trimtab.sampled_tokens", drawn)

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.engine.eos_ids

    async def greedy_top_logprobs(
        self, prompt: Tokens, *, k: int, length: int, guides: Mixture
    ) -> list[list[tuple[int, float]]]:
        with self.span("ahead", prompt, guides, k=k, length=length):
            return await self.engine.greedy_top_logprobs(prompt, k=k, length=length, guides=guides)

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        with self.span("score", prompt, guides, scored_tokens=len(completion)):
            return await self.engine.score(prompt, completion, guides=guides)

    async def divergence(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        with self.span("divergence", prompt, guides, scored_tokens=len(completion)):
            return await self.engine.divergence(prompt, completion, guides=guides)

    def text(self, completion: Tokens) -> str:
        return self.engine.text(completion)

    def decode(self, completion: Tokens) -> str:
        return self.engine.decode(completion)

    def parts(self, completion: Tokens) -> Parts:
        return self.engine.parts(completion)

    def tokens(self, text: str) -> Tokens:
        return self.engine.tokens(text)

    async def render_with_instruction(self, instruction: str, *, role: str = "system") -> Tokens:
        return await self.engine.render_with_instruction(instruction, role=role)

    def report_progress(self, progress: SearchProgress) -> None:
        self.engine.report_progress(progress)
