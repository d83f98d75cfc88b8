"""Diverse beam search on the toy: against greedy decoding, plain beam search, and its rule carried out by hand."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import replace

import pytest

from tests.contracts import Specimen
from tests.decoders.conftest import START
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.protocols import BASE, Sampling
from trimtab.decoders.shared.diverse_beam import Diverse, search_hypotheses
from trimtab.runtime.metered import Metered
from trimtab.runtime.toy_engine import Prefix, ToyEngine, ToyModel
from trimtab.runtime.usage import Usage


async def pool(toy: ToyModel, n: int, groups: int, penalty: float = 0.5, **guides: float) -> list[Prefix]:
    how = Diverse(groups=groups, penalty=penalty)
    engine = ToyEngine(toy, start=START)
    return [
        c.tokens
        for c in await search_hypotheses([START], toy.max_tokens, engine, how, n=n, guides={"base": 1.0, **guides})
    ]


def beam(toy: ToyModel, width: int, mixture: dict[str, float]) -> list[Prefix]:
    """Plain beam search over the table."""
    law, beams = toy.next(mixture), [(0.0, ())]
    while any(not toy.ended(y) for _, y in beams):
        grown = [(s, y) for s, y in beams if y and toy.ended(y)]
        for s, y in beams:
            if not toy.ended(y):
                grown += [(s + float(lp), (*y, t)) for t, lp in zip(toy.vocab, law(y), strict=True)]
        beams = heapq.nlargest(width, grown, key=lambda b: b[0])
    return [y for _, y in beams]


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
async def test_one_group_is_beam_search(toy: ToyModel, width: int) -> None:
    assert await pool(toy, width, 1) == beam(toy, width, {BASE: 1.0})
    assert await pool(toy, width, 1, arm=1.5) == beam(toy, width, {BASE: 1.0, "arm": 1.5})


async def test_one_hypothesis_is_greedy(toy: ToyModel, specimen: Specimen) -> None:
    [answer] = await pool(toy, 1, 1)
    greedy = replace(specimen.sampling, temperature=0.0)
    drawn = [t async for c in specimen.engine.generate([START], greedy, n=1, guides={BASE: 1.0}) for t in c.tokens]
    assert answer == tuple(drawn)


async def test_without_a_penalty_all_groups_are_one(toy: ToyModel) -> None:
    assert await pool(toy, 6, 3, penalty=0.0) == beam(toy, 2, {BASE: 1.0}) * 3


@pytest.mark.parametrize("penalty", [0.2, 0.5, 2.0, 50.0])
async def test_groups_of_one_follow_the_rule(toy: ToyModel, penalty: float) -> None:
    """(1) by hand for W = 1: each group is greedy against what earlier groups chose at the step."""
    law, groups = toy.next({BASE: 1.0}), [()] * 4
    while not all(y and toy.ended(y) for y in groups):
        chosen: Counter[int] = Counter()
        for g, y in enumerate(groups):
            if not (y and toy.ended(y)):
                scores = [float(lp) - penalty * chosen[t] for t, lp in zip(toy.vocab, law(y), strict=True)]
                groups[g] = (*y, toy.vocab[scores.index(max(scores))])
                chosen[groups[g][-1]] += 1
    assert await pool(toy, 4, 4, penalty) == groups
    if penalty == 50.0:
        assert len({y[0] for y in groups[:3]}) == 3, "as many first tokens as there are"


async def test_a_pool_can_be_spread_out(toy: ToyModel, specimen: Specimen, reward: dict[Prefix, float]) -> None:
    answers = await pool(toy, 4, 4, 2.0)
    search = BestOfN(n=4, diverse=Diverse(groups=4, penalty=2.0))
    [chunk] = [
        c async for c in search([START], specimen.sampling, specimen.engine, specimen.reward, n=1, include=frozenset())
    ]
    assert reward[chunk.tokens] == max(reward[y] for y in answers)


async def test_what_it_cannot_honour_is_refused(toy: ToyModel, specimen: Specimen) -> None:
    async def run(sampling: Sampling, groups: int = 2) -> None:
        search = BestOfN(n=4, diverse=Diverse(groups=groups, penalty=0.5))
        async for _ in search([START], sampling, specimen.engine, specimen.reward, n=1, include=frozenset()):
            pass

    with pytest.raises(ValueError, match=r"params\.diverse cannot be combined with stop strings"):
        await run(replace(specimen.sampling, stop=("x",)))
    with pytest.raises(ValueError, match=r"params\.diverse cannot be combined with penalties"):
        await run(replace(specimen.sampling, constrained=True))
    with pytest.raises(ValueError, match=r"params\.diverse\.groups=3 must divide params\.n=4"):
        await run(specimen.sampling, groups=3)


async def test_a_budget_leaves_beginnings(toy: ToyModel) -> None:
    usage = Usage(max_sampled_tokens=6)
    engine = Metered(ToyEngine(toy, start=START), usage)
    chunks = await search_hypotheses(
        [START], toy.max_tokens, engine, Diverse(groups=4, penalty=0.5), n=4, guides={"base": 1.0}
    )
    assert len(chunks) == 4
    assert usage.limit == "budget"
    assert any(c.finish == "budget" for c in chunks)


async def test_a_full_context_ends_an_answer(toy: ToyModel) -> None:
    """At its last position an engine has no more log-probabilities to give."""
    engine = ToyEngine(toy, start=START)
    for groups in (1, 2):
        how = Diverse(groups=groups, penalty=0.5)
        answers = await search_hypotheses([START], 10**6, engine, how, n=64, guides={"base": 1.0})
        assert all(a.finish == ("stop" if a.tokens[-1] in engine.eos_ids else "length") for a in answers)
        assert any(a.finish == "length" and len(a.tokens) == toy.max_tokens for a in answers)
