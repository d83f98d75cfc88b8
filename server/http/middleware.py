"""Where our contract meets vLLM's app: an ASGI middleware around it that speaks only HTTP.

On the way in it takes `alignment` out of the body, turns a preset's model id into the base's, and leaves the plan where
the engine client's `generate()` finds it. On the way out it puts the `alignment` object, the usage behind it and the
headers into what vLLM answers, and counts the request. Bodies that need no change pass as they came.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import Tokens, no_reward
from trimtab.engine.aligned_client import Run, running
from trimtab.engine.table import KEY
from trimtab.rewards.protocols import RewardError
from trimtab.runtime.metered import Meter
from trimtab.runtime.shares import Shares, Turn, turn
from trimtab.server.admission import Admission
from trimtab.server.config import Config
from trimtab.server.errors import ApiError, listed, unknown
from trimtab.server.http import request_log as tally
from trimtab.server.http.auth import CALLER
from trimtab.server.http.errors_and_ids import ID
from trimtab.server.http.response import Answer, Call, outcome_of
from trimtab.server.metrics import POOL, REQUESTS, UNKNOWN_FIELDS
from trimtab.server.request import cost, tracing
from trimtab.server.request.alignment import AT
from trimtab.server.request.body import ClientGone, Json, parse, whole
from trimtab.server.request.messages import instructed
from trimtab.server.request.plan import plan
from trimtab.server.scoring import Scoring

PLAIN_ONLY = ("use_beam_search", "prompt_embeds", "background", "kv_transfer_params", "ec_transfer_params")
"""Request fields that no strategy can honour: with them vLLM draws tokens its own way, answers later, or reads a cache
that another server filled."""

COUNTING = frozenset({"/tokenize", "/v1/messages/count_tokens"})
"""Paths that take a model id and draw nothing."""


@dataclass(frozen=True)
class Seam:
    """`fields`: request path -> the top-level fields that vLLM's own request model of that path has.

    `rendered`: (path, body) -> the prompt that vLLM's app makes of it.
    """

    app: ASGIApp
    config: Config
    fields: Mapping[str, frozenset[str]]
    scoring: Scoring
    rendered: Callable[[str, Json], Awaitable[Tokens]]
    admission: Admission
    longest: cost.Longest
    shares: Shares | None = None
    """None where vLLM's own scheduling is left alone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in {*self.fields, *COUNTING}:
            return await self.app(scope, receive, send)
        loop = asyncio.get_running_loop()
        began = loop.time()
        strategy = "none"
        with ExitStack() as place:
            try:
                body = await whole(receive, self.config.max_body_mib)
                if scope["path"] in COUNTING:
                    return await self.app(scope, replay(self.of_base(body), receive), send)
                call = self.understand(scope["path"], body)
                strategy = call.strategy
                own = self.prepare(call, scope.get(CALLER, ""), began)
                most = cost.work(call.plan, call.document, call.path, self.longest)
                cost.check(call.plan, most, self.config.limits)
                tokens = cost.tokens(most, self.config.limits)
                place.enter_context(self.admission.admitted((own.caller, own.search), tokens, most.candidates))
                POOL.labels(strategy).observe(most.candidates)
            except ClientGone:
                REQUESTS.labels("none", "client_abort").inc()
                return
            except (ApiError, RecursionError) as error:
                too_deep = ApiError("the request body is nested too deeply", code="invalid_json")
                refusal = error if isinstance(error, ApiError) else too_deep
                tally.refused(strategy, refusal.status)
                return await refusal.response()(scope, receive, send)
            answer = Answer(call, send)
            span = place.enter_context(
                tracing.request(scope, call.path, call.model or self.config.model_name, call.document)
            )
            if call.run is not None and span.is_recording():
                call.run.span = span
                if call.scores is not None:
                    call.scores.span = span
            before = running.set(call.run), turn.set(own)
            try:
                async with answer.kept_alive():
                    await self.app(scope, replay(call.body, receive), answer)
            except Exception as error:
                answer.outcome = outcome_of(error)
                raise
            finally:
                running.reset(before[0])
                turn.reset(before[1])
                if call.run is not None:
                    await call.run.close()
                told = tally.ended(call, own, answer.outcome, self.config, began=began, now=loop.time())
                tracing.ended(span, told)
                tally.write(scope.get(ID, ""), call.path, told)

    def of_base(self, body: bytes) -> bytes:
        """The body with the base's model id where it has a preset's."""
        document = parse(body)
        model = document.get("model")
        if not isinstance(model, str) or model not in self.config.presets:
            return body
        return json.dumps(document | {"model": self.config.model_name}).encode()

    def understand(self, path: str, body: bytes) -> Call:
        """Raises ApiError for what cannot be carried out."""
        document = parse(body)
        if "extra_body" in document:
            raise ApiError(
                "extra_body is an argument of OpenAI's Python client, not a field of the request: "
                'put what is in it at the top level, as {"model": …, "alignment": {…}}',
                param="extra_body",
                code="unknown_parameter",
            )
        keys = len(document)
        asked = document.pop(AT, {})
        model = document.get("model")
        preset = self.config.presets.get(model) if isinstance(model, str) else None
        if isinstance(model, str) and model and preset is None and model != self.config.model_name:
            known = [self.config.model_name, *self.config.presets]
            raise ApiError(unknown("model", model, known), param="model", code="model_not_found", status=404)
        if isinstance(xargs := document.get("vllm_xargs"), dict) and KEY in xargs:
            raise ApiError(f"vllm_xargs.{KEY} is reserved: use {AT}", param=f"vllm_xargs.{KEY}")
        changed = preset is not None or len(document) < keys
        if preset is not None:
            document["model"] = self.config.model_name
            asked = {**preset, **asked} if isinstance(asked, dict) else asked
        planned = plan(asked, self.config, lambda: self.scoring.auto(document))
        if self.shares is not None and document.get("priority"):
            message = "priority cannot be honoured: on this server fair shares between callers decide"
            raise ApiError(message, param="priority", code="unsupported_parameter")
        for name in PLAIN_ONLY:
            if document.get(name) and not (planned.is_plain and not planned.bounded):
                raise ApiError(
                    f"{name} cannot be combined with strategy {planned.name!r}", param=name, code="unsupported_pair"
                )
        surplus = document.keys() - self.fields[path]
        UNKNOWN_FIELDS.inc(len(surplus))
        warnings = [f"unknown fields were ignored: {listed(name[:64] for name in surplus)}"] if surplus else []
        return Call(
            path=path,
            body=json.dumps(document).encode() if changed else body,
            model=model if preset is not None else None,
            plan=planned,
            warnings=warnings,
            document=document,
        )

    def prepare(self, call: Call, caller: str, began: float) -> Turn:
        """The run and the reward of a request that vLLM does not answer by itself; `began` on the loop's clock."""
        plan = call.plan
        own = Turn(shares=self.shares, caller=caller, search="reward" in plan.entry.takes)
        if plan.is_plain and not plan.bounded:
            return own
        deadline = None if plan.deadline_ms is None else began + plan.deadline_ms / 1000
        call.run = Run(
            strategy=plan.strategy,
            reward=no_reward,
            include=plan.include,
            check_sampling=partial(plan.entry.check_sampling, plan.name),
            meter=Meter(max_sampled_tokens=plan.max_sampled_tokens, deadline=deadline),
            instead=Plain() if plan.degrade else None,
            forgiven=(RewardError,),
            render=lambda instruction, role: self.rendered(
                call.path, instructed(call.path, call.document, instruction, role)
            ),
        )
        if "reward" in plan.entry.takes:
            call.scores = self.scoring.bind(plan, call.document, call.run.meter)
            call.run.reward = call.scores
        return own


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, then whatever comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
