"""OpenTelemetry: a span a request, under whatever trace its client began, by the GenAI conventions.

Off unless `otlp_endpoint` is set: without a provider the API's own spans record nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope

from trimtab.runtime.traced import tracer
from trimtab.server.request.body import Json
from trimtab.server.request.messages import COMPLETIONS

LARGEST = 2**63 - 1
"""Magnitude of a number that a span can hold; a larger one is refused by vLLM, or nobody reads it."""
MAX_EVENTS = 64
"""Scores of one reward's call that its span holds, at the most."""


def export(endpoint: str) -> TracerProvider:
    """Send spans to an OTLP endpoint over HTTP from now on; its `shutdown` sends the last of them."""
    provider = TracerProvider(resource=Resource.create({"service.name": "trimtab"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    return provider


@contextmanager
def span_request(scope: Scope, path: str, model: str, document: Json) -> Iterator[Span]:
    """The span of a request while it is being answered, with none of what its client wrote but the numbers."""
    operation = "text_completion" if path == COMPLETIONS else "chat"
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "trimtab",
        "gen_ai.request.model": model,
        "http.route": path,
    }
    for key in ("max_tokens", "temperature", "top_p", "seed", "n"):
        value = document.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST:
            attributes[f"gen_ai.request.{'choice.count' if key == 'n' else key}"] = value
    # Not baggage too, whose text OpenTelemetry writes to the log where it is too long.
    context = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
    span = tracer.start_span(f"{operation} {model}", context=context, kind=SpanKind.SERVER, attributes=attributes)
    try:
        yield span
    finally:
        span.end()


def record_end(span: Span, fields: Mapping[str, Any]) -> None:
    """How a request ended, from what its log line says."""
    span.set_attribute("gen_ai.usage.input_tokens", fields["prompt_tokens"])
    span.set_attribute("gen_ai.usage.output_tokens", fields["visible_tokens"])
    for key in ("strategy", "outcome", "sampled_tokens", "scored_tokens"):
        span.set_attribute(f"trimtab.{key}", fields[key])
    if fields["outcome"] in ("reward_error", "engine_error"):
        span.set_status(StatusCode.ERROR, fields["outcome"])


@contextmanager
def span_reward(name: str, parent: Span | None, responses: int) -> Iterator[list[tuple[str, Sequence[float]]]]:
    """A reward's call; (label, scores) that are put into the list become its events."""
    scores_by_label: list[tuple[str, Sequence[float]]] = []
    if parent is None or not parent.is_recording():
        yield scores_by_label
        return
    span = tracer.start_span(
        f"reward {name}",
        context=trace.set_span_in_context(parent),
        attributes={"trimtab.reward": name, "trimtab.responses": responses},
    )
    try:
        yield scores_by_label
    except BaseException as error:
        span.set_status(StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        for label, scores in scores_by_label:
            for i, score in enumerate(scores[:MAX_EVENTS]):
                attributes: dict[str, str | float | int] = {
                    "gen_ai.evaluation.name": label,
                    "gen_ai.evaluation.score.value": float(score),
                    "trimtab.candidate": i,
                }
                span.add_event("gen_ai.evaluation.result", attributes)
        span.end()
