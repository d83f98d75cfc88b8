"""`trimtab eval` on a toy server, and on one that fails as it is bid."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.bench.scripted import JSON, Scripted, answer, serve
from tests.server.conftest import Running
from trimtab.bench.eval.ask import TEMPLATE_FIELDS, Place, find_needs
from trimtab.bench.eval.cli import main
from trimtab.bench.eval.figures import compare
from trimtab.bench.eval.inputs import EvalError, read_prompts, read_settings
from trimtab.bench.serving import free_port
from trimtab.server.cli import main as trimtab
from trimtab.server.http.score import RENDERED

DEMO = Path(__file__).parent.parent.parent / "demo"
slow = pytest.mark.slow


# On the toy: real HTTP, real rewards.


@pytest.fixture(scope="module")
def evaluated(served_toy: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    (folder / "again.yaml").write_text((DEMO / "settings/plain.yaml").read_text())
    (folder / "preset.yaml").write_text("{model: trimtab-demo-warm, temperature: 1.0, max_tokens: 128}")
    settings = [DEMO / "settings" / f"{name}.yaml" for name in ("plain", "best_of_8", "warm")]
    settings += [folder / "again.yaml", folder / "preset.yaml"]
    command = ["eval", "--url", f"{served_toy.url}/v1", "--prompts", str(DEMO / "prompts.txt"), "--limit", "24"]
    command += ["--n", "2", "--settings", *map(str, settings), "--reward", "rm-a.warmth", "concise"]
    trimtab([*command, "--out", str(folder / "out")])
    return folder / "out"


def read_figures(folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())["figures"]
    return figures


@slow
def test_what_is_better_is_found_better(evaluated: Path) -> None:
    versus = read_figures(evaluated)["rewards"]["rm-a.warmth"]["best_of_8"]["versus_first"]
    assert (versus["pairs"], versus["prompts"]) == (48, 24)
    assert versus["difference"] > versus["half_ci95"] > 0
    assert versus["win_ci95"][0] > 0.5


@slow
def test_what_equals_the_first_differs_by_nothing(evaluated: Path) -> None:
    figures = read_figures(evaluated)
    for rows in figures["rewards"].values():
        assert "versus_first" not in rows["plain"]
        versus = rows["again"]["versus_first"]
        assert (versus["difference"], versus["half_ci95"], versus["win_rate"]) == (0.0, 0.0, 0.5)
    assert figures["settings"]["again"]["asked"] == figures["settings"]["again"]["answered"] == 48


@slow
def test_the_figures_are_those_of_a_plain_recomputation(evaluated: Path, served_toy: Running) -> None:
    """Answers as they were recorded, scored anew, and a bootstrap over prompts in place of Student's interval."""
    import numpy as np

    prompts = (DEMO / "prompts.txt").read_text().splitlines()
    records = [json.loads(line) for line in (evaluated / "answers.jsonl").read_text().splitlines()]
    scores: dict[str, Any] = {name: np.zeros((24, 2)) for name in ("plain", "best_of_8")}
    for record in records:
        if record["setting"] in scores:
            body = {
                "messages": [{"role": "user", "content": prompts[record["prompt"]]}],
                "responses": [record["text"]],
                "finished": record["finish_reason"] == "stop",
                "reward": "rm-a.warmth",
            }
            reply = httpx.post(f"{served_toy.url}/v1/alignment/score", json=body, timeout=60).json()
            scores[record["setting"]][record["prompt"], record["sample"]] = reply["scores"][0]["value"]
    figures = read_figures(evaluated)
    row = figures["rewards"]["rm-a.warmth"]["best_of_8"]
    assert row["mean"] == pytest.approx(scores["best_of_8"].mean(), abs=1e-9)
    apart = (scores["best_of_8"] - scores["plain"]).mean(1)
    versus = row["versus_first"]
    assert versus["difference"] == pytest.approx(apart.mean(), abs=1e-9)
    drawn = np.random.default_rng(0).choice(apart, (20000, 24)).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert 2 * versus["half_ci95"] == pytest.approx(high - low, rel=0.1)
    larger, equal = scores["best_of_8"] > scores["plain"], scores["best_of_8"] == scores["plain"]
    assert versus["win_rate"] == pytest.approx((larger + 0.5 * equal).mean())
    drawn_tokens = [record["sampled_tokens"] for record in records if record["setting"] == "best_of_8"]
    assert figures["settings"]["best_of_8"]["sampled_tokens"] == pytest.approx(statistics.fmean(drawn_tokens))
    assert min(drawn_tokens) >= 8


