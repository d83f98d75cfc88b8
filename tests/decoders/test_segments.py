"""CARDS on the toy: a segment's law in closed form and drawn out by hand, whole answers enumerated, cuts, limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from tests.contracts import Recording, Specimen, answers, run
from tests.decoders.conftest import START, Script, surprise, told, unasked, worth
from trimtab.decoders import STRATEGIES
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Chunk, Parts, Reward, Sampling, Tokens
from trimtab.decoders.report import SearchProgress
from trimtab.decoders.segments import Segments
from trimtab.runtime.metered import Metered
from trimtab.runtime.toy_engine import Prefix, ToyEngine, ToyModel
from trimtab.runtime.usage import Usage

NONE = frozenset[str]()
SEARCH = Segments(entropy=1.0, block=2, beta=0.4, target=1.2, rise=3, tries=3)
"""In the toy about half of all tokens have an entropy of 1 or more, of log 3 = 1.099 at the most."""
Law = dict[Prefix, float]


@pytest.fixture(scope="session")
def values(toy: ToyModel, reward: dict[Prefix, float]) -> dict[Prefix, float]:
    """r of every beginning: of a whole answer its own, of others something that differs from one to the next."""
    found = {s: round(math.sin(7 * len(s) + sum((k + 2) * t for k, t in enumerate(s))), 2) for s in toy.tables[BASE]}
    return {**found, **reward}


def table(values: dict[Prefix, float], seen: list[list[Prefix]] | None = None) -> Reward:
    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        if seen is not None:
            seen.append([tuple(y) for y in completions])
        return [[values[tuple(y)]] for y in completions]

    return reward


def is_uncertain(toy: ToyModel, s: Prefix, threshold: float) -> bool:
    """Whether the base's own table has an entropy of at least this after s."""
    p = toy.tables[BASE][s]
    return float(sum(x * math.log(1 / x) for x in p)) >= threshold


def segments_behind(toy: ToyModel, s: Prefix, search: Segments) -> Law:
    """p of each beginning that is s and one segment more."""
    law: Law = {}

    def walk(y: Prefix, p: float) -> None:
        full = len(y) - len(s) == search.block or (len(y) > len(s) and not toy.ended(y) and
                                                   is_uncertain(toy, y, search.entropy))  # fmt: skip
        if toy.ended(y) or full:
            law[y] = p
            return
        for token, chance in zip(toy.vocab, toy.tables[BASE][y], strict=True):
            walk((*y, token), p * float(chance))

    walk(s, 1.0)
    return law


def acceptance(y: Prefix, values: dict[Prefix, float], search: Segments) -> float:
    """A ratio of two weights, where the strategy takes a difference of rewards."""
    line = np.interp(len(y), [0, search.rise], [values[()], search.target])
    return float(min(1.0, np.exp(values[y] / search.beta) / np.exp(line / search.beta)))


def stands(toy: ToyModel, s: Prefix, values: dict[Prefix, float], search: Segments) -> Law:
    """Of the segment that stands, in closed form: accepted in one of T tries, or the best of T that were rejected."""
    drawn = segments_behind(toy, s, search)
    accepted = {y: p * acceptance(y, values, search) for y, p in drawn.items()}
    rejected = {y: p - accepted[y] for y, p in drawn.items()}
    again = sum(rejected.values())
    law = {y: p * sum(again**k for k in range(search.tries)) for y, p in accepted.items()}
    for v in {values[y] for y in drawn}:
        level = [y for y in drawn if values[y] == v]
        mass, below = sum(rejected[y] for y in level), sum(rejected[y] for y in drawn if values[y] < v)
        best = (below + mass) ** search.tries - below**search.tries
        for y in level:
            law[y] += best * rejected[y] / mass if mass else 0.0
    return law


def stands_by_trying(toy: ToyModel, s: Prefix, values: dict[Prefix, float], search: Segments) -> Law:
    """The same, every course of the tries walked through."""
    drawn = segments_behind(toy, s, search)
    law = dict.fromkeys(drawn, 0.0)

    def attempt(k: int, p: float, best: Prefix | None) -> None:
        if k == search.tries:
            assert best is not None
            law[best] += p
            return
        for y, chance in drawn.items():
            a = acceptance(y, values, search)
            law[y] += p * chance * a
            attempt(k + 1, p * chance * (1 - a), y if best is None or values[y] > values[best] else best)

    attempt(0, 1.0, None)
    return law


