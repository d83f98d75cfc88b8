"""vLLM's OpenAI app on our engine client. The only file here that knows vLLM."""

from __future__ import annotations

import json
from argparse import ArgumentError, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute, request_response
from jinja2 import TemplateError
from openai.types.responses import CustomTool, FunctionTool, NamespaceTool
from pydantic import TypeAdapter, ValidationError
from starlette.middleware.cors import CORSMiddleware
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
    AnthropicMessagesResponse,
)
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import NoSignalServer, validate_api_server_args
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.responses.utils import construct_input_messages, construct_tool_dicts
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelCard, ModelList
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens, validate_json_request, with_cancellation
from vllm.exceptions import VLLMClientError
from vllm.renderers.chat_utils import load_chat_template
from vllm.renderers.hf import safe_apply_chat_template
from vllm.tool_parsers.utils import custom_tool_as_function_dict
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.import_utils import import_from_path
from vllm.utils.system_utils import set_ulimit

from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, AllAnswer, Split, Tokens
from trimtab.engine.aligned_client import AlignedClient
from trimtab.engine.flags import name_keys
from trimtab.engine.gang_config import number_adapters, schedule_gangs
from trimtab.engine.launch import EngineSpec
from trimtab.engine.members import engine_args
from trimtab.engine.parts import PartsReader
from trimtab.engine.toy_client import ToyClient, build_toy_client
from trimtab.engine.vllm_engine import VLLMEngine
from trimtab.engine.vllm_moves import make_arg_parser, validate_parsed_serve_args
from trimtab.runtime.shares import Shares
from trimtab.server.config import Config, ConfigError
from trimtab.server.errors import ApiError, to_api_error
from trimtab.server.http.context import PARSED
from trimtab.server.request.alignment import MAX_PROMPTS, OWN_PROMPT
from trimtab.server.request.cost import Extent
from trimtab.server.request.messages import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from trimtab.server.request.threads import run_beside
from trimtab.server.wording import explain_request, quote, suggest

__all__ = ["EngineClient", "ModelCard", "ModelList", "NoSignalServer", "arguments", "with_cancellation"]

COUNT, TOKENIZE, DETOKENIZE = f"{MESSAGES}/count_tokens", "/tokenize", "/detokenize"

