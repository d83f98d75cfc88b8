from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.rewards.conftest import rule, scores
from trimtab.rewards import symbolic
from trimtab.rewards.protocols import RewardError


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


# The reader: what the answer is, in prose, marks, hedges, letters and notations.
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("42", "We get \\boxed{42}. That answer is correct."),
        ("A", "The answer is (A) because 5 > 3"),
        ("C", "The correct answer is **C**: copper"),
        ("copper", "The correct answer is **C**: copper"),
        ("15", "the answer is not 12 but 15"),
        ("1000000", "1 000 000"),
        ("1 000 000", "1000000"),
        ("1500", "1.5 \\times 10^3"),
        ("1.5 \\times 10^3", "1500"),
        ("-0.5", "\\frac{1}{-2}"),
        ("\\frac{1}{-2}", "-1/2"),
        ("12", "The answer is 12, not 15"),
        ("15", "The answer isn't 12, it's 15"),
        ("15", "The answer is 15 instead of 12"),
        ("15", "The answer is 15 rather than 12."),
        ("B", "The answer is not A but B"),
        ("A", "The answer is A"),
        ("A", "Answer: A."),
        ("A", "The answer is A because of x"),
        ("B", "\\boxed{\\text{(B)}}"),
        ("B", "\\boxed{\\textbf{(B)}\\ 12}"),
        ("12", "\\boxed{\\textbf{(B)}\\ 12}"),
        ("C", "Option C is correct."),
        ("C", "So (C) is the correct answer."),
        ("C", "I choose C."),
        ("C", "C"),
        ("C", "C) copper"),
        ("b", "The answer is (b)."),
        ("D", "The correct option is D"),
        ("C", "The answer is: C"),
        ("C", "Let me think. A is too small.\n\n**Answer: C**"),
        ("C", "<answer>C</answer>"),
        ("42", "<answer>42</answer>"),
        ("42", "<answer>\nx is\n42\n</answer>"),
        ("42", "**Final Answer**\n\\boxed{42}"),
        ("42", "Final answer: 42. I checked 3 times."),
        ("42", "### Final Answer\n42 apples"),
        ("1234567", "1,234,567"),
        ("1234567", "1\u202f234\u202f567"),
        ("1234567", "1'234'567"),
        ("1234567", "1_234_567"),
        ("1234567", "1.234.567"),
        ("1234.5", "1.234,5"),
        ("3.14", "Answer: 3,14"),
        ("0.5", "50%"),
        ("50", "50 percent"),
        ("0.5", "½"),
        ("2.5", "2½"),
        ("2.5", "2\\frac{1}{2}"),
        ("-3", "−3"),
        ("0.75", "\\dfrac{3}{4}"),
        ("0.75", "\\tfrac34"),
        ("1500", "1.5×10³"),
        ("0.0015", "\\boxed{1.5 \\cdot 10^{-3}}"),
        ("1000", "\\boxed{10^3}"),
        ("\\sqrt{2}", "\\boxed{\\sqrt{2}}"),
        ("\\sqrt{2}/2", "\\boxed{\\frac{1}{\\sqrt{2}}}"),
        ("4", "\\boxed{\\sqrt{16}}"),
        ("2\\pi", "The answer is $2\\pi$."),
        ("x+1", "Answer: 1+x"),
        ("(x-1)(x+1)", "\\boxed{x^2-1}"),
        ("90", "\\boxed{90^\\circ}"),
        ("5", "\\boxed{5\\text{ cm}}"),
        ("5", "The answer is 5 cm."),
        ("5", "\\boxed{5\\,\\mathrm{m/s}}"),
        ("[1,2)", "\\boxed{[1, 2)}"),
        ("\\{1,2\\}", "\\boxed{\\{2,1\\}}"),
        ("1, 2", "\\boxed{2} and \\boxed{1}"),
        ("x=5", "\\boxed{5}"),
        ("5", "\\boxed{x=5}"),
        ("42", "The answer is $42.00"),
        ("1000", "Answer: €1.000,00"),
        ("1000", "USD 1,000"),
        ("42", "42 is the answer. I used 3 steps."),
        ("42", "The answer to your question is 42."),
        ("42", "The answer should be 42."),
        ("42", "The answer is 42 because 6*7=42 and 5*8=40"),
        ("12", "The answer is 12, since 4 + 5 = 9"),
        ("Paris", "The answer is Paris, the capital of France."),
        ("Paris", "The answer is Paris because it is."),
        ("Paris", "The answer is not London but Paris."),
        ("yes", "Answer: Yes, because it is."),
        ("Paris", "**Paris**"),
        ("42", "The value is $x = 42$."),
        ("42", "43\n\n42"),
        ("42", "The answer is 42!"),
        ("-5", "The temperature is -5 °C"),
        ("5", "The answer is 5%."),
        ("120", "\\boxed{5!}"),
        ("1/3", "\\boxed{\\frac{2}{6}}"),
        ("42", "<think>It is 41. The answer is 41.</think>42"),
        ("8", "The answer is 3+5=8"),
        ("8", "The answer is 3 + 5"),
        ("1.5 million", "1500000"),
        ("1000", "1 000,00"),
        ("5", "The answer is given by 5."),
        ("5", "The answer is found to be 5."),
        ("11", "The answer is, therefore, 11."),
        ("11", "Hence the answer: **11**"),
        ("11", "The answer is 11\\,\\text{cm}^2"),
        ("11", "Answer: $11$ and that is the answer."),
        ("11", "So x=11. Is this answer right? The answer is right."),
        ("3", "My answer is 3. However, 5 people disagreed."),
        ("42", "The answer is ... 42"),
        ("42", "The answer is \\(42\\)."),
        ("42", "The answer is\n\\[\n42\n\\]"),
    ],
)
def test_read_as_right(answer: str, text: str) -> None:
    assert scores(rule("verifier"), text, answer=answer) == [1]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("12", "the answer is not 12 but 15"),
        ("15", "The answer is 12, not 15"),
        ("3", "The answer is either 3 or 4"),
        ("4", "The answer is either 3 or 4"),
        ("3", "Answer: 3 or 4"),
        ("4", "Answer: between 3 and 4"),
        ("12", "The answer isn't 12"),
        ("12", "The answer is 15 instead of 12"),
        ("A", "A good question. It depends."),
        ("A", "The answer is A lot of copper"),
        ("A", "The answer is A or B"),
        ("A", "The answer is not A but B"),
        ("D", "A) one\nB) two\nC) three\nD) four"),
        ("C", "Vitamin C is good"),
        ("I", "The answer is I think five"),
        ("16", "\\boxed{\\sqrt{16}}"),
        ("2", "The answer is $2\\pi$."),
        ("2", "\\boxed{2x}"),
        ("[1,2)", "\\boxed{(1,2]}"),
        ("(1,2)", "\\boxed{(2,1)}"),
        ("42", "It is \\boxed{43}. The answer is 42 less than 85"),
        ("42", "There are 42 birds. \\boxed{\\text{no solution}}"),
        ("Paris", "The answer is Paris, Texas"),
        ("Paris", "The answer is not Paris"),
        ("no", "Answer: Yes, no doubt."),
        ("Paris", "The answer is Piras"),
        ("42", "\\boxed{42"),
        ("9", "9^9^9^9"),
        ("5", "-5"),
        ("1/3", "0.333333"),
        ("7", "The answer is 7 days and 3 hours"),
        ("3", "The answer is 3 + 5"),
    ],
)
def test_read_as_wrong(answer: str, text: str) -> None:
    assert scores(rule("verifier"), text, answer=answer) == [0]