def whole(toy: ToyModel, values: dict[Prefix, float], search: Segments) -> Law:
    """Of whole answers: every course of segments."""
    law: Law = {}

    def grow(s: Prefix, p: float) -> None:
        if toy.ended(s):
            law[s] = law.get(s, 0.0) + p
            return
        for y, chance in stands(toy, s, values, search).items():
            grow(y, p * chance)

    grow((), 1.0)
    return law


async def drawn(search: Segments, toy: ToyModel, reward: Reward, *, count: int, **sampling: float) -> list[Prefix]:
    engine, found = ToyEngine(toy, start=START), list[Prefix]()
    for seed in range(count):
        asked = Sampling(**{"max_tokens": toy.max_tokens, "seed": seed, **sampling})
        [answer] = await answers(search([START], asked, engine, reward, n=1, include=NONE), 1)
        found.append(answer)
    return found


@pytest.mark.parametrize("begun", [(), (0,), (1, 0)])
@pytest.mark.parametrize("tries", [1, 2, 4])
def test_the_closed_form_is_the_course_of_the_tries(
    toy: ToyModel, values: dict[Prefix, float], begun: Prefix, tries: int
) -> None:
    search = replace(SEARCH, tries=tries)
    closed = stands(toy, begun, values, search)
    assert sum(closed.values()) == pytest.approx(1)
    assert closed == pytest.approx(stands_by_trying(toy, begun, values, search))


@pytest.mark.parametrize("tries", [2, 4])
async def test_a_segment_is_accepted_by_the_law(toy: ToyModel, values: dict[Prefix, float], tries: int) -> None:
    """1000 first segments against the closed form, 5 sigma: answers of three tokens at most, in one segment."""
    search = Segments(entropy=1.09, block=3, beta=0.4, target=1.2, rise=3, tries=tries)
    short = replace(toy, max_tokens=3)
    found = await drawn(search, short, table(values), count=1000)
    assert surprise(found, stands(short, (), values, search)) < 5
    assert surprise(found, stands(short, (), values, replace(search, tries=6 - tries))) > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [
        SEARCH,
        replace(SEARCH, entropy=0.0, block=5),
        replace(SEARCH, entropy=1.06, block=4, tries=2),
        replace(SEARCH, entropy=9.0, block=1, tries=5, target=-1.0, beta=0.2),
    ],
    ids=repr,
)
async def test_answers_follow_the_law(toy: ToyModel, values: dict[Prefix, float], search: Segments) -> None:
    """2000 answers against the enumerated law, 5 sigma."""
    law = whole(toy, values, search)
    assert sum(law.values()) == pytest.approx(1)
    found = await drawn(search, toy, table(values), count=2000)
    assert surprise(found, law) < 5
    plain = dict(toy.sequences(toy.next({BASE: 1.0})))
    assert surprise(found, plain) > 5


@pytest.mark.slow
async def test_the_place_of_the_cut_is_told_by_the_law(toy: ToyModel, values: dict[Prefix, float]) -> None:
    """Another threshold of entropy gives another law: the test above would see a cut that is a token off."""
    found = await drawn(SEARCH, toy, table(values), count=2000)
    assert surprise(found, whole(toy, values, replace(SEARCH, entropy=9.0))) > 5
    assert surprise(found, whole(toy, values, replace(SEARCH, entropy=0.0))) > 5


@pytest.mark.parametrize("prompt", [(START,), (START, 0), (4, START, 1, 0)])
@pytest.mark.parametrize("search", [Segments(tries=1), Segments(entropy=1.0, beta=1e300, tries=5)], ids=repr)
async def test_what_is_never_rejected_is_plain_sampling(specimen: Specimen, search: Segments, prompt: Prefix) -> None:
    for seed in range(20):
        for temperature in (0.0, 0.7, 1.0):
            at = replace(specimen, sampling=replace(specimen.sampling, temperature=temperature))
            assert await run(search, at, prompt, seed=seed) == await run(Plain(), at, prompt, seed=seed)


async def test_what_is_never_rejected_is_one_draw(specimen: Specimen, toy: ToyModel) -> None:
    """Its seed is the request's, so it is plain sampling on any engine: none needs to carry a seed on."""
    for search in (Segments(tries=1, block=1), Segments(entropy=0.0, beta=1e300)):
        engine = Recording(specimen.engine)
        await run(search, replace(specimen, engine=engine), (START,), seed=3)
        [sampling] = engine.samplings
        assert (sampling.seed, sampling.max_tokens) == (3, toy.max_tokens)