ROUTES = frozenset(
    {CHAT, COMPLETIONS, RESPONSES, f"{RESPONSES}/{{response_id}}", f"{RESPONSES}/{{response_id}}/cancel", MESSAGES}
    | {COUNT, TOKENIZE, DETOKENIZE, "/v1/models", "/health", "/metrics", "/version"}
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
    | {"disable_fastapi_docs", "lora_modules"}
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
            flags += [f"--{flag}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in value)]
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
        load_plugins(args)
        if args.reasoning_parser:  # vLLM's app reads it there, where the engine's own start would put it later
            args.structured_outputs_config.reasoning_parser = args.reasoning_parser
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


def load_plugins(args: Namespace) -> None:
    """The files that bring parsers; raises ConfigError for one that does not run."""
    for key in ("tool_parser_plugin", "reasoning_parser_plugin"):
        if path := getattr(args, key):
            try:
                import_from_path(Path(path).stem, path)
            except Exception as error:
                raise ConfigError(f"{type(error).__name__}: {error}", key=f"engine.{key}") from None


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
    guides = {name: guide.model_dump(exclude_defaults=True) for name, guide in config.guide_models.items()}
    rows = config.guide_adapters
    for key, value in engine_args(config.base, guides, adapters=config.adapters, rows=rows, **options).items():
        setattr(args, key, value)
    spec = EngineSpec(name=BASE, args=AsyncEngineArgs.from_cli_args(args), usage=UsageContext.OPENAI_API_SERVER)
    schedule_gangs(spec.config, needed=[*config.contexts, *rows])
    return spec


def aligned_client(client: EngineClient, config: Config) -> AlignedClient:
    """The base's client, which aligns. Requests get fair shares where the configuration has no scheduling policy."""
    view = VLLMEngine(client=client, adapters=number_adapters(config.guide_adapters))

    def bind(context: Mapping[str, Any]) -> VLLMEngine:
        return view.for_request("trimtab", **context)

    return AlignedClient(client, bind, None if "scheduling_policy" in config.engine else Shares())


def build_toy(config: Config, args: Namespace) -> ToyClient:
    """A client with no engine behind it, to which every guide is a model, a client's prompts among them."""
    guides = [*config.guides, *(OWN_PROMPT.format(i) for i in range(MAX_PROMPTS))]
    return build_toy_client(AsyncEngineArgs.from_cli_args(args), guides, Plain())


async def openai_app(client: AlignedClient, args: Namespace) -> FastAPI:
    """vLLM's app around the client, cut down to ROUTES; its handlers get what `RequestReader` has parsed."""
    tasks = await client.get_supported_tasks()
    app: FastAPI = build_app(args, tasks, client.model_config)
    await init_app_state(client, app.state, args, tasks)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ROUTES]
    app.user_middleware[:] = [m for m in app.user_middleware if getattr(m, "cls", None) is not CORSMiddleware]
    for route in app.router.routes:
        if isinstance(route, APIRoute) and route.path in REQUEST_MODELS:
            ours = {TOKENIZE: _tokenize, DETOKENIZE: _detokenize}
            route.app = request_response(partial(_handle, ours.get(route.path, route.endpoint)))
    return app


REQUEST_MODELS: dict[str, TypeAdapter[Any]] = {
    CHAT: TypeAdapter(ChatCompletionRequest),
    COMPLETIONS: TypeAdapter(CompletionRequest),
    RESPONSES: TypeAdapter(ResponsesRequest),
    MESSAGES: TypeAdapter(AnthropicMessagesRequest),
    COUNT: TypeAdapter(AnthropicCountTokensRequest),
    TOKENIZE: TypeAdapter(TokenizeRequest),
    DETOKENIZE: TypeAdapter(DetokenizeRequest),
}
GENERATING = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES})
"""Paths that draw tokens."""

MAX_ITEMS = 4096
"""Messages, items and parts of a conversation: vLLM's model of one of the Responses API takes 70 us each."""

CLIENT_TOOLS = frozenset({"function", "custom", "namespace"})
"""Kinds of tools of the Responses API that a client runs by itself, and that vLLM shows to the model."""

TEMPLATE_ARGUMENTS = frozenset(signature(safe_apply_chat_template).parameters) | frozenset(
    signature(PreTrainedTokenizerBase.apply_chat_template).parameters
) - {"documents", "add_generation_prompt", "continue_final_message"}
"""Names that the template's callers have taken for arguments of their own."""


async def _handle(endpoint: Callable[..., Any], request: Request) -> Response:
    """vLLM's own handler, called with the request as it was parsed on its way in."""
    await validate_json_request(request)
    response = await endpoint(request.scope[PARSED], raw_request=request)
    return response if isinstance(response, Response) else Response(b"null", media_type="application/json")


@with_cancellation  # type: ignore[untyped-decorator]
async def _tokenize(parsed: Any, raw_request: Request) -> Response:
    return await _render_json(await raw_request.app.state.serving_tokenization.create_tokenize(parsed, raw_request))


@with_cancellation  # type: ignore[untyped-decorator]
async def _detokenize(parsed: Any, raw_request: Request) -> Response:
    return await _render_json(await raw_request.app.state.serving_tokenization.create_detokenize(parsed, raw_request))


async def _render_json(answer: Any) -> Response:
    """A token's id for each token of a long text takes as long to write as the text."""
    status = answer.error.code if isinstance(answer, ErrorResponse) else 200
    size = 8 * len(getattr(answer, "tokens", ())) + len(getattr(answer, "prompt", ""))
    return await run_beside(size, lambda: JSONResponse(answer.model_dump(), status_code=status))


