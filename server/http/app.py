"""The whole HTTP surface: vLLM's OpenAI app, our own endpoints, and the middleware between them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from trimtab.decoders import STRATEGIES
from trimtab.engine.memory import CacheMemory
from trimtab.rewards import COMBINES, TRANSFORMS, RewardEntry
from trimtab.server.config import Config, ConfigError
from trimtab.server.errors import ApiError
from trimtab.server.http import openapi
from trimtab.server.http.auth import Auth
from trimtab.server.http.errors_and_ids import EXPOSED, RequestIdAndErrorMiddleware
from trimtab.server.http.infer import InferEnquiry
from trimtab.server.http.middleware import AlignmentMiddleware
from trimtab.server.http.playground import Playground
from trimtab.server.http.score import ScoreEnquiry, respond
from trimtab.server.http.vllm_app import ModelCard, ModelList, RequestReader, openai_app
from trimtab.server.scoring import Scoring
from trimtab.server.state import ServerState
from trimtab.server.wording import explain_request, suggest


async def build(state: ServerState, args: Namespace) -> FastAPI:
    """The app, ready to serve."""
    app = await openai_app(state.client, args)
    reader = RequestReader(app=app, runs_tools="tool_server" in state.config.engine)
    state.scoring.attach(reader.render, reader.split_written({}), reader.read_chat)
    ours = {"/v1/models", "/health"}
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in ours]
    _add_endpoints(app, state)
    _add_operations(app, state)
    openapi.describe(app, lambda: state.config)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    for kind in (ValueError, TypeError, OverflowError):  # vLLM takes these for the client's fault
        app.add_exception_handler(kind, partial(_vllms_or_ours, app.exception_handlers[kind]))
    app.add_exception_handler(Exception, _pass_on)
    app.router.redirect_slashes = False  # a proxy's clients could not follow to the address that this server knows
    inner = app.build_middleware_stack()

    def stack() -> None:
        """As the configuration has it now; what is being answered keeps the stack that it came through."""
        config = state.config
        alignment = AlignmentMiddleware(
            app=inner,
            config=config,
            reader=reader,
            scoring=state.scoring,
            admission=state.admission,
            shares=state.client.shares,
            enquiries={openapi.SCORE: ScoreEnquiry.of, openapi.INFER: InferEnquiry.of},
        )
        keyed = Auth.of(config, alignment)
        # Outside of vLLM's stack, ours also sees the answers to what went wrong inside it.
        app.middleware_stack = share_with_browsers(
            RequestIdAndErrorMiddleware(
                Playground(keyed) if config.playground else keyed, body_s=config.timeouts.body_s
            ),
            config,
        )

    stack()
    state.on_reload = stack
    return app


def share_with_browsers(app: ASGIApp, config: Config) -> ASGIApp:
    """CORS around everything, so that scripts of the allowed origins can read errors too."""
    if not config.allowed_origins:
        return app
    return BrowserAccess(
        app,
        allow_origins=config.allowed_origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=EXPOSED,
    )


class BrowserAccess(CORSMiddleware):
    """Starlette's, whose refusals are text."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        message = "the page's origin, or the method or headers that it would send, are not allowed by this server"
        return ApiError(message, code="origin_not_allowed").response()


def _add_endpoints(app: FastAPI, state: ServerState) -> None:
    async def models() -> list[ModelCard]:
        """The base, then each preset as a model of its own."""
        listed: ModelList = await app.state.openai_serving_models.show_available_models()
        listed.data = [card.model_copy(update={"root": card.id}) for card in listed.data]  # not a path of this machine
        base = listed.data[0]
        presets = [base.model_copy(update={"id": name, "parent": base.id}) for name in state.config.presets]
        return [*listed.data, *presets]

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        return JSONResponse(ModelList(data=await models()).model_dump())

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Response:
        cards = {card.id: card for card in await models()}
        if name not in cards:
            return ApiError(suggest("model", name, cards), param="model", code="model_not_found", status=404).response()
        return JSONResponse(cards[name].model_dump())

    @app.get("/v1/alignment")
    async def alignment() -> dict[str, Any]:
        caps: dict[str, float | None] = {"max_tokens": state.admission.capacity}
        caps |= {"max_sampled_tokens": state.config.limits.max_sampled_tokens}
        caps |= {"max_wait_s": state.admission.max_wait, "max_deadline_ms": state.config.limits.max_deadline_ms}
        caps |= {key: getattr(state.config, key) for key in ("max_candidates", "max_draws")}
        return describe_server(state.config, state.scoring) | {"limits": caps, "memory": describe_memory(state.memory)}

    @app.post("/v1/alignment/score")
    async def score_responses(request: Request) -> Response:
        return await respond(request)

    @app.post("/v1/alignment/infer")
    async def infer_weights(request: Request) -> Response:
        return await respond(request)


