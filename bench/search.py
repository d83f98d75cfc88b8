"""What a search inside the server is worth: answers per second, against the same search around vLLM's own server.

    python -m bench.search best_of_n [--quick] [--its-hub-python PATH] [--optillm-python PATH] [--json out/search.json]

Every way answers the same held-out questions with the best of N answers of the same base, drawn at temperature 1 and
scored by the same reward model; both servers run with the same engine arguments. Closed loop: c clients, each sending
its next question when the last one is answered. A round runs every way once, one after the other and each time in
another order, and a ratio is of two ways within a round; the median round is told, and the first warms up. The best
answers' mean reward is told too: ways that do the same differ by chance alone.

- trimtab: one request with `alignment`. The server draws, scores and chooses.
- vLLM + HF: a client draws from vLLM's server (N requests at once, or one with n = N), scores the answers in one batch
  with transformers in its own process, and chooses. "in turn" is the script that one writes first: a request and a
  score, N times.
- its_hub (1.2): `BestOfN` with its OpenAI-compatible language model and no limit on concurrency. It has no reward model
  of its own that reads a classification head, so the same transformers code stands behind its
  `AbstractOutcomeRewardModel`, in one batch, in a thread.
- optillm (0.4): `best_of_n_sampling`, the function behind its `bon` approach, without its proxy. It has no reward
  model: the base rates each answer in a request of its own, one after the other. It allows 256 tokens for a number;
  here 4, what a base that follows instructions would take, since the demo base does not.

The second table: tokens of prompts asked for and computed by the base while a long conversation is answered, from the
servers' `vllm:prompt_tokens_by_source`. vLLM reuses whole blocks of a prompt; on CPU a block has 128 tokens unless
`--set engine.block_size=32` or the like says otherwise.

Interpreters for the peers: `pip install 'its_hub[lm]' torch transformers`, and `pip install optillm`, each in a virtual
environment of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.overhead import vllm_command
from bench.peers.hf_reward import HFReward
from bench.peers.loop import MAX_TOKENS, Answer, Conversation, Way, Work, closed_loop, peer
from bench.report import hardware, table, write
from bench.serving import free_port, started, trimtab
from recipes.corpus import heldout_prompts
from server.cli import DEMO
from server.config import load

LABEL = "helpfulness"
OURS = "trimtab"
IN_TURN = "vLLM + HF, N requests in turn"
PATH = "/v1/chat/completions"
LONG_TURNS = 25
"""Messages of the long conversation: some 400 tokens."""


@dataclass(frozen=True)
class Cell:
    """What one way did at one N and number of clients, round by round."""

    seconds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Prefill:
    asked: float
    computed: float

    @property
    def saved(self) -> float:
        return 1 - self.computed / self.asked

    def since(self, before: Prefill) -> Prefill:
        return Prefill(self.asked - before.asked, self.computed - before.computed)


def samples(metrics: str, name: str) -> list[tuple[dict[str, str], float]]:
    """(labels, value) of a metric in Prometheus's text format."""
    found = []
    for line in metrics.splitlines():
        if match := re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line):
            found.append((dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")), float(match[2])))
    return found


def prefill(metrics: str) -> Prefill:
    """Tokens of prompts since the server's start."""
    sources = samples(metrics, "vllm:prompt_tokens_by_source_total")
    return Prefill(
        asked=sum(value for _, value in sources),
        computed=sum(value for labels, value in sources if labels["source"] == "local_compute"),
    )


def block_size(metrics: str) -> int:
    [(labels, _)] = samples(metrics, "vllm:cache_config_info")
    return int(labels["block_size"])


def best(answers: Sequence[str], scores: Sequence[float]) -> str:
    """The first of those with the highest score."""
    return answers[max(range(len(answers)), key=scores.__getitem__)]


def times_faster(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]


def questions(seed: int) -> Iterator[Conversation]:
    return itertools.cycle([p.messages for p in heldout_prompts(2000, seed)])


def long_conversation(short: Iterator[Conversation]) -> Conversation:
    texts = [next(short)[-1]["content"] for _ in range(LONG_TURNS)]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Best of N around vLLM's server."""

    http: httpx.AsyncClient
    model: str
    reward: HFReward

    async def draw(self, conversation: Conversation, n: int) -> list[str]:
        return await drawn(self.http, self.model, conversation, n=n)

    async def scored(self, conversation: Conversation, answers: list[str]) -> str:
        read = [[*conversation, {"role": "assistant", "content": answer}] for answer in answers]
        return best(answers, await asyncio.to_thread(self.reward, read))

    async def at_once(self, conversation: Conversation, n: int) -> str:
        answers = await asyncio.gather(*(self.draw(conversation, 1) for _ in range(n)))
        return await self.scored(conversation, [answer for [answer] in answers])

    async def as_one(self, conversation: Conversation, n: int) -> str:
        return await self.scored(conversation, await self.draw(conversation, n))

    async def in_turn(self, conversation: Conversation, n: int) -> str:
        answers, scores = [], []
        for _ in range(n):
            answers += await self.draw(conversation, 1)
            read = [*conversation, {"role": "assistant", "content": answers[-1]}]
            scores += await asyncio.to_thread(self.reward, [read])
        return best(answers, scores)


async def drawn(http: httpx.AsyncClient, model: str, conversation: Conversation, **more: Any) -> list[str]:
    body = {"model": model, "messages": conversation, "max_tokens": MAX_TOKENS, "temperature": 1.0, **more}
    answer = await http.post(PATH, json=body)
    if answer.is_error:
        raise RuntimeError(answer.text)
    return [choice["message"]["content"] or "" for choice in answer.json()["choices"]]


def inside(http: httpx.AsyncClient, model: str, reward: str) -> Answer:
    async def answer(conversation: Conversation, n: int) -> str:
        alignment = {"strategy": "best_of_n", "reward": reward, "params": {"n": n}}
        [text] = await drawn(http, model, conversation, alignment=alignment)
        return text

    return answer


def looped(answer: Answer) -> Way:
    async def way(work: Work) -> Any:
        return await closed_loop(answer, work)

    return way


async def measure(
    ways: dict[str, Way], work: Work, asked: Iterator[Conversation], reward: HFReward, *, rounds: int
) -> dict[str, Cell]:
    cells = {name: Cell() for name in ways}
    for i in range(rounds + 1):
        conversations = [next(asked) for _ in work.conversations]
        for name in rotated(list(ways), i):
            done = await ways[name](replace(work, conversations=conversations))
            if i == 0:
                continue
            read = [[*c, {"role": "assistant", "content": a}] for c, a in zip(conversations, done.answers, strict=True)]
            cells[name].seconds.append(done.seconds)
            cells[name].rewards.append(statistics.mean(reward(read)))
    return cells


async def measure_prefill(
    ways: dict[str, tuple[Way, httpx.AsyncClient]], conversations: list[Conversation], n: int
) -> dict[str, Prefill]:
    """Every way reads conversations of its own, so that none finds another's in the cache."""
    figures = {}
    share = len(conversations) // len(ways)
    for i, (name, (way, http)) in enumerate(ways.items()):
        before = prefill((await http.get("/metrics")).text)
        await way(Work(conversations[i * share : (i + 1) * share], n, clients=1))
        figures[name] = prefill((await http.get("/metrics")).text).since(before)
    return figures


def told(work: Work, name: str, cell: Cell, ours: Cell) -> dict[str, Any]:
    return {
        "n": work.n,
        "clients": work.clients,
        "way": name,
        "answers_per_s": len(work.conversations) / statistics.median(cell.seconds),
        "faster": times_faster(ours.seconds, cell.seconds),
        "ratios": [b / a for a, b in zip(ours.seconds, cell.seconds, strict=True)],
        "reward": statistics.mean(cell.rewards),
        "seconds": cell.seconds,
    }


def show(figures: list[dict[str, Any]], saved: list[dict[str, Any]], block: int) -> None:
    headers = ["N", "clients", "way", "answers/s", "trimtab: times faster", "rounds", "mean reward"]
    rows = [
        [
            f["n"],
            f["clients"],
            f["way"],
            f["answers_per_s"],
            f"{f['faster']:.2f}",
            f"{min(f['ratios']):.2f} … {max(f['ratios']):.2f}",
            f["reward"],
        ]
        for f in figures
    ]
    print(hardware() + "\n\n" + table(headers, rows) + "\n")
    headers = ["way", "prompt tokens asked for", "computed", "saved"]
    print(f"Prefill of a long conversation, N = {saved[0]['n']}, blocks of {block} tokens\n")
    print(table(headers, [[s["way"], f"{s['asked']:.0f}", f"{s['computed']:.0f}", f"{s['saved']:.0%}"] for s in saved]))


async def best_of_n(ours: str, theirs: str, model: str, args: argparse.Namespace) -> dict[str, Any]:
    reward = HFReward(args.reward, LABEL)
    # uvicorn hangs up on a connection after 5 idle seconds, at times just as a request is sent on it
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
    async with AsyncExitStack() as stack:
        to_ours, to_theirs = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=3600, limits=limits))
            for url in (ours, theirs)
        ]
        outside = Outside(http=to_theirs, model=model, reward=reward)
        ways = {
            OURS: looped(inside(to_ours, model, f"rm-a.{LABEL}")),
            "vLLM + HF, N requests at once": looped(outside.at_once),
            "vLLM + HF, one request with n = N": looped(outside.as_one),
        }
        mine = {name: (way, to_ours if name == OURS else to_theirs) for name, way in ways.items()}
        if args.its_hub_python:
            arguments = (theirs, model, str(args.reward), LABEL)
            ways["its_hub"] = await stack.enter_async_context(
                peer(args.its_hub_python, "bench.peers.its_hub", *arguments, log=Path("out/its_hub.log"))
            )
        if args.optillm_python:
            ways["optillm"] = await stack.enter_async_context(
                peer(args.optillm_python, "bench.peers.optillm", theirs, model, log=Path("out/optillm.log"))
            )
        ways[IN_TURN] = looped(outside.in_turn)
        asked, figures = questions(args.seed), []
        for n, clients in itertools.product(args.n, args.clients):
            at_hand = {name: way for name, way in ways.items() if name != IN_TURN or n <= args.in_turn_up_to}
            work = Work([[]] * (args.per_client * clients), n, clients)
            cells = await measure(at_hand, work, asked, reward, rounds=args.rounds)
            figures += [told(work, name, cell, cells[OURS]) for name, cell in cells.items()]
            print(f"N = {n}, {clients} clients: done", file=sys.stderr, flush=True)
        n = 16
        long = [long_conversation(asked) for _ in range(4 * len(mine))]
        saved = [
            {"way": name, "n": n, "asked": p.asked, "computed": p.computed, "saved": p.saved}
            for name, p in (await measure_prefill(mine, long, n)).items()
        ]
        block = block_size((await to_theirs.get("/metrics")).text)
    for name, python in (("its_hub", args.its_hub_python), ("optillm", args.optillm_python)):
        if not python:
            print(f"skipped: {name}, whose interpreter was not given")
    show(figures, saved, block)
    return {"answers": figures, "prefill": saved, "block_size": block}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("search", choices=["best_of_n"])
    parser.add_argument("--config", type=Path, default=DEMO, help="whose base and engine arguments to use")
    parser.add_argument("--reward", type=Path, help=f"a classifier with the label {LABEL}; by default the demo's")
    parser.add_argument("--its-hub-python", type=Path, help="interpreter with its_hub, torch and transformers")
    parser.add_argument("--optillm-python", type=Path, help="interpreter with optillm")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="put a value over the configuration's, for both servers; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores")
    parser.add_argument("--n", type=int, nargs="+", help="answers drawn for one")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 1])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--per-client", type=int, help="questions of each client in a round")
    parser.add_argument("--in-turn-up-to", type=int, default=16, help="largest N of requests sent in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.n = args.n or ([4, 16] if args.quick else [4, 16, 64])
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.per_client = args.per_client or (1 if args.quick else 2)
    args.reward = (args.reward or args.config.parent / "rewards" / "a").resolve()
    whole = load(args.config)
    alone = {"base": whole.base, "name": whole.model_name, "engine": dict(whole.engine)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = Path(folder) / "search.yaml"
        config.write_text(yaml.safe_dump(alone | {"rewards": rewards(args.reward)}))
        ours = stack.enter_context(trimtab(None, config, *args.overrides))
        port = free_port()
        command = vllm_command(load(config, args.overrides), port)
        theirs = stack.enter_context(started(command, port, "/health", Path("out/vllm.log")))
        figures = asyncio.run(best_of_n(ours, theirs, whole.model_name, args))
    write(args.json, figures)


def rewards(path: Path) -> dict[str, Any]:
    engine = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "kv_cache_memory_bytes": 1 << 27}
    return {"rm-a": {"kind": "classifier", "model": str(path), "engine": engine}}


if __name__ == "__main__":
    main()
