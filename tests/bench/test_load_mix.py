"""What is drawn from a mix and when it is due; and the mixes and options that are refused."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trimtab.bench.load.arguments import arguments
from trimtab.bench.load.arrival import constant, poisson
from trimtab.bench.load.draw import Manners, request_body, requests
from trimtab.bench.load.mix import SHIPPED, MixEntry, MixError, Request, entries, read
from trimtab.decoders import STRATEGIES
from trimtab.server.cli import DEMO
from trimtab.server.config import load
from trimtab.server.errors import ApiError
from trimtab.server.request.plan import plan

N = 4000
FIVE = 5.0
"""Standard errors."""


def draw_all(*entries_of_mix: MixEntry, n: int = N, seed: int = 0, **manners: float) -> list[Request]:
    return list(itertools.islice(requests(entries_of_mix, ["a", "b"], "m", Manners(**manners), seed), n))


def test_poisson_arrivals_have_exponential_gaps() -> None:
    rate = 8.0
    at = list(itertools.islice(poisson(rate, random.Random(0)), N))
    gaps = [b - a for a, b in itertools.pairwise([0.0, *at])]
    mean = sum(gaps) / N
    assert abs(mean * rate - 1) < FIVE / math.sqrt(N)
    # of an exponential law the squared gaps' mean is twice the mean's square, with a variance of 20 / rate^4
    assert abs(sum(g * g for g in gaps) / N * rate**2 - 2) < FIVE * math.sqrt(20 / N)
    assert abs(sum(g > 1 / rate for g in gaps) / N - math.exp(-1)) < FIVE * math.sqrt(0.25 / N)


def test_constant_arrivals_do_not_drift() -> None:
    at = list(itertools.islice(constant(10.0, random.Random(0)), N))
    assert at[0] == 0
    assert at == [i / 10 for i in range(N)]


def test_shares() -> None:
    counted = Counter(r.entry.name for r in draw_all(MixEntry(name="one", share=1), MixEntry(name="three", share=3)))
    assert abs(counted["three"] / N - 0.75) < FIVE * math.sqrt(0.75 * 0.25 / N)
    assert counted.total() == N


def test_shares_of_clients() -> None:
    drawn = draw_all(
        MixEntry(name="s", stream=True), MixEntry(name="w"), disconnect=0.3, disconnect_within=2.0, slow=0.4
    )
    left = [r.hang_up for r in drawn if r.hang_up is not None]
    assert abs(len(left) / N - 0.3) < FIVE * math.sqrt(0.3 * 0.7 / N)
    assert abs(sum(left) / len(left) - 1.0) < FIVE * 2.0 / math.sqrt(12 * len(left))
    streams = [r for r in drawn if r.entry.stream]
    assert abs(sum(r.slow for r in streams) / len(streams) - 0.4) < FIVE * math.sqrt(0.24 / len(streams))
    assert not any(r.slow for r in drawn if not r.entry.stream)


def test_ranges_are_drawn_anew() -> None:
    body = {"alignment": {"weights": {"warmth": [0.5, 1.5], "brevity": 2}, "params": {"decisions": [3, 6]}}}
    alignments = [json.loads(r.content)["alignment"] for r in draw_all(MixEntry(name="a", body=body))]
    weights = [a["weights"]["warmth"] for a in alignments]
    assert len(set(weights)) > N / 2
    assert min(weights) >= 0.5
    assert max(weights) <= 1.5
    assert abs(sum(weights) / N - 1.0) < FIVE / math.sqrt(12 * N)
    assert all(a["weights"]["brevity"] == 2 and a["params"] == {"decisions": [3, 6]} for a in alignments)


def test_the_seed_draws_the_same() -> None:
    body = {"alignment": {"weights": {"warmth": [0.0, 1.0]}}}
    pair = (MixEntry(name="a", body=body), MixEntry(name="b"))
    assert draw_all(*pair, n=50, seed=1) == draw_all(*pair, n=50, seed=1) != draw_all(*pair, n=50, seed=2)


def test_what_is_filled_in() -> None:
    [chat, text, score] = [
        json.loads(draw_all(entry, n=1)[0].content)
        for entry in (
            MixEntry(name="c", stream=True, body={"model": "mine"}),
            MixEntry(name="t", path="/v1/completions"),
            MixEntry(name="s", path="/v1/alignment/score", body={"responses": []}),
        )
    ]
    assert (chat["model"], chat["stream"], chat["messages"][0]["content"] in "ab") == ("mine", True, True)
    assert (text["model"], text["prompt"] in "ab") == ("m", True)
    assert score == {"responses": []}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_mixes_are_valid(name: str) -> None:
    assert read(SHIPPED[name])


def test_the_mix_of_all_asks_for_every_strategy_as_the_demo_has_it() -> None:
    config, rng = load(DEMO), random.Random(0)
    strategies = set()
    for entry in read(SHIPPED["all"]):
        alignment = request_body(entry, "hi", "m", rng).get("alignment", {})
        if entry.expect == 200:
            strategies.add(plan(alignment, config, lambda: {"warmth": 1.0}).name)
        else:
            with pytest.raises(ApiError) as refused:
                plan(alignment, config)
            assert refused.value.status == entry.expect
    assert strategies == set(STRATEGIES)


ENV = {"CALLER": "sk-1"}


def test_a_caller_s_key() -> None:
    by_name, as_is = entries(
        {"requests": [{"name": "a", "key_env": "CALLER"}, {"name": "b", "key": "sk-2"}]}, environment=ENV
    )
    assert (by_name.key, as_is.key) == ("sk-1", "sk-2")
    assert "sk-" not in repr((by_name, as_is))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "the file: missing: must be keys and values"),
        ({}, "requests: missing: must be a list of at least one request"),
        ({"requests": []}, "requests: []: must be a list of at least one request"),
        ({"request": []},
         "the file: unknown key 'request'; valid: defaults, requests, examples. Did you mean requests?"),
        ({"requests": ["a"]}, 'requests[0]: "a": must be keys and values'),
        ({"requests": [{}]}, "requests[0].name: missing: must be a name"),
        ({"requests": [{"name": "a"}, {"name": "a"}]}, "requests[1].name: 'a': must differ"),
        ({"requests": [{"name": "a", "wieght": 1}]}, "requests[0]: unknown key 'wieght'; valid: name, share, body"),
        ({"requests": [{"name": "a", "share": 0}]}, "requests[0].share: 0: must be a number above 0"),
        ({"requests": [{"name": "a", "share": True}]}, "requests[0].share: true: must be a number above 0"),
        ({"requests": [{"name": "a", "expect": 99}]}, "requests[0].expect: 99: must be a status, 200 or 400 to 599"),
        ({"requests": [{"name": "a", "path": "v1"}]}, 'requests[0].path: "v1": must be a path that begins with /'),
        ({"requests": [{"name": "a", "stream": 1}]}, "requests[0].stream: 1: must be true or false"),
        (
            {"requests": [{"name": "a", "stream": True, "path": "/v1/responses"}]},
            "requests[0].stream: true: only with the path /v1/chat/completions or /v1/completions, not /v1/responses",
        ),
        ({"requests": [{"name": "a", "body": []}]}, "requests[0].body: []: must be keys and values"),
        ({"requests": [{"name": "a", "key": "x", "key_env": "Y"}]}, "requests[0]: key and key_env: must be one"),
        ({"requests": [{"name": "a", "key_env": "NONE"}]}, 'requests[0].key_env: "NONE": must be the name of a'),
        (
            {"requests": [{"name": "a", "body": {"alignment": {"weights": {"w": [2, 1]}}}}]},
            "requests[0].body.alignment.weights.w: [2, 1]: must be a number or a range [low, high]",
        ),
        (
            {"defaults": {"alignment": {"guides": {"g": [1]}}}, "requests": [{"name": "a"}]},
            "requests[0].body.alignment.guides.g: [1]: must be a number or a range [low, high]",
        ),
    ],
)  # fmt: skip
def test_a_bad_mix(document: Any, message: str) -> None:
    with pytest.raises(MixError) as refused:
        entries(document, ENV)
    assert str(refused.value).startswith(message)


def test_a_mix_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MixError, match="nowhere: cannot be read"):
        read(tmp_path / "nowhere")
    (tmp_path / "mix.yaml").write_text("{")
    with pytest.raises(MixError, match=r"mix\.yaml: not YAML"):
        read(tmp_path / "mix.yaml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--duration 1", "one of --rate and --concurrency must be given, and not both"),
        ("--duration 1 --rate 1 --concurrency 1", "one of --rate and --concurrency must be given, and not both"),
        ("--rate 1", "--duration or --requests must be given, or both"),
        ("--rate -1 --duration 1", "argument --rate: -1: must be a number above 0"),
        ("--rate inf --duration 1", "argument --rate: inf: must be a number above 0"),
        ("--concurrency 1.5 --duration 1", "argument --concurrency: 1.5: must be a whole number from 1"),
        ("--rate 1 --requests 0", "argument --requests: 0: must be a whole number from 1"),
        ("--rate 1 --requests 1 --slow 2", "argument --slow: 2: must be a share from 0 to 1"),
        ("--rate 1 --requests 1 --warmup -1", "argument --warmup: -1: must be a number from 0"),
        ("--rate 1 --requests 1 --url host:1", "argument --url: host:1: must begin with http:// or https://"),
        ("--concurrency 1 --requests 1 --arrival poisson", "--arrival poisson: only with --rate"),
        ("--rate 1 --requests 1 --arrival gamma", "argument --arrival: invalid choice: 'gamma'"),
    ],
)
def test_a_bad_option(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(argv.split())
    assert f"error: {message}" in capsys.readouterr().err


def test_quick_gives_way_to_what_is_said() -> None:
    args = arguments(["--quick", "--concurrency", "3", "--mix", "plain", "--requests", "9"])
    assert (args.rate, args.concurrency, args.duration, args.requests) == (None, [3], None, 9)
    assert args.mix == SHIPPED["plain"]
    assert arguments(["--quick"]).mix == SHIPPED["all"]