def _add_operations(app: FastAPI, state: ServerState) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether to let it run: an engine that has died does not come back by itself, one that hangs hardly."""
        return JSONResponse({"healthy": state.alive}, status_code=200 if state.alive else 503)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Whether to send it requests."""
        return JSONResponse({"ready": state.ready}, status_code=200 if state.ready else 503)

    @app.post("/admin/reload")
    async def reload() -> Response:
        """The configuration file read anew, as SIGHUP does it."""
        if not state.config.all_admin_keys:
            message = "this server has no admin key, and without one only SIGHUP reloads its configuration"
            return ApiError(message, code="not_found", status=404).response()
        try:
            return JSONResponse({"changed": state.reload()})
        except ConfigError as error:
            return ApiError(str(error), param=error.key or None, code="invalid_configuration").response()


def describe_server(config: Config, scoring: Scoring) -> dict[str, Any]:
    """What a client needs to build its controls."""
    strategies = {}
    for name, entry in STRATEGIES.items():
        schema = entry.parameters.model_json_schema()
        strategies[name] = {
            "description": entry.summary,
            "paper": f"https://arxiv.org/abs/{entry.paper}" if entry.paper else None,
            "takes": sorted(entry.takes),
            "return": sorted(entry.returns),
            "streaming": "native" if entry.streams else "buffered",
            "params": schema.get("properties", {}),
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
        "combinations": describe_table({name: e for name, e in COMBINES.items() if not e.load().in_pool}),
        "transforms": describe_table(TRANSFORMS),
        "guides": sorted(config.guides),
        "client_prompts": config.client_prompts,
        "preference_prompts": {name: prompt.model_dump() for name, prompt in config.preference_prompts.items()},
        "auto_weights": config.auto_weights is not None,
        "presets": {name: dict(preset) for name, preset in config.presets.items()},
    }


def describe_memory(memory: CacheMemory | None) -> dict[str, Any] | None:
    """What the guides' keys and values take of the room that there is; None where there is no engine."""
    if memory is None:
        return None
    return {
        "kv_bytes_per_token": dict(memory.bytes_per_token),
        "tokens": memory.tokens,
        "tokens_without_guides": memory.tokens_without_guides,
        "copies_of_base": list(memory.merged),
    }


def describe_table(table: Mapping[str, RewardEntry]) -> dict[str, Any]:
    """name -> what it is, and its parameters"""
    return {
        name: {
            "description": entry.summary,
            "paper": f"https://arxiv.org/abs/{entry.paper}" if entry.paper else None,
            "params": entry.parameters.model_json_schema().get("properties", {}),
        }
        for name, entry in table.items()
    }


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, which the framework refuses before any handler."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):  # of `receive`, while the framework read a body
        return error.__cause__.response()
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    response = ApiError(message, code=code, status=error.status_code).response()
    if allowed := (error.headers or {}).get("Allow"):
        response.headers["allow"] = f"{allowed}, HEAD" if "GET" in allowed else allowed
    return response


async def _vllms_or_ours(vllms: Any, request: Request, error: Exception) -> Response:
    """What `vllms` handler makes of an error of vLLM's endpoints. In ours it is a fault, unless it is worded."""
    endpoint = request.scope.get("endpoint")
    if getattr(endpoint, "__module__", "").startswith("trimtab."):
        raise error
    response: Response = await vllms(request, error)
    return response


async def _pass_on(request: Request, error: Exception) -> Response:
    """To `RequestIdAndErrorMiddleware`, which answers and logs it."""
    raise error


async def _invalid_request(request: Request, error: Exception) -> Response:
    """A body or parameter that vLLM's request models refuse."""
    assert isinstance(error, RequestValidationError)
    return explain_request(error.errors()).response()