async def test_nothing_is_tried_again_at_temperature_0(specimen: Specimen) -> None:
    seen: list[list[Prefix]] = []
    at = replace(specimen, reward=table(dict.fromkeys([(), *whole_answers(specimen)], 0.0), seen))
    at = replace(at, sampling=replace(at.sampling, temperature=0.0))
    [answer] = await run(replace(SEARCH, target=99.0), at, (START,), seed=0)
    assert seen == [[answer]]


def whole_answers(s: Specimen) -> list[Prefix]:
    model = s.engine.model
    return [y for y, _ in model.sequences(model.next({BASE: 1.0}))]


async def test_segments_end_before_uncertain_tokens(toy: ToyModel, values: dict[Prefix, float]) -> None:
    """A segment has ended, is full, or stands before a token of high entropy; no other such token is in it."""
    search, engine = replace(SEARCH, block=3), ToyEngine(toy, start=START)
    cuts = 0
    for seed in range(100):
        chunks = search([START], Sampling(max_tokens=5, seed=seed), engine, table(values), n=1, include=NONE)
        known: Prefix = ()
        async for chunk in chunks:
            grown = (*known, *chunk.tokens)
            assert not any(is_uncertain(toy, grown[:k], 1.0) for k in range(len(known) + 1, len(grown)))
            assert toy.ended(grown) or len(chunk.tokens) == 3 or is_uncertain(toy, grown, 1.0)
            cuts += not toy.ended(grown) and len(chunk.tokens) < 3
            known = grown
    assert cuts > 50


class Sequel(Script):
    """A script that gives its texts in turn, one for each draw, whatever was begun: capitals are uncertain tokens."""

    async def generate(self, prompt, sampling, *, n, guides):
        text = self.texts[len(self.asked)]
        self.asked.append((self.text(tuple(prompt)[1:]), sampling.max_tokens, sampling.seed))
        rest, limit = text.rstrip("!"), "deadline" if text.endswith("!") else "stop"
        finish = "length" if len(rest) > sampling.max_tokens else limit
        self.live += 1
        try:
            rest = rest[: sampling.max_tokens]
            for k, letter in enumerate(rest) if sampling.stream else ():
                self.drawn += 1
                last = k == len(rest) - 1 and finish != "deadline"
                yield Chunk(index=0, tokens=(ord(letter),), finish=finish if last else None,
                            entropies=(float(letter.isupper()),) if sampling.measured else None)  # fmt: skip
            if not sampling.stream:
                self.drawn += len(rest)
                entropies = tuple(float(letter.isupper()) for letter in rest)
                yield Chunk(index=0, tokens=tuple(map(ord, rest)), finish=finish, entropies=entropies)
            elif finish == "deadline":
                yield Chunk(index=0, tokens=(), finish=finish)
        finally:
            self.live -= 1


ALWAYS, NEVER = 99.0, -1e6
STEPS = Segments(entropy=0.5, block=4, beta=1.0, target=0.0, rise=1, tries=3)
"""Of rewards in whole numbers of thousands: 0 and more is accepted, less is not."""


async def test_a_draw_goes_on_behind_what_is_accepted() -> None:
    engine = Sequel(["abCdeFg"])
    values = {"": 0.0, "ab": ALWAYS, "abCde": ALWAYS, "abCdeFg": ALWAYS}
    [(text, report)] = await told(STEPS, engine, worth(values), seed=5)
    assert (text, engine.asked) == ("abCdeFg", [("", 64, 5)])
    assert report == {"finish": "stop", "value": ALWAYS, "blocks": 3, "proposals": 3, "acceptance_rate": 1.0}


async def test_what_is_rejected_is_drawn_again_and_the_rest_of_it_is_left() -> None:
    """Two rejections, and an acceptance whose draw, of a block, goes on; then it is full, and another one begins."""
    engine = Sequel(["abCdef", "xyZw", "uvWxq", "yzk"])
    values = {"": 0.0, "ab": NEVER, "xy": NEVER, "uv": 1.0, "uvWxyz": 1.0, "uvWxyzk": 2.0}
    [(text, report)] = await told(STEPS, engine, worth(values))
    assert text == "uvWxyzk"
    assert [(begun, length) for begun, length, _ in engine.asked] == [("", 64), ("", 4), ("", 4), ("uvWx", 4)]
    assert (report["blocks"], report["proposals"], report["acceptance_rate"]) == (3, 5, 0.6)
    assert engine.drawn == 3 + 4 + 4 + 3, "the first draw is left at the token that ended its segment"


