"""Where our contract meets vLLM's app: an ASGI middleware around it that speaks only HTTP.

On the way in it takes `alignment` out of the body, turns a preset's model id into the base's, lets the request in by
what it costs, and leaves the plan where the engine client's `generate()` finds it. vLLM's handlers get the body as
vLLM's own models have parsed it here. On the way out it puts the `alignment` object, the usage behind it and the
headers into what vLLM answers, and counts the request. What else costs work (`Enquiry`) takes the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.decoders.plain import Plain
from trimtab.engine.table import KEY
from trimtab.rewards.protocols import RewardError
from trimtab.runtime.contexts import RequestContexts
from trimtab.runtime.progress import RequestProgress
from trimtab.runtime.shares import RequestShare, Shares
from trimtab.runtime.strategy_run import StrategyRun, current_run
from trimtab.runtime.usage import Usage
from trimtab.server.admission import Admission, Hold
from trimtab.server.config import Config, LimitsConfig
from trimtab.server.errors import ApiError, to_api_error
from trimtab.server.http import request_log
from trimtab.server.http.auth import CALLER
from trimtab.server.http.context import PARSED, Enquiry, Reader, RequestContext
from trimtab.server.http.errors_and_ids import ID
from trimtab.server.http.response import ResponseRewriter, outcome_of_error
from trimtab.server.metrics import POOL, UNKNOWN_FIELDS
from trimtab.server.request import cost, tracing
from trimtab.server.request.alignment import AT
from trimtab.server.request.body import ClientGone, Json, parse, read_body
from trimtab.server.request.messages import CHAT, RESPONSES, check_messages, instruct
from trimtab.server.request.plan import Plan, plan
from trimtab.server.request.threads import run_beside
from trimtab.server.scoring import Scoring
from trimtab.server.wording import list_names, suggest

PLAIN_ONLY = ("use_beam_search", "prompt_embeds", "background", "kv_transfer_params", "ec_transfer_params")
"""Request fields that no strategy can honour: with them vLLM draws tokens its own way, answers later, or reads a cache
that another server filled."""


@dataclass(frozen=True)
class AlignmentMiddleware:
    """`enquiries`: path -> what makes an `Enquiry` of a body."""

    app: ASGIApp
    config: Config
    reader: Reader
    scoring: Scoring
    admission: Admission
    shares: Shares | None = None
    """None where vLLM's own scheduling is left alone."""
    enquiries: Mapping[str, Callable[[Json, Scoring, Reader], Enquiry]] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if scope["path"] in {*self.reader.generating, *self.enquiries}:
            return await self.count(scope, receive, send)
        if scope["path"] not in self.reader.paths:
            return await self.app(scope, receive, send)
        try:  # what takes a model id and draws nothing
            body = await read_body(receive, self.config.max_body_mib)
            scope[PARSED] = await run_beside(len(body), self.parse_for_base, scope["path"], body)
        except ClientGone:
            return None
        except ApiError as error:
            return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)

    async def count(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, and count how it ends: once, whatever happens."""
        began = asyncio.get_running_loop().time()
        ending = request_log.Ending()
        with ExitStack() as stack:
            stack.callback(ending.count)
            try:
                context, hold = await self.let_in(scope, receive, ending, stack, began)
            except ClientGone:
                return
            except (ApiError, RecursionError) as error:
                refusal = error if isinstance(error, ApiError) else ApiError("the request body is nested too deeply")
                ending.refuse(refusal.status)
                seconds = round(asyncio.get_running_loop().time() - began, 4)
                refused = {"strategy": ending.strategy, "outcome": ending.outcome, "seconds": seconds}
                request_log.write_line(scope.get(ID, ""), scope["path"], refused)
                return await refusal.response()(scope, receive, send)
            except Exception as error:
                ending.outcome = outcome_of_error(error)
                raise
            scope[PARSED] = context if isinstance(context, Enquiry) else context.parsed
            if isinstance(context, RequestContext) and not context.document.get("use_beam_search"):
                context.run.settle = Settlement(
                    context=context, hold=hold, limits=self.config.limits, reads=self.scoring.reads
                )
            await self.answer(context, ending, scope, receive, send, began)

    async def let_in(
        self, scope: Scope, receive: Receive, ending: request_log.Ending, stack: ExitStack, began: float
    ) -> tuple[RequestContext | Enquiry, Hold]:
        """The request understood and let in, until `stack` is closed; `began` on the loop's clock.

        Raises ApiError for what cannot be carried out, now or ever.
        """
        path, caller = scope["path"], scope.get(CALLER, "")
        body = await read_body(receive, self.config.max_body_mib)
        if path in self.enquiries:
            ending.strategy = path.rpartition("/")[2]
            context: RequestContext | Enquiry = await run_beside(len(body), self.enquire, path, body, caller, began)
        else:
            context = await run_beside(len(body), self.understand, path, body, caller, began, ending)
        ending.strategy = context.strategy
        limits, share = self.config.limits, context.run.share
        if isinstance(context, RequestContext):
            cost.check(context.plan, context.work, limits)
        tokens = cost.tokens(context.work, limits)
        hold = stack.enter_context(self.admission.admit((share.caller, share.search), tokens, context.work.candidates))
        POOL.labels(context.strategy).observe(context.work.candidates)
        if isinstance(context, RequestContext) and context.plan.auto:  # which reads the prompt, so not before
            await run_beside(len(body), self.choose_weights, context, caller, began)
        return context, hold

    async def answer(
        self,
        context: RequestContext | Enquiry,
        ending: request_log.Ending,
        scope: Scope,
        receive: Receive,
        send: Send,
        began: float,
    ) -> None:
        """What the app answers, rewritten on its way out; `began` on the loop's clock."""
        run = context.run
        if isinstance(context, RequestContext):
            model = context.model or context.document.get("model") or self.config.model_name
            rewriter: ResponseRewriter | StatusWatch = ResponseRewriter(
                context, send, request_id=scope.get(ID, ""), model=model, began=began
            )
        else:
            rewriter, model = StatusWatch(context, send), self.config.model_name
        with tracing.span_request(scope, scope["path"], model, context.document) as span:
            if isinstance(context, RequestContext):
                context.trace(span)
            before = current_run.set(run)
            try:
                async with rewriter.keep_alive():
                    await self.app(scope, receive, rewriter)
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
                ending.strategy, ending.outcome = context.strategy, rewriter.outcome
                fields = request_log.record_end(context, ending, self.config, began=began, now=now)
                tracing.record_end(span, fields)
                request_log.write_line(scope.get(ID, ""), scope["path"], fields)

    def parse_for_base(self, path: str, body: bytes) -> Any:
        """The request as vLLM's model of it, with the base's model id where it has a preset's."""
        document = parse(body)
        model = document.get("model")
        if isinstance(model, str) and model in self.config.presets:
            document["model"] = self.config.model_name
        return self.reader.parse(path, document)

    def enquire(self, path: str, body: bytes, caller: str, began: float) -> Enquiry:
        """Raises ApiError for what cannot be carried out."""
        document = parse(body, ours=True)
        self.check_model(document.get("model"), presets=False)
        enquiry = self.enquiries[path](document, self.scoring, self.reader)
        enquiry.run.share = RequestShare(shares=self.shares, caller=caller, search=True)
        longest = self.config.limits.max_deadline_ms
        enquiry.run.usage.deadline = None if longest is None else began + longest / 1000
        return enquiry

    def check_model(self, model: object, *, presets: bool = True) -> None:
        """Raises ApiError for a model that is not served; none, or one that is no text, is left to others. `presets`:
        whether it may be one of those, or an adapter."""
        known = [self.config.model_name, *([*self.config.presets, *self.config.adapters] if presets else ())]
        if isinstance(model, str) and model and model not in known:
            raise ApiError(suggest("model", model, known), param="model", code="model_not_found", status=404)

    def understand(
        self, path: str, body: bytes, caller: str, began: float, ending: request_log.Ending
    ) -> RequestContext:
        """Raises ApiError for what cannot be carried out."""
        document = parse(body)
        if "messages" in self.reader.fields(path):
            check_messages(document)
        if "extra_body" in document:
            raise ApiError(
                "extra_body is an argument of OpenAI's Python client, not a field of the request: "
                'put what is in it at the top level, as {"model": …, "alignment": {…}}',
                param="extra_body",
                code="unknown_parameter",
            )
        raw = document.pop(AT, {})
        model = document.get("model")
        self.check_model(model)
        preset = self.config.presets.get(model) if isinstance(model, str) else None
        if isinstance(xargs := document.get("vllm_xargs"), dict) and KEY in xargs:
            raise ApiError(f"vllm_xargs.{KEY} is reserved: use {AT}", param=f"vllm_xargs.{KEY}")
        if preset is not None:
            document["model"] = self.config.model_name
            raw = {**preset, **raw} if isinstance(raw, dict) else raw
        planned = plan(raw, self.config)
        self.check_pairs(planned, document)
        surplus = document.keys() - self.reader.fields(path)
        UNKNOWN_FIELDS.inc(len(surplus))
        warnings = [f"unknown fields were ignored: {list_names(name[:64] for name in surplus)}"] if surplus else []
        ending.strategy = planned.name
        if "progress" in planned.include and path == RESPONSES:  # its clients fail at events that they do not know
            message = f"{AT}.return 'progress' cannot be honoured on {RESPONSES}: ask on {CHAT}"
            raise ApiError(message, param=f"{AT}.return", code="unsupported_pair")
        parsed = self.reader.parse(path, document)
        extent = self.reader.extent(path, parsed, len(body))
        if "best" in planned.include and extent.prompts > 1:
            message = f"{AT}.return 'best' cannot be honoured for {extent.prompts} prompts, of which none is the best"
            raise ApiError(message, param=f"{AT}.return", code="unsupported_pair")
        context = RequestContext(
            path=path,
            model=model if preset is not None else None,
            parsed=parsed,
            plan=planned,
            extent=extent,
            work=cost.work(planned, extent, self.scoring.reads),
            warnings=warnings,
            document=document,
            raw=raw,
        )
        self.prepare(context, caller, began)
        return context

    def check_pairs(self, planned: Plan, document: Json) -> None:
        """Raises ApiError for fields that the plan cannot be carried out with."""
        if self.shares is not None and document.get("priority"):
            message = "priority cannot be honoured: on this server fair shares between callers decide"
            raise ApiError(message, param="priority", code="unsupported_parameter")
        if "progress" in planned.include and not document.get("stream"):
            message = f"{AT}.return 'progress' needs stream: true, for it comes before the answer"
            raise ApiError(message, param=f"{AT}.return", code="unsupported_pair")
        for name in PLAIN_ONLY:
            if document.get(name) and not planned.native:
                raise ApiError(
                    f"{name} cannot be combined with strategy {planned.name!r}", param=name, code="unsupported_pair"
                )

    def choose_weights(self, context: RequestContext, caller: str, began: float) -> None:
        """Let the prompt choose the weights that the request leaves to the server."""

        def read_prompt() -> Mapping[str, float]:
            return self.scoring.auto_weights(context.path, context.document)

        context.plan = plan(context.raw, self.config, read_prompt)
        self.prepare(context, caller, began)

    def prepare(self, context: RequestContext, caller: str, began: float) -> None:
        """The request's run, with its reward and its bounds; `began` on the loop's clock."""
        plan = context.plan
        share = RequestShare(shares=self.shares, caller=caller, search="reward" in plan.entry.takes)
        if plan.native:
            context.run = StrategyRun(share=share)
            return
        deadline = None if plan.deadline_ms is None else began + plan.deadline_ms / 1000
        usage = Usage(max_sampled_tokens=plan.max_sampled_tokens, deadline=deadline)
        context.run = StrategyRun(
            strategy=plan.strategy,
            include=plan.include,
            check_sampling=partial(plan.entry.check_sampling, plan.name),
            split=self.reader.split(context.path, context.parsed),
            written=frozenset(name for name, value in context.document.items() if value is not None),
            usage=usage,
            share=share,
            progress=RequestProgress(prompts=context.extent.prompts) if "progress" in plan.include else None,
            fallback=Plain() if plan.degrade else None,
            recoverable_errors=(RewardError,),
            contexts=RequestContexts(
                contexts=plan.contexts,
                adapters=frozenset(self.config.guide_adapters),
                render=lambda instruction: self.reader.render(
                    context.path, instruct(context.path, context.document, instruction)
                ),
                usage=usage,
            ),
        )
        if "reward" in plan.entry.takes:
            longest = context.extent.max_tokens
            run = context.run
            run.reward = context.reward = self.scoring.bind(
                plan, context.path, context.document, run.usage, max_tokens=longest, read=run.text, split=run.split
            )


@dataclass(kw_only=True)
class Settlement:
    """Lowers what a request holds to what it can cost once its prompts are known."""

    context: RequestContext
    hold: Hold
    limits: LimitsConfig
    reads: cost.Reads
    prompts: list[tuple[int, int]] = field(default_factory=list)
    """Of each its tokens, and those of the longest answer to it."""

    def __call__(self, prompt: int, longest: int) -> None:
        extent = self.context.extent
        self.prompts.append((prompt, longest))
        if len(self.prompts) == extent.prompts:
            tokens = sum(prompt for prompt, _ in self.prompts)
            known = replace(extent, prompt_tokens=tokens, max_tokens=max(longest for _, longest in self.prompts))
            self.hold.settle(cost.tokens(cost.work(self.context.plan, known, self.reads), self.limits))


class StatusWatch:
    """`send` of an enquiry, whose answer needs no change: how it ended is read from its status."""

    def __init__(self, enquiry: Enquiry, send: Send) -> None:
        self.enquiry = enquiry
        self.send = send
        self.status = 0
        self.outcome = "client_abort"

    def keep_alive(self) -> AbstractAsyncContextManager[None]:
        """An enquiry's answer is no stream."""
        return nullcontext()

    async def __call__(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        await self.send(message)
        if message["type"] == "http.response.body" and not message.get("more_body") and not self.enquiry.abandoned:
            failure = self.enquiry.run.failure
            self.outcome = self.enquiry.outcome if failure is None else outcome_of_error(failure)
