"""BLEUBERI: BLEU of a response against references. arXiv 2505.11080.

    r(x, y) = min(1, exp(1 - L / l)) (prod_n (c_n + 1) / (t_n + 1))^(1/4),    n = 1 .. 4                            (1)

l    tokens of y, L those of the shortest reference, both by the 13a tokenizer of mteval
t_n  n-grams of y;  c_n  those that occur in a reference, each counted at most as often as in the reference with most

This is what the authors' code computes: the smoothed corpus BLEU of `evaluate` for one prediction. It adds one at every
order (Lin and Och), unigrams too, and takes the brevity penalty from the shortest reference. sacrebleu's own scores add
nothing to unigrams and take the reference closest in length, so only its tokenizer and its counts are used here.
A reference word for word scores 1; an empty response 0. Case matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from trimtab.rewards.protocols import Question, Response
from trimtab.rewards.text_rule import TextRule


@dataclass(frozen=True, kw_only=True)
class Bleu(TextRule):
    """Smoothed BLEU against one reference or several."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"references"})

    def score(self, question: Question, response: Response) -> float:
        return bleu(response.text, parse_references(question.given["references"]))


def parse_references(value: Any) -> Sequence[str]:
    """Raises ValueError unless the value is a list of texts, at least one and none blank."""
    if not isinstance(value, list | tuple) or not value or not all(isinstance(r, str) and r.strip() for r in value):
        raise ValueError(f"references must be a list of at least one text, none blank; got {str(value)[:80]!r}")
    return value


def bleu(text: str, references: Sequence[str]) -> float:
    """(1)"""
    stats = BLEU(tokenize="13a", smooth_method="none", force=True).corpus_score([text], [[r] for r in references])
    if not stats.sys_len:
        return 0.0
    tokenize = Tokenizer13a()
    shortest = min(len(tokenize(reference).split()) for reference in references)
    precision: float = math.prod((c + 1) / (t + 1) for c, t in zip(stats.counts, stats.totals, strict=True)) ** 0.25
    return min(1.0, math.exp(1 - shortest / stats.sys_len)) * precision  # (1)
