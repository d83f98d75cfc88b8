"""POST /v1/alignment/score: answers of the client's own, scored as a search would score them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab.decoders.protocols import Tokens
from trimtab.rewards.protocols import Response as RewardResponse
from trimtab.runtime.usage import Usage
from trimtab.server.errors import ApiError, to_api_error
from trimtab.server.http.auth import CALLER
from trimtab.server.request.alignment import Comparands
from trimtab.server.request.body import as_refusal, parse, read_body
from trimtab.server.request.messages import CHAT, COMPLETIONS
from trimtab.server.request.reward_tree import explain, parse_spec, weigh_objectives
from trimtab.server.request.weights import parse_weights
from trimtab.server.scoring import BaseHost, RequestReward
from trimtab.server.state import ServerState
from trimtab.server.wording import explain_validation

Handler = Callable[[dict[str, Any], ServerState], Awaitable[dict[str, Any]]]

MAX_RESPONSES = 1024
"""Responses in one request."""


RENDERED = (
    *("messages", "tools", "tool_choice", "documents", "chat_template_kwargs", "reasoning_effort"),
    *("add_generation_prompt", "continue_final_message"),
)
"""Fields that go to the chat template, as in a chat request."""


class ScoreRequest(BaseModel):
    """Answers to one conversation, or to one bare prompt."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str = ""
    messages: list[dict[str, Any]] = Field(default=[], min_length=1)
    prompt: str = Field(default="", min_length=1)
    responses: list[str] = Field(min_length=1, max_length=MAX_RESPONSES)
    tools: list[Any] | None = None
    tool_choice: Any = None
    documents: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """Like the fields above, what a chat request with it says to the chat template. Responses then continue it."""
    weights: dict[str, Any] = {}
    reward: Any = None
    given: Comparands = Comparands()
    finished: bool = True
    """Whether the responses are whole, with their end of sequence, and not beginnings."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Of the request that the responses answer: how long the answers of the base are that transforms compare with."""


async def respond(request: Request, state: ServerState, handler: Handler) -> Response:
    """What `handler` makes of the body, or what is wrong with it."""
    config = state.config
    try:
        body = await read_body(request.receive, config.max_body_mib)
        most = math.ceil(config.limits.scored_weight * len(body))  # it holds no more tokens than bytes
        with state.admission.admit((request.scope.get(CALLER, ""), True), most):
            return JSONResponse(await handler(parse(body), state))
    except (ApiError, RecursionError) as error:
        return as_refusal(error).response()
    except Exception as error:
        refusal = to_api_error(error)
        if refusal.code == "internal_error":
            raise
        return refusal.response()


async def score(document: dict[str, Any], state: ServerState) -> dict[str, Any]:
    """Per response its value and what it came from; by default every objective that has a reward, weighted 1.

    Raises ApiError, and RewardError where a reward fails.
    """
    try:
        request = ScoreRequest.model_validate(document)
    except ValidationError as error:
        raise explain_validation(error, at="", fields=ScoreRequest.model_fields) from None
    written, scoring, config = request.model_fields_set, state.scoring, state.config
    if ("messages" in written) == ("prompt" in written):
        raise ApiError("give either messages or prompt", param="messages", code="missing_required_parameter")
    if {"weights", "reward"} <= written:
        raise ApiError("weights and reward are two ways to say what is wanted: give one", param="reward")
    if "reward" in written:
        spec = parse_spec(request.reward, config, at="reward")
    else:
        every = {name: 1.0 for name, objective in config.objectives.items() if objective.reward is not None}
        if not every:
            raise ApiError("this server has no objective with a reward; name a reward", param="reward")
        weights = parse_weights(request.weights, config, at="weights") if "weights" in written else every
        spec = weigh_objectives(weights, config)
    compared_with = request.given.model_dump(exclude_unset=True)
    scoring.check(spec, compared_with, at="reward")
    scoring.check_given([spec], compared_with)
    usage = Usage()
    path = CHAT if "messages" in document else COMPLETIONS
    reward = RequestReward.of_document(
        path,
        document,
        scoring=scoring,
        specs=(spec,),
        given=compared_with,
        usage=usage,
        max_tokens=state.longest.of(document, path),
    )
    responses = encode_responses(request.responses, reward, finished=request.finished)
    rows = await reward.score(await render_prompt(document, reward), responses)
    return {
        "object": "alignment.scores",
        "model": config.model_name,
        "scores": [{"index": i, **explain(value)} for i, [value] in enumerate(rows)],
        "scored_tokens": usage.scored,
        "sampled_tokens": usage.sampled,
    }


async def render_prompt(document: dict[str, Any], reward: RequestReward) -> Tokens:
    """What the base reads of a body with messages, or with a bare prompt, in a request for an answer.

    Raises ApiError for messages of nobody, and ValueError for what vLLM's app would refuse.
    """
    if reward.path == CHAT and not any(message["role"] == "user" for message in reward.messages):
        raise ApiError("messages hold no message of the user's", param="messages")
    host = reward.scoring.host
    assert isinstance(host, BaseHost)
    body = {key: document[key] for key in ("prompt", *RENDERED) if document.get(key) is not None}
    return await host.render_body(reward.path, body)


def encode_responses(texts: Sequence[str], reward: RequestReward, *, finished: bool) -> list[RewardResponse]:
    """[N] texts as answers of a search would be: with their end of sequence, unless they are beginnings."""
    return [reward.encode(text, finished=finished) for text in texts]
