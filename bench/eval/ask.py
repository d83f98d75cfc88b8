"""Asks a server for answers and for their scores; what fails is tried again where that can help, and recorded."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from trimtab.bench.eval.archive import Archive, Record, digest
from trimtab.bench.eval.inputs import EvalError, EvalPrompt, Setting
from trimtab.bench.load.client import Client
from trimtab.bench.load.exchange import Exchange, Outcome
from trimtab.bench.load.mix import CHAT, MixEntry, Request

CATALOGUE, SCORE = "/v1/alignment", "/v1/alignment/score"
ANSWERED = (Outcome.OK, Outcome.LIMITED, Outcome.DEGRADED)
TEMPLATE_FIELDS = (
    *("tools", "tool_choice", "documents", "chat_template_kwargs", "reasoning_effort"),
    *("add_generation_prompt", "continue_final_message"),
)
"""Fields of a chat request that say how its messages are rendered, for the model and so for a reward."""
PASSING = (408, 409, 429)
"""Statuses of a request that may fare better later, beside all from 500."""
KL = ("kl_exact", "kl_estimate", "kl_bound")
LONGEST_BACKOFF = 30.0
"""Seconds before another try, where the server does not say how long to wait."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which answer: of a setting, to a prompt, the how many-th."""

    setting: str
    prompt: int
    sample: int


@dataclass(frozen=True, kw_only=True)
class AnswerRequest:
    place: Place
    body: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Of its answer in the archive. Two settings of one body are asked apart: their difference is the noise."""
        return digest(self.place.setting, self.body)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What was not answered, or not scored by `reward`, after all tries."""

    place: Place
    reward: str | None
    message: str


@dataclass(kw_only=True)
class Asker:
    client: Client
    answers: Archive
    scores: Archive
    timeout: float
    """Seconds for an answer."""
    retries: int
    concurrency: int
    failures: list[Failure] = field(default_factory=list)

    async def answer(self, requests: Sequence[AnswerRequest]) -> None:
        """Asks for those answers that the archive lacks."""

        async def ask(request: AnswerRequest) -> None:
            exchange, repeated = await self.send(CHAT, request.body)
            record = read_answer(exchange) if exchange.outcome in ANSWERED else None
            if record is None:
                self.failures.append(Failure(place=request.place, reward=None, message=self.explain(exchange)))
            else:
                self.answers.add({"key": request.key, **vars(request.place), **record, "repeated": repeated})

        await self._run([request for request in requests if request.key not in self.answers.records], ask, "answers")

    async def score(self, bodies: Mapping[str, Mapping[str, Any]], places: Mapping[str, Sequence[Place]]) -> None:
        """Asks for those scores that the archive lacks; key -> body, and the answers that have this score."""

        async def ask(key: str) -> None:
            exchange, _ = await self.send(SCORE, bodies[key])
            value = read_score(exchange)
            if value is None:
                reward, message = bodies[key]["reward"], self.explain(exchange)
                self.failures += [Failure(place=place, reward=reward, message=message) for place in places[key]]
            else:
                self.scores.add({"key": key, "reward": bodies[key]["reward"], "value": value})

        await self._run([key for key in bodies if key not in self.scores.records], ask, "scores")

    async def check_reward(self, body: Mapping[str, Any]) -> None:
        """Raises EvalError for a reward that the server refuses, before hours are spent on answers."""
        exchange, _ = await self.send(SCORE, body)
        status = exchange.status
        if status is None or (400 <= status < 500 and status not in PASSING):
            raise EvalError(f"--reward {body['reward']}: {self.explain(exchange)}")

    async def send(self, path: str, body: Mapping[str, Any]) -> tuple[Exchange, list[str]]:
        """The last try, and how those before it ended."""
        content = json.dumps(body).encode()
        request = Request(
            entry=MixEntry(name=path, path=path), content=content, hang_up=self.timeout, keep_document=True
        )
        repeated: list[str] = []
        while True:
            exchange = Exchange(request=request, intended=time.monotonic())
            await self.client(exchange)
            if len(repeated) == self.retries or not may_help_to_retry(exchange):
                return exchange, repeated
            await asyncio.sleep(wait_before_retry(exchange, len(repeated)))
            repeated.append(str(exchange.status or exchange.outcome))

    def explain(self, exchange: Exchange) -> str:
        """Why there is no answer."""
        if exchange.hung_up:
            return f"no answer within {self.timeout:g} s"
        status = f"{exchange.status}: " if exchange.status not in (None, 200) else ""
        return status + " ".join((exchange.failure or "an answer that cannot be read").split())

    async def _run(self, items: Collection[Any], work: Callable[[Any], Awaitable[None]], title: str) -> None:
        waiting = iter(items)
        with tqdm(total=len(items), desc=title, disable=None) as bar:

            async def work_off() -> None:
                for item in waiting:
                    await work(item)
                    bar.update()

            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(self.concurrency, len(items))):
                    tasks.create_task(work_off())


