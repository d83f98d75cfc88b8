"""Where our contract meets vLLM's app: an ASGI middleware around it that speaks only HTTP.

On the way in it takes `alignment` out of the body, turns a preset's model id into the base's, and leaves the plan where
the engine client's `generate()` finds it. On the way out it puts the `alignment` object, the usage behind it and the
headers into what vLLM answers, and counts the request. Bodies that need no change pass as they came.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import Tokens
from trimtab.engine.table import KEY
from trimtab.rewards.protocols import RewardError
from trimtab.runtime.shares import RequestShare, Shares
from trimtab.runtime.strategy_run import StrategyRun, current_run
from trimtab.runtime.usage import Usage
from trimtab.server.admission import Admission
from trimtab.server.config import Config
from trimtab.server.errors import ApiError, to_api_error
from trimtab.server.http import request_log
from trimtab.server.http.auth import CALLER
from trimtab.server.http.context import RequestContext
from trimtab.server.http.errors_and_ids import ID
from trimtab.server.http.response import ResponseRewriter, outcome_of_error
from trimtab.server.metrics import POOL, REQUESTS, UNKNOWN_FIELDS
from trimtab.server.request import cost, tracing
from trimtab.server.request.alignment import AT
from trimtab.server.request.body import ClientGone, Json, as_refusal, parse, read_body
from trimtab.server.request.messages import check_messages, instruct
from trimtab.server.request.plan import plan
from trimtab.server.scoring import Scoring
from trimtab.server.wording import list_names, suggest

PLAIN_ONLY = ("use_beam_search", "prompt_embeds", "background", "kv_transfer_params", "ec_transfer_params")
"""Request fields that no strategy can honour: with them vLLM draws tokens its own way, answers later, or reads a cache
that another server filled."""

COUNTING = frozenset({"/tokenize", "/v1/messages/count_tokens"})
"""Paths that take a model id and draw nothing."""


@dataclass(frozen=True)
class AlignmentMiddleware:
    """`fields`: request path -> the top-level fields that vLLM's own request model of that path has.

    `render`: (path, body) -> the prompt that vLLM's app makes of it.
    """

    app: ASGIApp
    config: Config
    fields: Mapping[str, frozenset[str]]
    scoring: Scoring
    render: Callable[[str, Json], Awaitable[Tokens]]
    admission: Admission
    longest: cost.Longest
    shares: Shares | None = None
    """None where vLLM's own scheduling is left alone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in {*self.fields, *COUNTING}:
            return await self.app(scope, receive, send)
        began = asyncio.get_running_loop().time()
        strategy = "none"
        with ExitStack() as stack:
            try:
                body = await read_body(receive, self.config.max_body_mib)
                if scope["path"] in COUNTING:
                    return await self.app(scope, replay(self.of_base(body), receive), send)
                context = self.understand(scope["path"], body)
                strategy = context.strategy
                self.prepare(context, scope.get(CALLER, ""), began)
                stack.enter_context(self.admit(context))
            except ClientGone:
                REQUESTS.labels("none", "client_abort").inc()
                return
            except (ApiError, RecursionError) as error:
                refusal = as_refusal(error)
                request_log.record_refusal(strategy, refusal.status)
                refused = {"strategy": strategy, "outcome": request_log.outcome_of_refusal(refusal.status)}
                seconds = round(asyncio.get_running_loop().time() - began, 4)
                request_log.write_line(scope.get(ID, ""), scope["path"], refused | {"seconds": seconds})
                return await refusal.response()(scope, receive, send)
            await self.answer(context, scope, receive, send, began)

    async def answer(self, context: RequestContext, scope: Scope, receive: Receive, send: Send, began: float) -> None:
        """What the app answers, rewritten on its way out; `began` on the loop's clock."""
        run, rewriter = context.run, ResponseRewriter(context, send)
        model = context.model or self.config.model_name
        with tracing.span_request(scope, context.path, model, context.document) as span:
            context.trace(span)
            before = current_run.set(run)
            try:
                async with rewriter.keep_alive():
                    await self.app(scope, replay(context.body, receive), rewriter)
            except (Exception, asyncio.CancelledError) as error:
                failure = run.failure if error.__cause__ is run.failure else None  # the framework has wrapped it
                rewriter.outcome = outcome_of_error(failure or error)
                if failure is not None and not isinstance(error, ApiError):
                    raise to_api_error(failure) from failure
                raise
            finally:
                current_run.reset(before)
                await run.close()
                now = asyncio.get_running_loop().time()
                fields = request_log.record_end(context, rewriter.outcome, self.config, began=began, now=now)
                tracing.record_end(span, fields)
                request_log.write_line(scope.get(ID, ""), context.path, fields)

    def of_base(self, body: bytes) -> bytes:
        """The body with the base's model id where it has a preset's."""
        document = parse(body)
        model = document.get("model")
        if not isinstance(model, str) or model not in self.config.presets:
            return body
        return json.dumps(document | {"model": self.config.model_name}).encode()

    def understand(self, path: str, body: bytes) -> RequestContext:
        """Raises ApiError for what cannot be carried out."""
        document = parse(body)
        if "messages" in self.fields[path]:
            check_messages(document)
        if "extra_body" in document:
            raise ApiError(
                "extra_body is an argument of OpenAI's Python client, not a field of the request: "
                'put what is in it at the top level, as {"model": …, "alignment": {…}}',
                param="extra_body",
                code="unknown_parameter",
            )
        keys = len(document)
        raw = document.pop(AT, {})
        model = document.get("model")
        preset = self.config.presets.get(model) if isinstance(model, str) else None
        if isinstance(model, str) and model and preset is None and model != self.config.model_name:
            known = [self.config.model_name, *self.config.presets]
            raise ApiError(suggest("model", model, known), param="model", code="model_not_found", status=404)
        if isinstance(xargs := document.get("vllm_xargs"), dict) and KEY in xargs:
            raise ApiError(f"vllm_xargs.{KEY} is reserved: use {AT}", param=f"vllm_xargs.{KEY}")
        changed = preset is not None or len(document) < keys
        if preset is not None:
            document["model"] = self.config.model_name
            raw = {**preset, **raw} if isinstance(raw, dict) else raw
        planned = plan(raw, self.config, lambda: self.scoring.auto_weights(path, document))
        if self.shares is not None and document.get("priority"):
            message = "priority cannot be honoured: on this server fair shares between callers decide"
            raise ApiError(message, param="priority", code="unsupported_parameter")
        for name in PLAIN_ONLY:
            if document.get(name) and not planned.native:
                raise ApiError(
                    f"{name} cannot be combined with strategy {planned.name!r}", param=name, code="unsupported_pair"
                )
        surplus = document.keys() - self.fields[path]
        UNKNOWN_FIELDS.inc(len(surplus))
        warnings = [f"unknown fields were ignored: {list_names(name[:64] for name in surplus)}"] if surplus else []
        return RequestContext(
            path=path,
            body=json.dumps(document).encode() if changed else body,
            model=model if preset is not None else None,
            plan=planned,
            warnings=warnings,
            document=document,
        )

    def prepare(self, context: RequestContext, caller: str, began: float) -> None:
        """The request's run, with its reward and its bounds; `began` on the loop's clock."""
        plan = context.plan
        share = RequestShare(shares=self.shares, caller=caller, search="reward" in plan.entry.takes)
        if plan.native:
            context.run = StrategyRun(share=share)
            return
        deadline = None if plan.deadline_ms is None else began + plan.deadline_ms / 1000
        context.run = StrategyRun(
            strategy=plan.strategy,
            include=plan.include,
            check_sampling=partial(plan.entry.check_sampling, plan.name),
            written=frozenset(name for name, value in context.document.items() if value is not None),
            usage=Usage(max_sampled_tokens=plan.max_sampled_tokens, deadline=deadline),
            share=share,
            fallback=Plain() if plan.degrade else None,
            recoverable_errors=(RewardError,),
            render=lambda instruction, role: self.render(
                context.path, instruct(context.path, context.document, instruction, role)
            ),
        )
        if "reward" in plan.entry.takes:
            longest = self.longest.of(context.document, context.path)
            usage, read = context.run.usage, context.run.text
            reward = self.scoring.bind(plan, context.path, context.document, usage, max_tokens=longest, read=read)
            context.run.reward = context.reward = reward

    @contextmanager
    def admit(self, context: RequestContext) -> Iterator[None]:
        """While it is being answered; raises ApiError where it costs more than it may, now or ever."""
        share, limits = context.run.share, self.config.limits
        work = cost.work(context.plan, context.document, context.path, self.longest)
        cost.check(context.plan, work, limits)
        with self.admission.admit((share.caller, share.search), cost.tokens(work, limits), work.candidates):
            POOL.labels(context.strategy).observe(work.candidates)
            yield


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, then whatever comes."""
    replayed = False

    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
