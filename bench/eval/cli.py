"""Settings compared by rewards of their answers, over HTTP alone: docs/eval.md.

    trimtab eval --prompts demo/prompts.txt --settings demo/settings/plain.yaml demo/settings/warm.yaml \\
      --reward rm-a.warmth --out out/eval
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import httpx

from trimtab.bench.eval.archive import Archive, digest, has_records
from trimtab.bench.eval.arguments import arguments
from trimtab.bench.eval.ask import CATALOGUE, AnswerRequest, Asker, Place, find_needs, plan_answers, score_body
from trimtab.bench.eval.figures import Evaluation, figures, list_failures, tables
from trimtab.bench.eval.inputs import EvalError, EvalPrompt, Setting, read_prompts, read_settings
from trimtab.bench.eval.pages import render_html, render_markdown, render_tables, side_by_side
from trimtab.bench.eval.plot import plot
from trimtab.bench.load.cli import LoadError, first_model
from trimtab.bench.load.client import connect
from trimtab.bench.load.mix import MixError
from trimtab.bench.report import write

ANSWERS, SCORES = "answers.jsonl", "scores.jsonl"


def main(argv: Sequence[str] | None = None) -> None:
    """Exits with status 1 for what cannot begin, and where a setting has no score at all."""
    args = arguments(argv)
    try:
        summary = asyncio.run(run(args))
    except (EvalError, LoadError, MixError) as error:
        sys.exit(f"trimtab eval: {error}")
    except KeyboardInterrupt:
        sys.exit(f"trimtab eval: interrupted; with --resume it goes on with what is in {args.out}")
    if without := list_without_score(summary):
        sys.exit(f"trimtab eval: a setting has no score: {', '.join(without)}: see the failures above")


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole evaluation, its tables printed and its files written. Raises EvalError, LoadError, MixError."""
    settings, prompts = read_settings(args.settings), read_prompts(args.prompts, args.limit)
    args.reward = list(dict.fromkeys(args.reward))
    if not args.resume and has_records(args.out / ANSWERS):
        raise EvalError(f"--out: {args.out}: has answers already: --resume goes on with them, or name another folder")
    evaluation = await evaluate(args, settings, prompts)
    summary = {"model": args.model, "seed": args.seed, "concurrency": args.concurrency, **figures(evaluation)}
    for setting in settings:
        summary["settings"][setting.name]["request"] = setting.body
    write_all(args, evaluation, prompts, summary)
    return summary


def list_without_score(summary: Mapping[str, Any]) -> list[str]:
    """Settings of which a reward scored no answer."""
    rows = [(name, row) for by_setting in summary["rewards"].values() for name, row in by_setting.items()]
    return list(dict.fromkeys(name for name, row in rows if not row["scored"]))


async def evaluate(args: argparse.Namespace, settings: Sequence[Setting], prompts: Sequence[EvalPrompt]) -> Evaluation:
    """Asks for answers, then for their scores. `args.model` is then the model that was asked."""
    with closing(Archive(args.out / ANSWERS)) as answers, closing(Archive(args.out / SCORES)) as scores:
        async with connect(args.url, args.key, slow_rate=1.0) as client:
            asker = Asker(
                client=client,
                answers=answers,
                scores=scores,
                timeout=args.timeout,
                retries=args.retries,
                concurrency=args.concurrency,
            )
            args.model = args.model or await first_model(client.http, args.url, args.key)
            catalogue = await read_catalogue(client.http, args.url, args.key)
            needs = {reward: find_needs(reward, catalogue) for reward in args.reward}
            probe = {"text": "Yes.", "finish_reason": "stop"}
            for reward in args.reward:
                await asker.check_reward(score_body(settings[0], prompts[0], probe, reward, needs[reward]))
            requests = plan_answers(settings, prompts, model=args.model, n=args.n, seed=args.seed)
            await asker.answer(requests)
            bodies, places = plan_scores(asker, settings, prompts, requests, needs)
            await asker.score(bodies, places)
    return Evaluation(
        settings=[setting.name for setting in settings],
        rewards=args.reward,
        prompts=len(prompts),
        n=args.n,
        answers={request.place: answers.records[request.key] for request in requests if request.key in answers.records},
        scores={
            reward: {
                place: scores.records[key]["value"]
                for key, body in bodies.items()
                if body["reward"] == reward and key in scores.records
                for place in places[key]
            }
            for reward in args.reward
        },
        failures=asker.failures,
    )


async def read_catalogue(http: httpx.AsyncClient, server: str, key: str | None) -> dict[str, Any]:
    """What the server can do. Raises EvalError."""
    try:
        answer = await http.get(CATALOGUE, headers={"authorization": f"Bearer {key}"} if key else {}, timeout=30)
        answer.raise_for_status()
        catalogue: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise EvalError(f"{server}{CATALOGUE}: {error}; --url must be a trimtab server, whose rewards score") from None
    return catalogue


def plan_scores(
    asker: Asker,
    settings: Sequence[Setting],
    prompts: Sequence[EvalPrompt],
    requests: Sequence[AnswerRequest],
    needs: Mapping[str, set[str]],
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Place]]]:
    """key -> request, and which answers it scores: the same text to the same prompt has one score."""
    by_name = {setting.name: setting for setting in settings}
    bodies: dict[str, dict[str, Any]] = {}
    places: dict[str, list[Place]] = {}
    for request in requests:
        if (answer := asker.answers.records.get(request.key)) is None:
            continue
        for reward, keys in needs.items():
            body = score_body(by_name[request.place.setting], prompts[request.place.prompt], answer, reward, keys)
            key = digest(body)
            bodies[key] = body
            places.setdefault(key, []).append(request.place)
    return bodies, places


def write_all(
    args: argparse.Namespace, evaluation: Evaluation, prompts: Sequence[EvalPrompt], summary: Mapping[str, Any]
) -> None:
    """Prints the tables and writes every file of the folder beside answers and scores."""
    shown, failures = tables(summary), list_failures(summary)
    text = render_tables(shown, failures)
    print(text)
    write(args.out / "figures.json", summary, secret=args.key)
    pages = side_by_side(evaluation, prompts)
    for name, content in (
        ("table.md", f"{text}\n"),
        ("answers.md", render_markdown(shown, failures, pages)),
        ("answers.html", render_html(shown, failures, pages)),
    ):
        (args.out / name).write_text(content, encoding="utf-8", errors="replace")  # a half surrogate is no text
    if importlib.util.find_spec("matplotlib") is None:
        print(f"\nin {args.out}; no figures.png: matplotlib is not installed (pip install matplotlib)")
    else:
        plot(args.out / "figures.png", summary)
        print(f"\nin {args.out}: table.md, answers.html and answers.md to read, figures.json, figures.png")
