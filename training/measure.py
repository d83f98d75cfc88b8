"""How well a trained model tells the better answer of a pair, by a plain recompute that shares nothing with a trainer.

Shapes: N pairs, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import torch

from trimtab.bench.intervals import win_interval

Row = dict[str, Any]


@torch.inference_mode()
def answer_logprob(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """sum_t log pi(y_t | x, y_<t), in nats, in fp32."""
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    logprobs = torch.log_softmax(logits, dim=-1)
    return float(logprobs.gather(1, ids[0, len(prompt) :, None]).double().sum())


def language_margins(model: Any, rows: Iterable[Row], *, beta: float) -> list[float]:
    """[N] beta (log pi(y+) - log pi(y-))."""

    def margin(row: Row) -> float:
        chosen = answer_logprob(model, row["prompt_ids"], row["chosen_ids"])
        return chosen - answer_logprob(model, row["prompt_ids"], row["rejected_ids"])

    return [beta * margin(row) for row in rows]


def compare_directions(model: Any, start: Any, rows: Sequence[Row]) -> dict[str, float]:
    """Of answers that directions chose: -log pi in nats a token, and of those that another direction would not choose
    the share that is likelier under its own, with its 95 % interval (Wilson's, by prompts); the same of the model that
    training began with."""
    tokens = sum(len(row["chosen_ids"]) for row in rows)
    rows = sorted(rows, key=lambda row: not row["other_ids"])
    apart = sum(bool(row["other_ids"]) for row in rows)

    def compare(scored: Any) -> tuple[list[float], float]:
        under_its = [answer_logprob(scored, row["prompt_ids"], row["chosen_ids"]) for row in rows]
        under_other = [answer_logprob(scored, row["other_ids"], row["chosen_ids"]) for row in rows[:apart]]
        margins = [a - b for a, b in zip(under_its, under_other, strict=False)]
        return margins, -math.fsum(under_its) / tokens

    (margins, entropy), (margins_before, entropy_before) = compare(model), compare(start)
    low, high = win_interval(outcomes(margins), [row["place"] for row in rows[:apart]])
    return {
        **{"answers": len(rows), "cross_entropy": entropy, "cross_entropy of the start": entropy_before},
        **{"compared": apart, "obeyed": accuracy(margins), "obeyed_low": low, "obeyed_high": high},
        "obeyed by the start": accuracy(margins_before),
    }


@torch.inference_mode()
def score(model: Any, tokens: Sequence[int]) -> list[float]:
    """[K] the head's numbers at the last token, one a label."""
    logits: list[float] = model(input_ids=torch.tensor([list(tokens)], device=model.device)).logits[0].float().tolist()
    return logits


def labels_of(model: Any) -> list[str]:
    """[K] what a head calls its numbers."""
    return [model.config.id2label[k] for k in range(model.config.num_labels)]


def reward_margins(model: Any, rows: Iterable[Row]) -> list[list[float]]:
    """[N, K] r(x, y+) - r(x, y-)."""
    pairs = ((score(model, row["chosen_ids"]), score(model, row["rejected_ids"])) for row in rows)
    return [[a - b for a, b in zip(chosen, rejected, strict=True)] for chosen, rejected in pairs]


def label_margins(model: Any, rows: Sequence[Row]) -> tuple[list[float], list[float], dict[str, float]]:
    """Margins of the answer that is better by a label, for all labels that tell a pair apart, and the place of the
    prompt of each; and of a head with several the accuracy by label."""
    labels = labels_of(model)
    margins: dict[str, list[float]] = {label: [] for label in labels}
    places: dict[str, list[float]] = {label: [] for label in labels}
    for row, margin_K in zip(rows, reward_margins(model, rows), strict=True):
        for label, margin, sign in zip(labels, margin_K, row.get("signs", [1]), strict=True):
            if sign:
                margins[label].append(sign * margin)
                places[label].append(row["place"])
    by_label = {f"accuracy of {label}": accuracy(of) for label, of in margins.items() if of} if len(labels) > 1 else {}
    return list(chain(*margins.values())), list(chain(*places.values())), by_label


def outcomes(margins: Sequence[float]) -> list[float]:
    """1 of a margin above 0, and 1/2 of a tie."""
    return [(m > 0) + 0.5 * (m == 0) for m in margins]


def accuracy(margins: Sequence[float]) -> float:
    """The share above 0; a tie counts half."""
    return fmean(outcomes(margins))


def summarise(margins: Sequence[float], places: Sequence[float]) -> dict[str, float]:
    """Accuracy with its 95 % interval (Wilson's, by prompts, whose places these are), the mean of -log sigma(margin),
    and the calibration error."""
    low, high = win_interval(outcomes(margins), places)
    return {
        "pairs": len(margins),
        "prompts": len(set(places)),
        "accuracy": accuracy(margins),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": math.fsum(-log_sigmoid(m) for m in margins) / len(margins),
        "calibration_error": calibration_error(margins),
    }


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def calibration_error(margins: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error of sigma(|margin|), the confidence in the answer that is preferred: the mean over
    bins of |share that is right - mean confidence|, weighted by how many are in each."""
    table: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for margin in margins:
        sure = math.exp(log_sigmoid(abs(margin)))
        right = 0.5 if margin == 0 else float(margin > 0)
        table[min(bins - 1, int((sure - 0.5) * 2 * bins))].append((sure, right))
    return math.fsum(
        abs(math.fsum(sure for sure, _ in cell) - math.fsum(right for _, right in cell)) for cell in table
    ) / len(margins)


def foretell(model: Any, rows: Sequence[Row]) -> dict[str, float]:
    """Of a value head on beginnings: its mean squared error, the variance of what it foretells, and the share of that
    variance that it explains; of a head with several labels, sums over them, and the share of each."""
    target_NK = torch.tensor([row["labels"] for row in rows], dtype=torch.float64)
    value_NK = torch.tensor([score(model, row["input_ids"]) for row in rows], dtype=torch.float64)
    squared_K = (value_NK - target_NK).square().mean(0)
    variance_K = target_NK.var(0, correction=0)
    explained = {
        f"explained of {label}": 1 - float(squared / variance) if variance else 0.0
        for label, squared, variance in zip(labels_of(model), squared_K, variance_K, strict=True)
    }
    squared, variance = float(squared_K.sum()), float(variance_K.sum())
    return {
        **{"beginnings": len(rows), "squared_error": squared, "variance": variance},
        "explained": 1 - squared / variance if variance else 0.0,
        **(explained if len(explained) > 1 else {}),
    }
