"""Whatever a client sends: no 5xx, strict JSON of the right shape, every field honoured or refused, sums that add up,
the same answer in company as alone, and nothing left running.

`TRIMTAB_HOSTILE_SEED` draws other bodies than the usual ones; a failure prints the seed, the body and what came.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from prometheus_client import REGISTRY

from tests.server.hostile.bodies import ANSWERS, CHAT, COMPLETIONS, INFER, MESSAGES, RESPONSES, SCORE, Body, bodies
from tests.waiting import until
from trimtab.runtime.toy_engine import ToyEngine

SEED = int(os.environ.get("TRIMTAB_HOSTILE_SEED", "0"))
LONGEST = 5
"""Tokens of the toy's longest answer, as by the length of its context."""
COMPANY = 16
"""Requests at once."""
SHOWN = int(os.environ.get("TRIMTAB_HOSTILE_SHOWN", "20"))
"""Faults that are printed."""
INTERNALS = re.compile(
    r"Traceback|File \"|object at 0x|NoneType|zip\(\)|positional argument|unexpected keyword|list index"
    r"|has no attribute|overflow encountered|not subscriptable|unhashable"
    r"|unsupported operand|could not broadcast|pydantic|KeyError|TypeError"
)
"""What a message holds where Python's own words got into it."""
EMPTY_HANDED = {"deadline_exceeded", "budget_exceeded"}
"""What was allowed passed before there was anything to answer with: a 504, and a 400."""
LENGTH, STOP = {"length", "max_tokens"}, {"stop", "end_turn", "stop_sequence", "tool_calls"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: httpx.Headers
    text: str

    @property
    def document(self) -> Any:
        return parse(self.text)


def draw_bodies(count: int) -> list[Body]:
    drawn: list[Body] = []

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(bodies())
    def collect(body: Body) -> None:
        drawn.append(body)

    collect()
    return drawn[:count]


def parse(text: str) -> Any:
    """Strict JSON, which knows no NaN."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


async def send(raw: httpx.AsyncClient, body: Body) -> Answer:
    answer = await raw.post(body.path, content=body.raw, headers={"content-type": "application/json"})
    return Answer(answer.status_code, answer.headers, answer.content.decode())


def count_outcomes() -> float:
    return sum(
        sample.value
        for family in REGISTRY.collect()
        if family.name == "trimtab_requests"
        for sample in family.samples
        if sample.name == "trimtab_requests_total"
    )


def check(body: Body, answer: Answer) -> None:
    assert answer.headers.get("x-request-id"), "no id"
    if answer.status != 200:
        check_refusal(answer)
    elif body.streams and body.path in ANSWERS:
        check_stream(body, answer)
    else:
        check_answer(body, answer.document)
    if answer.status == 200 and body.path in ANSWERS and body.alignment and not body.streams:
        ran = answer.document["alignment"]["strategy"]
        assert answer.headers.get("x-alignment-strategy") == ran
        assert ran in (body.alignment.get("strategy", ran), "plain"), "another strategy than was asked for"
        assert ran != "plain" or body.alignment.get("strategy", ran) == ran or body.alignment["on_error"] == "degrade"


def check_refusal(answer: Answer) -> None:
    error = answer.document["error"]
    assert isinstance(error["message"], str), error
    assert error["message"], error
    late = answer.status == 504 and error.get("code") == "deadline_exceeded"
    assert answer.status < 500 or late or is_faulty(error), error
    assert not INTERNALS.search(error["message"]), error["message"]


def is_faulty(error: dict[str, Any]) -> bool:
    """Whether it is one of the rewards that are there to fail."""
    return error.get("code") == "reward_error"


def check_stream(body: Body, answer: Answer) -> None:
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    documents = [parse(event) for event in events if event != "[DONE]"]
    assert documents, "an empty stream"
    errors = [document for document in documents if "error" in document and document["error"] is not None]
    for document in errors:
        assert is_faulty(document["error"]) or document["error"].get("code") in EMPTY_HANDED, document
    if errors or body.path not in (CHAT, COMPLETIONS):
        return
    assert events[-1] == "[DONE]"
    texts: dict[int, str] = {}
    finishes: dict[int, str] = {}
    usage: dict[str, Any] = {}
    for document in documents:
        for choice in document.get("choices", ()):
            piece = choice["text"] if body.path == COMPLETIONS else choice["delta"].get("content")
            texts[choice["index"]] = texts.get(choice["index"], "") + (piece or "")
            if choice["finish_reason"]:
                assert choice["index"] not in finishes, "two ends"
                finishes[choice["index"]] = choice["finish_reason"]
        usage = document.get("usage") or usage
    assert finishes.keys() == texts.keys()
    alignment = next((d["alignment"] for d in reversed(documents) if d.get("alignment")), {})
    assert alignment or not body.alignment, "no alignment in the stream"
    check_choices(body, list(texts.values()), list(finishes.values()), usage, alignment)


def check_answer(body: Body, document: Any) -> None:
    if body.path == SCORE:
        assert len(document["scores"]) == len(body.document["responses"])
        return
    if body.path == INFER:
        assert isinstance(document["weights"], dict)
        return
    alignment, usage = document.get("alignment") or {}, document.get("usage") or {}
    if body.path in (CHAT, COMPLETIONS):
        texts = [
            choice["text"] if body.path == COMPLETIONS else choice["message"]["content"] or ""
            for choice in document["choices"]
        ]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        check_choices(body, texts, [choice["finish_reason"] for choice in document["choices"]], usage, alignment)
    elif body.path == RESPONSES:
        assert document["object"] == "response"
        assert usage["output_tokens"] <= (body.document.get("max_output_tokens") or 10**6)
    elif body.path == MESSAGES:
        assert document["type"] == "message"
        assert usage["output_tokens"] <= body.document["max_tokens"]


def check_choices(
    body: Body, texts: list[str], finishes: list[str], usage: dict[str, Any], alignment: dict[str, Any]
) -> None:
    asked = body.document
    n = int(asked.get("n") or 1)
    prompts = 1
    if body.path == COMPLETIONS and isinstance(asked["prompt"], list) and asked["prompt"]:
        # ["8", 2] is one prompt of two tokens to vLLM
        prompts = len(asked["prompt"]) if all(isinstance(part, str | list) for part in asked["prompt"]) else 1
    assert len(texts) == n * prompts, f"{len(texts)} answers for n={n}, {prompts} prompts"
    assert set(finishes) <= LENGTH | STOP, finishes
    stops = [asked["stop"]] if isinstance(asked.get("stop"), str) else asked.get("stop") or []
    # vLLM looks for stop strings behind the first min_tokens only
    if not asked.get("include_stop_str_in_output") and not asked.get("echo") and not asked.get("min_tokens"):
        for text in texts:
            assert not any(stop in text for stop in stops if stop), f"stop string in {text!r}"
    most = asked.get("max_completion_tokens") or asked.get("max_tokens")
    if usage and most:
        assert usage["completion_tokens"] <= int(most) * n * prompts, "max_tokens"
    if "sampled_tokens" in alignment and usage:
        sampled = alignment["sampled_tokens"]
        assert sampled >= usage["completion_tokens"], "fewer sampled than shown"
        details = usage.get("completion_tokens_details") or {}
        assert details.get("sampled_tokens", sampled) == sampled, "two counts of one thing"
        cap = (body.alignment.get("budget") or {}).get("max_sampled_tokens")
        if cap and "transform" not in json.dumps(body.alignment):  # whose references are nobody's answers
            side_by_side = math.prod(
                alignment.get("params", {}).get(k, 1) for k in ("n", "k", "m", "chains", "rollouts")
            )
            assert sampled <= cap + n * prompts * side_by_side - 1, f"budget {cap}, sampled {sampled}"
    if alignment.get("outcome") is None and "length" in finishes and most and usage and len(texts) == 1:
        assert usage["completion_tokens"] == min(int(most), LONGEST), "cut, yet not at max_tokens"


@dataclass
class Fault:
    body: Body
    answer: Answer | None
    reason: str

    def __str__(self) -> str:
        came = "" if self.answer is None else f"{self.answer.status} {self.answer.text[:300]}"
        return f"{self.reason}\n    POST {self.body.path} {self.body.raw.decode()[:1500]}\n    {came}"


async def try_bodies(raw: httpx.AsyncClient, toy: ToyEngine, drawn: list[Body]) -> list[Fault]:
    """Everything at once, then again alone what has a seed."""
    faults: list[Fault] = []
    limit = asyncio.Semaphore(COMPANY)
    answers: list[Answer | None] = [None] * len(drawn)

    async def try_one(i: int) -> None:
        async with limit:
            try:
                answers[i] = await send(raw, drawn[i])
                check(drawn[i], answers[i])  # type: ignore[arg-type]
            except Exception as error:
                faults.append(Fault(drawn[i], answers[i], f"{type(error).__name__}: {str(error)[:300]}"))

    before = count_outcomes()
    await asyncio.gather(*(try_one(i) for i in range(len(drawn))))
    with suppress(TimeoutError):  # a request is counted when it is over, which its client may see first
        await until(lambda: count_outcomes() - before >= len(drawn) and not toy.live)
    counted = count_outcomes() - before
    if counted != len(drawn):
        reason = f"{counted:.0f} outcomes in trimtab_requests_total of {len(drawn)} requests; one without:"
        faults += [Fault(body, answer, reason) async for body, answer in find_uncounted(raw, drawn)]
    if toy.live:
        faults.append(Fault(drawn[0], None, f"{toy.live} calls of the engine left running"))
    for body, answer in itertools.islice(
        ((b, a) for b, a in zip(drawn, answers, strict=True) if a is not None and a.status == 200 and b.is_repeatable),
        40,
    ):
        alone = await send(raw, body)
        if shown(body, alone) != shown(body, answer):
            faults.append(Fault(body, alone, f"in company it was {answer.text[:300]}"))
    return faults


def shown(body: Body, answer: Answer) -> Any:
    """What a client shows of it."""
    if body.streams:
        events = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
        choices = [choice for event in events for choice in json.loads(event).get("choices", ())]
        texts: dict[int, str] = {}
        for choice in choices:
            texts[choice["index"]] = texts.get(choice["index"], "") + str(
                choice.get("text") or choice.get("delta", {}).get("content") or ""
            )
        return texts
    return [
        choice["text"] if body.path == COMPLETIONS else choice["message"]["content"]
        for choice in answer.document.get("choices", ())
    ]


async def find_uncounted(raw: httpx.AsyncClient, drawn: list[Body]) -> AsyncIterator[tuple[Body, Answer]]:
    """A few of the requests that have not one outcome, asked one by one."""
    found = 0
    for body in drawn:
        before = count_outcomes()
        answer = await send(raw, body)
        if count_outcomes() != before + 1 and (found := found + 1) <= 5:
            yield body, answer


async def run_bodies(raw: httpx.AsyncClient, toy: ToyEngine, count: int) -> None:
    sys.stdout.write(f"TRIMTAB_HOSTILE_SEED={SEED}, {count} bodies\n")
    drawn = await asyncio.to_thread(draw_bodies, count)
    assert len(drawn) == count
    faults = await try_bodies(raw, toy, drawn)
    assert not faults, f"{len(faults)} faults under seed {SEED}\n" + "\n".join(map(str, faults[:SHOWN]))


@pytest.mark.parametrize(
    "alignment", [None, *({"strategy": name, "weights": {"a": 1.0}} for name in ("best_of_n", "args"))]
)
async def test_an_empty_prompt_is_refused_as_by_an_engine(raw: httpx.AsyncClient, alignment: Any) -> None:
    body = Body(COMPLETIONS, {"model": "toy", "prompt": ["", ""], "echo": True, "alignment": alignment or {}}, True)
    answer = await send(raw, body)
    assert (answer.status, answer.document["error"]["type"]) == (400, "invalid_request_error")
    assert answer.document["error"]["message"]


async def test_a_hundred_bodies(raw: httpx.AsyncClient, toy: ToyEngine) -> None:
    await run_bodies(raw, toy, 100)


@pytest.mark.slow
async def test_two_thousand_bodies(raw: httpx.AsyncClient, toy: ToyEngine) -> None:
    await run_bodies(raw, toy, 2000)