@slow
def test_kl_is_shown_where_a_report_has_it(evaluated: Path, served_toy: Running) -> None:
    settings = read_figures(evaluated)["settings"]
    assert settings["warm"]["kl"]["kl_exact"]["mean"] > 0
    assert not settings["plain"]["kl"]
    [first] = [
        record
        for record in map(json.loads, (evaluated / "answers.jsonl").read_text().splitlines())
        if (record["setting"], record["prompt"], record["sample"]) == ("warm", 0, 0)
    ]
    assert set(first["kl"]) == {"kl_exact"}
    assert first["scored_tokens"] > 0


@slow
def test_every_setting_draws_with_the_same_seeds(evaluated: Path) -> None:
    """The warm preset answers as the weights that it stands for."""
    texts: dict[str, dict[tuple[int, int], str]] = {"warm": {}, "preset": {}}
    for record in map(json.loads, (evaluated / "answers.jsonl").read_text().splitlines()):
        if record["setting"] in texts:
            texts[record["setting"]][record["prompt"], record["sample"]] = record["text"]
    assert texts["warm"] == texts["preset"]
    assert len(set(texts["warm"].values())) > 10


@slow
def test_the_folder_has_all_that_is_promised(evaluated: Path) -> None:
    assert (evaluated / "figures.png").stat().st_size > 10_000
    table = (evaluated / "table.md").read_text()
    assert "| best_of_8 | 48/48" in table
    assert "difference from plain" in table
    for page in ("answers.md", "answers.html"):
        assert (evaluated / page).read_text().count("Why do we need sleep?") == 1


# On a server that does as it is bid.


HOPELESS = JSON | {"x-should-retry": "false"}
BEFORE = {"long": "much longer than that ", "odd-text": "<script>alert(1)</script> ``` | "}
"""What an answer says before it repeats the prompt."""


