from __future__ import annotations

import time

import pytest

from tests.rewards.conftest import rule, scores


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("42", "6 x 7 is 42."),
        ("42", "#### 42"),
        ("42", "Long.\n#### 42\n"),
        ("42", "Answer: 42"),
        ("42", "**Answer:** 42"),
        ("42", "**Answer**: $42$."),
        ("42", "The final answer is: $\\boxed{42}$."),
        ("42", "so the answer is 42, since 6 * 7 = 42 and not 41"),
        ("42", "First \\boxed{41}, no: \\boxed {42}"),
        ("42", "Answer: x = 42 apples"),
        ("42", "Answer: 40 + 2 = 42"),
        ("42", "\\boxed{42\\text{ apples}}"),
        ("42", "#### 42\n\nThe answer is not the question: Answer: 42"),
        ("42", "## Work\n#### Step 1: think\nIt is 42"),
        (42, "42.0"),
        (0.5, "1/2"),
        ("1/2", "\\boxed{\\frac{1}{2}}"),
        ("\\frac12", "0.5"),
        ("$\\dfrac{1}{2}$", ".5"),
        ("-0.5", "\\boxed{-\\frac{1}{2}}"),
        ("1.5", "Answer: 1 1/2"),
        ("1.5", "\\boxed{1\\frac{1}{2}}"),
        ("1,234.5", "Answer: $1,234.50"),
        ("1234", "\\boxed{1{,}234}"),
        ("1200", "1.2e3"),
        ("1e-3", "0.001"),
        ("75%", "Answer: 75"),
        ("0.75", "Answer: 75%"),
        ("75", "Answer: 75\\%"),
        ("-7", "Answer: −7"),
        ("10", "The range is 5-10"),
        ("1/3", "Answer: 2/6"),
        ("Paris", "The answer is paris."),
        ("Paris", "I know.\nParis"),
        ("Paris", "\\boxed{\\text{Paris}}"),
        ("C", "Answer: (C)"),
        ("(c)", "Answer: C."),
        ("C", "Answer: C)"),
        ("(1, 2)", "\\boxed{\\left(1,2\\right)}"),
        ("x^{2}+1", "\\boxed{x^{2} + 1}"),
        ("日本", "答え\nAnswer: 日本"),
    ],
)
def test_right(answer: object, text: str) -> None:
    assert scores(rule("verifier"), text, answer=answer) == [1]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("42", ""),
        ("42", "forty-two"),
        ("42", "420"),
        ("42", "42, no: 43"),
        ("42", "\\boxed{}"),
        ("42", "Answer: 4 2"),
        ("1", "1e999"),
        ("1", "Answer: 1e999"),
        ("1", "Answer: 1/0"),
        ("1", "Answer: 1 1/2"),
        ("2", "H2O"),
        ("12", "9" * 5000),
        ("9", "9" * 5000),
        ("0.333333", "Answer: 1/3"),
        ("1234567", "1234568"),
        ("0.5", "Answer: 0.5.1"),
        ("3", "Answer: 2024/3/4"),
        ("\\frac{x+1}{2}", "\\boxed{x+\\frac{1}{2}}"),
        ("[1,2)", "Answer: (1,2]"),
        ("x+1", "Answer: 1+x"),
        ("Paris", "Answer: not Paris"),
        ("Paris", ""),
        ("42", "Answer: 0"),
    ],
)
def test_wrong(answer: object, text: str) -> None:
    assert scores(rule("verifier"), text, answer=answer) == [0]


def test_tolerance_is_relative() -> None:
    assert scores(rule("verifier", tolerance=0.02), "Answer: 1/3", "Answer: 0.4", answer="0.33") == [1, 0]
    assert scores(rule("verifier", tolerance=0), "0.1", "0.10000001", answer="0.1") == [1, 0]
    assert scores(rule("verifier", tolerance=0.02), "0", "0.001", answer="0") == [1, 0]


@pytest.mark.parametrize("answer", ["", "  ", None, True, [], "x" * 300])
def test_an_answer_that_is_none_is_the_clients_error(answer: object) -> None:
    with pytest.raises(ValueError, match="answer must be"):
        scores(rule("verifier"), "42", answer=answer)


@pytest.mark.parametrize(
    "hostile",
    [
        "\\boxed{9^{9^{9^9}}}",
        "\\boxed{" * 20_000,
        "answer: " * 20_000,
        "#### " * 20_000,
        "1,111" * 20_000,
        ",111" * 100_000,
        "1 " * 100_000,
        "1/" * 100_000,
        "9" * 100_000,
        "\\frac{" * 20_000,
        "\\frac{1}{" * 20_000,
        "\\text{" + "a" * 100_000,
        "Answer" + " " * 100_000,
        "\n" * 100_000,
        "####" + "." * 100_000,
        "####\n" * 20_000,
        "1e9" * 100_000,
        "\x00\ud800" * 20_000,
    ],
    ids=lambda text: repr(text[:12]),
)
@pytest.mark.parametrize("answer", ["7", "seven"])
def test_hostile_text_is_wrong_and_takes_no_time(hostile: str, answer: str) -> None:
    begun = time.process_time()
    assert scores(rule("verifier"), hostile, answer=answer) == [0]
    assert time.process_time() - begun < 10