@dataclass(frozen=True, kw_only=True)
class RequestReader:
    """What vLLM's app makes of a request's body."""

    app: FastAPI
    runs_tools: bool = False
    """Whether a tool server runs what a client does not."""

    @property
    def paths(self) -> frozenset[str]:
        """All whose bodies it reads."""
        return frozenset(REQUEST_MODELS)

    @property
    def generating(self) -> frozenset[str]:
        """Those of them on which tokens are drawn."""
        return GENERATING

    def fields(self, path: str) -> frozenset[str]:
        """The top-level fields that the path's request model has."""
        return request_fields()[path]

    def parse(self, path: str, document: Mapping[str, Any]) -> Any:
        """vLLM's model of the request; raises ApiError for what it is not, and for what can never fit or be run."""
        check_items(document)
        check_template_arguments(document.get("chat_template_kwargs"))
        if path == RESPONSES and not self.runs_tools:
            check_tools(document.get("tools"))
        try:
            parsed = read_body(path, document)
        except ValidationError as error:
            raise explain_request(error.errors(include_url=False)) from None
        except VLLMClientError as error:
            raise to_api_error(error) from None
        except (TypeError, ValueError, AttributeError, KeyError, IndexError):
            # vLLM's own checks look into fields before their types are known.
            raise ApiError("the request does not have the shape that this path reads") from None
        self._check_length(path, parsed)
        return parsed

    def extent(self, path: str, parsed: Any, size: int) -> Extent:
        """How much the request asks for, as vLLM makes its sampling parameters; its body has `size` bytes."""
        prompts = _prompts(path, parsed)
        known = [len(prompt) for prompt in prompts if isinstance(prompt, list)]
        values = vars(parsed)  # as an attribute, chat's `max_tokens` warns that it is deprecated
        bounds = [values.get(key) for key in ("max_completion_tokens", "max_tokens", "max_output_tokens")]
        bound = next((bound for bound in bounds if bound is not None), None)
        n = values.get("n") or 1
        if n > envs.VLLM_MAX_N_SEQUENCES:
            message = f"n must be at most {envs.VLLM_MAX_N_SEQUENCES}; got {quote(n)}"
            raise ApiError(message, param="n", code="out_of_range")
        texts = len(prompts) - len(known)
        return Extent(
            prompts=len(prompts),
            n=max(1, n),
            max_tokens=self.longest_answer(bound, min(known, default=1)),
            context=self.context,
            prompt_tokens=sum(known) + texts * min(self.context, size),
        )

    def longest_answer(self, bound: int | None, prompt: int = 1) -> int:
        """Tokens of an answer to a prompt of so many that a request bounds so, at the most; of none vLLM makes one."""
        serving = self.app.state.openai_serving_chat
        defaults, override = serving.default_sampling_params, serving.override_max_tokens
        longest: int = get_max_tokens(self.context, bound, min(prompt, self.context), defaults, override)
        return max(1, longest)

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer."""
        return int(self.app.state.openai_serving_chat.model_config.max_model_len)

    @property
    def longest_text(self) -> int:
        """Characters that a prompt can have at the most, whatever it says."""
        return self.context * int(self.app.state.openai_serving_chat.renderer.tokenizer.max_chars_per_token)

    def check_text(self, length: int) -> None:
        """Raises ApiError for a text of so many characters that no tokenising makes it fit, in vLLM's words."""
        if length > self.longest_text:
            raise ApiError(
                f"This model's maximum context length is {self.context} tokens. However, your prompt contains {length} "
                f"characters, and {self.context} tokens have at most {self.longest_text}. Please reduce the length of "
                "the input prompt.",
                param="input_text",
                code="context_length_exceeded",
            )

    def _check_length(self, path: str, parsed: Any) -> None:
        if path == DETOKENIZE:
            return self._check_tokens(parsed.tokens)
        if path == RESPONSES and parsed.truncation != "disabled":
            return
        if getattr(parsed, "truncate_prompt_tokens", None) is not None:
            return
        for prompt in _prompts(path, parsed):
            if isinstance(prompt, str):
                self.check_text(len(prompt))
            elif len(prompt) > self.context:
                raise ApiError(
                    f"This model's maximum context length is {self.context} tokens. However, your prompt contains "
                    f"{len(prompt)} tokens. Please reduce the length of the input prompt.",
                    param="input_tokens",
                    code="context_length_exceeded",
                )
        self.check_text(_count_characters(parsed))

    def _check_tokens(self, tokens: list[int]) -> None:
        if len(tokens) > self.context:
            message = f"tokens must be at most {self.context}, the model's context; got {len(tokens)}"
            raise ApiError(message, param="tokens", code="context_length_exceeded")
        vocabulary = len(self.app.state.openai_serving_chat.renderer.tokenizer)
        for i, token in enumerate(tokens):
            if token >= vocabulary:
                message = f"tokens.{i} must be below {vocabulary}, the vocabulary's size; got {quote(token)}"
                raise ApiError(message, param=f"tokens.{i}", code="out_of_range")

    def split(self, path: str, parsed: Any) -> Split:
        """How vLLM's parsers, as configured, take the request's completions apart. Of a bare prompt's they take the
        thoughts, which vLLM leaves in."""
        if path == COMPLETIONS:
            return self.split_written({})
        return self._split(path, parsed, written=_is_continued(path, parsed))

    def split_written(self, document: Mapping[str, Any]) -> Split:
        """How completions that a client wrote come apart, by the tools that stand in the body."""
        fields = ("tools", "tool_choice", "chat_template_kwargs", "reasoning_effort")
        body = {key: document[key] for key in fields if document.get(key) is not None}
        try:
            parsed = ChatCompletionRequest.model_validate({"messages": [], **body})
        except ValidationError as error:
            raise explain_refusal(error) from None
        return self._split(CHAT, parsed, written=True)

    def _split(self, path: str, parsed: Any, *, written: bool) -> Split:
        state = self.app.state
        responses = path == RESPONSES
        serving = state.openai_serving_responses if responses else state.openai_serving_chat
        parser_class = serving.parser if responses else serving.parser_cls
        if parser_class is None:
            return AllAnswer()

        @cache
        def request() -> tuple[Any, Any]:
            if path != MESSAGES:
                return parsed, serving._effective_chat_template_kwargs(parsed)
            chat = self._convert_messages(parsed)
            return chat, state.anthropic_serving_messages._effective_chat_template_kwargs(chat)

        def begin() -> tuple[Any, Any]:
            understood, kwargs = request()
            config, tokenizer = serving.model_config, serving.renderer.tokenizer
            parser = parser_class(tokenizer, understood.tools, chat_template_kwargs=kwargs, model_config=config)
            return parser, understood

        thinks = parser_class.reasoning_parser_cls is not None
        return PartsReader(begin=begin, auto_tools=serving.enable_auto_tools, written=written, thinks=thinks)

    def read_chat(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """A body's conversation and its tools as a chat request has them: what vLLM makes the prompt of.

        None of a bare prompt's. Raises ApiError for what vLLM cannot convert.

        It parses the body anew, because what vLLM has parsed for its handlers can be gone through only once.
        """
        if path == COMPLETIONS:
            return {}
        renderer = self.app.state.openai_serving_chat.online_renderer
        excludes = renderer.exclude_tools_when_tool_choice_none
        if path == CHAT:
            tools = None if excludes and document.get("tool_choice") == "none" else document.get("tools")
            return {"messages": document.get("messages"), "tools": tools}
        try:
            parsed = REQUEST_MODELS[path].validate_python(document)
            if path == RESPONSES:
                instructions, items = parsed.instructions, parsed.input
                messages = construct_input_messages(request_instructions=instructions, request_input=items)
                dumped = construct_tool_dicts(parsed.tools, parsed.tool_choice, excludes)
            else:
                chat = self._convert_messages(parsed)
                messages = chat.messages
                hidden = excludes and chat.tool_choice == "none"
                dumped = None if hidden else [tool.model_dump() for tool in chat.tools or ()]
            return {
                "messages": [_list_parts(message) for message in messages],
                "tools": [_drop_nulls(tool) for tool in dumped or ()],
            }
        except ValidationError as error:
            raise explain_refusal(error) from None
        except VLLMClientError as error:
            raise to_api_error(error) from None
        except (TypeError, ValueError, AttributeError, LookupError):
            raise ApiError("the request does not have the shape that this path reads") from None

    def _convert_messages(self, parsed: AnthropicMessagesRequest) -> ChatCompletionRequest:
        """vLLM's chat request for a request of Anthropic's; how thoughts are switched off it knows from the first that
        does."""
        serving = self.app.state.anthropic_serving_messages
        chat: ChatCompletionRequest = serving.to_chat_completion_request(
            parsed,
            merge_inline_system=serving._merge_inline_system,
            disabled_thinking_effort=serving._disabled_thinking_effort or "none",
        )
        return chat

    async def render(self, path: str, document: Mapping[str, Any], *, media: bool = False) -> Tokens:
        """The prompt of a request's body as the app would make it.

        Raises ApiError for what is no such body, and ValueError for one whose prompt cannot be made, or is more than
        tokens where it must be no more, without `media`.
        """
        try:
            parsed = await run_beside(_count_characters(document), read_body, path, document)
            answer, prompt = await self._render(path, parsed)
        except ValidationError as error:  # parts of messages are validated no sooner than they are rendered
            raise explain_refusal(error) from None
        except (TypeError, AttributeError, LookupError):  # vLLM's checks look into fields before their types are known
            raise ApiError("the messages do not have the shape that a request's have", param="messages") from None
        if prompt is None:
            raise ValueError(answer.error.message)
        if prompt["type"] not in (("token", "multimodal") if media else ("token",)):
            raise ValueError("what instructs the model needs a request whose messages are all text")
        tokens: Tokens = prompt["prompt_token_ids"]
        return tokens

    async def _render(self, path: str, parsed: Any) -> tuple[Any, Any]:
        """What the renderer answers, and the prompt in it if it is none of its errors."""
        renderer = self.app.state.openai_serving_chat.online_renderer
        if path == RESPONSES:
            if parsed.previous_response_id:
                raise ValueError("what instructs the model cannot be combined with previous_response_id")
            answer = await renderer.render_responses(parsed)
            return answer, getattr(answer, "engine_input", None)
        if path == COMPLETIONS:
            answer = await renderer.render_completion(parsed)
            return answer, answer[0] if isinstance(answer, list) else None
        if path == MESSAGES:
            parsed = self._convert_messages(parsed)
        answer = await renderer.render_chat(parsed)
        return answer, answer[1][0] if isinstance(answer, tuple) else None


def _is_continued(path: str, parsed: Any) -> bool:
    """Whether the answer goes on from a message that the client wrote."""
    if path == RESPONSES:
        last = parsed.input[-1] if isinstance(parsed.input, list) and parsed.input else None
        status = last.get("status") if isinstance(last, Mapping) else getattr(last, "status", None)
        return status in ("in_progress", "incomplete")
    return bool(getattr(parsed, "continue_final_message", False))


def _list_parts(message: Any) -> dict[str, Any]:
    """A message of vLLM's with lists for what can be gone through only once."""
    listed = dict(message)
    for key in ("content", "tool_calls"):
        if not isinstance(listed.get(key), str | None):
            listed[key] = list(listed[key])
    return listed


def _drop_nulls(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A chat request's tool without what its client left out."""
    return {**tool, "function": {key: value for key, value in tool["function"].items() if value is not None}}


def _prompts(path: str, parsed: Any) -> list[Any]:
    """A request's prompts: texts, or lists of tokens; a conversation is one."""
    prompt = getattr(parsed, "prompt", None) if path in (COMPLETIONS, TOKENIZE) else ""
    if not isinstance(prompt, list):
        return [prompt or ""]
    return prompt if prompt and not isinstance(prompt[0], int) else [prompt]


def _count_characters(value: Any) -> int:
    """Of the texts of a conversation, wherever in it they stand."""
    fields = ("messages", "input", "instructions", "system")
    level = [value.get(f) if isinstance(value, Mapping) else getattr(value, f, None) for f in fields]
    count = 0
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                count += len(item)
            elif isinstance(item, Mapping):
                inner += [part for key, part in item.items() if key in ("content", "text")]
            elif isinstance(item, list | tuple):
                inner += item
            elif item is not None:
                inner += [getattr(item, key, None) for key in ("content", "text")]
        level = inner
    return count


def check_items(document: Mapping[str, Any]) -> None:
    """Raises ApiError for a conversation of more pieces than any is."""
    for key in ("messages", "input", "system"):
        items = document.get(key)
        if not isinstance(items, list):
            continue
        contents = [item.get("content") for item in items if isinstance(item, Mapping)]
        count = len(items) + sum(len(content) for content in contents if isinstance(content, list))
        if count > MAX_ITEMS:
            message = f"{key} must hold at most {MAX_ITEMS} messages and parts of messages; got {count}"
            raise ApiError(message, param=key, code="out_of_range")


def check_template_arguments(kwargs: Any) -> None:
    """Raises ApiError for what is no variable of a template but an argument of its callers."""
    clash = sorted(set(kwargs) & TEMPLATE_ARGUMENTS) if isinstance(kwargs, Mapping) else []
    if clash:
        at = f"chat_template_kwargs.{clash[0]}"
        message = f"{at} cannot be set: it is no variable of the chat template but an argument of what renders it"
        raise ApiError(message, param=at, code="unsupported_parameter")


class ReadableFunction(FunctionTool):
    """A function of the Responses API that reads as one of chat's too. Some of vLLM's tool parsers know no other."""

    @property
    def function(self) -> FunctionTool:
        return self


class ReadableCustomTool(CustomTool):
    """As the function that vLLM shows to the model in its place."""

    @property
    def function(self) -> FunctionTool:
        return FunctionTool.model_validate(custom_tool_as_function_dict(self))


class ReadableNamespace(NamespaceTool):
    """As a function that nobody calls: parsers look for names, and those of its functions are longer."""

    @property
    def function(self) -> FunctionTool:
        return FunctionTool(type="function", name=self.name, parameters=None, strict=None)


READABLE: dict[type, Any] = {
    FunctionTool: ReadableFunction,
    CustomTool: ReadableCustomTool,
    NamespaceTool: ReadableNamespace,
}


def read_body(path: str, document: Mapping[str, Any]) -> Any:
    """vLLM's model of the request, its tools such that every parser of vLLM's can read them; raises what vLLM does."""
    parsed = REQUEST_MODELS[path].validate_python(document)
    if path == RESPONSES:
        parsed.tools = [
            kind.model_validate(tool.model_dump(by_alias=True, exclude_unset=True))
            if (kind := READABLE.get(type(tool)))
            else tool
            for tool in parsed.tools
        ]
    return parsed


def check_tools(tools: Any) -> None:
    """Raises ApiError for tools that nobody would run: neither a server of tools nor, unlike functions, the client."""
    for i, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if isinstance(kind, str) and kind not in CLIENT_TOOLS:
            valid = ", ".join(sorted(CLIENT_TOOLS))
            message = f"tools.{i}: nobody runs tools of type {quote(kind)} on this server; valid: {valid}"
            raise ApiError(message, param=f"tools.{i}.type", code="unsupported_parameter")


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
