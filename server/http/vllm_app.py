"""vLLM's OpenAI app on our engine client. The only file here that knows vLLM; its imports move between versions."""

from __future__ import annotations

import json
from argparse import ArgumentError, Namespace
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from jinja2 import TemplateError
from pydantic import ValidationError
from starlette.middleware.cors import CORSMiddleware
from transformers.utils.chat_template_utils import _compile_jinja_template
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest, AnthropicMessagesResponse
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import NoSignalServer, validate_api_server_args
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList
from vllm.renderers.chat_utils import load_chat_template
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.import_utils import import_from_path
from vllm.utils.system_utils import set_ulimit

from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Tokens
from trimtab.engine.aligned_client import AlignedClient
from trimtab.engine.flags import name_keys
from trimtab.engine.launch import EngineSpec
from trimtab.engine.members import engine_args
from trimtab.engine.toy_client import ToyClient, build_toy_client
from trimtab.engine.vllm_engine import VLLMEngine
from trimtab.runtime.shares import Shares
from trimtab.server.config import Config, ConfigError
from trimtab.server.errors import ApiError
from trimtab.server.request.messages import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from trimtab.server.wording import quote, suggest

__all__ = ["EngineClient", "ModelCard", "ModelList", "NoSignalServer", "arguments", "request_fields"]

ROUTES = frozenset(
    {CHAT, COMPLETIONS, RESPONSES, f"{RESPONSES}/{{response_id}}", f"{RESPONSES}/{{response_id}}/cancel", MESSAGES}
    | {f"{MESSAGES}/count_tokens", "/v1/models", "/tokenize", "/detokenize", "/health", "/metrics", "/version"}
    | {"/docs", "/openapi.json"}
)
"""What of vLLM's app is served. Its other ways to generate know nothing of `alignment`, so they are not."""

RESPONSE_MODELS: dict[str, Any] = {
    CHAT: ChatCompletionResponse,
    COMPLETIONS: CompletionResponse,
    RESPONSES: ResponsesResponse,
    MESSAGES: AnthropicMessagesResponse,
}
"""path -> what it answers, before `alignment` is put in"""

ENGINE = frozenset(field.name for field in fields(AsyncEngineArgs)) - {"model", "served_model_name"}
FRONTEND = frozenset(
    {"chat_template", "chat_template_content_format", "default_chat_template_kwargs", "response_role"}
    | {"trust_request_chat_template", "return_tokens_as_token_ids", "sse_keep_alive_interval", "log_error_stack"}
    | {"enable_auto_tool_choice", "exclude_tools_when_tool_choice_none", "tool_call_parser", "tool_parser_plugin"}
    | {"tool_strict_level", "tool_server", "enable_prompt_tokens_details", "enable_force_include_usage"}
    | {"enable_per_request_metrics", "enable_log_outputs", "enable_log_deltas", "max_log_len"}
    | {"disable_fastapi_docs"}
)
"""vLLM's arguments that are honoured here. The rest of its server's would be ignored (TLS, access logs) or would lead
around ours (another root path, its own keys and middleware)."""


CORS = frozenset({"allow_credentials", "allowed_origins", "allowed_methods", "allowed_headers"})


def argv(config: Config) -> list[str]:
    """The configuration as vLLM's own command line would have it, without the guides; raises ConfigError."""
    flags = ["--model", config.base, "--served-model-name", config.model_name]
    for key, value in config.engine.items():
        if key in CORS:
            message = "browsers' access is not vLLM's here: list the origins under allowed_origins, at the top level"
            raise ConfigError(message, key=f"engine.{key}")
        if key not in ENGINE | FRONTEND:
            raise ConfigError(suggest("key", key, ENGINE | FRONTEND), key=f"engine.{key}")
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            flags += [f"--{flag}", *map(str, value)]
        else:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags


def arguments(config: Config) -> Namespace:
    """vLLM's server arguments; raises ConfigError for an engine option that it does not know or accept."""
    parser = make_arg_parser(FlexibleArgumentParser(exit_on_error=False))
    try:
        args, surplus = parser.parse_known_args(argv(config))
        if surplus:
            raise ConfigError(f"vLLM takes no {name_keys(surplus[0])}", key="engine")
        validate_parsed_serve_args(args)
        load_plugin(args)
        validate_api_server_args(args)
    except ArgumentError as error:
        [*_, flag] = (error.argument_name or "").split("/")
        key = name_keys(flag) if flag.startswith("--") else "engine"
        raise ConfigError(name_keys(error.message), key=key) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(name_keys(str(error.args[0] if error.args else error)), key="engine") from None
    check_template(args)
    args.host, args.port = config.host, config.port
    set_ulimit()  # uvicorn drops connections for which it has no file descriptor
    assert isinstance(args, Namespace)
    return args


def load_plugin(args: Namespace) -> None:
    """The file that brings a tool parser; raises ConfigError where it does not run."""
    if args.tool_parser_plugin:
        try:
            import_from_path(Path(args.tool_parser_plugin).stem, args.tool_parser_plugin)
        except Exception as error:
            raise ConfigError(f"{type(error).__name__}: {error}", key="engine.tool_parser_plugin") from None