def may_help_to_retry(exchange: Exchange) -> bool:
    """As OpenAI's clients do, but not where `--timeout` ended it: the server would do all the work again."""
    if exchange.should_retry is not None:
        return exchange.should_retry == "true"
    status = exchange.status
    broken = exchange.outcome in (Outcome.CONNECTION, Outcome.INCOMPLETE)
    return broken or (status is not None and (status in PASSING or status >= 500))


def wait_before_retry(exchange: Exchange, tries: int) -> float:
    """Seconds: what the server's Retry-After says, or else twice as many after each try, and up to a half more."""
    try:
        seconds = float(exchange.retry_after or "")
        if 0 <= seconds < math.inf:
            return seconds
    except ValueError:  # an HTTP date, or nothing
        pass
    return min(LONGEST_BACKOFF, 0.5 * 2.0**tries) * random.uniform(1.0, 1.5)


def plan_answers(
    settings: Sequence[Setting], prompts: Sequence[EvalPrompt], *, model: str, n: int, seed: int
) -> list[AnswerRequest]:
    """Every setting answers every prompt n times, the i-th time with the same seed.

    Settings take turns, so that whatever changes on the server meets all of them.
    """
    return [
        AnswerRequest(
            place=Place(setting=setting.name, prompt=at, sample=sample),
            body={
                "model": model,
                **setting.body,
                "messages": list(prompt.messages),
                "seed": random.Random(f"{seed} {at} {sample}").randrange(2**31),
            },
        )
        for at, prompt in enumerate(prompts)
        for sample in range(n)
        for setting in settings
    ]


def score_body(
    setting: Setting, prompt: EvalPrompt, answer: Record, reward: str, needs: Collection[str]
) -> dict[str, Any]:
    """The request for an answer's score, in which the conversation is what the setting's request says it is."""
    body: dict[str, Any] = {"messages": list(prompt.messages), "responses": [answer["text"]], "reward": reward}
    body |= {name: setting.body[name] for name in TEMPLATE_FIELDS if name in setting.body}
    if comparands := {name: value for name, value in prompt.given.items() if name in needs}:
        body["given"] = comparands
    return body | {"finished": answer["finish_reason"] in ("stop", "tool_calls")}


def find_needs(reward: str, catalogue: Any) -> set[str]:
    """What a reward or an objective of the server's catalogue compares answers with."""
    rewards, objectives = (catalogue.get(name) or {} for name in ("rewards", "objectives"))

    def find_rewards(tree: Any) -> set[str]:
        """`tree` is a name, a list of trees, an object from name to weight, or one whose `of` is any of these."""
        if isinstance(tree, str):
            return {tree.partition(".")[0]}
        if isinstance(tree, Mapping) and "of" in tree:
            return find_rewards(tree["of"])
        return {name for part in tree for name in find_rewards(part)}

    objective = objectives.get(reward) or {}
    names = find_rewards(objective.get("reward") or reward)
    return {need for name in names if name in rewards for need in rewards[name].get("needs") or ()}


def read_answer(exchange: Exchange) -> dict[str, Any] | None:
    """What is recorded of an answer; None for one of another shape."""
    try:
        choice = exchange.document["choices"][0]
        text = choice["message"].get("content") or ""
    except (LookupError, TypeError, AttributeError):
        return None
    return {
        "text": str(text),
        "finish_reason": choice.get("finish_reason"),
        "outcome": exchange.outcome,
        "latency": exchange.service,
        "visible_tokens": exchange.visible_tokens,
        "sampled_tokens": exchange.sampled_tokens,
        "scored_tokens": exchange.scored_tokens,
        "kl": read_kl(exchange.alignment),
    }


def read_kl(alignment: Mapping[str, Any]) -> dict[str, float]:
    """The divergences from the base that a report has, in nats, by their names."""
    reports = alignment.get("choices") or [{}]
    report = dict(reports[0])
    trace = report.get("trace")
    if isinstance(trace, Mapping) and isinstance(trace.get("kl_exact"), list) and None not in trace["kl_exact"]:
        report["kl_exact"] = math.fsum(trace["kl_exact"])
    return {name: report[name] for name in KL if is_number(report.get(name))}


def read_score(exchange: Exchange) -> float | None:
    try:
        value = exchange.document["scores"][0]["value"]
    except (LookupError, TypeError):
        return None
    return float(value) if is_number(value) else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