class Bid(Scripted):
    """The `script` of a request says how it fares; a score is the answer's length."""

    def __init__(self) -> None:
        super().__init__()
        self.chats: list[dict[str, Any]] = []
        self.scored: list[dict[str, Any]] = []
        self.tries: Counter[str] = Counter()
        self.begun: dict[str, float] = {}
        """When a prompt came first to a busy server."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/v1/models":
            return await answer(send, 200, JSON, '{"data": [{"id": "first"}]}')
        if scope["path"] == "/v1/alignment":
            rewards = {"words": {"needs": []}, "right": {"needs": ["answer"]}, "broken": {"needs": []}}
            return await answer(send, 200, JSON, json.dumps({"rewards": rewards, "objectives": {}}))
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        document = json.loads(body)
        if scope["path"] == "/v1/alignment/score":
            return await self.score(document, send)
        return await self.chat(document, send)

    async def chat(self, document: dict[str, Any], send: Send) -> None:
        self.chats.append(document)
        script, prompt = document.get("script", "ok"), document["messages"][-1]["content"]
        self.tries[f"{script} {prompt}"] += 1
        first = self.tries[f"{script} {prompt}"] == 1
        if script == "wrong" or (script == "wrong-for-odd" and "odd" in prompt):
            return await answer(send, 400, JSON, '{"error": {"message": "no such strategy <b>bset_of_n</b>"}}')
        if script == "busy" and time.monotonic() < self.begun.setdefault(prompt, time.monotonic()) + 0.9:
            return await answer(send, 429, JSON | {"retry-after": "0.95"}, '{"error": {"message": "wait"}}')
        if script == "flaky" and first:
            return await answer(send, 503, JSON | {"retry-after": "0"}, '{"error": {"message": "starting"}}')
        if script == "hopeless":
            return await answer(
                send, 500, JSON | {"x-should-retry": "false"}, '{"error": {"message": "a reward died"}}'
            )
        if script == "down":
            return await answer(send, 500, JSON | {"retry-after": "0"}, '{"error": {"message": "down"}}')
        if script == "slow":
            await asyncio.sleep(5)
        text = {"long": "much longer than that ", "odd-text": "<script>alert(1)</script> ``` | "}.get(
            script, ""
        ) + prompt
        choice = {"index": 0, "message": {"content": text}, "finish_reason": "length" if script == "long" else "stop"}
        await answer(send, 200, JSON, json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}))

    async def score(self, document: dict[str, Any], send: Send) -> None:
        self.scored.append(document)
        [text] = document["responses"]
        if document["reward"] == "unknown" or (document["reward"] == "right") != ("given" in document):
            return await answer(send, 400, JSON, '{"error": {"message": "unknown reward or surplus given"}}')
        if document["reward"] == "broken" and text != "Yes.":
            return await answer(send, 500, HOPELESS, '{"error": {"message": "NaN"}}')
        await answer(send, 200, JSON, json.dumps({"scores": [{"index": 0, "value": float(len(text))}]}))


@pytest.fixture
def server() -> Iterator[Bid]:
    app = Bid()
    with serve(app):
        yield app


PROMPTS = ["even one", "odd one", "even two", "odd two"]


def evaluate(server: Scripted, folder: Path, scripts: list[str], *more: str) -> dict[str, Any]:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    for script in scripts:
        (folder / f"{script}.yaml").write_text(f"script: {script}\n")
    settings = [str(folder / f"{script}.yaml") for script in scripts]
    command = ["--url", server.url, "--prompts", str(folder / "prompts.txt"), "--settings", *settings]
    main([*command, "--reward", "words", "--out", str(folder / "out"), *more])
    return read_figures(folder / "out")


@slow
def test_a_refusal_names_its_setting_and_the_pairs_are_what_is_left(
    server: Bid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluate(server, tmp_path, ["ok", "wrong-for-odd"])
    row = figures["settings"]["wrong-for-odd"]
    assert (row["asked"], row["answered"], row["failed"], row["repeated"]) == (4, 2, 2, {})
    versus = figures["rewards"]["words"]["wrong-for-odd"]["versus_first"]
    assert (versus["pairs"], versus["prompts"], versus["difference"]) == (2, 2, 0.0)
    printed = capsys.readouterr().out
    assert "2 x wrong-for-odd, the answer: 400: no such strategy" in printed
    assert re.search(r"\| wrong-for-odd \| 2/4 +\| 2 ", printed)
    assert sum(chat["script"] == "wrong-for-odd" for chat in server.chats) == 4


@slow
def test_a_setting_without_any_score_is_the_exit_status(server: Bid, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="a setting has no score"):
        evaluate(server, tmp_path, ["ok", "wrong"])
    figures = read_figures(tmp_path / "out")
    assert figures["settings"]["wrong"]["failed"] == 4
    assert figures["rewards"]["words"]["wrong"]["versus_first"]["difference"] is None


@slow
@pytest.mark.parametrize(("script", "status"), [("busy", "429"), ("flaky", "503")])
def test_what_fails_for_a_time_is_tried_again_when_the_server_says(
    server: Bid, tmp_path: Path, script: str, status: str
) -> None:
    figures = evaluate(server, tmp_path, ["ok", script])
    row = figures["settings"][script]
    assert (row["answered"], row["failed"], row["repeated"]) == (4, 0, {status: 4})
    assert row["latency"]["max"] < 0.9  # of the try that was answered
    assert figures["rewards"]["words"][script]["versus_first"]["pairs"] == 4


@slow
@pytest.mark.parametrize(
    ("script", "more", "tries", "message"),
    [
        ("hopeless", [], 1, "500: a reward died"),
        ("down", ["--retries", "2"], 3, "500: down"),
        ("slow", ["--timeout", "2"], 1, "no answer within 2 s"),
    ],
)
def test_what_fails_for_good_is_counted(
    server: Bid, tmp_path: Path, script: str, more: list[str], tries: int, message: str
) -> None:
    with pytest.raises(SystemExit):
        evaluate(server, tmp_path, ["ok", script], *more)
    figures = read_figures(tmp_path / "out")
    assert (figures["settings"][script]["failed"], figures["settings"]["ok"]["failed"]) == (4, 0)
    assert {failure["message"] for failure in figures["failures"]} == {message}
    assert set(server.tries.values()) == {1, tries}


@slow
def test_a_score_that_fails_is_counted_too(server: Bid, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no score"):
        evaluate(server, tmp_path, ["ok", "long"], "--reward", "words", "broken")
    figures = read_figures(tmp_path / "out")
    rows = figures["rewards"]
    assert [rows["broken"][name]["unscored"] for name in ("ok", "long")] == [4, 4]
    assert rows["words"]["long"]["versus_first"]["difference"] == len("much longer than that ")
    assert {(f["setting"], f["reward"], f["message"]) for f in figures["failures"]} == {
        ("ok", "broken", "500: NaN"),
        ("long", "broken", "500: NaN"),
    }


@slow
def test_resuming_asks_nothing_twice(server: Bid, tmp_path: Path) -> None:
    evaluate(server, tmp_path, ["ok", "wrong-for-odd"], "--limit", "3")
    asked, scored = len(server.chats), len(server.scored)
    assert (asked, scored) == (6, 1 + 3)  # one score to try the reward; equal answers to a prompt share theirs
    with pytest.raises(SystemExit, match="has answers already"):
        evaluate(server, tmp_path, ["ok"])
    with (tmp_path / "out/answers.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    figures = evaluate(server, tmp_path, ["ok", "wrong-for-odd", "long"], "--n", "2", "--resume")
    news = Counter(chat["script"] for chat in server.chats[asked:])
    assert news == {"ok": 8 - 3, "wrong-for-odd": 8 - 2, "long": 8}  # what had failed is asked again
    assert figures["settings"]["ok"]["answered"] == 8
    before = len(server.chats), len(server.scored)
    assert evaluate(server, tmp_path, ["ok", "long"], "--n", "2", "--resume")["settings"] == {
        name: row for name, row in figures["settings"].items() if name != "wrong-for-odd"
    }
    assert (len(server.chats), len(server.scored)) == (before[0], before[1] + 1)
    (tmp_path / "ok.yaml").write_text("{script: ok, temperature: 0.5}")  # another request, and so another answer
    (tmp_path / "long.yaml").unlink()
    command = ["--url", server.url, "--prompts", str(tmp_path / "prompts.txt"), "--settings", str(tmp_path / "ok.yaml")]
    main([*command, "--reward", "words", "--out", str(tmp_path / "out"), "--resume"])
    assert [chat["temperature"] for chat in server.chats[before[0] :]] == [0.5] * 4


@slow
def test_what_a_request_has(server: Bid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("{model: m, chat_template_kwargs: {thinking: false}, max_tokens: 5}")
    (tmp_path / "b.yaml").write_text("")
    lines = ['{"prompt": "2 + 2?", "given": {"answer": "4"}, "chosen": "not read"}', '{"messages": [%s, %s]}']
    lines[1] %= ('{"role": "system", "content": "s"}', '{"role": "user", "content": "u"}')
    (tmp_path / "p.jsonl").write_text(lines[0] + "\n" + lines[1].replace("]}", '], "given": {"answer": "5"}}') + "\n")
    command = ["--url", server.url, "--prompts", str(tmp_path / "p.jsonl"), "--reward", "words", "right"]
    main([*command, "--settings", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--out", str(tmp_path / "out")])
    assert [(chat["model"], chat.get("max_tokens")) for chat in server.chats if len(chat["messages"]) == 1] == [
        ("m", 5),
        ("first", None),
    ]
    seeds: dict[str, set[int]] = {"m": set(), "first": set()}
    for chat in server.chats:
        seeds[chat["model"]].add(chat["seed"])
    assert seeds["m"] == seeds["first"]
    assert len(seeds["m"]) == 2
    right = [body for body in server.scored[2:] if body["reward"] == "right"]
    assert {body["given"]["answer"] for body in right} == {"4", "5"}
    assert {json.dumps(body.get("chat_template_kwargs")) for body in right} == {'{"thinking": false}', "null"}


@slow
def test_a_cut_answer_is_scored_as_a_beginning(server: Bid, tmp_path: Path) -> None:
    figures = evaluate(server, tmp_path, ["ok", "long"])
    finished = {body["responses"][0].startswith("much"): body["finished"] for body in server.scored[1:]}
    assert finished == {True: False, False: True}
    assert figures["settings"]["long"]["at_max_tokens"] == 4


class Text(HTMLParser):
    """A page's tags, and the text in its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onclick"}, "the page must need nothing else"

    def handle_data(self, data: str) -> None:
        self.text += data


