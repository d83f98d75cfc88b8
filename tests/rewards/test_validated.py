from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from tests.rewards.conftest import question, response
from trimtab.rewards.protocols import Question, Response, RewardError
from trimtab.rewards.turns import READINGS, gather_in_turn, restart_clock
from trimtab.rewards.validated import ValidatedScorer


@dataclass(frozen=True, kw_only=True)
class Fake:
    """Two columns of whatever it is told to give."""

    gives: Callable[[], Awaitable[Any]]
    labels: tuple[str, ...] = ("good", "brief")
    needs: frozenset[str] = frozenset()

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        rows: list[list[float]] = await self.gives()
        return rows


def give(rows: Any) -> Fake:
    async def gives() -> Any:
        return rows

    return Fake(gives=gives)


def fail(error: BaseException) -> Fake:
    async def gives() -> Any:
        raise error

    return Fake(gives=gives)


async def call_validated(scorer: Fake, seconds: float = 5, **fields: Any) -> list[list[float]]:
    return await ValidatedScorer(scorer=scorer, name="kind", timeout=seconds)(
        question(**fields), [response("a"), response("b")]
    )


async def test_what_is_sound_passes_as_floats() -> None:
    rows = await call_validated(give([(1, 2.5), [-1e308, 0]]))
    assert rows == [[1, 2.5], [-1e308, 0]]
    assert all(type(score) is float for row in rows for score in row)
    sound = ValidatedScorer(scorer=give([]), name="kind", timeout=1)
    assert (sound.labels, sound.needs) == (("good", "brief"), frozenset())
    assert await sound(question(), []) == []


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[0.0, 1.0], [math.nan, 1.0]], "reward 'kind', response 1, good: nan is no score"),
        ([[0.0, math.inf], [0.0, 1.0]], "reward 'kind', response 0, brief: inf is no score"),
        ([[0.0, 1.0], [0.0, -math.inf]], "response 1, brief: -inf is no score"),
        ([[0.0, 1.0]], "reward 'kind' gave 1 rows for 2 responses"),
        ([[0.0, 1.0]] * 3, "gave 3 rows for 2 responses"),
        (None, "gave a NoneType and no rows for 2 responses"),
        ([[0.0, 1.0], [0.0]], "reward 'kind', response 1: 1 columns for the 2 labels"),
        ([[0.0, 1.0], [0.0, 1.0, 2.0]], "response 1: 3 columns"),
        ([[0.0, 1.0], 3.0], "response 1: a float and no columns"),
        ([[0.0, 1.0], "12"], "response 1: "),
        ([["0", 1.0], [0.0, 1.0]], "response 0, good: a str is no score"),
        ([[0.0, None], [0.0, 1.0]], "response 0, brief: a NoneType is no score"),
        ([[0.0, 10**400], [0.0, 1.0]], "response 0, brief: 10*0 is no score"),
        ([[True, 1.0], [0.0, 1.0]], "response 0, good: a bool is no score"),
    ],
)
async def test_what_is_not_is_an_error_that_says_where(rows: Any, says: str) -> None:
    with pytest.raises(RewardError, match=says):
        await call_validated(give(rows))


@pytest.mark.usefixtures("no_waits")
async def test_too_slow_is_an_error_and_is_ended() -> None:
    ended = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(
        RewardError, match=r"^reward 'kind' failed: timed out after 0\.02 s \(rewards\.kind\.timeout_s\)$"
    ):
        await call_validated(Fake(gives=slow), seconds=0.02)
    assert ended.is_set()


@pytest.mark.parametrize("error", [
    KeyError("sk-1"), TimeoutError("sk-1"), OSError("http://u:sk-1@judge"), ZeroDivisionError("sk-1"),
    UnicodeDecodeError("utf-8", b"sk-1", 0, 1, "sk-1"), json.JSONDecodeError("sk-1", "sk-1", 0),
])  # fmt: skip
async def test_what_an_exception_says_is_for_the_log(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="trimtab")
    with pytest.raises(RewardError, match=r"^reward 'kind' failed: internal error$") as raised:
        await call_validated(fail(error))
    assert raised.value.__cause__ is error
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_its_own_reward_error_gets_its_name() -> None:
    with pytest.raises(RewardError, match="reward 'kind' failed: the engine is dead"):
        await call_validated(fail(RewardError("the engine is dead")))


async def test_the_requests_own_fault_passes() -> None:
    with pytest.raises(ValueError, match=r"^references must be a list$"):
        await call_validated(fail(ValueError("references must be a list")))
    with pytest.raises(VLLMValidationError, match=r"^Token id 300 is out of vocabulary"):
        await call_validated(fail(VLLMValidationError("Token id 300 is out of vocabulary")))
    needy = Fake(gives=give([[0.0, 0.0]] * 2).gives, needs=frozenset({"answer"}))
    with pytest.raises(ValueError, match="'kind' needs answer"):
        await call_validated(needy)
    assert await call_validated(needy, answer="42") == [[0, 0], [0, 0]]


async def test_cancellation_passes() -> None:
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(call_validated(Fake(gives=slow), seconds=90))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.usefixtures("no_waits")
async def test_the_clock_counts_from_the_last_part_that_was_done() -> None:
    """Six readings of 0.05 s each, one after another, under a timeout of 0.15 s."""

    async def steady() -> list[list[float]]:
        for _ in range(6):
            await asyncio.sleep(0.05)
            restart_clock()
        return [[0.0, 0.0]] * 2

    assert await call_validated(Fake(gives=steady), seconds=0.15) == [[0, 0], [0, 0]]
    with pytest.raises(RewardError, match="timed out"):
        await call_validated(Fake(gives=lambda: asyncio.sleep(0.3)), seconds=0.15)


@pytest.mark.usefixtures("no_waits")
async def test_the_clock_starts_when_the_engine_comes_to_it() -> None:
    """Until 0.3 s the engine answers others; from then on it does not, and 0.1 s later it is too late."""
    begun = time.monotonic()
    scorer = ValidatedScorer(
        scorer=Fake(gives=lambda: asyncio.sleep(60)),
        name="kind",
        timeout=0.1,
        active_at=lambda: min(time.monotonic(), begun + 0.3),
    )
    with pytest.raises(RewardError, match="timed out"):
        await scorer(question(), [])
    assert time.monotonic() - begun == pytest.approx(0.4)


async def test_calls_are_made_in_turn_and_few_at_a_time() -> None:
    turns, made, under_way, most = question().turns, list[int](), 0, 0

    async def call(i: int) -> int:
        nonlocal under_way, most
        made.append(i)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return i

    results = await asyncio.gather(*(gather_in_turn(turns, [lambda i=i: call(i) for i in part]) for part in
                                     (range(30), range(30, 60))))  # fmt: skip
    assert results == [list(range(30)), list(range(30, 60))]
    assert made == list(range(60))
    assert most == READINGS
