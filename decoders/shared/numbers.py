r"""Numbers as people and models write them: text -> exact values.

1,234.5; 1 234,5; 1'234.5; 1_234.5; 1.2345e3; 1.2345 \times 10^3; 3/4; \frac{3}{-4}; 1 1/2; 1½; −5; $5; 5%; 5 million.

A comma before three digits groups thousands (1,234), any other comma between two digits is a decimal comma (2,74), as
is one behind a leading zero (0,125), behind groups (1.234,5), and none in a list (1,2,3) or in brackets.
Every search is linear in the text, whatever is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

UNIT = (
    r"(?:cm|mm|km|nm|kg|mg|lbs?|oz|ft|yds?|mi|mph|kmh|kph|ml|mL|kJ|kWh?|k?Hz|[MG]Hz|k?Pa|e?V|mol|mins?|hrs?|ms|in|[mgshlLNJWVKCF]"
    r"|(?!(?:sin|cos|tan|log|ln|exp|sqrt|pi|and|or|frac|times|cdot|to|not|mod)(?![A-Za-z]))[A-Za-zµΩ]{3,20})"
)
_DIGITS = r"""
    [0-9]{1,3}(?:\.[0-9]{3}){2,40}(?:,[0-9]{1,200})?(?![0-9]) | [0-9]{1,3}\.[0-9]{3},[0-9]{1,200}(?![0-9])
  | [0-9]{1,2}(?:,[0-9]{2}){1,20},[0-9]{3}(?![0-9])(?:\.[0-9]{0,200})?
  | [0-9]{1,3}(?:,[0-9]{3}){1,40}(?![0-9])(?<!^0,[0-9]{3})(?<![^0-9]0,[0-9]{3})(?:\.[0-9]{0,200})?
  | [0-9]{1,3}(?P<gap>[ '’_])[0-9]{3}(?:(?P=gap)[0-9]{3}){0,40}(?![0-9])(?:[.,][0-9]{1,200})?
  | (?<![(\[{,0-9])[0-9]{1,200},[0-9]{1,200}(?!,?[0-9])
  | [0-9]{1,200}(?![0-9])(?:\.[0-9]{0,200})? | \.[0-9]{1,200}
"""
NUMBER = re.compile(
    rf"""(?<![^\W_])(?<![0-9][./:])(?<![0-9]/\ )(?<![{{^\\])(?<![^\W_]_)
    (?:(?P<sign>(?<![\w)\]])[-+])(?=[€£¥₹.0-9]))? [€£¥₹]?\s? (?P<sign_2>(?<=[€£¥₹])-)?
    (?: (?:(?P<whole>[0-9]{{1,64}})[ ]{{1,4}})?
        \(?(?P<top>[0-9]{{1,64}}(?:\.[0-9]{{1,64}})?)\)?\s?/\s?\(?(?P<bottom>-?[0-9]{{1,64}}(?:\.[0-9]{{1,64}})?)\)?
      | 10\s?(?:\^|\*\*)\s?[{{(]?\s?(?P<ten>[-+]?[0-9]{{1,3}})(?![0-9])\s?[}})]?
      | (?P<decimal>{_DIGITS})
        (?: [eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![0-9])
          | \s{{0,3}}[*x]\s{{0,3}}10\s?(?:\^|\*\*)\s?[{{(]?\s?(?P<power>[-+]?[0-9]{{1,3}})(?![0-9])\s?[}})]? )?
    )
    (?![0-9])(?![.:][0-9])(?!\s?/\s?[0-9(\\])(?!\s?[\^])(?!\*\*\s?[0-9(])
    (?:(?![^\W0-9_])|(?={UNIT}(?![A-Za-z])))
    (?: \s?(?P<percent>%|per\s?cent\b|percentage\b|pct\b) | \s(?P<multiple>thousand|million|billion|trillion)\b )?
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)

MULTIPLES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_SIGNED = r"\s?(-?\s?[0-9]{1,64}(?:\.[0-9]{1,64})?)\s?"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_SIGNS = str.maketrans(
    dict.fromkeys("−－﹣‐‑–", "-")
    | dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000~", " ")
    | dict.fromkeys("×⋅·∙", "*")
    | {"⁄": "/", "∕": "/", "÷": "/", "＄": "$", "％": "%", "\u200b": "", "\u2060": "", "\ufeff": ""}
)
MARKUP = (
    (re.compile(r"\\(?:d|t|c)frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits|,\\!|!)(?![A-Za-z])"), ""),
    (re.compile(r"\{,\}(?=[0-9])|,\\!(?=[0-9])"), ","),
    (
        re.compile(
            r"\\(?:text|textnormal|mathrm|mathbf|textbf|textit|textrm|mbox|operatorname|bf|rm)\s?\{([^{}]{0,200})\}"
        ),
        r" \1 ",
    ),
    (re.compile(r"\\[,;:> ()\[\]]|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\times(?![A-Za-z])|\\cdot(?![A-Za-z])"), "*"),
    (re.compile(r"\^\s?\{?\s?(?:\\circ|°)\s?\}?|\\degree(?![A-Za-z])|°"), " "),
    (re.compile(r"\\(?=[%#&_{}€£¥])"), ""),
    (re.compile(r"(?<=[A-Za-z])\\?\$(?=[0-9.])"), " "),
    (re.compile(r"\\?\$"), ""),
    (re.compile(r"(?<=[0-9])(?=\\frac)"), " "),
    (re.compile(rf"\\frac\s?\{{{_SIGNED}\}}\s?\{{{_SIGNED}\}}"), r"\1/\2"),
    (re.compile(r"\\frac\s?([0-9])\s?([0-9])"), r"\1/\2"),
    (re.compile(rf"\\frac\s?([0-9])\s?\{{{_SIGNED}\}}|\\frac\s?\{{{_SIGNED}\}}\s?([0-9])"), r"\1\3/\2\4"),
    (
        re.compile(
            r"(?<![*\s(])\*\*(?![*\s0-9({])|(?<![^\s(])\*\*|\*\*(?=\s|$|[.,:;!?)])|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)"
        ),
        "",
    ),
    (re.compile(r"`"), ""),
)
"""LaTeX and Markdown that change how an answer looks, with what replaces them."""


@dataclass(frozen=True, slots=True)
class WrittenNumber:
    """A number in a text."""

    value: Fraction
    """As written: 5 of 5%."""
    is_percent: bool
    start: int
    end: int

    @property
    def values(self) -> tuple[Fraction, ...]:
        """What it can mean: 75% is 75 and 0.75."""
        return (self.value, self.value / 100) if self.is_percent else (self.value,)


def strip_markup(text: str) -> str:
    """Without markup that changes only how an answer looks, in ASCII's signs and spaces."""
    for sign, ascii_form in _VULGAR.items():
        if sign in text:
            text = re.sub(rf"(?<=[0-9])\s?{sign}", f" {ascii_form}", text).replace(sign, ascii_form)
    text = re.sub("(?<=[0-9)])[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,20}", lambda m: "^" + m[0].translate(_SUPERSCRIPTS), text)
    text = text.translate(_SIGNS)
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def find_numbers(text: str) -> Iterator[WrittenNumber]:
    """The numbers of a text without markup, in order."""
    for match in NUMBER.finditer(text):
        value = _parse(match)
        if value is not None:
            yield WrittenNumber(value, bool(match["percent"]), match.start(), match.end())


def _parse(match: re.Match[str]) -> Fraction | None:
    if match["top"]:
        top, bottom, whole = Fraction(match["top"]), Fraction(match["bottom"]), match["whole"]
        if not bottom or (whole and not 0 < top < bottom):
            return None
        value = int(whole or 0) + top / bottom
    elif match["ten"]:
        value = Fraction(10) ** int(match["ten"])
    else:
        value = Fraction(_in_english(match["decimal"])) * Fraction(10) ** int(match["exponent"] or match["power"] or 0)
    if match["multiple"]:
        value *= MULTIPLES[match["multiple"].lower()]
    return -value if "-" in (match["sign"], match["sign_2"]) else value


def _in_english(digits: str) -> str:
    """Digits without separators of thousands and with a decimal point."""
    digits = re.sub(r"[ '’_]", "", digits)
    if "," not in digits:
        return digits if digits.count(".") < 2 else digits.replace(".", "")
    if "." in digits:
        return (
            digits.replace(",", "")
            if digits.rfind(".") > digits.rfind(",")
            else digits.replace(".", "").replace(",", ".")
        )
    is_grouped = re.fullmatch(r"[1-9][0-9]{0,2}(,[0-9]{3})+|[0-9]{1,3}(,[0-9]{2,3})+,[0-9]{3}", digits)
    return digits.replace(",", "" if is_grouped else ".")


def write_number(value: Fraction) -> str:
    """In decimals where they end, as a fraction in lowest terms where they do not: "0.75", "1/3"."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    return ("-" if value < 0 else "") + whole + (f".{decimals}" if decimals else "")
