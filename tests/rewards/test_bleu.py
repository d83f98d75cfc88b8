from __future__ import annotations

import math
import time

import pytest
from sacrebleu.metrics.bleu import BLEU

from tests.rewards.conftest import rule, scores

REFERENCES = ["The cat sat on the mat, purring.", "A cat was sitting on the mat."]
TEXTS = ["The cat sat on a mat.", "The cat sat on the mat, purring.", "the the the the", "dog", "Cats purr. " * 20]


def test_by_hand() -> None:
    # "a b c d x" against "a b c d": 4 of 5, 3 of 4, 2 of 3, 1 of 2; longer than the reference
    assert scores(rule("bleu"), "a b c d x", references=["a b c d"]) == [
        pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25, abs=1e-15)
    ]
    # "a b" against "a b c d": all there, at orders 3 and 4 nothing of nothing; half as long
    assert scores(rule("bleu"), "a b", references=["a b c d"]) == [pytest.approx(math.exp(-1), abs=1e-15)]
    # of two references the shorter one's length counts: sacrebleu would take the closest
    assert scores(rule("bleu"), "a b", references=["a b c d", "x"]) == [1]
    # a word counts no more often than in the reference that has it most
    assert scores(rule("bleu"), "a a a", references=["a b b", "a a b"]) == [
        pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1) ** 0.25, abs=1e-15)
    ]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("reference", REFERENCES)
def test_is_sacrebleus_own_add_one_but_for_the_unigrams(text: str, reference: str) -> None:
    theirs = BLEU(smooth_method="add-k", smooth_value=1, tokenize="13a").corpus_score([text], [[reference]])
    right, total = theirs.counts[0], theirs.totals[0]
    [ours] = scores(rule("bleu"), text, references=[reference])
    if right:
        unigrams = ((right + 1) / (total + 1)) / (right / total)
        assert ours == pytest.approx(theirs.score / 100 * unigrams**0.25, rel=1e-12)
    else:
        assert theirs.score == 0 < ours < 1


def test_bounds_and_empties() -> None:
    same, none, blank, skipped, far, unicode = scores(
        rule("bleu"), "Hello there.", "", " \n", "<skipped>", "Нет", "日本語", references=["Hello there."]
    )
    assert (same, none, blank, skipped) == (1, 0, 0, 0)
    assert 0 < far < 1
    assert 0 < unicode < 1


@pytest.mark.parametrize("references", [[], "a text", [""], ["a", " "], [3], None, {}])
def test_references_that_are_none_are_the_clients_error(references: object) -> None:
    with pytest.raises(ValueError, match="references must be"):
        scores(rule("bleu"), "text", references=references)


def test_a_huge_text_takes_little_time() -> None:
    begun = time.process_time()
    scores(rule("bleu"), "word " * 10_000, "w" * 100_000, references=["word " * 10_000])
    assert time.process_time() - begun < 10
