"""Where our contract meets vLLM's app: an ASGI middleware around it that speaks only HTTP.

On the way in it takes `alignment` out of the body, turns a preset's model id into the base's, and leaves the plan where
the engine client's `generate()` finds it. On the way out it puts the `alignment` object, the usage behind it and the
headers into what vLLM answers, and counts the request. Bodies that need no change pass as they came.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.aligned import running
from engine.table import KEY
from server.alignment import AT, plan
from server.answer import Answer, Call, outcome
from server.body import parse
from server.config import Config
from server.errors import ApiError, listed, uncaught, unknown
from server.metrics import DURATION, REQUESTS, UNKNOWN_FIELDS

PLAIN_ONLY = ("use_beam_search", "prompt_embeds", "background", "kv_transfer_params", "ec_transfer_params")
"""Request fields that no strategy can honour: with them vLLM draws tokens its own way, answers later, or reads a cache
that another server filled."""

COUNTING = frozenset({"/tokenize", "/v1/messages/count_tokens"})
"""Paths that take a model id and draw nothing."""


class ClientGone(Exception):
    """The client left before its request was whole."""


@dataclass(frozen=True)
class Seam:
    """`fields`: request path -> the top-level fields that vLLM's own request model of that path has."""

    app: ASGIApp
    config: Config
    fields: Mapping[str, frozenset[str]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in {*self.fields, *COUNTING}:
            return await self.app(scope, receive, send)
        began = time.monotonic()
        try:
            body = await self.read(receive)
            if scope["path"] in COUNTING:
                return await self.app(scope, replay(self.of_base(body), receive), send)
            call = self.understand(scope["path"], body)
        except ClientGone:
            REQUESTS.labels("none", "client_abort").inc()
            return
        except (ApiError, RecursionError) as error:
            too_deep = ApiError("the request body is nested too deeply", code="invalid_json")
            REQUESTS.labels("none", "invalid").inc()
            return await (error if isinstance(error, ApiError) else too_deep).response()(scope, receive, send)
        answer = Answer(call, send)
        token = running.set(call.run)
        try:
            await self.app(scope, replay(call.body, receive), answer)
        except Exception as error:
            answer.outcome = outcome(uncaught(error).status)
            raise
        finally:
            running.reset(token)
            REQUESTS.labels(call.strategy, answer.outcome).inc()
            DURATION.labels(call.strategy).observe(time.monotonic() - began)
            if call.run is not None:
                await call.run.close()

    async def read(self, receive: Receive) -> bytes:
        limit = int(self.config.max_body_mib * 2**20)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > limit:
                longest = f"{self.config.max_body_mib:g} MiB"
                raise ApiError(f"the request body is larger than {longest}", code="request_too_large", status=413)
            if not message.get("more_body"):
                return bytes(body)

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
        whole = len(document)
        asked = document.pop(AT, {})
        model = document.get("model")
        preset = self.config.presets.get(model) if isinstance(model, str) else None
        if isinstance(model, str) and model and preset is None and model != self.config.model_name:
            known = [self.config.model_name, *self.config.presets]
            raise ApiError(unknown("model", model, known), param="model", code="model_not_found", status=404)
        if isinstance(xargs := document.get("vllm_xargs"), dict) and KEY in xargs:
            raise ApiError(f"vllm_xargs.{KEY} is reserved: use {AT}", param=f"vllm_xargs.{KEY}")
        changed = preset is not None or len(document) < whole
        if preset is not None:
            document["model"] = self.config.model_name
            asked = {**preset, **asked} if isinstance(asked, dict) else asked
        planned = plan(asked, self.config)
        for name in PLAIN_ONLY:
            if document.get(name) and not planned.is_plain:
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
        )


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
