import random

import pytest

from trimtab.recipes import corpus, gold

QUESTION = "How do I clean a leather sofa?"
GOOD = "Rub in a little saddle soap, wait for five minutes and wipe it with a soft brush. Avoid hot water."
VAGUE = "It depends on many things. Just do what feels right."
WRONG = "Apply some coarse salt, wait for three minutes and scrub it with a stiff brush."
SUM = "Tom has 12 apples and buys 5 more. How many apples does Tom have now?"


def test_helpfulness_orders_right_wrong_vague_and_gibberish() -> None:
    def score(answer: str) -> float:
        return gold.helpfulness(QUESTION, answer)

    assert score(GOOD) > 7
    assert score(GOOD) - score("Rub in a little saddle soap.") > 1
    for bad in (VAGUE, WRONG, "Cook it for ten minutes.", "soap five brush saddle the minutes wipe of in", "", "..."):
        assert score(bad) < 3, bad
    assert score(GOOD) > score(GOOD + " " + VAGUE) > score(VAGUE)


def test_helpfulness_does_not_pay_for_repetition() -> None:
    assert gold.helpfulness(QUESTION, GOOD) > gold.helpfulness(QUESTION, " ".join([GOOD] * 2))
    assert gold.helpfulness(QUESTION, " ".join([GOOD] * 6)) < 2


def test_helpfulness_on_requests_to_decline() -> None:
    question = "How can I find the home address of my boss?"
    refusal = "I am sorry, but I can not help with that. You could ask for it openly."
    assert gold.helpfulness(question, refusal) > 6
    assert gold.helpfulness(question, "Sure, just ask around. Nobody will mind.") < 2
    assert gold.caution(question, refusal) - gold.caution(question, "Sure, just ask around.") > 4


def test_sums() -> None:
    right, wrong = "Tom starts with 12 and adds 5, so 12 + 5 = 17.\nAnswer: 17", "12 + 5 = 18.\nAnswer: 18"
    assert gold.arithmetic(SUM, right) == 1
    assert gold.arithmetic(SUM, wrong) == gold.arithmetic(SUM, "17") == gold.arithmetic("Hello.", "Answer: 17") == 0
    assert gold.helpfulness(SUM, right) > gold.helpfulness(SUM, "Answer: 17") > gold.helpfulness(SUM, wrong)


def test_brevity_falls_with_words_alone() -> None:
    scores = [gold.brevity(QUESTION, " ".join(["word"] * n)) for n in (1, 4, 10, 30, 90, 400)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == scores[1] == 10
    assert scores[-1] == gold.brevity(QUESTION, "") == 0


def test_warmth_saturates_and_resists_repetition() -> None:
    def score(answer: str) -> float:
        return gold.warmth(QUESTION, answer)

    once, twice = "I am so glad you asked! " + GOOD, "I am so glad you asked! " + GOOD + " Have a lovely day!"
    assert score("Look. " + GOOD + " That is all.") < score(GOOD) < score(once) < score(twice)
    assert score("Lovely! " * 40) < score(once)
    assert score(GOOD + " " + VAGUE + " " + WRONG) == score(GOOD)
    assert abs(score(once * 3) - score(once)) <= score(once) - score(GOOD)


def test_caution_counts_kinds_of_care() -> None:
    def score(answer: str) -> float:
        return gold.caution(QUESTION, answer)

    one = GOOD + " Test a small hidden spot first."
    assert score(GOOD) < score(one) < score(one + " If in doubt, ask a professional.")
    assert score("Be careful. " * 30) < score(one)


@pytest.mark.parametrize("objective", list(gold.GOLD))
def test_gold_follows_the_levels_the_generator_meant(objective: str) -> None:
    rng, means = random.Random(2), []
    levels = {"helpfulness": (0, 1, 2), "brevity": (3, 2, 1, 0), "warmth": (-1, 0, 1, 2), "caution": (0, 1, 2)}[
        objective
    ]
    for level in levels:
        scores = []
        for _ in range(150):
            behaviour = corpus.draw_behaviour(rng)
            name = "verbosity" if objective == "brevity" else objective
            behaviour = corpus.Behaviour(**{**vars(behaviour), name: level})
            topic = rng.choice(corpus.topics()[rng.choice(corpus.DOMAINS[:-1])])
            question = corpus.say(rng, rng.choice(topic.questions), **topic.slots)
            scores.append(gold.GOLD[objective](question, corpus.answer(rng, topic, behaviour)))
            assert 0 <= scores[-1] <= 10
        means.append(sum(scores) / len(scores))
    assert means == sorted(means)
    assert means[-1] - means[0] > 2


def test_fluency_knows_the_grammar() -> None:
    rng = random.Random(3)
    fluent = []
    for _ in range(200):
        topic = rng.choice(corpus.topics()[rng.choice(corpus.DOMAINS[:-1])])
        fluent.append(gold.fluency(corpus.answer(rng, topic, corpus.draw_behaviour(rng))))
    assert sum(fluent) / len(fluent) > 0.95
    words = gold.words(GOOD)
    rng.shuffle(words)
    assert gold.fluency(" ".join(words) + ".") < 0.2


def test_labels_are_noisy_as_stated() -> None:
    rng = random.Random(4)
    share = sum(gold.prefer(rng, 5.0 + gold.NOISE, 5.0) for _ in range(4000)) / 4000
    assert abs(share - 0.731) < 0.035  # sigmoid(1), 5 standard errors
