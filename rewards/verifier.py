"""Right or wrong: the final answer of a response against that of the request.

    r(x, y) = 1 if answer(y) = given["answer"], else 0                                                              (1)

The final answer is the content of the last of these: \\boxed{…}, "#### …", "Answer: …" or "the answer is …". Without
any of them it is the response's last number if the request's answer is a number, and its last line if not. Numbers are
compared as exact fractions, in any notation: 1,234.50; 1.2345e3; 3/4; \\frac{3}{4}; 1 1/2; 75%, which is both 75 and
0.75. In the response, units or a currency may stand around them. Other answers are compared as texts, without case,
spaces, markup and outer punctuation.

Equal symbolic answers of different form (x+1 and 1+x) do not match. `math-verify` matches them by evaluating what a
model wrote, and \\boxed{9^{9^9}} then holds the interpreter for longer than anyone waits: no thread's timeout can end
it, only a process of its own. Everything here is linear in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import Field

from trimtab.rewards.protocols import Question, Response
from trimtab.rewards.text_rule import TextRule

MAX_ANSWER = 256
"""Characters of an answer that are read; numbers are shorter."""

MARK = re.compile(
    r"\\boxed\s{0,4}\{"
    r"|^####(?=[^\w\n]{0,8}[\d.,/ ]{1,80}[^\w\n]{0,4}$)"  # a number alone; otherwise it is a heading
    r"|\banswer(?:\s{0,4}[*_]{0,3}:| is\b:?)[*_]{0,3}",
    re.IGNORECASE | re.MULTILINE,
)

NUMBER = re.compile(
    r"""(?<!\w)(?<!\d\.)(?P<sign>[-+−])?(?:
        (?:(?P<whole>\d{1,64})[ ]{1,4})?(?P<top>\d{1,64})/(?P<bottom>\d{1,64})
      | (?P<decimal>(?:\d{1,3}(?:,\d{3}){1,20}|\d{1,64})(?:\.\d{0,64})?|\.\d{1,64})(?:e(?P<exponent>[-+]?\d{1,2}))?
    )(?!\d|/|\.\d|e[-+]?\d)(?P<percent>\s?\\?%)?""",
    re.VERBOSE | re.ASCII | re.IGNORECASE,
)

MARKUP = (
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"(?<=\d)(?=\\frac)"), " "),
    (re.compile(r"\\frac\s?\{(-?\d{1,64})\}\s?\{(\d{1,64})\}"), r"\1/\2"),
    (re.compile(r"\\frac\s?(\d)\s?(\d)"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\left|\\right|\\[,;:!() \[\]]|\{,\}(?=\d)|\\?\$|\*"), ""),
)
"""LaTeX and Markdown that change how an answer looks, with what replaces them."""


@dataclass(frozen=True, kw_only=True)
class Verifier(TextRule):
    """1 for the right final answer, 0 for any other and for none."""

    tolerance: Annotated[
        float, Field(ge=0, le=1, description="largest relative error of a number that is still right; 0 is exact")
    ] = 0.0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"answer"})

    def score(self, question: Question, response: Response) -> float:
        right = strip_markup(parse_answer(question.given["answer"]))
        numbers = parse_values(NUMBER.fullmatch(right))
        answer = final_answer(response.text, number=bool(numbers))
        if numbers:
            return float(any(self._is_near(a, b) for a in parse_values(find_number(answer)) for b in numbers))  # (1)
        return float(normalise(answer) == normalise(right))  # (1)

    def _is_near(self, a: Fraction, b: Fraction) -> bool:
        return abs(a - b) <= Fraction(self.tolerance) * abs(b)


def parse_answer(answer: Any) -> str:
    """The request's answer as text; raises ValueError for a value that is no answer."""
    text = str(answer) if isinstance(answer, int | float) and not isinstance(answer, bool) else answer
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_ANSWER:
        raise ValueError(f"answer must be a number or a text of 1 to {MAX_ANSWER} characters; got {str(answer)[:80]!r}")
    return text


def final_answer(text: str, *, number: bool) -> str:
    """The final answer as written, at most MAX_ANSWER characters of it; "" for none."""
    if marks := list(MARK.finditer(text)):
        rest = text[marks[-1].end() :][:MAX_ANSWER].lstrip()
        is_boxed = marks[-1].group().startswith("\\")
        return strip_markup(up_to_closing_brace(rest) if is_boxed else rest.partition("\n")[0])
    if number:
        numbers = list(NUMBER.finditer(strip_markup(text)))
        return numbers[-1].group() if numbers else ""
    lines = text.rstrip()[-MAX_ANSWER:].splitlines()
    return strip_markup(lines[-1]) if lines else ""


def up_to_closing_brace(text: str) -> str:
    """The text up to the brace that closes one opened before it."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i]
    return text


def strip_markup(text: str) -> str:
    """Without markup that changes only its looks."""
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def find_number(answer: str) -> re.Match[str] | None:
    """Of "x = 42 apples", 42: the first number behind the last sign of equality."""
    return NUMBER.search(answer.rpartition("=")[2])


def parse_values(number: re.Match[str] | None) -> list[Fraction]:
    """The values that a number can have as it is written; none for no number."""
    if number is None:
        return []
    if number["top"]:
        if not int(number["bottom"]):
            return []
        value = int(number["whole"] or 0) + Fraction(int(number["top"]), int(number["bottom"]))
    else:
        value = Fraction(number["decimal"].replace(",", "")) * Fraction(10) ** int(number["exponent"] or 0)
    if number["sign"] in ("-", "−"):
        value = -value
    return [value, value / 100] if number["percent"] else [value]


def normalise(text: str) -> str:
    """Without case, spaces, punctuation around it, and the parentheses of "(C)" and "C)"."""
    text = "".join(text.casefold().split()).strip(".,;:!?\"'`")
    letter = re.fullmatch(r"\(?(\w)\)", text)
    return letter[1] if letter else text