def check_template(args: Namespace) -> None:
    """Raises ConfigError for a chat template that cannot be read or is no Jinja."""
    try:
        if template := load_chat_template(args.chat_template):
            _compile_jinja_template(template)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f"line {line} of the template: " if line else ""
        raise ConfigError(f"{where}{error.message}", key="engine.chat_template") from None
    except (OSError, ValueError) as error:
        raise ConfigError(str(error), key="engine.chat_template") from None


def base_spec(config: Config, args: Namespace) -> EngineSpec:
    """The engine of the base and its guides; raises MemberError for what cannot run together."""
    options = {key: getattr(args, key) for key in config.engine if key in ENGINE}
    options.setdefault("scheduling_policy", "priority")
    guides = {name: guide.model_dump(exclude_defaults=True) for name, guide in config.guides.items()}
    for key, value in engine_args(config.base, guides, **options).items():
        setattr(args, key, value)
    return EngineSpec(name=BASE, args=AsyncEngineArgs.from_cli_args(args), usage=UsageContext.OPENAI_API_SERVER)


def aligned_client(client: EngineClient, config: Config) -> AlignedClient:
    """The base's client, which aligns. Requests get fair shares where the configuration has no scheduling policy."""
    view = VLLMEngine(client=client)

    def bind(context: Mapping[str, Any]) -> VLLMEngine:
        return view.for_request("trimtab", **context)

    return AlignedClient(client, bind, None if "scheduling_policy" in config.engine else Shares())


def build_toy(config: Config, args: Namespace) -> ToyClient:
    """A client with no engine behind it."""
    return build_toy_client(AsyncEngineArgs.from_cli_args(args), config.guides, Plain())


async def openai_app(client: AlignedClient, args: Namespace) -> FastAPI:
    """vLLM's app around the client, cut down to ROUTES."""
    tasks = await client.get_supported_tasks()
    app: FastAPI = build_app(args, tasks, client.model_config)
    await init_app_state(client, app.state, args, tasks)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ROUTES]
    app.user_middleware[:] = [m for m in app.user_middleware if getattr(m, "cls", None) is not CORSMiddleware]
    return app


async def render(app: FastAPI, path: str, document: Mapping[str, Any]) -> Tokens:
    """The prompt of a request's body as the app would make it.

    Raises ApiError for what is no such body, and ValueError for one whose prompt cannot be made.
    """
    renderer = app.state.openai_serving_chat.online_renderer
    try:
        if path == RESPONSES:
            if document.get("previous_response_id"):
                raise ValueError("what instructs the model cannot be combined with previous_response_id")
            answer = await renderer.render_responses(ResponsesRequest.model_validate(document))
            prompt = getattr(answer, "engine_input", None)
        elif path == COMPLETIONS:
            answer = await renderer.render_completion(CompletionRequest.model_validate(document))
            prompt = answer[0] if isinstance(answer, list) else None
        else:
            if path == CHAT:
                request = ChatCompletionRequest.model_validate(document)
            else:
                messages = app.state.anthropic_serving_messages
                request = messages.to_chat_completion_request(
                    AnthropicMessagesRequest.model_validate(document),
                    merge_inline_system=messages._merge_inline_system,
                )
            answer = await renderer.render_chat(request)
            prompt = answer[1][0] if isinstance(answer, tuple) else None
    except ValidationError as error:  # parts of messages are validated no sooner than they are rendered
        raise explain_refusal(error) from None
    except (TypeError, AttributeError, LookupError):  # vLLM's own checks look into fields before their types are known
        raise ApiError("the messages do not have the shape that a request's have", param="messages") from None
    if prompt is None:
        raise ValueError(answer.error.message)
    if prompt["type"] != "token":
        raise ValueError("what instructs the model needs a request whose messages are all text")
    tokens: Tokens = prompt["prompt_token_ids"]
    return tokens


def explain_refusal(error: ValidationError) -> ApiError:
    """The first complaint about a body, of a union's branches that of the one that got furthest."""
    complaints: list[Any] = error.errors(include_url=False)[:64]
    top = complaints[0]["loc"][:1]
    first = max((c for c in complaints if c["loc"][:1] == top), key=lambda c: len(c["loc"]))
    where = [str(part) for part in first["loc"] if isinstance(part, int) or not part[:1].isupper()]
    param = ".".join(where) if where and not where[0].isdecimal() else "messages"
    if first["type"] == "missing":
        return ApiError(f"{param} is required", param=param, code="missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    got = f"; got {quote(first['input'])}" if first["type"] != "value_error" else ""
    return ApiError(f"{param}: {message[:1].lower()}{message[1:]}{got}", param=param)


def request_fields() -> dict[str, frozenset[str]]:
    """path -> the request's top-level fields there, as vLLM's own request models have them."""
    models = {
        CHAT: ChatCompletionRequest,
        COMPLETIONS: CompletionRequest,
        RESPONSES: ResponsesRequest,
        MESSAGES: AnthropicMessagesRequest,
    }
    return {
        path: frozenset(name for key, field in model.model_fields.items() for name in (key, field.alias) if name)
        for path, model in models.items()
    }