@slow
def test_what_models_write_is_text_on_both_pages(server: Bid, tmp_path: Path) -> None:
    evaluate(server, tmp_path, ["odd-text", "wrong-for-odd"])
    page = Text()
    page.feed((tmp_path / "out/answers.html").read_text())
    assert page.tags.isdisjoint({"script", "link", "img"})
    assert "b" in page.tags  # the page's own
    assert page.text.count("<script>alert(1)</script> ``` | even one") == 1
    assert "no such strategy <b>bset_of_n</b>" in page.text
    written = (tmp_path / "out/answers.md").read_text()
    assert "\n````text\n<script>alert(1)</script> ``` | even one\n````\n" in written
    outside = re.sub(r"^(`{3,})text$.*?^\1$", "", written, flags=re.MULTILINE | re.DOTALL)
    assert "<script>" not in outside


@slow
def test_the_key_goes_to_the_server_alone_and_no_figure_without_matplotlib(
    server: Bid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["trimtab", "eval", "--key", "sk-secret"])
    evaluate(server, tmp_path, ["ok", "long"], "--key", "sk-secret")
    assert "no figures.png: matplotlib is not installed" in capsys.readouterr().out
    assert not (tmp_path / "out/figures.png").exists()
    assert not [file for file in (tmp_path / "out").iterdir() if "sk-secret" in file.read_text()]


