"""Right or wrong: the final answer of a response against the one that the request gives.

    r(x, y) = 1 if answer(y) = given["answer"], else 0                                                              (1)

The final answer is what the last of these holds: \\boxed{…}, "#### …", "Answer: …" or "the answer is …"; a response
with none of them answers with its last number where a number is asked for, and with its last line where it is not.
Where the request gives a number, numbers are compared, as exact fractions, whatever they are written as: 1,234.50;
1.2345e3; 3/4; \\frac{3}{4}; 1 1/2; 75%, which is both 75 and 0.75; in the response with units or a currency around
them. Where it gives anything else, texts are compared, without case, spaces, dressing or punctuation around them.

Symbolic answers that are equal but not alike (x+1 and 1+x) are not seen to be equal. `math-verify` sees it, by
computing what it reads; and what it reads was written by a model: \\boxed{9^{9^9}} takes longer than anyone waits and
holds the interpreter meanwhile, so that no thread's timeout ends it, only a process of its own. Everything here is
linear in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import Field

from trimtab.rewards.protocols import Question, Response
from trimtab.rewards.text_rule import Textual

LONGEST = 256
"""Characters of an answer that are read; no number is longer."""

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

DRESSING = (
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"(?<=\d)(?=\\frac)"), " "),
    (re.compile(r"\\frac\s?\{(-?\d{1,64})\}\s?\{(\d{1,64})\}"), r"\1/\2"),
    (re.compile(r"\\frac\s?(\d)\s?(\d)"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\left|\\right|\\[,;:!() \[\]]|\{,\}(?=\d)|\\?\$|\*"), ""),
)
"""LaTeX and Markdown that change how an answer looks and not what it is."""


@dataclass(frozen=True, kw_only=True)
class Verifier(Textual):
    """1 for the right final answer, 0 for any other and for none."""

    tolerance: Annotated[
        float, Field(ge=0, le=1, description="largest relative error of a number that is still right; 0 is exact")
    ] = 0.0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"answer"})

    def score(self, question: Question, response: Response) -> float:
        right = dressed_down(asked(question.given["answer"]))
        numbers = readings(NUMBER.fullmatch(right))
        found = final(response.text, number=bool(numbers))
        if numbers:
            return float(any(self._near(a, b) for a in readings(first_number(found)) for b in numbers))  # (1)
        return float(plain(found) == plain(right))  # (1)

    def _near(self, a: Fraction, b: Fraction) -> bool:
        return abs(a - b) <= Fraction(self.tolerance) * abs(b)


def asked(answer: Any) -> str:
    """Raises ValueError where the request's answer is none."""
    text = str(answer) if isinstance(answer, int | float) and not isinstance(answer, bool) else answer
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
        raise ValueError(f"answer must be a number or a text of 1 to {LONGEST} characters; got {str(answer)[:80]!r}")
    return text


def final(text: str, *, number: bool) -> str:
    """The final answer as it is written, at most LONGEST characters of it; "" for none."""
    if marks := list(MARK.finditer(text)):
        rest = text[marks[-1].end() :][:LONGEST].lstrip()
        return dressed_down(braced(rest) if marks[-1].group().startswith("\\") else rest.partition("\n")[0])
    if number:
        numbers = list(NUMBER.finditer(dressed_down(text)))
        return numbers[-1].group() if numbers else ""
    lines = text.rstrip()[-LONGEST:].splitlines()
    return dressed_down(lines[-1]) if lines else ""


def braced(text: str) -> str:
    """Up to the brace that closes the one before the text."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i]
    return text


def dressed_down(text: str) -> str:
    """Without what changes how it looks only."""
    for pattern, plainly in DRESSING:
        text = pattern.sub(plainly, text)
    return text.strip()


def first_number(found: str) -> re.Match[str] | None:
    """Of "x = 42 apples", 42: the first number behind the last sign of equality."""
    return NUMBER.search(found.rpartition("=")[2])


def readings(number: re.Match[str] | None) -> list[Fraction]:
    """What a number as it is written can mean; none for no number."""
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


def plain(text: str) -> str:
    """Without case, spaces, punctuation around it, and the parentheses of "(C)" and "C)"."""
    text = "".join(text.casefold().split()).strip(".,;:!?\"'`")
    letter = re.fullmatch(r"\(?(\w)\)", text)
    return letter[1] if letter else text
