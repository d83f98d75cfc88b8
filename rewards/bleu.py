"""BLEUBERI: how much of the references' wording a response has. arXiv 2505.11080.

    r(x, y) = min(1, exp(1 - L / l)) (prod_n (c_n + 1) / (t_n + 1))^(1/4),    n = 1 .. 4                            (1)

l    tokens of y, L those of the shortest reference, both by the 13a tokenizer of mteval
t_n  n-grams of y;  c_n  those of them that a reference has, each no more often than the reference that has it most

This is what the authors' code computes, `evaluate`'s smoothed corpus BLEU of one prediction: Lin and Och's one is
added at every order, unigrams too, and the brevity penalty is that of the shortest reference. sacrebleu's own scores
add nothing to unigrams and take the reference closest in length, so only its tokenizer and its counts are used here.
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
from trimtab.rewards.text_rule import Textual


@dataclass(frozen=True, kw_only=True)
class Bleu(Textual):
    """Smoothed BLEU against one reference or several."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"references"})

    def score(self, question: Question, response: Response) -> float:
        return bleu(response.text, checked_references(question.given["references"]))


def checked_references(given: Any) -> Sequence[str]:
    """Raises ValueError unless they are texts, at least one, none of them blank."""
    if not isinstance(given, list | tuple) or not given or not all(isinstance(r, str) and r.strip() for r in given):
        raise ValueError(f"references must be a list of at least one text, none blank; got {str(given)[:80]!r}")
    return given


def bleu(text: str, references: Sequence[str]) -> float:
    """(1)"""
    found = BLEU(tokenize="13a", smooth_method="none", force=True).corpus_score([text], [[r] for r in references])
    if not found.sys_len:
        return 0.0
    tokenize = Tokenizer13a()
    shortest = min(len(tokenize(reference).split()) for reference in references)
    precision: float = math.prod((c + 1) / (t + 1) for c, t in zip(found.counts, found.totals, strict=True)) ** 0.25
    return min(1.0, math.exp(1 - shortest / found.sys_len)) * precision  # (1)
