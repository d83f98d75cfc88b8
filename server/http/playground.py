"""The playground's page at `/`: files of the package, open without a key, for they hold no secret."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.server.errors import ApiError

FOLDER = Path(__file__).resolve().parent.parent / "playground"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "cache-control": "no-cache",  # a browser asks each time whether it has changed, by its ETag
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@cache
def list_files() -> Mapping[str, Path]:
    """URL path -> the file that is served there; the page is at `/`, so that its relative URLs hold behind a prefix."""
    files = [file for file in sorted(FOLDER.rglob("*")) if file.suffix in MEDIA_TYPES]
    names = [file.relative_to(FOLDER).as_posix() for file in files]
    return {
        "/" if name == "index.html" else f"/playground/{name}": file for name, file in zip(names, files, strict=True)
    }


def respond(file: Path, if_none_match: str) -> Response:
    """The file, or 304 where the client has it. Its ETag is a digest: the times of a wheel's files mean nothing."""
    content = file.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    if {etag, "*"} & {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}:
        return Response(status_code=304, headers={**HEADERS, "etag": etag})
    return Response(content, headers={**HEADERS, "etag": etag}, media_type=MEDIA_TYPES[file.suffix])


@dataclass(frozen=True)
class Playground:
    """ASGI middleware that answers for the page's files; all other paths are the app's."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        file = list_files().get(scope["path"]) if scope["type"] == "http" else None
        if file is None:
            return await self.app(scope, receive, send)
        if scope["method"] == "GET":  # HEAD is one by now
            response = respond(file, Headers(scope=scope).get("if-none-match", ""))
        else:
            message = f"Method Not Allowed: {scope['method']} {scope['path']}"
            response = ApiError(message, code="method_not_allowed", status=405).response()
            response.headers["allow"] = "GET, HEAD"
        await response(scope, receive, send)
