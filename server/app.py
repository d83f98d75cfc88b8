"""The whole HTTP surface: vLLM's OpenAI app, our own endpoints, and the middleware between them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from decoders import STRATEGIES
from engine.aligned import AlignedClient
from rewards import COMBINES, TRANSFORMS, Entry
from server.auth import Auth
from server.config import Config
from server.envelope import Envelope
from server.errors import ApiError, unknown
from server.infer import infer
from server.kinds import MADE_HERE, about, parameters
from server.score import answer, scored
from server.scoring import Scoring
from server.seam import Seam
from server.vllm_app import ModelCard, ModelList, openai_app, rendered, request_fields


async def build(client: AlignedClient, config: Config, args: Namespace, scoring: Scoring) -> FastAPI:
    """The app, ready to serve."""
    app = await openai_app(client, args)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) != "/v1/models"]
    _own_endpoints(app, client, config, scoring)
    app.add_exception_handler(HTTPException, _http_error)
    # Outside of vLLM's stack, ours also sees the answers to what went wrong inside it.
    stack: ASGIApp = Seam(app.build_middleware_stack(), config, request_fields(), scoring, partial(rendered, app))
    app.middleware_stack = Envelope(Auth(stack, config.keys) if config.keys else stack)
    return app


def _own_endpoints(app: FastAPI, client: AlignedClient, config: Config, scoring: Scoring) -> None:
    async def models() -> list[ModelCard]:
        """The base, then each preset as a model of its own."""
        listed: ModelList = await app.state.openai_serving_models.show_available_models()
        base = listed.data[0]
        presets = [base.model_copy(update={"id": name, "parent": base.id}) for name in config.presets]
        return [*listed.data, *presets]

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        return JSONResponse(ModelList(data=await models()).model_dump())

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Response:
        cards = {card.id: card for card in await models()}
        if name not in cards:
            return ApiError(unknown("model", name, cards), param="model", code="model_not_found", status=404).response()
        return JSONResponse(cards[name].model_dump())

    @app.get("/v1/alignment")
    async def alignment() -> dict[str, Any]:
        return catalogue(config, scoring)

    @app.post("/v1/alignment/score")
    async def score_responses(request: Request) -> Response:
        return await answer(request, scoring, scored)

    @app.post("/v1/alignment/infer")
    async def infer_weights(request: Request) -> Response:
        return await answer(request, scoring, infer)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Everything is warm before the first request is let in, so what runs is ready."""
        up = client.is_running and not client.errored and all(pooler.alive for pooler in scoring.poolers)
        return JSONResponse({"ready": up}, status_code=200 if up else 503)


def catalogue(config: Config, scoring: Scoring) -> dict[str, Any]:
    """What a client needs to build its controls."""
    strategies = {}
    for name, entry in STRATEGIES.items():
        schema = parameters(name).model_json_schema()
        strategies[name] = {
            "description": about(entry.load()),
            "paper": f"https://arxiv.org/abs/{entry.paper}" if entry.paper else None,
            "takes": sorted(entry.takes),
            "return": sorted(entry.shows),
            "streaming": "native" if entry.streams else "buffered",
            "params": {key: value for key, value in schema.get("properties", {}).items() if key not in MADE_HERE},
        }
    return {
        "model": config.model_name,
        "default_strategy": config.default_strategy,
        "max_weight": config.max_weight,
        "strategies": strategies,
        "objectives": {name: objective.model_dump() for name, objective in config.objectives.items()},
        "rewards": {
            name: {"kind": config.rewards[name].kind, "labels": scorer.labels, "needs": sorted(scorer.needs)}
            for name, scorer in scoring.scorers.items()
        },
        "combinations": schemas({name: e for name, e in COMBINES.items() if not e.load().in_pool}),
        "transforms": schemas(TRANSFORMS),
        "guides": sorted(config.guides),
        "preference_prompts": {name: prompt.model_dump() for name, prompt in config.preference_prompts.items()},
        "auto_weights": config.auto_weights is not None,
        "presets": {name: dict(preset) for name, preset in config.presets.items()},
    }


def schemas(table: Mapping[str, Entry]) -> dict[str, Any]:
    """name -> what it is, and its parameters"""
    return {
        name: {
            "description": about(entry.load()),
            "paper": f"https://arxiv.org/abs/{entry.paper}" if entry.paper else None,
            "params": entry.parameters.model_json_schema().get("properties", {}),
        }
        for name, entry in table.items()
    }


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, which the framework refuses before any handler."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    return ApiError(message, code=code, status=error.status_code).response()
