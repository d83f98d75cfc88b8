"""Several replicas of trimtab behind Ray Serve: `serve run ray_serve:build config=demo.yaml replicas=2 gpus=1`.

vLLM's engines are processes of their own and the server ends them itself, so a replica starts `trimtab serve` as its
child, on a port that only it knows, and hands requests on byte by byte. The child sees the replica's GPUs alone.
"""

# No `from __future__ import annotations`: `serve run` reads `build`'s annotation as it stands.
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence

import httpx
from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

DRAIN = 60
"""Seconds that answers under way have when a replica is let go: more than `limits.drain_s`."""
HOP = frozenset({b"connection", b"content-length", b"date", b"host", b"keep-alive", b"server", b"transfer-encoding"})
"""Headers of one connection, which the next has its own of."""

GONE = {"message": "this replica's server is gone", "type": "server_error", "param": None, "code": "replica_gone"}
"""Until Serve, after three failed health checks, has put another in its place."""


class Options(BaseModel, extra="forbid"):
    config: str
    replicas: int = 1
    gpus: float = 0
    cpus: float = 2
    max_ongoing_requests: int = 1024
    """Of a replica. Trimtab batches and refuses by itself; Serve's default of 5 would leave it idle."""


class Replica:
    def __init__(self, config: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = str(sock.getsockname()[1])
        url = f"http://127.0.0.1:{port}"
        # Should the replica be killed, the kernel tells the child to end.
        command = ["setpriv", "--pdeathsig", "TERM", "trimtab", "serve", config, "--host", "127.0.0.1", "--port", port]
        self.child = subprocess.Popen(command)
        # How long an answer may take, and how many are under way, is for the child to say.
        self.client = httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(), trust_env=False)
        with httpx.Client(base_url=url, timeout=5, trust_env=False) as client:
            while not ready(client):
                if self.child.poll() is not None:
                    raise RuntimeError(f"trimtab serve {config} ended with {self.child.returncode} before it was ready")
                time.sleep(0.5)

    async def check_health(self) -> None:
        (await self.client.get("/health", timeout=5)).raise_for_status()

    async def __call__(self, request: Request) -> Response:
        url = httpx.URL(path=request.url.path, query=request.url.query.encode())
        headers = forwarded(request.headers.raw)
        asked = self.client.build_request(request.method, url, headers=headers, content=await request.body())
        try:
            answer = await self.client.send(asked, stream=True)
        except httpx.TransportError:
            return JSONResponse({"error": GONE}, 503)
        response = StreamingResponse(relay(answer), answer.status_code)
        # Serve gave the child its request id, and writes it on the answer itself.
        response.raw_headers = [h for h in forwarded(answer.headers.raw) if h[0].lower() != b"x-request-id"]
        return response

    def __del__(self) -> None:
        """Serve calls it when the last request is through; where `__init__` has failed there may be no child."""
        if child := getattr(self, "child", None):
            child.terminate()
            child.wait()


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").is_success
    except httpx.TransportError:
        return False


def forwarded(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() not in HOP]


async def relay(answer: httpx.Response) -> AsyncIterator[bytes]:
    """A client that leaves ends this, and with it the request to the child, which then ends its own work."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def build(options: Options) -> Application:
    deployment = serve.deployment(
        Replica,
        name="trimtab",
        num_replicas=options.replicas,
        max_ongoing_requests=options.max_ongoing_requests,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=DRAIN,
    )
    return deployment.bind(options.config)
