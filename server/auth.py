"""Who may come in: a bearer key on every path but the two that an orchestrator asks."""

from __future__ import annotations

import hashlib
import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError

OPEN = frozenset({"/health", "/ready"})


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Auth:
    """ASGI middleware; keys are kept as digests and compared in constant time."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self.app = app
        self.digests = [digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "OPTIONS" or scope["path"] in OPEN or self._known(scope):
            return await self.app(scope, receive, send)
        refusal = ApiError("missing or incorrect API key", code="invalid_api_key", status=401)
        await refusal.response()(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "")  # how Anthropic's clients say it
        given = digest(key)
        matches = [secrets.compare_digest(given, known) for known in self.digests]  # all of them: time tells nothing
        return any(matches)
