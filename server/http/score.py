"""POST /v1/alignment/score: answers of the client's own, scored as a search would score them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import Receive

from trimtab.decoders.protocols import LimitReached, Split, Tokens, Work
from trimtab.rewards.protocols import Response as RewardResponse
from trimtab.server.errors import ApiError, to_api_error
from trimtab.server.http.context import PARSED, Enquiry, Reader
from trimtab.server.request.alignment import Comparands
from trimtab.server.request.body import Json
from trimtab.server.request.cost import reference_length
from trimtab.server.request.messages import CHAT, COMPLETIONS, check_messages
from trimtab.server.request.reward_tree import Spec, explain, parse_spec, weigh_objectives
from trimtab.server.request.threads import run_beside
from trimtab.server.request.weights import parse_weights
from trimtab.server.scoring import BaseHost, RequestReward, Scoring
from trimtab.server.wording import explain_validation

FRAME = 64
"""Tokens that a chat template puts around a message, at the most."""

MAX_RESPONSES = 1024
"""Responses in one request."""


RENDERED = (
    *("messages", "tools", "tool_choice", "documents", "chat_template_kwargs", "reasoning_effort"),
    *("add_generation_prompt", "continue_final_message"),
)
"""The messages, and the fields that go to the chat template with them, as in a chat request."""


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


async def respond(request: Request) -> Response:
    """What the `Enquiry` of the request answers, unless its client leaves before."""
    enquiry: Enquiry = request.scope[PARSED]
    usage = enquiry.run.usage
    work = asyncio.ensure_future(enquiry.answer())
    gone = asyncio.ensure_future(wait_until_gone(request.receive))
    try:
        async with asyncio.timeout_at(usage.deadline):
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            enquiry.abandoned = True
            return Response(b"null", media_type="application/json")
        return JSONResponse(work.result())
    except TimeoutError:
        usage.record_limit("deadline")
        enquiry.run.failure = LimitReached("deadline")
        return to_api_error(enquiry.run.failure).response()
    except Exception as error:
        enquiry.run.failure = error
        refusal = to_api_error(error)
        if refusal.code == "internal_error":
            raise
        return refusal.response()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def wait_until_gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(kw_only=True)
class ScoreEnquiry(Enquiry):
    request: ScoreRequest
    spec: Spec
    scoring: Scoring
    split: Split
    max_tokens: int
    """Of the longest answer that the base may be asked for, to compare with."""

    @classmethod
    def of(cls, document: Json, scoring: Scoring, reader: Reader) -> ScoreEnquiry:
        """By default every objective that has a reward, weighted 1. Raises ApiError."""
        try:
            request = ScoreRequest.model_validate(document)
        except ValidationError as error:
            raise explain_validation(error, at="", fields=ScoreRequest.model_fields) from None
        written, config = request.model_fields_set, scoring.config
        if ("messages" in written) == ("prompt" in written):
            raise ApiError("give either messages or prompt", param="messages", code="missing_required_parameter")
        if "prompt" in written:
            for name in RENDERED[1:]:
                if getattr(request, name) is not None:
                    raise refuse_beside_prompt(name)
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
        scoring.check_conversation([spec], CHAT, document, written=True)
        max_tokens = reader.longest_answer(request.max_tokens)
        work = estimate([spec], [(document, request.responses)], scoring, reader, max_tokens)
        return cls(
            name="score",
            document=document,
            work=work,
            request=request,
            spec=spec,
            scoring=scoring,
            split=reader.split_written(document),
            max_tokens=max_tokens,
        )

    async def answer(self) -> Json:
        """Per response its value and what it came from."""
        request, usage = self.request, self.run.usage
        reward = await run_beside(
            count_texts(self.document, ()),
            partial(
                RequestReward.of_document,
                CHAT if "messages" in self.document else COMPLETIONS,
                self.document,
                scoring=self.scoring,
                specs=(self.spec,),
                given=request.given.model_dump(exclude_unset=True),
                usage=usage,
                max_tokens=self.max_tokens,
                split=self.split,
            ),
        )
        rows = await score_texts(self.document, request.responses, reward, finished=request.finished)
        return {
            "object": "alignment.scores",
            "model": self.scoring.config.model_name,
            "scores": [{"index": i, **explain(value)} for i, [value] in enumerate(rows)],
            "scored_tokens": usage.scored,
            "sampled_tokens": usage.sampled,
        }


def estimate(
    specs: Sequence[Spec],
    conversations: Sequence[tuple[Json, Sequence[str]]],
    scoring: Scoring,
    reader: Reader,
    max_tokens: int,
) -> Work:
    """The most that it can cost to score responses to conversations; no text has more tokens than bytes.

    Raises ApiError for a text that can never fit, and for messages of no message's shape.
    """
    rewards = {leaf.reward for spec in specs for leaf in spec.leaves}
    references = max((spec.references for spec in specs), default=0)
    context = reader.context
    length = min(reference_length(max_tokens), context)
    prompts = read = 0
    for document, responses in conversations:
        check_messages(document)
        texts = [*find_texts(document)]
        reader.check_text(sum(map(len, texts)))
        prompt = min(context, sum(len(text.encode()) for text in texts) + FRAME * (1 + len(texts)))
        prompts += prompt
        for response in responses:
            reader.check_text(len(response))
            tokens = min(context, len(response.encode()) + 1)
            read += sum(scoring.reads(reward, prompt, tokens) for reward in rewards)
        read += references * sum(scoring.reads(reward, prompt, length) for reward in rewards)
    drawn = references * len(conversations)
    return Work(candidates=drawn, sampled=drawn * length, reward_tokens=read, prompt=prompts)


def refuse_beside_prompt(name: str, at: str = "") -> ApiError:
    """The refusal of a field that goes to the chat template; `at` is put before its name."""
    message = f"{at}{name} goes to the chat template, which a bare prompt does without: give messages, or leave it out"
    return ApiError(message, param=f"{at}{name}", code="unsupported_pair")


def find_texts(value: Any) -> Iterator[str]:
    """The texts of a body's conversation; tools and calls of them are texts as JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from find_texts(item)
    elif isinstance(value, dict):
        for key in ("messages", "prompt", "content", "text"):
            if key in value:
                yield from find_texts(value[key])
        for key in ("tools", "tool_calls"):
            if value.get(key):
                yield json.dumps(value[key], ensure_ascii=False)