# A small part of the cases that math-verify publishes as its tests, of which 239 of 252 come out as there. The others:
# its float_rounding and its switches for looser comparison, unequal numbers called equal (1/12 and 0.0833333333333333,
# which is what `tolerance` is for), "$" across lines, boxes joined by words other than "and", malformed TeX.
@pytest.mark.parametrize(
    ("answer", "text", "is_right"),
    [
        ("7425000", "7,425,000", True),
        ("1,22", "1.22", True),
        ("2.74", "Soucis : 2,74 $ a..", True),
        ("1000.99", "not it's not 10 it's 1,000.99m²", True),
        ("2", "AZYUK2A", False),
        ("$[0,9)$", "$[0,1)$", False),
        ("$1$", "$-[0,1)$", False),
        ("$10$", "Answer \\( (9+1) \\)", True),
        ("$1/3$", "$\\cfrac{1}{3} $", True),
        ("$28\\%$", "$\\boxed{28}$ pct", True),
        ("$4$", "$4\\sqrt{2}$", False),
        ("$2-2p$", "Thus $x-p=\\boxed{2-2p}$.", True),
        ("$1\\leq|z|\\leq \\frac{3}{2}$", "$z \\in [-\\frac{3}{2}, -1] \\cup [1, \\frac{3}{2}]$", True),
        ("$-12;-11;-10;-8;-7;-6$", "$\\boxed{\\{-12, -11, -10, -8, -7, -6\\}}$", True),
        ("$(11,7)or(7,11)$", "$\\boxed{(7,11),\\ (11,7)}$", True),
        ("$p=5,q=2;p=7,q=2$", "$(5,2),(7,2)$", True),
        ("$0<f(x)<1$", "$(0,1)$", True),
        ("$$-793 < a < 10$$", "$$(-793, 10)$$", True),
        ("$$|AB|=1$$", "$$1$$", True),
        ("$a +3z = 0$", "$0$", False),
        ("$19, 46, and 82$", "$21, 36, and 82$", False),
        ("$19, 46, and 82$", "$19, 46, \\text{ and } 82$", True),
        ("$$(2, 2), (6, 2)$$", "$$\\boxed{(2, 2)} \\quad \\text{and} \\quad \\boxed{(6, 2)}$$", True),
        ("$\\tan^2(y)+1$", "$\\sec^2(y)$", True),
    ],
)
def test_agrees_with_math_verify(answer: str, text: str, is_right: bool) -> None:
    assert scores(rule("verifier"), text, answer=answer) == [is_right]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("7", "\\boxed{9^{9^{9^{9}}}}"),
        ("x+7", "\\boxed{(7^{999})^{999}^{999}}"),
        ("x+7", "\\boxed{\\sum_{i=1}^{10^9} \\frac{1}{i^x}}"),
        ("x+7", "\\boxed{\\int_0^1 \\int_0^x \\sin(e^{x^3}) \\ln(x^5 + 1) dx}"),
        ("x+7", "\\boxed{" + "(" * 120 + "x" + ")" * 120 + "}"),
        ("x+7", "\\boxed{" + "\\sqrt{" * 30 + "x" + "}" * 30 + "}"),
        ("x+7", "\\boxed{" + "(x+1)^{99}" * 20 + "}"),
    ],
)
def test_a_dear_formula_is_wrong_and_keeps_nobody_waiting(answer: str, text: str) -> None:
    began = time.perf_counter()
    assert scores(rule("verifier"), text, "\\boxed{7+x}", answer=answer)[0] == 0
    assert time.perf_counter() - began < 30
    assert scores(rule("verifier"), "\\boxed{7+x}", answer="x+7") == [1], "the evaluator is there again"


def test_a_formula_s_evaluator_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(1)")
    monkeypatch.setattr(symbolic, "WORKER", broken)
    with pytest.raises(RewardError, match="compares formulas"):
        symbolic.Evaluator().compare("x", "y")
