"""How well a trained model tells the better answer of a pair, by a plain recompute that shares nothing with a trainer.

Shapes: N pairs, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

Row = dict[str, Any]


@torch.inference_mode()
def answer_logprob(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """sum_t log pi(y_t | x, y_<t), in nats, in fp32."""
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    logprobs = torch.log_softmax(logits, dim=-1)
    return float(logprobs.gather(1, ids[0, len(prompt) :, None]).double().sum())


def language_margins(model: Any, rows: Iterable[Row], *, beta: float, reference: Any = None) -> list[float]:
    """[N] beta (log pi(y+) - log pi(y-)), less the reference's where there is one."""

    def margin(scored: Any, row: Row) -> float:
        chosen = answer_logprob(scored, row["prompt_ids"], row["chosen_ids"])
        return chosen - answer_logprob(scored, row["prompt_ids"], row["rejected_ids"])

    return [beta * (margin(model, row) - (0.0 if reference is None else margin(reference, row))) for row in rows]


def compare_directions(model: Any, start: Any, rows: Sequence[Row]) -> dict[str, float]:
    """Of answers that directions chose: -log pi in nats a token, and of those that another direction would not choose
    the share that is likelier under its own, with its 95 % interval (Wilson's); the same of the model that training
    began with."""
    tokens = sum(len(row["chosen_ids"]) for row in rows)
    rows = sorted(rows, key=lambda row: not row["other_ids"])
    apart = sum(bool(row["other_ids"]) for row in rows)

    def compare(scored: Any) -> tuple[float, float]:
        under_its = [answer_logprob(scored, row["prompt_ids"], row["chosen_ids"]) for row in rows]
        under_other = [answer_logprob(scored, row["other_ids"], row["chosen_ids"]) for row in rows[:apart]]
        margins = [a - b for a, b in zip(under_its, under_other, strict=False)]
        return accuracy(margins), -math.fsum(under_its) / tokens

    (share, entropy), (share_before, entropy_before) = compare(model), compare(start)
    low, high = wilson(share, apart)
    return {
        **{"answers": len(rows), "cross_entropy": entropy, "cross_entropy of the start": entropy_before},
        **{"compared": apart, "obeyed": share, "obeyed_low": low, "obeyed_high": high},
        "obeyed by the start": share_before,
    }


@torch.inference_mode()
def score(model: Any, tokens: Sequence[int]) -> float:
    """The head's one number at the last token."""
    return float(model(input_ids=torch.tensor([list(tokens)], device=model.device)).logits[0, 0])


def reward_margins(model: Any, rows: Iterable[Row]) -> list[float]:
    """[N] r(x, y+) - r(x, y-)."""
    return [score(model, row["chosen_ids"]) - score(model, row["rejected_ids"]) for row in rows]


def accuracy(margins: Sequence[float]) -> float:
    """The share above 0; a tie counts half."""
    return sum((m > 0) + 0.5 * (m == 0) for m in margins) / len(margins)


def summarise(margins: Sequence[float]) -> dict[str, float]:
    """Accuracy with its 95 % interval (Wilson's), the mean of -log sigma(margin), and the calibration error."""
    n, right = len(margins), accuracy(margins)
    low, high = wilson(right, n)
    return {
        "pairs": n,
        "accuracy": right,
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": math.fsum(-log_sigmoid(m) for m in margins) / n,
        "calibration_error": calibration_error(margins),
    }


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of n."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


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
    variance that it explains."""
    wished = [float(row["labels"]) for row in rows]
    errors = [score(model, row["input_ids"]) - value for row, value in zip(rows, wished, strict=True)]
    mean = math.fsum(wished) / len(wished)
    variance = math.fsum((value - mean) ** 2 for value in wished) / len(wished)
    squared = math.fsum(error * error for error in errors) / len(errors)
    return {
        "beginnings": len(rows),
        "squared_error": squared,
        "variance": variance,
        "explained": 1 - squared / variance if variance else 0.0,
    }
