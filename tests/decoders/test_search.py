"""What holds for every search: neutral values, answers from a pool, cuts, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import START, Script, told, unasked, worth
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.mbr import MinimumBayesRisk
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import LimitReached, Sampling, Strategy, Tokens
from trimtab.decoders.rejection import RejectionSampling
from trimtab.decoders.shared.candidates import draw
from trimtab.decoders.soft_best_of_n import SoftBestOfN
from trimtab.decoders.speculative_rejection import SpeculativeRejection
from trimtab.decoders.vote import Vote


def searches(n: int) -> list[Strategy]:
    return [
        BestOfN(n=n),
        SoftBestOfN(n=n, lambda_=1e-6),
        RejectionSampling(n=n, beta=1e-6),
        Vote(n=n, extractor="text", weighting="reward"),
        Vote(n=n, extractor="text", weighting="softmax"),
        MinimumBayesRisk(n=n, weighting="softmax"),
        SpeculativeRejection(n=n, decisions=(1, 2)),
    ]


UNWEIGHTED: list[Strategy] = [
    Vote(n=3),
    Vote(n=3, extractor="text"),
    MinimumBayesRisk(n=3),
    MinimumBayesRisk(n=3, utility="token_f1"),
]


@pytest.mark.parametrize("strategy", [*searches(1), Vote(n=1), MinimumBayesRisk(n=1)], ids=repr)
async def test_one_candidate_is_plain_sampling(specimen: Specimen, strategy: Strategy) -> None:
    for seed in range(20):
        assert await run(strategy, specimen, specimen.prompts[0], seed=seed) == await run(
            Plain(), specimen, specimen.prompts[0], seed=seed
        )


@pytest.mark.parametrize("strategy", searches(5), ids=repr)
async def test_answers_are_different_candidates(strategy: Strategy) -> None:
    texts = ["ab", "bc", "cd", "de", "ef"]
    values = {text[:k]: i + k / 10 for i, text in enumerate(texts) for k in (1, 2)}
    answers = await told(strategy, Script(texts), worth(values), n=5)
    assert sorted(text for text, _ in answers) == texts
    assert all(texts[report["candidate"]] == text for text, report in answers)
    assert all(report["value"] == values[text] for text, report in answers)


@pytest.mark.parametrize("strategy", [*searches(3), *UNWEIGHTED], ids=repr)
async def test_more_answers_than_candidates_are_refused(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match=r"n=4 .*n=3"):
        await told(strategy, Script(["a", "b", "c"]), unasked, n=4)


@pytest.mark.parametrize("strategy", searches(3)[:1] + searches(3)[3:4] + searches(3)[6:], ids=repr)
async def test_ties_go_to_the_first(strategy: Strategy) -> None:
    [(text, _)] = await told(
        strategy, Script(["ax", "bx", "cx"]), worth(dict.fromkeys(["ax", "bx", "cx", "a", "b", "c"], 1.0))
    )
    assert text == "ax"


@pytest.mark.parametrize("strategy", searches(3)[:3] + searches(3)[6:], ids=repr)
async def test_the_pool_is_shown_when_asked_for(strategy: Strategy) -> None:
    values = {"aa": 1.0, "bb": 3.0, "cc": 2.0, "a": 1.0, "b": 3.0, "c": 2.0}
    (_, report), (_, second) = await told(
        strategy, Script(["aa", "bb", "cc"]), worth(values), n=2, include=frozenset({"candidates"})
    )
    assert [c["index"] for c in report["candidates"]] == [0, 1, 2]
    assert [c["value"] for c in report["candidates"]] == [1.0, 3.0, 2.0]
    assert "candidates" not in second


@pytest.mark.parametrize("strategy", searches(3)[:6], ids=repr)
async def test_a_whole_answer_comes_before_better_cut_ones(strategy: Strategy) -> None:
    values = {"aaa": 9.0, "bbb": 1.0, "ccc": 9.0}
    engine = Script(["aaaaa", "bbb", "ccccc"], cut={0: 3, 2: 3})
    [(text, report), *_] = await told(strategy, engine, worth(values))
    assert (text, report["finish"]) == ("bbb", "stop")


@pytest.mark.parametrize("strategy", [*searches(3), *UNWEIGHTED], ids=repr)
async def test_of_cut_answers_only_the_best_is_returned(strategy: Strategy) -> None:
    values = {"1a": 1.0, "1": 1.0, "2bb": 3.0, "2b": 3.0, "2": 3.0, "3": 2.0}
    engine = Script(["1aaaa", "2bbbb", "3cccc"], cut={0: 2, 1: 3, 2: 0})
    [(text, report)] = await told(strategy, engine, worth(values) if strategy not in UNWEIGHTED else unasked)
    assert text == ("1a" if strategy in UNWEIGHTED else "2bb")
    assert report["finish"] == "deadline"


@pytest.mark.parametrize("strategy", [*searches(3), *UNWEIGHTED], ids=repr)
async def test_nothing_in_hand_is_said_so(strategy: Strategy) -> None:
    with pytest.raises(LimitReached, match="deadline"):
        await told(strategy, Script(["aa", "bb", "cc"], cut={0: 0, 1: 0, 2: 0}), unasked)


@pytest.mark.parametrize("strategy", searches(8), ids=repr)
@pytest.mark.parametrize("good_calls", [0, 3])
async def test_a_failing_reward_fails_the_request_and_leaves_nothing(
    specimen: Specimen, strategy: Strategy, good_calls: int
) -> None:
    calls = 0

    async def broken(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        nonlocal calls
        calls += 1
        if calls > good_calls:
            raise RuntimeError("reward model down")
        return [[1.0] for _ in completions]

    with pytest.raises(RuntimeError, match="reward model down"):
        await told(strategy, specimen.engine, broken, max_tokens=5)
    assert await specimen.live() == 0


@pytest.mark.parametrize("strategy", searches(3), ids=repr)
async def test_a_reward_is_asked_for_in_words(strategy: Strategy) -> None:
    async def nothing(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[] for _ in completions]

    with pytest.raises(ValueError, match="one reward is needed"):
        await told(strategy, Script(["aa", "bb", "cc"]), nothing)


async def test_what_ends_while_a_reward_is_asked_is_scored_together() -> None:
    """One call at a time; every answer is scored once."""
    texts = [chr(97 + i) * 2 for i in range(6)]
    calls: list[list[str]] = []
    open_calls = 0

    async def slow(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        nonlocal open_calls
        open_calls += 1
        assert open_calls == 1
        calls.append(["".join(map(chr, c)) for c in completions])
        for _ in range(20):
            await asyncio.sleep(0)
        open_calls -= 1
        return [[float(completions[i][0])] for i in range(len(completions))]

    pool = await draw([START], Sampling(max_tokens=9), Script(texts), slow, n=6, guides={"base": 1.0})
    assert sorted(text for call in calls for text in call) == texts
    assert len(calls) < 6
    assert [c.value for c in pool] == [float(ord(text[0])) for text in texts]
