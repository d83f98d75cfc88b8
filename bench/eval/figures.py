"""Figures of an evaluation.

Prompts are independent and answers to one prompt are not, so that intervals are over prompts, of each prompt's mean:
Student's for means and differences, Wilson's for win rates.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.bench.eval.archive import Record
from trimtab.bench.eval.ask import KL, Failure, Place
from trimtab.bench.intervals import half, win_interval
from trimtab.bench.load.exchange import Outcome
from trimtab.bench.load.figures import NONE, percentiles

Row = dict[str, Any]
TableOf = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""title, headers, rows"""

NOTE = (
    "± is half a 95 % interval, Student's t over prompts; differences and wins are of pairs, prompt by prompt with the "
    "same seed, where both have a score; a tie is half a win; intervals of win rates are Wilson's"
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of all requests; the first setting is what the others are compared with."""

    settings: Sequence[str]
    rewards: Sequence[str]
    prompts: int
    n: int
    answers: Mapping[Place, Record]
    scores: Mapping[str, Mapping[Place, float]]
    """By reward."""
    failures: Sequence[Failure]

    def answers_of(self, setting: str) -> dict[Place, Record]:
        return {place: answer for place, answer in self.answers.items() if place.setting == setting}

    def scores_of(self, setting: str, reward: str) -> dict[tuple[int, int], float]:
        """(prompt, sample) -> score"""
        return {(p.prompt, p.sample): s for p, s in self.scores[reward].items() if p.setting == setting}


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """For JSON: tokens, words, seconds and nats for each answer; None without data."""
    return {
        "first": evaluation.settings[0],
        "prompts": evaluation.prompts,
        "n": evaluation.n,
        "settings": {name: answer_row(evaluation, name) for name in evaluation.settings},
        "rewards": {
            reward: {name: reward_row(evaluation, name, reward) for name in evaluation.settings}
            for reward in evaluation.rewards
        },
        "failures": [{**vars(f.place), "reward": f.reward, "message": f.message} for f in evaluation.failures],
        "answers": [
            {name: value for name, value in answer.items() if name not in ("key", "text")}
            | {"rewards": {r: s[place] for r, s in evaluation.scores.items() if place in s}}
            for place, answer in evaluation.answers.items()
        ],
    }


def answer_row(evaluation: Evaluation, setting: str) -> Row:
    answers = evaluation.answers_of(setting)
    records = list(answers.values())
    by_kind = {kind: [(p.prompt, a["kl"][kind]) for p, a in answers.items() if kind in a["kl"]] for kind in KL}
    return {
        "asked": evaluation.prompts * evaluation.n,
        "answered": len(records),
        "failed": sum(f.place.setting == setting and f.reward is None for f in evaluation.failures),
        "repeated": dict(Counter(reason for a in records for reason in a["repeated"])),
        "cut": sum(a["outcome"] == Outcome.LIMITED for a in records),
        "degraded": sum(a["outcome"] == Outcome.DEGRADED for a in records),
        "at_max_tokens": sum(a["finish_reason"] == "length" for a in records),
        "without_text": sum(not a["text"] for a in records),
        **{name: mean([a[name] for a in records]) for name in ("sampled_tokens", "scored_tokens", "visible_tokens")},
        "words": mean([len(a["text"].split()) for a in records]),
        "latency": {"mean": mean([a["latency"] for a in records])}
        | (percentiles([a["latency"] for a in records]) or {}),
        "kl": {kind: estimate(values) | {"answers": len(values)} for kind, values in by_kind.items() if values},
    }


def reward_row(evaluation: Evaluation, setting: str, reward: str) -> Row:
    """The first setting has no `versus_first`."""
    scores = evaluation.scores_of(setting, reward)
    row: Row = {"scored": len(scores), "unscored": len(evaluation.answers_of(setting)) - len(scores)}
    row |= estimate([(prompt, score) for (prompt, _), score in scores.items()])
    first = evaluation.scores_of(evaluation.settings[0], reward)
    if setting != evaluation.settings[0]:
        row["versus_first"] = compare(scores, first)
    return row


def compare(scores: Mapping[tuple[int, int], float], first: Mapping[tuple[int, int], float]) -> Row:
    """Of pairs alone: answers to one prompt, of one seed, of which both have a score."""
    pairs = [(at, scores[at], first[at]) for at in scores if at in first]
    difference = estimate([(prompt, score - other) for (prompt, _), score, other in pairs])
    wins = prompt_means([(prompt, (score > other) + (score == other) / 2) for (prompt, _), score, other in pairs])
    low, high = win_interval(wins) if wins else (None, None)
    return {
        "difference": difference["mean"],
        "half_ci95": difference["half_ci95"],
        "win_rate": mean(wins),
        "win_ci95": [low, high],
        "prompts": difference["prompts"],
        "pairs": len(pairs),
    }


def prompt_means(values: Sequence[tuple[int, float]]) -> list[float]:
    """Of (prompt, value): a mean for each prompt."""
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for prompt, value in values:
        by_prompt[prompt].append(value)
    return [statistics.fmean(those) for those in by_prompt.values()]


def estimate(values: Sequence[tuple[int, float]]) -> Row:
    """Of (prompt, value): the mean over prompts, with half its interval where there are two."""
    means = prompt_means(values)
    return {
        "mean": mean(means),
        "half_ci95": half(means) if len(means) > 1 else None,
        "prompts": len(means),
    }


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else None


def tables(summary: Mapping[str, Any]) -> list[TableOf]:
    """One of the answers, then one for each reward."""
    rows = summary["settings"]
    optional = [c for c in ("cut", "degraded", "without_text") if any(row[c] for row in rows.values())]
    headers = (
        *("setting", "answered", "failed", "repeated", *(name.replace("_", " ") for name in optional)),
        *("at max_tokens", "drawn", "scored", "visible", "words", "s", "s p50", "s p95", "KL, nats"),
    )
    answers = [
        [
            *(name, f"{row['answered']}/{row['asked']}", str(row["failed"]), show_counts(row["repeated"])),
            *(str(row[c]) for c in (*optional, "at_max_tokens")),
            *(show(row[c], 1) for c in ("sampled_tokens", "scored_tokens", "visible_tokens", "words")),
            *(show(row["latency"].get(c), 2) for c in ("mean", "p50", "p95")),
            show_kl(row["kl"]),
        ]
        for name, row in rows.items()
    ]
    return [
        ("answers", headers, answers),
        *(reward_table(reward, by_setting, summary["first"]) for reward, by_setting in summary["rewards"].items()),
    ]


def reward_table(reward: str, rows: Mapping[str, Row], first: str) -> TableOf:
    headers = ("setting", reward, f"difference from {first}", "wins", "pairs", "prompts", "unscored")
    cells = []
    for name, row in rows.items():
        versus = row.get("versus_first")
        cells.append([name, show_half(row["mean"], row["half_ci95"]), *show_pairs(versus), str(row["unscored"])])
    return reward, headers, cells


def show_pairs(versus: Row | None) -> list[str]:
    if versus is None:
        return [NONE] * 4
    low, high = versus["win_ci95"]
    wins = NONE if low is None else f"{versus['win_rate']:.3f} ({low:.3f} to {high:.3f})"
    difference = show_half(versus["difference"], versus["half_ci95"], "+")
    return [difference, wins, str(versus["pairs"]), str(versus["prompts"])]


def show_kl(kl: Mapping[str, Row]) -> str:
    """Each under its name, for they are different things."""
    return ", ".join(f"{kind} {show_half(row['mean'], row['half_ci95'])}" for kind, row in kl.items()) or NONE


def show_half(value: float | None, reach: float | None, sign: str = "") -> str:
    return show(value, 3, sign) + ("" if reach is None else f" ± {reach:.3f}")


def show(value: float | None, digits: int, sign: str = "") -> str:
    return NONE if value is None else f"{value:{sign if value else ''}.{digits}f}"


def show_counts(of: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(of.items())) or "0"


def list_failures(summary: Mapping[str, Any]) -> list[str]:
    """A line for each message of each setting, the most frequent first."""
    failures = Counter(
        f"{f['setting']}, {'the answer' if f['reward'] is None else f['reward']}: {f['message']}"
        for f in summary["failures"]
    )
    return [f"{count} x {failure}" for failure, count in failures.most_common()]
