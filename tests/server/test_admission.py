"""Who is let in, what a request can cost, and what is told to those who must wait."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import ExitStack
from typing import Any

import pytest
from prometheus_client import REGISTRY

from trimtab.server.admission import LONGEST_WAIT, UNKNOWN_WAIT, WINDOW, Admission
from trimtab.server.config import Config, LimitsConfig
from trimtab.server.errors import ApiError
from trimtab.server.request import cost
from trimtab.server.request.plan import plan


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    return Admission(capacity=1000, clock=clock)


def refusal(admission: Admission, account: tuple[str, bool], tokens: int) -> ApiError:
    with pytest.raises(ApiError) as caught, admission.admit(account, tokens):
        pass
    return caught.value


def rejected(reason: str) -> float:
    return REGISTRY.get_sample_value("trimtab_admission_rejected_total", {"reason": reason}) or 0.0


def test_what_never_fits_is_a_400_and_what_does_not_fit_now_a_429(admission: Admission) -> None:
    before = {reason: rejected(reason) for reason in ("too_large", "capacity", "share")}
    never = refusal(admission, ("a", True), 1001)
    assert (never.status, never.code) == (400, "out_of_range")
    assert "1001 tokens" in never.message
    assert "limits.max_tokens, 1000" in never.message
    with admission.admit(("a", True), 600):
        now = refusal(admission, ("b", True), 500)
        assert (now.status, now.code, now.headers["retry-after"]) == (429, "rate_limit_exceeded", str(UNKNOWN_WAIT))
        assert refusal(admission, ("a", True), 10).message.startswith("your requests fill your share")
        with admission.admit(("b", True), 400):
            assert admission.total == 1000
    assert admission.total == admission.requests == 0
    assert admission.held == {}
    after = {reason: rejected(reason) for reason in before}
    assert {reason: after[reason] - before[reason] for reason in before} == {"too_large": 1, "capacity": 1, "share": 1}


def test_one_caller_alone_gets_half_and_leaves_room_for_a_newcomer(admission: Admission) -> None:
    def filled(account: tuple[str, bool]) -> int:
        """What it holds once it is refused, in requests of 10."""
        held = 0
        while True:
            try:
                place.enter_context(admission.admit(account, 10))
            except ApiError:
                return held
            held += 10

    with ExitStack() as place:
        assert filled(("greedy", True)) == 500
        assert filled(("newcomer", False)) == 250
        assert filled(("greedy", False)) == 130  # its plain requests are not refused for its searches


def test_the_largest_request_fits_an_empty_server(admission: Admission) -> None:
    with admission.admit(("a", True), 1000):
        assert admission.total == 1000


def test_retry_after_is_what_the_drain_rate_says(admission: Admission, clock: Clock) -> None:
    with admission.admit(("a", True), 500):
        clock.now += 10
        with admission.admit(("b", True), 200):
            clock.now += 4
        clock.now += 6
        with admission.admit(("b", True), 100):
            pass
        # 300 tokens in the 6 s since the first of them: 50 a second, and 250 of the 800 asked for do not fit.
        assert refusal(admission, ("c", True), 750).retry_after == 5
        clock.now += WINDOW + 1
        assert refusal(admission, ("c", True), 750).retry_after == UNKNOWN_WAIT
        admission.drained = deque([(clock.now - 20, 1)])
        assert refusal(admission, ("c", True), 750).retry_after == LONGEST_WAIT


def measured(clock: Clock, *, batch: int = 0) -> Admission:
    """One that lets 10 s be waited, and has let go of 1000 tokens in the 10 s since the first of them."""
    admission = Admission(capacity=10**6, max_wait=10.0, batch=batch, clock=clock)
    for account in ("x", "y"):
        with admission.admit((account, False), 500):
            clock.now += 10
    return admission


def test_the_wait_is_bounded_by_what_was_let_go_of_a_second(clock: Clock) -> None:
    admission = measured(clock)
    assert admission.rate() == 100
    with ExitStack() as place:
        for _ in range(10):
            place.enter_context(admission.admit(("a", False), 100))
        full = refusal(admission, ("a", False), 150)
        assert (full.status, full.retry_after) == (429, 2), "150 tokens at 100 a second too late"
        # Where callers take turns, a newcomer waits for twice its own 150 tokens, not for all 1150.
        place.enter_context(admission.admit(("b", False), 150))
        assert refusal(admission, ("b", False), 400).message.startswith("your requests fill your share")
    with admission.admit(("a", False), 5000):
        pass  # whatever it costs, alone it waits for nobody


def test_what_fits_a_batch_does_not_wait(clock: Clock) -> None:
    admission = measured(clock, batch=4)
    with ExitStack() as place:
        for _ in range(2):
            place.enter_context(admission.admit(("a", True), 2000, candidates=2))
        assert refusal(admission, ("a", True), 2000).status == 429


def test_before_anything_was_measured_only_the_capacity_bounds(clock: Clock) -> None:
    admission = Admission(capacity=1000, max_wait=1e-3, clock=clock)
    with admission.admit(("a", False), 400), admission.admit(("b", False), 400):
        assert refusal(admission, ("c", False), 400).retry_after == UNKNOWN_WAIT


def test_idle_time_is_no_part_of_the_rate(clock: Clock) -> None:
    admission = measured(clock)
    clock.now += 10
    assert admission.rate() == 100


def test_a_hold_is_settled_by_what_is_known_later(admission: Admission) -> None:
    with admission.admit(("a", False), 500) as hold:
        hold.settle(20)
        assert admission.total == 20
        with admission.admit(("b", False), 900):
            assert REGISTRY.get_sample_value("trimtab_admitted_tokens") == 920
    assert admission.held == {}
    hold.settle(5)
    assert admission.total == 0, "what has ended holds nothing"


def test_nothing_is_begun_by_a_server_that_closes(admission: Admission) -> None:
    admission.closing = True
    closing = refusal(admission, ("a", False), 1)
    assert (closing.status, closing.code, closing.retry_after) == (503, "shutting_down", UNKNOWN_WAIT)


async def test_it_is_empty_when_the_last_is_answered(admission: Admission) -> None:
    await admission.wait_until_empty()
    with admission.admit(("a", False), 1):
        waiting = asyncio.create_task(admission.wait_until_empty())
        await asyncio.sleep(0)
        with admission.admit(("b", False), 1):
            await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


def test_a_request_that_fails_lets_go(admission: Admission) -> None:
    def fail() -> None:
        with admission.admit(("a", False), 10, 4):
            assert REGISTRY.get_sample_value("trimtab_admitted_tokens") == 10
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert admission.total == 0
    assert REGISTRY.get_sample_value("trimtab_admitted_tokens") == 0


# What a request can cost.

CONFIG = Config.model_validate(
    {
        "base": "org/base",
        "guides": {"kind": "org/kind"},
        "rewards": {"short": {"kind": "length"}, "other": {"kind": "length"}},
        "objectives": {"brevity": {"reward": "short"}, "size": {"reward": "other"}},
    }
)


def costs(asked: dict[str, Any], max_tokens: int = 10, **extent: Any) -> tuple[int, int, int]:
    """Tokens sampled, judged, and candidates."""
    most = cost.work(plan(asked, CONFIG), cost.Extent(max_tokens=max_tokens, context=1000, **extent))
    return most.sampled, most.reward_tokens, most.candidates


def test_a_search_costs_its_candidates_and_each_reward_reads_them() -> None:
    best = {"strategy": "best_of_n", "weights": {"brevity": 1.0, "size": 1.0}, "params": {"n": 8}}
    assert costs(best, max_tokens=10) == (80, 160, 8)
    assert costs({**best, "budget": {"max_sampled_tokens": 40}}, max_tokens=10) == (40, 80, 8)
    assert costs({**best, "on_error": "degrade"}, max_tokens=10) == (90, 160, 8)
    centred = {"of": "short", "transform": {"centre": {"references": 4}}}
    drawn, read = 80 + 4 * 16, 80 + 4 * 16
    assert costs({"strategy": "best_of_n", "reward": centred, "params": {"n": 8}}, max_tokens=10) == (drawn, read, 8)


def test_each_prompt_of_several_may_be_answered_plainly_and_wants_references() -> None:
    two, references = {"prompts": 2}, 2 * 4 * 16
    centred = {"of": "short", "transform": {"centre": {"references": 4}}}
    asked = {"strategy": "best_of_n", "reward": centred, "params": {"n": 8}, "on_error": "degrade"}
    assert costs(asked, **two) == (2 * (80 + 10) + references, 160 + references, 16)


def test_references_are_as_long_as_the_request_s_answers_in_powers_of_two() -> None:
    assert [cost.reference_length(n) for n in (1, 2, 3, 4, 5, 256, 257)] == [1, 2, 4, 4, 8, 256, 512]
    centred = {"strategy": "best_of_n", "reward": {"of": "short", "transform": {"centre": {"references": 4}}}}
    assert costs({**centred, "params": {"n": 1}}, max_tokens=1000)[0] == 1000 + 4 * 1000, "no answer passes the context"


def test_tokens_that_are_scored_count_a_share() -> None:
    most = cost.work(
        plan({"strategy": "best_of_n", "weights": {"brevity": 1.0}, "params": {"n": 8}}, CONFIG),
        cost.Extent(max_tokens=10, context=1000),
    )
    assert cost.tokens(most, LimitsConfig()) == 88
    assert cost.tokens(most, LimitsConfig(scored_weight=1.0)) == 160
    assert cost.tokens(most, LimitsConfig(scored_weight=0)) == 80


def test_a_cap_on_one_request_is_a_400_that_names_it() -> None:
    search = plan({"strategy": "best_of_n", "weights": {"brevity": 1.0}, "params": {"n": 8}}, CONFIG)
    most = cost.work(search, cost.Extent(max_tokens=10, context=1000))
    cost.check(search, most, LimitsConfig(max_sampled_tokens=80))
    with pytest.raises(ApiError, match=r"can draw 80 tokens.*limits\.max_sampled_tokens is 79") as caught:
        cost.check(search, most, LimitsConfig(max_sampled_tokens=79))
    assert (caught.value.status, caught.value.param) == (400, "alignment")


def test_a_server_s_deadline_is_everybody_s() -> None:
    limited = CONFIG.model_copy(update={"limits": LimitsConfig(max_deadline_ms=500)})
    assert plan({}, limited).deadline_ms == 500
    assert plan({"budget": {"deadline_ms": 100}}, limited).deadline_ms == 100
    assert plan({}, CONFIG).deadline_ms is None
    with pytest.raises(ApiError, match="must be at most 500 on this server; got 600"):
        plan({"budget": {"deadline_ms": 600}}, limited)
