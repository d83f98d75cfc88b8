"""Who may come in: a bearer key on every path but the two that an orchestrator asks, an admin's on some.

The playground's files are served outside of it.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Sequence
from typing import get_args

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.server.config import HASHED, Config, TrustedHeader
from trimtab.server.errors import ApiError

OPEN = frozenset({"/health", "/ready"})
OPERATIONS = ("/metrics", "/admin/")
"""Where the paths begin that are an admin's, if there is one."""
log = logging.getLogger("trimtab.auth")

CALLER = "trimtab.caller"
"""Key of the ASGI scope under which whose request it is stands; what a log and a share may name it by."""


TRUSTED = frozenset(get_args(TrustedHeader))
"""Request headers that vLLM heeds and that could jump its queue, choose a replica or read the server's load."""


def digest(key: str) -> str:
    """A key as it is stored: random keys of 256 bits need neither salt nor stretching."""
    return key.removeprefix(HASHED) if key.startswith(HASHED) else hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    return "tt-" + secrets.token_urlsafe(32)


class Auth:
    """ASGI middleware; keys are kept as digests and compared in constant time.

    Everybody may come in where there are no keys. With admin keys, operations need one; they open the rest as well.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        admins: Sequence[str] = (),
        *,
        caller_header: str | None = None,
        trusted_headers: Sequence[str] = (),
    ) -> None:
        self.app = app
        self.keys = [digest(key) for key in keys]
        self.admins = [digest(key) for key in admins]
        self.caller_header = caller_header
        self.dropped = {name.encode() for name in TRUSTED - set(trusted_headers)}

    @classmethod
    def of(cls, config: Config, app: ASGIApp) -> Auth:
        return cls(
            app,
            config.keys,
            config.all_admin_keys,
            caller_header=config.caller_header,
            trusted_headers=config.trusted_headers,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # a websocket, which nothing here speaks
            return await send({"type": "websocket.close", "code": 1008})
        headers = Headers(scope=scope)
        caller = self._caller(scope, headers)
        if caller is not None:
            scope[CALLER] = headers.get(self.caller_header, caller)[:128] if self.caller_header else caller
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in self.dropped]
            return await self.app(scope, receive, send)
        log.info("%s refused without a valid key", scope.get("trimtab.request_id", ""))
        refusal = ApiError("missing or incorrect API key", code="invalid_api_key", status=401)
        await refusal.response()(scope, receive, send)

    def _caller(self, scope: Scope, headers: Headers) -> str | None:
        """The first digits of the digest of the key that opens the path; None where none does."""
        if scope["method"] == "OPTIONS" or scope["path"] in OPEN:
            return ""
        operation = scope["path"].startswith(OPERATIONS)
        valid = self.admins if operation and self.admins else [*self.keys, *self.admins]
        if not valid or (not operation and not self.keys):
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "")  # how Anthropic's clients say it
        presented = hashlib.sha256(key.encode()).hexdigest()
        matches = [secrets.compare_digest(presented, known) for known in valid]  # all of them: time tells nothing
        return presented[:8] if any(matches) else None
