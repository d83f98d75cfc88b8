"""Sends one request and reads its answer; a client may read slowly or hang up."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from trimtab.bench.load.exchange import Exchange
from trimtab.bench.load.mix import STREAMS

SMALL_BUFFER = 4096
"""Receive buffer of a slow reader in bytes; a larger one would hide the slow reading from the server."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """Never retries."""

    http: httpx.AsyncClient
    slow_http: httpx.AsyncClient
    key: str | None = field(default=None, repr=False)
    slow_rate: float
    """Bytes per second of a slow reader."""

    async def __call__(self, exchange: Exchange) -> None:
        """Fills the exchange in. Errors of the network or the server are recorded there, not raised."""
        request = exchange.request
        key = request.entry.key or self.key
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        http = self.slow_http if request.slow else self.http
        built = http.build_request("POST", request.entry.path, content=request.content, headers=headers)
        exchange.sent = time.monotonic()
        try:
            async with asyncio.timeout(request.hang_up) as patience:
                await self._read(http, built, exchange)
        except TimeoutError:
            if not patience.expired():
                raise
            exchange.hung_up = True
        except httpx.HTTPError as error:
            exchange.failure = f"{type(error).__name__}: {error}".removesuffix(": ")
        exchange.ended = time.monotonic()

    async def _read(self, http: httpx.AsyncClient, built: httpx.Request, exchange: Exchange) -> None:
        answer = await http.send(built, stream=True)
        try:
            exchange.status, exchange.retry_after = answer.status_code, answer.headers.get("retry-after")
            exchange.should_retry = answer.headers.get("x-should-retry")
            chunks = self._slowly(answer.aiter_bytes()) if exchange.request.slow else answer.aiter_bytes()
            if answer.status_code == 200 and "event-stream" in answer.headers.get("content-type", ""):
                await read_stream(chunks, exchange)
            else:
                read_whole(b"".join([chunk async for chunk in chunks]), exchange)
        finally:
            await answer.aclose()

    async def _slowly(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            await asyncio.sleep(len(chunk) / self.slow_rate)
            yield chunk


@asynccontextmanager
async def connect(url: str, key: str | None, slow_rate: float) -> AsyncIterator[Client]:
    """A client without limits on connections and time; the run limits the time."""
    # uvicorn hangs up on a connection after 5 idle seconds, at times just as a request is sent on it
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)]
    slow = httpx.AsyncHTTPTransport(limits=limits, socket_options=small)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=None, limits=limits))
        slow_http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=None, transport=slow))
        yield Client(http=http, slow_http=slow_http, key=key, slow_rate=slow_rate)


def read_whole(body: bytes, exchange: Exchange) -> None:
    """Reads an answer in one piece, or an error."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if exchange.status != 200:
        exchange.failure = error_message(document) or body[:200].decode(errors="replace")
    elif not isinstance(document, dict):
        exchange.failure = "an answer that is no JSON object"
    elif exchange.request.entry.path in STREAMS and not document.get("choices"):
        exchange.failure = "an answer without choices"
    else:
        take_usage(document, exchange)
        exchange.document = document if exchange.request.keep_document else {}
    exchange.finished = True


async def read_stream(chunks: AsyncIterator[bytes], exchange: Exchange) -> None:
    """Reads server-sent events. [DONE] after a finish reason of every choice finishes a stream; so does an error."""
    finished: dict[Any, bool] = {}  # by a choice's index
    async for line in lines(chunks):
        if not line.startswith(b"data:"):
            continue  # a comment keeps the connection alive and carries nothing
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            exchange.finished = exchange.failure is not None or (bool(finished) and all(finished.values()))
            continue
        event = json_object(data)
        if event is None or "error" in event:
            exchange.failure = (
                error_message(event) or f"an event that is no JSON object: {data[:200].decode(errors='replace')}"
            )
            exchange.finished = True
            continue
        for choice in event.get("choices") or ():
            if exchange.first is None and has_text(choice):
                exchange.first = time.monotonic()
            index = choice.get("index", 0)
            finished[index] = finished.get(index, False) or choice.get("finish_reason") is not None
        take_usage(event, exchange)


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split at line feeds alone: text in the JSON may contain Unicode's other line breaks."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
    if rest:
        yield rest


def has_text(choice: Mapping[str, Any]) -> bool:
    return bool((choice.get("delta") or {}).get("content") or choice.get("text"))


def take_usage(document: Mapping[str, Any], exchange: Exchange) -> None:
    """Copies usage and alignment report of an answer, or of an event of a stream."""
    exchange.usage = document.get("usage") or exchange.usage
    exchange.alignment = document.get("alignment") or exchange.alignment


def json_object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def error_message(document: Any) -> str | None:
    """The message of an error in OpenAI's shape."""
    error = document.get("error") if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return None if message is None else str(message)