@slow
def test_what_cannot_begin_is_one_line(server: Bid, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^trimtab eval: --reward unknown: 400: unknown reward"):
        evaluate(server, tmp_path, ["ok"], "--reward", "unknown")
    assert not server.chats
    nobody = Scripted(url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(SystemExit, match=r"^trimtab eval: http://127.0.0.1:\d+/v1/models tells no model: "):
        evaluate(nobody, tmp_path, ["ok"])
    with pytest.raises(SystemExit, match=r"^trimtab eval: http://[\d.:]+/v1/alignment: .* must be a trimtab server"):
        evaluate(nobody, tmp_path, ["ok"], "--model", "m")


# Without a server.


def test_pairs_are_of_what_both_have() -> None:
    """Prompt 0 has two pairs, prompt 1 one, prompt 2 none; the means are of prompts."""
    first = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 5.0, (2, 0): 9.0}
    row = compare({(0, 0): 2.0, (0, 1): 5.0, (1, 0): 5.0, (1, 1): 99.0}, first)
    assert (row["pairs"], row["prompts"]) == (3, 2)
    assert row["difference"] == ((1 + 3) / 2 + 0) / 2
    assert row["half_ci95"] == pytest.approx(12.7062 * statistics.stdev([2.0, 0.0]) / 2**0.5, rel=1e-5)
    assert row["win_rate"] == (1 + 0.5) / 2
    alone = compare({(0, 0): 2.0}, first)
    assert (alone["difference"], alone["half_ci95"]) == (1.0, None)
    for neither in (compare({}, first), compare({(0, 0): 2.0}, {})):
        assert (neither["difference"], neither["win_ci95"], neither["pairs"]) == (None, [None, None], 0)


def test_the_template_s_fields_are_those_of_the_endpoint() -> None:
    assert {"messages", *TEMPLATE_FIELDS} == set(RENDERED)


def test_what_a_reward_needs() -> None:
    rewards = {"bleu": {"needs": ["references"]}, "right": {"needs": ["answer"]}, "rm": {"needs": []}}
    tree = {"of": ["rm.warmth", {"of": {"right": 1.0}}], "combine": "sum"}
    objectives = {"good": {"reward": tree}, "like": {"reward": {"of": "bleu", "transform": "par"}}, "kind": {}}
    catalogue = {"rewards": rewards, "objectives": objectives}
    needs = {name: find_needs(name, catalogue) for name in ("bleu", "rm.warmth", "good", "like", "kind", "nobody")}
    assert needs == {
        "bleu": {"references"},
        "rm.warmth": set(),
        "good": {"answer"},
        "like": {"references"},
        "kind": set(),
        "nobody": set(),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must hold fields of a chat request"),
        ("{seed: 1}", "seed: cannot be set here: every setting draws with the same seeds: --seed"),
        ("{messages: []}", "messages: cannot be set here"),
        ("{n: 2}", "n: cannot be set here"),
        ("{stream: true}", "stream: cannot be set here"),
        ("{user: 2026-01-01}", "cannot be written as JSON"),
        ("{temperature: .nan}", "cannot be written as JSON"),
        ("{a: b: c}", "not YAML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises((EvalError, ValueError), match=re.escape(message)) as caught:
        read_settings([path])
    assert str(path) in str(caught.value)


def test_two_settings_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    paths = [tmp_path / "a.yaml", tmp_path / "b/a.yaml"]
    for path in paths:
        path.write_text("{}")
    with pytest.raises(EvalError, match="a second setting named 'a'"):
        read_settings(paths)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "no JSON object"),
        ('{"chosen": "a"}', "must have one of messages and prompt"),
        ('{"prompt": "a", "messages": []}', "and not both"),
        ('{"prompt": ""}', "prompt: must be text or a list of messages"),
        ('{"messages": "a"}', "messages: must be a list of messages"),
        ('{"messages": [{"content": "a"}]}', "with a role"),
        ('{"prompt": "a", "given": []}', "given: must be an object"),
    ],
)
def test_a_wrong_prompt_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"first\n\n{line}\n")
    with pytest.raises(EvalError, match=f"line 3: .*{re.escape(message)}"):
        read_prompts(path)


