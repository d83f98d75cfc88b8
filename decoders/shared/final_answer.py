r"""The final answer of a response: where it stands, and what it is as a number, a letter, or words.

It is the content of the last readable one of these, the first kind that there is:

1. \boxed{…}, <answer>…</answer>, "final answer is …", and "#### …" with a number or a letter alone or at the very end;
   boxes that "and", "or" or a comma join are one answer
2. "answer: …", "the answer is …", "the correct option is …", "42 is the answer", "(C) is correct"
3. the last number of the text, if a number is looked for; a letter that is a line of its own or heads the first or last
   line, if a letter is; else the last line

Unreadable are a mark with nothing behind it, a box that nothing closes, and remarks such as "that answer is correct".
What an answer denies ("not 12 but 15") is not read, and several ("3 or 4") are not one number or letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from trimtab.decoders.shared.numbers import UNIT, WrittenNumber, find_numbers, strip_markup

LONGEST = 20_000
"""Characters of a text, counted from its end, that are searched for an answer."""
MAX_ANSWER = 256
"""Characters of an answer that are read."""
MAX_MARKS = 64
"""Marks of a kind that are looked at, from the last one backwards."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,4}\{")
_TAG = re.compile(rf"<(?:final_?)?answer>(.{{1,{MAX_ANSWER * 8}}}?)</(?:final_?)?answer>", re.IGNORECASE | re.DOTALL)
_FINAL = re.compile(
    r"\bfinal\s{1,4}(?:answer|result)\b(?:[^\n.:=]{0,60}?\s(?:is|are)\b(?!n't)|[*_\s]{0,3}[:=]|[*_# ]{0,4}\n)",
    re.IGNORECASE,
)
_HASHED = re.compile(r"^####(?!#)([^\n]{1,256})$", re.MULTILINE)
_PHRASE = re.compile(
    r"""(?: (?<!to\ )(?:\banswers?\b|\bans\b) [*_]{0,3}
            (?: (?:\s(?:to|of|for|in|here|we|that|i)\b[^\n.:=]{0,60}?)? \s{1,4}
                (?:is|are|was|equals|(?:must|should|would|will|can\ only)\ be)\b
              | \s{0,4}[:=] | \s{0,4}(?=isn't\b) )
          | \b(?:correct|right|best)\s(?:option|choice|letter|one|statement)\s(?:is\b|:)
          | \b(?:option|choice)\s(?:is\b|:) | \bI\s(?:choose|pick|select)\b
        ) [*_]{0,3}:?""",
    re.IGNORECASE | re.VERBOSE,
)
_BEFORE = re.compile(
    r"""(\$[^$\n]{1,200}\$|[^\s]{1,60})\s{1,4}(?:
          is\s(?:the|our|your|my)\s(?:(?:final|correct|right|best)\s)?(?:answer|option|choice|one)\b
        | is\s(?:the\s)?(?:correct|right)\b(?=\s?(?:$|[.,;!]|because|since|as\b)) )""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_REMARK = re.compile(
    r"""[\W_]*(?:(?:indeed|therefore|thus|also|then|so|clearly|now|not|just|quite|already|probably|likely)\s)*
    (?:correct|right|wrong|incorrect|clear|obvious|simple|straightforward|below|above|as\sfollows|the\ssame|reasonable
      |verified|consistent|complete|explained|ready|unique|easy|valid|confirmed|fine|good|plausible|sound)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_LEAD = re.compile(
    r"(?:given\sby|(?:found|seen|known)\sto\sbe|that|indeed|therefore|thus|then|clearly|simply)[\s:]+", re.I
)
_JOIN = re.compile(
    r"[\s$\\)(\]]{0,8}[.,;]?\s{0,4}(?:,|;|and|or|\\text\{\s?(?:and|or)\s?\}|\\q?quad|\s)*[\s$\\(]{0,8}(?:[A-Za-z](?:_?\{?[A-Za-z0-9]{1,3}\}?)?\s?=\s?)?",
    re.I,
)
_END = re.compile(
    r"""[.;!?](?=[\s*_)"']|$) | \n | ,?\s\(?(?:because|since|as|where|which|when|given|hence|therefore|so|I\shope)\b
      | \s(?:—|--|-)\s(?![0-9])""",
    re.IGNORECASE | re.VERBOSE,
)
_ASIDE = re.compile(
    r",\s(?=(?:not|the|an?|it|he|she|they|we|this|that|i|who|with|for|is|but|and\snot|or\s(?:rather|in))\b)|\s\(|:\s|\s(?:—|–|-)\s",
    re.IGNORECASE,
)
_NOT = (
    r"(?:\bnot\b|\b[a-z]{1,8}n't\b|\binstead\sof\b|\brather\sthan\b|\bnever\b)\s{1,3}"
    r"(?:just\s|only\s|the\s|equal\sto\s)?"
)
_DENIED_NUMBER = re.compile(rf"{_NOT}[$€£]?-?[0-9][0-9.,]*(?![0-9])%?(?:\s{UNIT}(?![a-z]))?", re.IGNORECASE)
_DENIED_LETTER = re.compile(rf"{_NOT}(?:option\s)?\(?[A-Z](?![A-Za-z])\)?", re.IGNORECASE)
_DENIED_WORD = re.compile(rf"^{_NOT}[\w'-]+(?:\s[\w'-]+)?,?\s(?:but|rather)\s", re.IGNORECASE)
_LABEL = re.compile(r"^\(?([A-Z])(?:\)[.:]?|[.:])\s+(?=\S)")
_LETTER = re.compile(
    r"""^[\s(\[{"'*_:]*(?:(?:option|choice|letter|answer)\s)?(?P<open>[(\[{"'*_]*)(?P<letter>[A-Za-z])(?![^\W_])
        (?P<shut>[)\]}"*_]*|'(?!\w))(?P<rest>.*)$""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_ARTICLE = re.compile(
    r"\s+(?!(?:because|since|as|is|and\snot|not|for|which|where|with|due|but|rather)\b)\w", re.IGNORECASE
)
_ANOTHER_LETTER = re.compile(r"\s*(?:or|and|/|,|&|to|-)\s*(?:or\s|and\s)?\(?[A-Z]\)?(?![A-Za-z'])")
_LIST = re.compile(
    r"^\s*(?:[^\W\d]\w*\s*){0,2}(?:or|and|to|/|-|&)\s*(?:[^\W\d]\w*\s){0,2}[^\w\s]?(?=[0-9])", re.IGNORECASE
)
_OR = re.compile(r"\s*(?:[^\W\d]\w*\s){0,2}n?or\s[^\w\s]?", re.IGNORECASE)
_OPERATION = re.compile(r"^\s*(?:[+*/^]|-\s|\\)\s*[0-9\\(A-Za-z]")
_ABOUT = re.compile(
    r"^(?:about|approximately|approx\.?|around|roughly|exactly|\\approx|≈|~|:|-\s+(?=[0-9]))\s*", re.IGNORECASE
)
_UNITS = re.compile(
    rf"\s*(?:per\s|/\s?)?(?:{UNIT}(?![A-Za-z])(?:\^?\{{?-?[23]\}}?|[²³])?[\s/.*]*(?:per\s|of\s|a\s)?){{0,8}}[\s.%*)]*"
)
_FORMULA = re.compile(
    rf"(?<!\\)\$\$?([^$]{{1,{MAX_ANSWER}}})\$|\\\[(.{{1,{MAX_ANSWER}}}?)\\\]|\\\((.{{1,{MAX_ANSWER}}}?)\\\)", re.DOTALL
)


def find_marked(text: str) -> str | None:
    """What stands behind the best mark, LaTeX and all; None where nothing is marked. Errors: none."""
    text = (text.rpartition("</think>")[2].strip() or text)[-LONGEST:]
    for find in (_find_strong, _find_phrases):
        for span in find(text):
            if (stripped := span.strip(" \t\r\n*_:")) and strip_markup(stripped):
                return stripped
    return None


def read_number(text: str, *, marked: str | None) -> WrittenNumber | None:
    """The number that `marked`, of `text`, is; without a mark the text's last number that it does not deny."""
    if marked is None and not (marked := _closing_formula(text)):
        plain = _DENIED_NUMBER.sub(" ", strip_markup(text[-LONGEST:]))
        numbers = list(find_numbers(plain))
        is_one_of_several = len(numbers) > 1 and _OR.fullmatch(plain[numbers[-2].end : numbers[-1].start])
        return numbers[-1] if numbers and not is_one_of_several else None
    plain = _value_side(_DENIED_NUMBER.sub(" ", strip_markup(cut_clause(marked))))
    number = next(find_numbers(plain), None)
    if number is None or _is_whole(number, plain):
        return number
    if marked.startswith("$") and re.search(r"\$(?: %)?$", marked):  # a formula is a number or it is not
        return None
    before, behind = plain[: number.start], plain[number.end :]
    is_prose = not re.search(r"[\\^{}<>|√]", before + behind) and not re.search(r"[-+*/(±]\s*$|\bbetween\b", before)
    several = _LIST.match(behind) or re.fullmatch(r"(\s*[,;]\s*(?:and\s|or\s)?[-\d./]+)+", behind)
    return number if is_prose and not several and not _OPERATION.match(behind) else None


def read_whole_number(marked: str) -> WrittenNumber | None:
    """The number that `marked` is, with at most a unit behind it and a name and "=" before it."""
    plain = strip_markup(marked)
    if re.search(r"[-+*^<>].*=|=.*=", plain):  # an equation, not a name and its value
        return None
    plain = _value_side(plain)
    number = next(find_numbers(plain), None)
    return number if number is not None and _is_whole(number, plain) else None


def find_formula(text: str) -> str:
    """The last formula of a text without marks: between dollars or TeX's brackets, or the last line; "" for none."""
    lines = text.rstrip()[-MAX_ANSWER:].splitlines()
    return _closing_formula(text) or (lines or [""])[-1]


def _closing_formula(text: str) -> str:
    """The last formula with a digit or a command in it, if no number stands behind it, in dollars; "" for none."""
    text = text[-LONGEST:]
    for match in reversed(list(_FORMULA.finditer(text))):
        inner = next(filter(None, match.groups()))
        if re.search(r"[0-9\\]", inner):
            behind = text[match.end() :]
            percent = " %" if re.match(r"\s?(?:\\?%|percent|pct)", behind) else ""
            return "" if next(find_numbers(strip_markup(behind)), None) else f"${inner}$" + percent
    return ""


def _value_side(plain: str) -> str:
    """What stands behind the last "=", exact rather than rounded; "" for several equations, which are many answers."""
    *names, value = re.split(r"(?<![<>!≤≥])=", _LABEL.sub("", plain))
    if any(re.search(r"[,;]|\band\b|\bor\b", name) for name in names[1:]):
        return ""
    exact, _, rounded = re.sub(r"\\approx(?![A-Za-z])", "≈", value).partition("≈")
    value = (exact if next(find_numbers(exact), None) else rounded or exact).strip(" ,;:*_\"'")
    return _ABOUT.sub(lambda match: "-" if match[0].startswith("-") else "", value)


def _is_whole(number: WrittenNumber, plain: str) -> bool:
    return not plain[: number.start].strip(" ({[") and _UNITS.fullmatch(plain[number.end :]) is not None


def read_letter(text: str, *, marked: str | None) -> str | None:
    """The option that `marked` names, in upper case; without a mark the one that a line is or begins with."""
    if marked is not None:
        return _letter_at_head(_DENIED_LETTER.sub(" ", strip_markup(cut_clause(marked))))
    lines = [line for line in strip_markup(text[-LONGEST:]).splitlines() if line.strip()]
    heads = {match[1] for line in lines if (match := _LABEL.match(line.lstrip(" *_#-")))}
    if len(heads) > 1:  # the options themselves
        lines = lines[-1:] if lines and len(lines[-1].strip(" ().*:")) == 1 else []
    for line in (*lines[-1:], *lines[:1]):
        line = line.strip(" *_#-")
        if _LABEL.match(line) or re.fullmatch(r"(?:option\s|choice\s)?\(?[A-Z]\)?[.:]?", line, re.IGNORECASE):
            return _letter_at_head(line)
    return None


def read_words(text: str, *, marked: str | None) -> list[str]:
    """The ways to read the answer as words, the fullest first; without a mark the last line."""
    if marked is None:
        lines = text.rstrip()[-MAX_ANSWER:].splitlines()
        return [strip_markup(lines[-1])] if lines else []
    clause = _DENIED_WORD.sub("", strip_markup(cut_clause(marked)))
    ways = [strip_markup(marked), clause, _ASIDE.split(clause)[0], _LABEL.sub("", clause)]
    if (yes := re.match(r"(yes|no|true|false)\b(?=[,.;: ])", clause, re.IGNORECASE)) is not None:
        ways.append(yes[1])
    return list(dict.fromkeys(ways))


def cut_clause(marked: str) -> str:
    """Up to where the sentence ends or begins to say why."""
    match = _END.search(_LABEL.sub(lambda m: m[0].replace(".", ":"), marked))
    return marked[: match.start()] if match and match.start() else marked


def _find_strong(text: str) -> Iterator[str]:
    marks = [
        (match.start(), match.end(), match) for kind in (_BOX, _TAG, _FINAL, _HASHED) for match in kind.finditer(text)
    ]
    marks = sorted(marks, key=lambda mark: mark[:2], reverse=True)[:MAX_MARKS]
    opened = {start: up_to_closing_brace(text, end) for start, end, match in marks if match.re is _BOX}
    for start, end, match in marks:
        if match.re is _BOX:
            yield _join_boxes(text, start, [s for s, _, m in marks if m.re is _BOX and s < start], opened)
        elif match.re is _TAG:
            yield match[1][-MAX_ANSWER:] if "\n" not in match[1].strip() else match[1].strip().splitlines()[-1]
        elif match.re is _FINAL:
            yield _span_behind(text, end)
        elif _stands_alone(strip_markup(match[1])) or not text[end:].strip():
            yield match[1]


def _find_phrases(text: str) -> Iterator[str]:
    marks = sorted((match.end(), match) for kind in (_PHRASE, _BEFORE) for match in kind.finditer(text))
    for end, match in reversed(marks[-MAX_MARKS:]):
        if match.re is _BEFORE:
            if _stands_alone(strip_markup(match[1])) or match[1].startswith("$"):
                yield match[1]
        elif not _REMARK.match(span := _LEAD.sub("", _span_behind(text, end).lstrip(" *_:"), count=1)):
            yield span


def _stands_alone(plain: str) -> bool:
    """Whether it is one number or letter and nothing else."""
    bare = plain.strip(" .:*_()[]\"'$,")
    number = next(find_numbers(bare), None)
    return re.fullmatch("[A-Z]", bare) is not None or (number is not None and number.end - number.start == len(bare))


def _span_behind(text: str, start: int) -> str:
    """The rest of the line, or the first line that is not empty; a display formula is one line."""
    rest = text[start : start + MAX_ANSWER].lstrip(" \t\r\n*_:#")
    for opened, shut in (("\\[", "\\]"), ("$$", "$$"), ("\\(", "\\)"), ("$", "$")):
        if rest.startswith(opened):
            inner, closed, behind = rest[len(opened) :].partition(shut)
            if closed and not re.match(r"\s*(?:,|and\b|or\b|\w)", behind):
                return f"${inner}$" + (" %" if re.match(r"\s?(?:\\?%|percent|pct)", behind) else "")
    return rest.partition("\n")[0]


def up_to_closing_brace(text: str, start: int) -> tuple[str, int] | None:
    """(content, end) of the braces opened before `start`; None where nothing closes them within MAX_ANSWER."""
    depth = 1
    for i, character in enumerate(text[start : start + MAX_ANSWER]):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start : start + i], start + i + 1
    return None


def _join_boxes(text: str, last: int, earlier: list[int], opened: dict[int, tuple[str, int] | None]) -> str:
    """The last box with those that it is joined to, such as \\boxed{1} and \\boxed{2}; "" for one left open."""
    if (box := opened[last]) is None:
        return ""
    parts, begin = [box[0]], last
    for start in earlier:
        before = opened[start]
        if before is None or before[1] > begin or not _is_joined(text[before[1] : begin]):
            break
        parts.insert(0, before[0])
        begin = start
    percent = re.match(r"[\s$]{0,3}(?:\\?%|percent|pct)", text[box[1] : box[1] + 12])
    return f"${', '.join(parts)}$" + (" %" if percent else "")


def _is_joined(between: str) -> bool:
    return re.search(r"[,;]|\band\b|\bor\b", between) is not None and _JOIN.fullmatch(between) is not None


def _letter_at_head(plain: str) -> str | None:
    match = _LETTER.match(re.sub(r"^[\s,:]*(?:(?:but|it's|it is|rather)\s)?", "", plain))
    if match is None:
        return None
    letter, rest = match["letter"], match["rest"]
    is_bare = not match["shut"] and not match["open"]
    if is_bare and rest.strip(" .") and (letter.islower() or (letter in "AI" and _ARTICLE.match(rest))):
        return None
    if _ANOTHER_LETTER.match(rest) or re.match(r"\s*[=+*/^<>\\_{(]|-\S|'\w|[0-9]", rest):
        return None
    return letter.upper()


def normalise(text: str) -> str:
    """Without case, spaces and punctuation around it."""
    return "".join(text.casefold().split()).strip(".,;:!?\"'`*_")