async def test_of_what_is_rejected_to_the_end_the_best_stands() -> None:
    engine = Sequel(["aaB", "bbB", "ccB", "d"])
    values = {"": 0.0, "aa": 3 * NEVER, "bb": NEVER, "cc": 2 * NEVER, "bbd": ALWAYS}
    [(text, report)] = await told(STEPS, engine, worth(values))
    assert (text, [begun for begun, _, _ in engine.asked]) == ("bbd", ["", "", "", "bb"])
    assert (report["blocks"], report["proposals"], report["acceptance_rate"]) == (2, 4, 0.25)


async def test_the_first_of_equals_stands() -> None:
    engine = Sequel(["aaB", "bbB", "ccB", "d"])
    values = {"": 0.0, "aa": NEVER, "bb": NEVER, "cc": NEVER, "aad": ALWAYS}
    [(text, _)] = await told(STEPS, engine, worth(values))
    assert text == "aad"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["abCd!"], ("ab", "deadline", ALWAYS)),
        (["abC", "cd!"], ("ab", "deadline", ALWAYS)),
        (["xyZ", "xy!"], ("xy", "deadline", NEVER)),
        (["xyZ", "vwZ", "!"], ("vw", "deadline", NEVER / 2)),
        (["x!"], ("x", "deadline", 5.0)),
        (["xyz", "x!"], ("xyz", "stop", NEVER)),
        (["abCxy", "z!"], ("ab", "deadline", ALWAYS)),
    ],
)
async def test_a_limit_leaves_what_stands_or_else_the_best_seen(
    texts: list[str], expected: tuple[str, str, float]
) -> None:
    values = {"": 0.0, "ab": ALWAYS, "xy": NEVER, "vw": NEVER / 2, "x": 5.0, "xyz": NEVER, "abCxy": NEVER, "abC": NEVER}
    engine = Sequel(texts)
    [(text, report)] = await told(STEPS, engine, worth(values))
    assert (text, report["finish"], report["value"]) == expected
    assert engine.live == 0


async def test_a_limit_before_the_first_token_leaves_nothing() -> None:
    [(text, report)] = await told(STEPS, Sequel(["!"]), unasked)
    assert (text, report["finish"], report["value"]) == ("", "deadline", None)


async def test_whatever_the_budget_the_answer_begins_as_without(toy: ToyModel, values: dict[Prefix, float]) -> None:
    engine, cut = ToyEngine(toy, start=START), 0
    for seed in range(40):
        asked = Sampling(max_tokens=5, seed=seed)
        chunks = [c async for c in SEARCH([START], asked, engine, table(values), n=1, include=NONE)]
        pieces = [chunk.tokens for chunk in chunks]
        beginnings = [tuple(t for piece in pieces[:k] for t in piece) for k in range(1, len(pieces) + 1)]
        for budget in range(1, 12):
            metered = Metered(engine, Usage(max_sampled_tokens=budget))
            spent = [c async for c in SEARCH([START], asked, metered, table(values), n=1, include=NONE)]
            answer = tuple(t for chunk in spent for t in chunk.tokens)
            assert answer
            assert metered.usage.sampled <= budget
            if len(spent) > 1:  # something was accepted
                assert answer in beginnings
            cut += answer != beginnings[-1]
    assert cut > 40


async def test_no_two_draws_share_a_seed(specimen: Specimen, values: dict[Prefix, float]) -> None:
    for seed in range(20):
        engine = Recording(specimen.engine)
        at = replace(specimen, engine=engine, reward=table(values))
        await run(replace(SEARCH, target=3.0), at, (START,), seed=seed, n=3)
        seeds = [sampling.seed for sampling in engine.samplings]
        assert seeds[0] == seed
        assert len(set(seeds)) == len(seeds) > 3


async def test_without_a_seed_draws_differ(specimen: Specimen, values: dict[Prefix, float]) -> None:
    at = replace(specimen.sampling, seed=None)
    found = {
        tuple(await answers(SEARCH([START], at, specimen.engine, table(values), n=1, include=NONE), 1))
        for _ in range(20)
    }
    assert len(found) > 3