def test_prompts_of_every_form(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text(' hi \u2028 there \n\n{"prompt": [{"role": "user", "content": "a"}]}\n', encoding="utf-8-sig")
    prompts = read_prompts(path)
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["hi \u2028 there", "a"]
    assert len(read_prompts(path, limit=1)) == 1
    path.write_text("\n")
    with pytest.raises(EvalError, match="at least one prompt"):
        read_prompts(path)


def test_a_repeated_prompt_counts_once(tmp_path: Path) -> None:
    """As in a file of preferences, which has a prompt with several pairs of answers."""
    pair = {"prompt": [{"role": "user", "content": "a"}], "rejected": "no"}
    same = [{**pair, "chosen": "yes"}, {**pair, "chosen": "sure"}, {"messages": pair["prompt"]}, {"prompt": "a"}]
    others = [{"prompt": "a", "given": {"answer": "1"}}, {"prompt": "a", "given": {"answer": "2"}}, {"prompt": "b"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(["a", *map(json.dumps, [*same, *others])]))
    assert [(p.messages[0]["content"], dict(p.given)) for p in read_prompts(path)] == [
        ("a", {}),
        ("a", {"answer": "1"}),
        ("a", {"answer": "2"}),
        ("b", {}),
    ]
    assert len(read_prompts(path, limit=2)) == 2


def test_a_place_is_its_fields() -> None:
    assert vars(Place(setting="a", prompt=1, sample=2)) == {"setting": "a", "prompt": 1, "sample": 2}
