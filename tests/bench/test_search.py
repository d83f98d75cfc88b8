from __future__ import annotations

import asyncio
import itertools

import pytest

from trimtab.bench.peers.loop import Measurement, Task, Way, closed_loop
from trimtab.bench.search.best_of_n import best
from trimtab.bench.search.common import (
    OURS,
    Cell,
    Prefill,
    block_size,
    compare,
    long_conversation,
    measure,
    prefill,
    questions,
)

METRICS = """\
# HELP vllm:prompt_tokens_by_source_total Number of prompt tokens by source.
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="local_compute"} 1600.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="local_cache_hit"} 4.8e+03
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="external_kv_transfer"} 0.0
vllm:prompt_tokens_by_source_created{engine="0",model_name="demo",source="local_compute"} 1.7e+09
vllm:cache_config_info{block_size="128",engine="0",kv_cache_memory_bytes="536870912"} 1.0
"""


def test_prefill_is_what_was_asked_for_and_what_was_computed() -> None:
    assert prefill(METRICS) == Prefill(requested=6400, computed=1600)
    assert prefill(METRICS).saved == 0.75
    assert prefill(METRICS).since(Prefill(requested=6000, computed=1500)) == Prefill(requested=400, computed=100)
    assert block_size(METRICS) == 128


def test_the_best_is_the_first_of_the_highest() -> None:
    assert best(["a", "b", "c"], [0.0, 2.0, 2.0]) == "b"


def test_ratios_are_taken_within_a_round() -> None:
    cells = {OURS: Cell([1.0, 2.0, 10.0], [0.0]), "other": Cell([2.0, 6.0, 20.0], [1.0, 3.0])}
    ours, other = compare(cells, 6.0, n=4)
    assert ours["ratios"] == [1.0, 1.0, 1.0]
    assert other["ratios"] == [2.0, 3.0, 2.0]
    assert (other["faster"], other["per_s"], other["reward"], other["n"]) == (2.0, 1.0, 2.0, 4)


async def test_every_way_does_every_work_and_has_every_turn() -> None:
    order: list[tuple[str, int]] = []

    def way(name: str) -> Way:
        async def done(task: Task) -> Measurement:
            order.append((name, task.n))
            return Measurement(float(task.n), [f"{name}{task.n}"])

        return done

    tasks = [Task([[{"role": "user", "content": "x"}]], n, 1) for n in range(3)]
    read = []

    def reward(conversations) -> list[float]:
        read.extend(c[-1]["content"] for c in conversations)
        return [1.0] * len(conversations)

    cells = await measure({"a": way("a"), "b": way("b")}, tasks, reward)
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert cells["a"].seconds == cells["b"].seconds == [1.0, 2.0], "the first warms up"
    assert read == ["b1", "a1", "a2", "b2"]


def test_a_long_conversation_ends_with_the_users_turn() -> None:
    roles = [message["role"] for message in long_conversation(questions(0))]
    assert roles[0] == roles[-1] == "user"
    assert all(a != b for a, b in itertools.pairwise(roles))


@pytest.mark.parametrize("clients", [1, 3])
async def test_a_closed_loop_answers_all_with_so_many_at_a_time(clients: int) -> None:
    at_work, most = 0, 0

    async def answer(conversation, n: int) -> str:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1
        return f"{conversation[0]['content']} {n}"

    conversations = [[{"role": "user", "content": str(i)}] for i in range(5)]
    done = await closed_loop(answer, Task(conversations, 7, clients))
    assert done.answers == [f"{i} 7" for i in range(5)]
    assert most == clients