@pytest.mark.parametrize("stop", ["0 1", "1 1 0"])
async def test_a_stop_string_across_segments_ends_the_answer(
    toy: ToyModel, values: dict[Prefix, float], stop: str
) -> None:
    engine, met = ToyEngine(toy, start=START), 0
    for seed in range(60):
        asked = Sampling(max_tokens=5, seed=seed, stop=(stop,))
        search = Segments(entropy=0.0, beta=0.4, tries=3)
        chunks = [c async for c in search([START], asked, engine, table(values), n=1, include=NONE)]
        tokens = [t for chunk in chunks for t in chunk.tokens]
        assert stop not in engine.text(tokens[:-1])
        if stop in engine.text(tokens):
            assert chunks[-1].finish == "stop"
            met += 1
    assert met


async def test_beginnings_have_a_reward_of_their_own() -> None:
    """The second column is of beginnings, and the value is the first's of the whole answer."""
    columns = {"": (7.0, 0.0), "ab": (NEVER, 1.0), "abCd": (4.0, NEVER)}

    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [list(columns["".join(map(chr, y))]) for y in completions]

    [(text, report)] = await told(STEPS, Sequel(["abCd"]), reward)
    assert (text, report["value"], report["acceptance_rate"]) == ("abCd", 4.0, 1.0)


@pytest.mark.parametrize("columns", [0, 3])
async def test_one_reward_is_asked_for(columns: int) -> None:
    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[0.0] * columns for _ in completions]

    with pytest.raises(ValueError, match="one reward is needed"):
        await told(STEPS, Sequel(["abCd"]), reward)


async def test_the_threshold_rises_from_the_empty_answer_s_reward() -> None:
    """Rewards on the line between r_0 = -8 and the target 8 over 8 tokens are accepted whatever u is."""
    search = replace(STEPS, block=2, beta=1e-9, target=8.0, rise=8)
    values = {"": -8.0, "ab": -4.0, "abcd": 0.0, "abcdef": 4.0, "abcdefgh": 8.0, "abcdefghij": 8.0}
    [(text, report)] = await told(search, Sequel(["abcdefghij"]), worth(values))
    assert (text, report["proposals"]) == ("abcdefghij", 5)
    below = {key: r - 0.001 if key else r for key, r in values.items()}
    again = [text for text in ("abX", "cdX", "efX", "ghX", "ij") for _ in range(3)]
    [(text, report)] = await told(search, Sequel(["abcdefghij", *again[1:]]), worth(below))
    assert (text, report["proposals"], report["acceptance_rate"]) == ("abcdefghij", 15, 0.0)


async def test_about_one_call_of_the_reward_per_segment(toy: ToyModel, values: dict[Prefix, float]) -> None:
    seen: list[list[Prefix]] = []
    [answer] = await drawn(replace(SEARCH, target=-9.0), toy, table(values, seen), count=1)
    assert [y for call in seen for y in call if not y] == [()], "that of the empty answer is asked for once"
    assert len(seen) == len([y for call in seen for y in call if y]) <= len(answer)


class Uncertain:
    """An engine none of whose tokens is certain and whose answers never end."""

    eos_ids = frozenset({0})

    def report_progress(self, progress: SearchProgress) -> None:
        """Nobody follows it."""

    async def generate(self, prompt, sampling, *, n, guides):
        tokens = tuple(range(1, sampling.max_tokens + 1))
        yield Chunk(index=0, tokens=tokens, finish="length", entropies=(9.0,) * len(tokens))

    def parts(self, completion: Tokens) -> Parts:
        return Parts(answer=self.text(completion))

    def text(self, completion: Tokens) -> str:
        return " ".join(map(str, completion))


@pytest.mark.parametrize("tries", [1, 4])
@pytest.mark.parametrize("block", [1, 5, 100])
async def test_it_costs_at_the_most_what_it_says(tries: int, block: int) -> None:
    search, usage, judged = Segments(entropy=1.0, block=block, target=99.0, rise=1, tries=tries), Usage(), 0

    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        nonlocal judged
        judged += sum(map(len, completions))
        return [[0.0] for _ in completions]

    asked = Sampling(max_tokens=48, seed=1)
    await answers(search([9], asked, Metered(Uncertain(), usage), reward, n=1, include=NONE), 1)
    most = search.work(48, n=1, include=NONE)
    assert (most.candidates, search.work(48, n=3, include=NONE).candidates) == (1, 3)
    assert 0.7 * most.sampled <= usage.sampled <= most.sampled
    assert judged <= most.reward_tokens


@pytest.mark.parametrize(
    "params", [{"entropy": -1.0}, {"block": 0}, {"beta": 0}, {"rise": 0}, {"tries": 0}, {"target": "high"}, {"n": 2}]
)
def test_bad_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        STRATEGIES["segments"].build(params, guides={BASE: 1.0})