def count_texts(document: Json, responses: Sequence[str]) -> int:
    """Characters of a conversation and of responses to it."""
    return sum(map(len, find_texts(document))) + sum(map(len, responses))


async def score_texts(
    document: Json, texts: Sequence[str], reward: RequestReward, *, finished: bool
) -> list[list[float]]:
    """[N, K] scores of responses that a client wrote; raises ApiError, and RewardError where a reward fails."""

    prompt = await render_prompt(document, reward)
    responses = await run_beside(
        sum(map(len, texts)), partial(encode_responses, prompt, texts, reward, finished=finished)
    )
    return await reward.score(prompt, responses)


async def render_prompt(document: dict[str, Any], reward: RequestReward) -> Tokens:
    """What the base reads of a body with messages, or with a bare prompt, in a request for an answer.

    Raises ValueError for what vLLM's app would refuse.
    """
    host = reward.scoring.host
    assert isinstance(host, BaseHost)
    body = {key: document[key] for key in ("prompt", *RENDERED) if document.get(key) is not None}
    return await host.render_body(reward.path, body, media=True)  # what would read it has been refused


def encode_responses(
    prompt: Tokens, texts: Sequence[str], reward: RequestReward, *, finished: bool
) -> list[RewardResponse]:
    """[N] texts as answers of a search would be: with their end of sequence, unless they are beginnings."""
    return [reward.encode(prompt, text, finished=finished) for text in texts]
