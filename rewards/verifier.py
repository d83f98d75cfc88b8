r"""Right or wrong: the final answer of a response against that of the request.

    r(x, y) = 1 if answer(y) = given["answer"], else 0                                                              (1)

Which part of a response is its answer is what votes read too (`decoders/shared/final_answer.py`). The request's answer
is a number, a letter of a choice, a formula or words, and the response's is read as that. Numbers are compared as exact
fractions, in any notation (`decoders/shared/numbers.py`); 75% is both 75 and 0.75. In the response, units or a currency
may stand around them. Formulas are compared by `math-verify` (`rewards/symbolic.py`), whose floats agree to six places,
after a comparison as texts: without case, spaces, markup and outer punctuation. Words are compared as texts alone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import Field

from trimtab.decoders.shared.final_answer import (
    MAX_ANSWER,
    find_formula,
    find_marked,
    normalise,
    read_letter,
    read_number,
    read_whole_number,
    read_words,
)
from trimtab.decoders.shared.numbers import WrittenNumber
from trimtab.rewards.protocols import Question, Response
from trimtab.rewards.symbolic import are_equal, is_formula


@dataclass(frozen=True, slots=True)
class RightAnswer:
    """The request's answer, as what it can be."""

    source: str
    words: frozenset[str]
    number: WrittenNumber | None
    letter: str | None


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """1 for the right final answer, 0 for any other and for none; it is the last readable of the first kind there is:

        \\boxed{…}    <answer>…</answer>    final answer is …    #### …
        answer: …     the answer is …       the correct option is …
        the last number, the line that is a letter, or the last line

    by what the request's answer is. Remarks ("that answer is correct") are not readable, what is denied ("not 12 but
    15") is not read, and several ("3 or 4") are none. Numbers are exact in any notation: 1,234.5; 1 234,5;
    1.2 \\times 10^3; 3/4; 75%, which is both 75 and 0.75. Formulas, sets and intervals are equal by math-verify, floats
    in them to six decimals. Letters and words are compared as texts.

    An answer cut at `max_tokens` has come to nothing yet. Where another did not, what is read in it counts for nothing
    under every search, and `unfinished` says how many there were.
    """

    reads_final_answer: ClassVar[bool] = True
    reads_conversation: ClassVar[bool] = False

    tolerance: Annotated[
        float, Field(ge=0, le=1, description="largest relative error of a number that is still right; 0 is exact")
    ] = 0.0

    @property
    def labels(self) -> tuple[str, ...]:
        return ("score",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"answer"})

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        right = parse_right_answer(question.given["answer"])
        verdicts = await asyncio.to_thread(lambda: [self._judge(right, response.text) for response in responses])
        return [
            [float(await are_equal(right.source, verdict) if isinstance(verdict, str) else verdict)]
            for verdict in verdicts
        ]

    def _judge(self, right: RightAnswer, text: str) -> bool | str:
        """Whether the answer is right, or the formula that is to be compared with the right one."""
        marked = find_marked(text)
        if right.letter is not None:
            return read_letter(text, marked=marked) == right.letter  # (1)
        if right.number is not None:
            if (number := read_number(text, marked=marked)) is not None:
                return any(self._is_near(a, b) for a in number.values for b in right.number.values)  # (1)
        elif not right.words.isdisjoint(map(normalise, read_words(text, marked=marked))):  # (1)
            return True
        formula = find_formula(text) if marked is None else marked
        return formula if formula and is_formula(right.source) and is_formula(formula) else False

    def _is_near(self, a: Fraction, b: Fraction) -> bool:
        return abs(a - b) <= Fraction(self.tolerance) * abs(b)


def parse_right_answer(answer: Any) -> RightAnswer:
    """Raises ValueError for a value that is no answer."""
    text = str(answer) if isinstance(answer, int | float) and not isinstance(answer, bool) else answer
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_ANSWER:
        raise ValueError(f"answer must be a number or a text of 1 to {MAX_ANSWER} characters; got {str(answer)[:80]!r}")
    source = find_marked(text) or text.strip()
    letter = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", source.strip(" $*"))
    return RightAnswer(
        source=source,
        words=frozenset(normalise(way) for way in read_words(source, marked=source)[:2]),
        number=read_whole_number(source),
        letter=letter[1].upper() if letter else None,
    )
